"""Intervals cover the truth, know that a patient's samples belong together, and admit ignorance."""

import json
import logging
from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medtl.data.task import Task
from medtl.errors import CheckpointError, LabelError
from medtl.evaluation.evaluate import Evaluation, evaluate, to_json
from medtl.evaluation.metrics import Questions
from medtl.evaluation.thresholds import choose_thresholds

from .test_metrics import one_vs_rest

BINARY = Task("binary", ("normal", "lesion"))
MULTICLASS = Task("multiclass", ("a", "b", "c"))
MULTILABEL = Task("multilabel", ("x", "y"))


def make_binary(samples: int, seed: int = 0, shift: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two unit normals that lie `shift` apart, squashed into (0, 1)."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, samples)
    positive = 1 / (1 + np.exp(-(generator.normal(size=samples) + shift * truth - shift / 2)))
    return np.stack([1 - positive, positive], axis=1), truth


def make_multiclass(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 3, samples)
    scores = np.exp(generator.normal(size=(samples, 3)) + 1.5 * np.eye(3)[truth])
    return scores / scores.sum(axis=1, keepdims=True), truth


def measure(scores: np.ndarray, truth: np.ndarray, task: Task = BINARY, **options: object) -> Evaluation:
    """Evaluate with thresholds of 0.5 and a patient for each sample."""
    patients = [f"p{index}" for index in range(len(truth))]
    thresholds = (0.5,) if task.kind == "binary" else (0.5,) * len(task.classes)
    questions = Questions(scores, truth, task, options.pop("patients", patients))  # type: ignore[arg-type]
    return evaluate(questions, **{"thresholds": thresholds, "resamples": 200, **options})  # type: ignore[arg-type]


def test_intervals_cover_the_truth_in_about_95_percent_of_data_sets() -> None:
    """Of 200 data sets 190 are expected; fewer than 178 or more than 199 come less than once in 1,000."""
    expected = NormalDist().cdf(1.2 / np.sqrt(2))
    found = [measure(*make_binary(120, seed)).metrics["auroc"] for seed in range(200)]
    covered = sum(interval.low <= expected <= interval.high for interval in found)
    assert 178 <= covered <= 199


def test_samples_copied_within_patients_widen_nothing_and_shrink_nothing() -> None:
    scores, truth = make_binary(80)
    patients = [f"p{index}" for index in range(80)]
    once = measure(scores, truth).metrics["auroc"]
    copied = (np.repeat(scores, 4, axis=0), np.repeat(truth, 4))
    clustered = measure(*copied, patients=np.repeat(patients, 4).tolist()).metrics["auroc"]
    believed = measure(*copied).metrics["auroc"]
    assert clustered.value == pytest.approx(once.value)
    assert clustered.high - clustered.low == pytest.approx(once.high - once.low)
    assert clustered.high - clustered.low > 1.5 * (believed.high - believed.low)


def test_values_equal_scikit_learn_and_lie_within_their_bounds() -> None:
    scores, truth = make_multiclass(150)
    found = measure(scores, truth, MULTICLASS)
    assert found.metrics["auroc"].value == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr"))
    assert found.per_class["b"]["auroc"].value == pytest.approx(roc_auc_score(truth == 1, scores[:, 1]))
    for interval in [*found.metrics.values(), *found.per_class["a"].values()]:
        assert interval.low < interval.value <= interval.high  # the ECE may be all noise
    assert np.sum(found.confusion) == found.samples == 150
    assert list(found.class_counts.values()) == np.bincount(truth).tolist()


def test_the_same_seed_gives_the_same_intervals_and_another_others() -> None:
    data = make_binary(60)
    assert measure(*data) == measure(*data)
    assert measure(*data).auroc_bootstrap.low != measure(*data, seed=1).auroc_bootstrap.low


def test_resamples_in_many_blocks_equal_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_multiclass(50)
    whole = measure(*data, MULTICLASS)
    monkeypatch.setattr("medtl.evaluation.evaluate.BLOCK", 150)
    parts = measure(*data, MULTICLASS)
    assert all(np.array_equal(whole.drawn[name], parts.drawn[name], equal_nan=True) for name in whole.drawn)


def test_a_lower_confidence_gives_a_narrower_interval() -> None:
    data = make_binary(60)
    wide, narrow = (measure(*data, confidence=c).metrics["auroc"] for c in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_class_is_undefined_and_never_zero() -> None:
    scores, _ = make_binary(30)
    found = measure(scores, np.ones(30, int))
    for name in ("auroc", "auprc", "balanced_accuracy", "specificity"):
        assert all(np.isnan([found.metrics[name].value, found.metrics[name].low, found.metrics[name].high]))
    assert found.metrics["accuracy"].low <= found.metrics["accuracy"].value
    assert found.undefined["auroc"] == 200
    assert found.roc["lesion"]["fpr"] == []


def test_bounds_are_undefined_where_most_resamples_have_one_class() -> None:
    """Of two patients, one of each class, half of the resamples draw the same one twice."""
    scores, truth = np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0, 1])
    found = [measure(scores, truth, resamples=400, seed=seed) for seed in range(12)]
    mostly_undefined = [entry.undefined["auroc"] > 200 for entry in found]
    unknown = [bool(np.isnan(entry.metrics["auprc"].low)) for entry in found]
    assert all(seen for seen, mostly in zip(unknown, mostly_undefined, strict=True) if mostly)
    assert set(mostly_undefined) == {True, False}
    # One pair of patients, ranked right, is one trial: 0.025 or more at 95%.
    assert all(entry.metrics["auroc"].value == 1.0 for entry in found)
    assert [entry.metrics["auroc"].low for entry in found] == pytest.approx([0.025] * 12)


def test_a_lone_patient_gives_values_without_bounds() -> None:
    scores, truth = make_binary(20)
    found = measure(scores, truth, patients=["p1"] * 20)
    assert 0 < found.metrics["auroc"].value < 1
    assert all(np.isnan(interval.low) and np.isnan(interval.high) for interval in found.metrics.values())


def test_multilabel_with_missing_labels_has_metrics_per_class_and_no_confusion() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, (80, 2)).astype(np.float32)
    scores = np.clip(0.3 * np.nan_to_num(truth) + generator.random((80, 2)) * 0.7, 0, 1)
    truth[:20, 1] = np.nan
    found = measure(scores, truth, MULTILABEL)
    assert found.per_class["y"]["auroc"].value == pytest.approx(roc_auc_score(truth[20:, 1], scores[20:, 1]))
    assert found.confusion == []
    assert found.class_counts == {"x": int(truth[:, 0].sum()), "y": int(truth[20:, 1].sum())}


def test_thresholds_are_one_for_binary_and_one_per_class_otherwise() -> None:
    assert len(choose_thresholds(Questions(*make_binary(50), BINARY))) == 1
    assert len(choose_thresholds(Questions(*make_multiclass(50), MULTICLASS))) == 3
    chosen = choose_thresholds(one_vs_rest([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [0, 0, 1], "binary"))
    assert chosen == pytest.approx((0.25,))


def test_a_class_without_examples_gets_a_half_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        questions = Questions(np.array([[0.9, 0.1], [0.8, 0.2]]), np.zeros(2, int), BINARY)
        assert choose_thresholds(questions) == (0.5,)
    assert "lesion" in caplog.text


def test_json_has_the_metrics_by_name_and_null_where_undefined() -> None:
    scores, truth = make_multiclass(40)
    truth[truth == 2] = 1
    content = to_json(measure(scores, truth, MULTICLASS))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(content["auroc"]) == {"value", "low", "high"}
    assert "metrics" not in content
    missing = {"value": None, "low": None, "high": None, "undefined": True}
    assert content["per_class"]["c"]["auroc"] == missing
    assert set(content["reliability"][0]) == {"mean_probability", "observed", "count"}
    assert set(content["roc"]["a"]) == {"fpr", "tpr"}


@pytest.mark.parametrize(
    "scores",
    [np.full((4, 2), np.nan), np.full((4, 2), 1.5), np.full((4, 3), 0.3), np.full((4, 2), -0.1)],
    ids=["nan", "above-one", "another-task", "negative"],
)
def test_probabilities_that_are_none_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(CheckpointError) as caught:
        measure(scores, np.array([0, 1, 0, 1]))
    assert caught.value.code == "scores-invalid"


@pytest.mark.parametrize("thresholds", [(0.5, 0.5), (), (float("nan"),)])
def test_thresholds_of_another_task_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(CheckpointError, match="scores-invalid"):
        measure(*make_binary(10), thresholds=thresholds)


def test_no_samples_are_refused() -> None:
    with pytest.raises(LabelError, match="split-empty"):
        measure(np.empty((0, 2)), np.empty(0, int))
