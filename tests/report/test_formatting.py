import math

import pytest

from medtl.explain.audit import FAILED
from medtl.report.formatting import (
    MEASURES,
    duration_text,
    interval_text,
    metric_name,
    number_text,
    probability_text,
    set_text,
    words_of_audit,
)


def test_interval_is_in_words():
    assert interval_text((0.931, 0.884, 0.967)) == "0.93 (95% interval 0.88 to 0.97)"
    assert interval_text((0.931, 0.884, 0.967), 0.9) == "0.93 (90% interval 0.88 to 0.97)"


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
def test_what_is_not_a_number_is_undefined(nothing):
    assert number_text(nothing) == "undefined"
    assert interval_text((nothing, 0.1, 0.2)) == "undefined"
    assert interval_text((0.5, nothing, 0.9)) == "0.50 (interval undefined)"


def test_probability_is_never_rounded_to_certainty():
    assert [probability_text(value) for value in (0.0, 0.004, 0.006, 0.5, 0.994, 0.996, 1.0)] == [
        "< 0.01",
        "< 0.01",
        "0.01",
        "0.50",
        "0.99",
        "> 0.99",
        "> 0.99",
    ]


def test_durations_read_like_durations():
    seconds = (0.26, 41.2, 59.7, 130, 4210, math.nan)
    assert [duration_text(value) for value in seconds] == [
        "0.3 s",
        "41 s",
        "1 min 0 s",
        "2 min 10 s",
        "1 h 10 min",
        "undefined",
    ]


def test_unknown_metric_keeps_a_readable_name():
    assert metric_name("top_2_accuracy").name == "top 2 accuracy"


@pytest.mark.parametrize(
    ("prediction_set", "kind", "words"),
    [
        (None, "binary", ""),
        (("normal",), "binary", "normal"),
        (("a", "b", "c"), "multiclass", "a or b or c"),
        (("mass", "fluid?"), "multilabel", "mass, possibly fluid"),
        ((), "multilabel", "none of the findings"),
    ],
)
def test_prediction_set_is_in_words(prediction_set, kind, words):
    assert set_text(prediction_set, kind) == words


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
    assert "0.40 (95% interval 0.30 to 0.50); should be below 0." in found.sentences[1]
    assert found.sentences[0].startswith("Deletion, passed:")


def test_undefined_numbers_and_empty_maps_are_said():
    row = audited(empty=5, deletion="undecided")
    row["checks"]["deletion"]["value"] = None
    found = words_of_audit(row, "")
    assert "undefined" in found.sentences[0] and "5 of 5 maps are empty" in found.sentences[1]


def test_every_check_of_an_audit_has_words():
    assert list(MEASURES) == list(FAILED)
