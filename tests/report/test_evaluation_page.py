import math
from pathlib import Path

import numpy as np
import pytest

from medtl.report.evaluation_page import confusion_cells, read_bounds, write_evaluation_page
from medtl.report.formatting import interval_text
from tests.report.pages import check_page, read_pages


def make_evaluation(**changes) -> dict:
    evaluation = {
        "auroc": {"value": 0.91, "low": 0.86, "high": 0.95},
        "sensitivity": {"value": None, "low": None, "high": None, "undefined": True},
        "per_class": {"opacity": {"auprc": {"value": math.nan, "low": math.nan, "high": math.nan}}},
        "classes": ["normal", "opacity"],
        "confusion": [[30, 10], [0, 0]],
        "roc": {"opacity": {"fpr": [0, 0.2, 1], "tpr": [0, 0.7, 1]}},
        "reliability": [
            {"mean_probability": 0.2, "observed": 0.25, "count": 37},
            {"mean_probability": None, "observed": None, "count": 0},
        ],
        "counts": {"studies": 40, "patients": 38},
    }
    return evaluation | changes


def test_page_is_self_contained_and_says_the_numbers(tmp_path, card):
    path = write_evaluation_page(tmp_path, make_evaluation(), card())
    pages = read_pages(tmp_path)
    assert path.name in pages and "model.html" in pages
    for name, page in pages.items():
        check_page(page, tmp_path / name)
    words = pages[path.name].words
    assert "0.91 (95% interval 0.86 to 0.95)" in words
    assert all(text in words for text in ("undefined", "37", "38", "75%", "no studies"))
    assert "nan" not in words.lower() and "None" not in words


def test_an_interval_that_lies_below_its_value_is_explained_beside_it(tmp_path, card):
    evaluation = make_evaluation(ece={"value": 0.05, "low": 0.0, "high": 0.05})
    write_evaluation_page(tmp_path, evaluation, card())
    words = " ".join(read_pages(tmp_path)["evaluation.html"].words.split())
    assert "the interval corrects for that, so most of it lies below the value" in words


def test_parts_that_are_absent_are_left_out(tmp_path, card):
    path = write_evaluation_page(tmp_path, {}, card())
    words = read_pages(tmp_path)[path.name].words
    assert "Confusion matrix" not in words and "Curves" not in words and "By class" not in words


def test_markup_in_names_stays_text(tmp_path, card):
    def write(folder: Path, evil: str) -> list:
        names = [f"normal{evil}", f"opacity{evil}"]
        metric = {f"m{evil}": {"value": 0.5, "low": 0.4, "high": 0.6}}
        evaluation = make_evaluation(
            **metric, per_class={names[0]: metric}, classes=names, counts={f"n{evil}": 3}, notes=[evil]
        )
        write_evaluation_page(folder, evaluation, card(title=f"t{evil}", classes=tuple(names)))
        return [page.tags for page in read_pages(folder).values()]

    assert write(tmp_path / "marked", "\"'><script>alert(1)</script>") == write(tmp_path / "plain", "")


@pytest.mark.parametrize(
    ("bounds", "drawn"),
    [((0.9, 0.8, 1.0), 1), ((0.9, None, None), 1), ((0.86, -0.44, 2.17), 0), ((1.4, 0.9, 1.9), 0)],
)
def test_an_interval_is_drawn_where_all_of_it_lies_between_0_and_1(tmp_path, card, bounds, drawn):
    evaluation = {"calibration_intercept": dict(zip(("value", "low", "high"), bounds, strict=True))}
    path = write_evaluation_page(tmp_path, evaluation, card())
    assert path.read_text(encoding="utf-8").count('class="whisker"') == drawn


def test_classes_and_thresholds_that_the_metrics_rest_on_are_said(tmp_path, card):
    evaluation = make_evaluation(
        part="unseen", class_counts={"normal": 1200, "opacity": 40}, thresholds=[0.4321]
    )
    path = write_evaluation_page(tmp_path, evaluation, card())
    words = read_pages(tmp_path)[path.name].words
    assert all(text in words for text in ("unseen", "1,200", "Threshold for opacity", "0.432"))
    assert "Threshold for normal" not in words


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_what_an_evaluation_writes_is_what_the_page_reads(tmp_path, card, kind):
    from medtl.data.task import Task
    from medtl.evaluation.evaluate import evaluate, to_json
    from medtl.evaluation.metrics import Questions
    from medtl.evaluation.thresholds import choose_thresholds

    task = Task(kind, ("normal", "opacity") if kind == "binary" else ("none", "glioma", "pituitary"))
    generator = np.random.default_rng(0)
    scores = generator.dirichlet([1.0] * len(task.classes), 60)
    labels = scores.argmax(axis=1)
    truth = labels if kind != "multilabel" else np.eye(len(task.classes), dtype=np.float32)[labels]
    patients = [str(place // 2) for place in range(60)]
    questions = Questions(scores, truth, task, patients)
    thresholds = choose_thresholds(questions)
    found = to_json(evaluate(questions, thresholds, resamples=50))
    path = write_evaluation_page(tmp_path, found, card(kind=kind, classes=task.classes))
    page = read_pages(tmp_path)[path.name]
    check_page(page, path)
    auroc = found["auroc"]
    assert interval_text((auroc["value"], auroc["low"], auroc["high"])) in page.words
    assert all(f"Threshold for {name}" in page.words for name in task.classes[-len(thresholds) :])
    assert ("Confusion matrix" in page.words) == (kind != "multilabel")
    assert len(page.values("img", "src")) == 3


def test_only_what_has_a_value_and_bounds_is_a_metric():
    found = read_bounds(make_evaluation(counts={"value": 3}, class_counts={"low": 1, "high": 2}))
    assert found == {"auroc": (0.91, 0.86, 0.95), "sensitivity": (None, None, None)}


def test_confusion_shares_are_of_the_true_class():
    (first, second) = confusion_cells([[6, 2], [0, 0]])
    assert [cell["share"] for cell in first] == [0.75, 0.25] and [cell["share"] for cell in second] == [
        None,
        None,
    ]
    assert [cell["correct"] for cell in first + second] == [True, False, False, True]
    assert first[0]["shade"] > first[1]["shade"]


def test_other_confidence_is_said(tmp_path, card):
    path = write_evaluation_page(tmp_path, make_evaluation(confidence=0.9), card())
    assert "90% interval" in read_pages(tmp_path)[path.name].words


@pytest.mark.parametrize("count", [1, 12])
def test_any_number_of_classes_is_drawn(tmp_path, card, count):
    names = [f"class {place}" for place in range(count)]
    curve = {"fpr": [0, 1], "tpr": [0, 1]}
    evaluation = make_evaluation(
        classes=names, roc=dict.fromkeys(names, curve), confusion=[[1] * count for _ in names]
    )
    path = write_evaluation_page(tmp_path, evaluation, card())
    check_page(read_pages(tmp_path)[path.name], path)


def make_groups(evil: str = "") -> list:
    def bounds(value, low, high):
        return {"auroc": {"value": value, "low": low, "high": high}}

    rows = [
        {"name": f"F{evil}", "samples": 40, "patients": 30, "metrics": bounds(0.9, 0.8, 0.95), "reason": ""},
        {"name": "M", "samples": 30, "patients": 25, "metrics": bounds(0.7, 0.6, 0.8), "reason": ""},
        {"name": "O", "samples": 3, "patients": 3, "metrics": bounds(None, None, None), "reason": "too few"},
    ]
    gap = {"value": 0.2, "low": 0.05, "high": 0.3}
    return [{"attribute": f"sex{evil}", "worst": "M", "gap": gap, "groups": rows}]


def test_subgroups_sets_and_calibration_are_said_in_words(tmp_path, card):
    conformal = {
        "promised": 0.9,
        "coverage": {"value": 0.88, "low": 0.8, "high": 0.93},
        "by_class": {"opacity": {"value": 0.91, "low": 0.8, "high": 0.97}},
        "sizes": {"1": 30, "2": 10},
    }
    evaluation = make_evaluation(
        subgroups=make_groups(),
        conformal=conformal,
        calibration="probabilities are calibrated by temperature on validation data",
        calibration_slope={"value": 0.6, "low": 0.4, "high": 0.8},
        calibration_intercept={"value": 0.1, "low": -0.2, "high": 0.4},
        threshold_rule="cost=10:1",
        prevalence={"opacity": 0.05},
    )
    path = write_evaluation_page(tmp_path, evaluation, card())
    page = read_pages(tmp_path)[path.name]
    check_page(page, path)
    for text in (
        "Lowest AUROC: M, 0.20 (95% interval 0.05 to 0.30) below all others combined",
        "3 studies, too few",
        "90% of new patients",
        "0.88 (95% interval 0.80 to 0.93)",
        "30 (75%)",
        "The model is overconfident: calibration slope 0.60",
        "no evidence that the probabilities are, on average, too high or too low",
        "lowest cost (missed case : false alarm = 10:1)",
        "5.0%",
        "Clopper and Pearson",
    ):
        assert text in page.words, text
    assert "do not show that it is worse" not in page.words


def test_markup_in_subgroups_stays_text(tmp_path, card):
    tags = []
    for name, evil in (("marked", "\"'><script>alert(1)</script>"), ("plain", "")):
        write_evaluation_page(tmp_path / name, make_evaluation(subgroups=make_groups(evil)), card())
        tags.append(read_pages(tmp_path / name)["evaluation.html"].tags)
    assert tags[0] == tags[1]
