"""The page of a comparison: self-contained, in words, and claiming only what the data show."""

from pathlib import Path
from typing import Any

import pytest

from medtl.report.comparison_page import difference_words, worth_sentence, write_comparison_page
from tests.report.pages import check_page, read_pages


def make_run(name: str, schedule: str, labels: int, *, reference: bool = False) -> dict[str, Any]:
    metrics = {
        "auroc": {"value": 0.91, "low": 0.86, "high": 0.95},
        "brier": {"value": None, "low": None, "high": None, "undefined": True},
    }
    differences = {
        "auroc": {"value": 0.051, "low": 0.02, "high": 0.08, "p": 0.0002, "p_holm": 0.0004},
        "brier": {"value": None, "low": None, "high": None, "p": None, "p_holm": None},
    }
    recipe = {"schedule": schedule, "labels": labels, "seed": 1}
    return {
        "name": name,
        "recipe": recipe,
        "metrics": metrics,
        "differences": {} if reference else differences,
    }


def make_comparison(**changes: object) -> dict[str, Any]:
    point = {"value": 0.9, "low": 0.88, "high": 0.92, "seeds": 3}
    curve = [{**point, "labels": 50.0}, {**point, "labels": 200.0}]
    comparison = {
        "reference": "base",
        "task": {"kind": "binary", "classes": ["normal", "opacity"]},
        "counts": {"samples": 40, "patients": 38},
        "confidence": 0.95,
        "adjusted_for": 1,
        "notes": ["validation samples"],
        "runs": [make_run("base", "scratch", 200, reference=True), make_run("other", "gradual", 50)],
        "curves": [{"name": "scratch", "points": curve}, {"name": "gradual", "points": curve}],
        "worth": make_worth(),
        "scratch_has_more": True,
    }
    return comparison | changes


def make_worth(**changes: object) -> dict[str, Any]:
    worth = {
        "name": "gradual",
        "labels": 50.0,
        "beaten": 200.0,
        "reached": 800.0,
        "value": 0.95,
        "beaten_value": 0.9,
        "seeds": [3, 1],
        "difference": {"value": 0.05, "low": 0.02, "high": 0.08, "p_holm": 0.001},
    }
    return worth | changes


def test_page_is_self_contained_and_says_the_numbers(tmp_path: Path) -> None:
    path = write_comparison_page(tmp_path, make_comparison())
    page = read_pages(tmp_path)[path.name]
    check_page(page, path)
    for text in ("+0.051", "+0.020 to +0.080", "< 0.001", "from scratch, 200 labels", "undefined"):
        assert text in page.words, text
    assert "Gradual unfreezing with 50 labels beats training from scratch with 200: AUROC" in page.words
    assert "nan" not in page.words.lower() and "None" not in page.words
    assert len(page.values("img", "src")) == 2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "Training from scratch needed 800 labels for this."),
        ({"worth": make_worth(reached=None)}, "Training from scratch never reached this."),
        ({"worth": None}, "do not show that transfer saves labels"),
        ({"worth": None, "scratch_has_more": False}, ""),
    ],
)
def test_the_sentence_says_what_the_data_say(changes: dict[str, Any], text: str) -> None:
    sentence = worth_sentence(make_comparison(**changes))
    assert text in sentence and bool(text) == bool(sentence)
    if changes.get("worth", make_worth()):
        assert "(a single seed; others may differ)" in sentence and "0.020 to 0.080" in sentence


def test_several_seeds_are_counted() -> None:
    sentence = worth_sentence(make_comparison(worth=make_worth(seeds=[3, 3])))
    assert "(means over 3 seeds)" in sentence and "single" not in sentence


def test_runs_without_curves_or_recipes_have_a_ladder_all_the_same(tmp_path: Path) -> None:
    runs = [{**run, "recipe": {}} for run in make_comparison()["runs"]]
    comparison = make_comparison(runs=runs, curves=[], worth=None, scratch_has_more=False)
    path = write_comparison_page(tmp_path, comparison)
    page = read_pages(tmp_path)[path.name]
    check_page(page, path)
    assert len(page.values("img", "src")) == 1 and "Learning curves" not in page.words


def test_markup_in_names_stays_text(tmp_path: Path) -> None:
    def write(folder: Path, evil: str) -> list:
        runs = [make_run(f"base{evil}", "scratch", 9, reference=True), make_run(f"a{evil}", f"s{evil}", 5)]
        curves = [{"name": f"s{evil}", "points": make_comparison()["curves"][0]["points"]}]
        task = {"kind": "binary", "classes": [f"n{evil}", f"o{evil}"]}
        changes = {"runs": runs, "curves": curves, "task": task, "notes": [evil]}
        write_comparison_page(folder, make_comparison(reference=f"base{evil}", **changes))
        return [page.tags for page in read_pages(folder).values()]

    assert write(tmp_path / "marked", "\"'><script>alert(1)</script>$x$") == write(tmp_path / "plain", "")


def test_a_difference_is_said_with_its_doubt() -> None:
    found = make_run("a", "full", 5)["differences"]
    assert difference_words(None) == ", the reference"
    assert difference_words(found["auroc"]) == (", difference +0.051 (+0.020 to +0.080), adjusted p < 0.001")
    assert difference_words(found["brier"]) == ", difference undefined"
    bare = {**found["auroc"], "low": None, "high": None, "p_holm": None}
    assert difference_words(bare) == ", difference +0.051 (interval undefined), adjusted p undefined"
