"""Subgroups are banded, by patient, undefined where they must be, and compared without false alarm."""

import csv
import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from medtl.data.task import Task
from medtl.errors import CheckpointError
from medtl.evaluation.evaluate import evaluate
from medtl.evaluation.intervals import interval_json
from medtl.evaluation.metrics import Questions
from medtl.evaluation.predictions import Predictions, read_predictions, write_predictions
from medtl.evaluation.subgroups import (
    evaluate_subgroups,
    name_groups,
    write_metrics,
    write_subgroups,
)

BINARY = Task("binary", ("normal", "=lesion"))


def make_groups(samples: int, shifts: dict[str, float], seed: int = 0) -> tuple:
    """Scores whose classes lie `shift` apart in each group."""
    generator = np.random.default_rng(seed)
    names = generator.choice(list(shifts), samples)
    truth = generator.integers(0, 2, samples)
    apart = np.array([shifts[name] for name in names])
    positive = 1 / (1 + np.exp(-(generator.normal(size=samples) + apart * (truth - 0.5))))
    patients = [f"p{place}" for place in range(samples)]
    return np.stack([1 - positive, positive], axis=1), truth, patients, names.tolist()


def measure(samples: int, shifts: dict[str, float], seed: int = 0, **more: list[str]) -> list:
    scores, truth, patients, names = make_groups(samples, shifts, seed)
    attributes = {"site": names, **more}
    questions = Questions(scores, truth, BINARY, patients)
    return evaluate_subgroups(questions, (0.5,), attributes, resamples=50)[0]


def test_a_group_that_is_predicted_worse_is_found_with_its_gap() -> None:
    (found,) = measure(600, {"A": 2.5, "B": 2.5, "C": 0.3})
    true_gap = NormalDist().cdf(2.5 / 2**0.5) - NormalDist().cdf(0.3 / 2**0.5)
    assert found["worst"] == "C" and 0 < found["gap"]["low"] < true_gap < found["gap"]["high"] < 1
    assert [group["name"] for group in found["groups"]] == ["A", "B", "C"]


def test_gaps_of_equal_groups_rarely_exclude_none() -> None:
    """At most 5% of data sets are expected; more than 8 of 60 come less than once in 500."""
    false = sum(measure(200, dict.fromkeys("ABC", 1.2), seed)[0]["gap"]["low"] > 0 for seed in range(60))
    assert false <= 8


def test_a_group_is_evaluated_as_its_samples_alone() -> None:
    scores, truth, patients, names = make_groups(200, {"A": 1.0, "B": 2.0})
    rows = np.array(names) == "A"
    questions = Questions(scores[rows], truth[rows], BINARY, np.array(patients)[rows].tolist())
    alone = evaluate(questions, (0.5,), resamples=50)
    (found,) = measure(200, {"A": 1.0, "B": 2.0})
    assert found["groups"][0]["metrics"]["auroc"] == interval_json(alone.metrics["auroc"])


def test_tiny_and_one_class_groups_are_undefined_and_never_worst(tmp_path: Path) -> None:
    scores, truth, patients, _ = make_groups(60, {"A": 1.0})
    names = ["few"] * 9 + ["A"] * 51
    one = ["one" if flag else "both" for flag in truth]
    one[int(np.argmax(truth))] = "both"
    found, _ = evaluate_subgroups(
        Questions(scores, truth, BINARY, patients), (0.5,), {"size": names, "kind": one}, resamples=50
    )
    few = next(group for group in found[0]["groups"] if group["name"] == "few")
    only = next(group for group in found[1]["groups"] if group["name"] == "one")
    assert all(interval["value"] is None for interval in few["metrics"].values())
    assert "10 patients" in few["reason"]
    assert only["metrics"]["auroc"]["value"] is None and only["reason"] == "only one class"
    assert [grouping["worst"] for grouping in found] == ["", ""] and found[0]["gap"]["value"] is None
    assert json.dumps(found, allow_nan=False)
    write_subgroups(tmp_path / "subgroups.csv", found)
    rows = list(csv.DictReader((tmp_path / "subgroups.csv").open()))
    assert [row["value"] for row in rows if row["group"] == "few"] == [""] * len(few["metrics"])


def test_ages_and_other_numbers_are_banded_and_names_are_not() -> None:
    assert name_groups("age", ["045Y", "17", "006M", "", "81.5"]) == [
        *("40 to 64", "below 18", "below 18", "not stated", "80 or more"),
    ]
    assert name_groups("tesla", ["1.5", "3", "1.5"]) == ["1.5", "3", "1.5"]
    assert len(set(name_groups("kVp", [str(60 + place) for place in range(40)]))) == 4
    assert name_groups("site", ["A", "12", " "]) == ["A", "12", "not stated"]


def test_an_attribute_of_too_many_values_is_noted_and_a_single_one_is_no_grouping() -> None:
    scores, truth, patients, _ = make_groups(40, {"A": 1.0})
    attributes = {"remark": [f"text {place}" for place in range(40)], "sex": ["F"] * 40}
    found, notes = evaluate_subgroups(Questions(scores, truth, BINARY, patients), (0.5,), attributes)
    assert found == [] and notes == ["no subgroups by remark: 40 different values"]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_predictions_read_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    task = BINARY if kind == "binary" else Task(kind, ("a", "-b", "c"))  # type: ignore[arg-type]
    generator, classes = np.random.default_rng(0), len(task.classes)
    truth = generator.integers(0, 2, 5)
    if kind == "multilabel":
        truth = generator.integers(0, 2, (5, 3)).astype(np.float32)
        truth[0, 1] = np.nan
    ids = tuple(f"s{place}" for place in range(5))
    logits, scores = generator.normal(size=(5, classes)), generator.dirichlet([1.0] * classes, 5)
    write_predictions(
        tmp_path / "p.csv", task, Predictions(ids, ids, ("val",) * 5, truth, scores, logits), {"set": ids}
    )
    found = read_predictions(tmp_path / "p.csv", task)
    assert np.array_equal(found.probabilities, scores) and np.array_equal(found.logits, logits)
    assert np.array_equal(found.targets, truth, equal_nan=kind == "multilabel")
    assert found.sample_ids == ids and found.split == ("val",) * 5


@pytest.mark.parametrize(
    "text", ["", "sample_id\n1\n", "sample_id,patient,split,target,p_normal\na,b,val,x,y\n"]
)
def test_damaged_predictions_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(CheckpointError, match="checkpoint-damaged"):
        read_predictions(tmp_path / "p.csv", BINARY)


def test_the_table_of_metrics_keeps_negative_numbers_numbers(tmp_path: Path) -> None:
    scores, truth, patients, _ = make_groups(80, {"A": 1.0})
    shifted = np.clip(scores + np.array([-0.2, 0.2]), 0, 1)
    found = evaluate(Questions(shifted, truth, BINARY, patients), (0.5,), resamples=50)
    write_metrics(tmp_path / "metrics.csv", found)
    rows = {row["metric"]: row for row in csv.DictReader((tmp_path / "metrics.csv").open())}
    shift = found.metrics["calibration_intercept"]
    assert shift.value < 0 and float(rows["calibration_intercept"]["value"]) == shift.value
    assert {"auroc", "auroc_bootstrap", "ece", "mcc"} <= rows.keys()
