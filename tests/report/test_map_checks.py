import pytest

from medtl.explain.audit import FAILED
from medtl.report.formatting import MEASURES, words_of_audit


def check(verdict: str, value: float | None = 0.4) -> dict:
    low = None if verdict == "undecided" else 0.3
    return {
        "value": value,
        "low": low,
        "high": None if low is None else 0.5,
        "bound": 0.0,
        "verdict": verdict,
    }


def audited(empty: int = 0, **verdicts: str) -> dict:
    """Return the audit of a method as JSON holds it."""
    checks = {name: check(verdict) for name, verdict in verdicts.items()}
    return {"method": "grad-cam", "images": 5, "empty": empty, "checks": checks}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("passed", "passed"), "passed"),
        (("passed", "failed"), "failed"),
        (("undecided", "failed"), "failed"),
        (("passed", "undecided"), "undecided"),
    ],
)
def test_a_method_passes_only_if_every_check_does(verdicts, expected):
    found = words_of_audit(audited(deletion=verdicts[0], stability=verdicts[1]), "On five images.")
    assert found.verdict == expected and found.basis == "On five images." and len(found.sentences) == 2


def test_what_failed_is_named_with_its_numbers():
    found = words_of_audit(audited(deletion="passed", randomisation="failed"), "")
    assert found.headline == "Do not rely on its maps: survives randomisation."
    assert "0.40 (95% interval 0.30 to 0.50); below 0 is right." in found.sentences[1]
    assert found.sentences[0].startswith("Deletion, passed:")


def test_undefined_numbers_and_empty_maps_are_said():
    row = audited(empty=5, deletion="undecided")
    row["checks"]["deletion"]["value"] = None
    found = words_of_audit(row, "")
    assert "undefined" in found.sentences[0] and "5 of 5 maps are empty" in found.sentences[1]


def test_every_check_of_an_audit_has_words():
    assert list(MEASURES) == list(FAILED)
