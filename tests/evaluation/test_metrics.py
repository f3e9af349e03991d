"""Metrics agree with scikit-learn, ties and weights included; what is undefined is NaN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from medtl.data.task import Task
from medtl.evaluation import metrics
from medtl.evaluation.calibration_metrics import bin_gaps, calibration_errors
from medtl.evaluation.metrics import Questions, mean_defined

KINDS = ("binary", "multiclass", "multilabel")


def make_scores(samples: int, classes: int, seed: int = 0, digits: int | None = None) -> np.ndarray:
    """Rows that add up to 1; few digits make ties."""
    scores = np.random.default_rng(seed).dirichlet(np.ones(classes), samples)
    return scores if digits is None else np.round(scores, digits)


def make_targets(samples: int, classes: int, kind: str, seed: int = 1) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if kind != "multilabel":
        return generator.integers(0, classes, samples)
    flags = generator.integers(0, 2, (samples, classes)).astype(np.float32)
    flags[generator.random((samples, classes)) < 0.2] = np.nan
    return flags


def one_vs_rest(scores: object, truth: object, kind: str) -> Questions:
    """Return the questions of predictions with a patient for each sample."""
    probabilities, targets = np.asarray(scores, np.float64), np.asarray(truth)
    task = Task(kind, tuple(f"c{place}" for place in range(probabilities.shape[1])))  # type: ignore[arg-type]
    return Questions(probabilities, targets, task, [f"p{place:04d}" for place in range(len(targets))])


def calibration_error(questions: Questions, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the error by class, (R,)."""
    rows = np.ones(len(questions.targets)) if weights is None else weights
    return calibration_errors(questions, bin_gaps(questions, rows[None]))[0]


def rate(name: str, questions: Questions, cuts: object, weights: np.ndarray | None = None) -> np.ndarray:
    """Return sensitivity, specificity, ppv or npv by class."""
    return metrics.share(*metrics.rates(questions, cuts)[name], weights)


def classes_of(kind: str) -> int:
    return 2 if kind == "binary" else 4


weighted_samples = st.lists(
    st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30
).filter(lambda rows: {flag for _, flag, weight in rows if weight} == {True, False})


@settings(max_examples=150, deadline=None)
@given(weighted_samples)
def test_ranking_metrics_equal_scikit_learn_with_ties_and_weights(rows: list[tuple[int, bool, int]]) -> None:
    score, flag, weight = (np.array(column) for column in zip(*rows, strict=True))
    probabilities = np.stack([1 - score / 6, score / 6], axis=1)
    area = mean_defined(metrics.auroc(one_vs_rest(probabilities, flag.astype(int), "binary"), weight))
    precision = mean_defined(metrics.auprc(one_vs_rest(probabilities, flag.astype(int), "binary"), weight))
    assert area == pytest.approx(reference.roc_auc_score(flag, score / 6, sample_weight=weight))
    assert precision == pytest.approx(
        reference.average_precision_score(flag, score / 6, sample_weight=weight)
    )


@pytest.mark.parametrize("digits", [None, 1])
def test_multiclass_is_the_mean_over_classes_against_the_rest(digits: int | None) -> None:
    scores, truth = make_scores(200, 4), make_targets(200, 4, "multiclass")
    rounded = scores if digits is None else np.round(scores, digits)
    expected = [reference.roc_auc_score(truth == k, rounded[:, k]) for k in range(4)]
    assert metrics.auroc(one_vs_rest(rounded, truth, "multiclass")) == pytest.approx(expected)
    assert mean_defined(metrics.auroc(one_vs_rest(rounded, truth, "multiclass"))) == pytest.approx(
        np.mean(expected)
    )
    if digits is None:
        assert np.mean(expected) == pytest.approx(reference.roc_auc_score(truth, scores, multi_class="ovr"))


def test_unlabelled_cells_of_multilabel_are_left_out() -> None:
    scores, truth = make_scores(120, 3), make_targets(120, 3, "multilabel")
    known = ~np.isnan(truth)
    expected = [reference.roc_auc_score(truth[known[:, k], k], scores[known[:, k], k]) for k in range(3)]
    assert metrics.auroc(one_vs_rest(scores, truth, "multilabel")) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["auroc", "auprc", "brier", "accuracy", "balanced_accuracy"])
def test_weights_count_as_repeated_samples_one_weighting_at_a_time_or_many(kind: str, name: str) -> None:
    classes = classes_of(kind)
    scores, truth = make_scores(60, classes, digits=1), make_targets(60, classes, kind)
    thresholds = np.full(1 if kind == "binary" else classes, 0.4)
    arguments = (thresholds,) if "accuracy" in name else ()
    metric = getattr(metrics, name)
    weights = np.random.default_rng(3).integers(0, 4, (5, 60))
    together = metric(one_vs_rest(scores, truth, kind), *arguments, weights)
    for row, value in zip(weights, together, strict=True):
        rows = np.repeat(np.arange(60), row)
        assert value == pytest.approx(metric(one_vs_rest(scores[rows], truth[rows], kind), *arguments))
        assert value == pytest.approx(metric(one_vs_rest(scores, truth, kind), *arguments, row))


def test_answers_at_thresholds_equal_scikit_learn() -> None:
    scores, truth = make_scores(300, 2), make_targets(300, 2, "binary")
    answers = scores[:, 1] >= 0.3
    found = [
        rate("sensitivity", one_vs_rest(scores, truth, "binary"), [0.3])[0],
        rate("specificity", one_vs_rest(scores, truth, "binary"), [0.3])[0],
        metrics.accuracy(one_vs_rest(scores, truth, "binary"), [0.3]),
        metrics.balanced_accuracy(one_vs_rest(scores, truth, "binary"), [0.3]),
        metrics.brier(one_vs_rest(scores, truth, "binary")),
    ]
    expected = [
        reference.recall_score(truth, answers),
        reference.recall_score(truth, answers, pos_label=0),
        reference.accuracy_score(truth, answers),
        reference.balanced_accuracy_score(truth, answers),
        reference.brier_score_loss(truth, scores[:, 1]),
    ]
    assert found == pytest.approx(expected)


def test_multiclass_answers_are_the_most_probable_class() -> None:
    scores, truth = make_scores(300, 4), make_targets(300, 4, "multiclass")
    thresholds, answers = np.full(4, 0.9), scores.argmax(axis=1)
    balanced = metrics.balanced_accuracy(one_vs_rest(scores, truth, "multiclass"), thresholds)
    assert metrics.accuracy(one_vs_rest(scores, truth, "multiclass"), thresholds) == pytest.approx(
        (answers == truth).mean()
    )
    assert balanced == pytest.approx(reference.balanced_accuracy_score(truth, answers))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0, 1])
def test_one_class_leaves_what_compares_classes_undefined(kind: str, value: int) -> None:
    classes = classes_of(kind)
    scores = make_scores(20, classes)
    truth = np.full((20, classes), float(value)) if kind == "multilabel" else np.full(20, value)
    thresholds = np.full(1 if kind == "binary" else classes, 0.5)
    assert np.isnan(mean_defined(metrics.auroc(one_vs_rest(scores, truth, kind))))
    assert np.isnan(mean_defined(metrics.auprc(one_vs_rest(scores, truth, kind))))
    assert np.isnan(mean_defined(calibration_error(one_vs_rest(scores, truth, kind))))
    assert np.isnan(metrics.balanced_accuracy(one_vs_rest(scores, truth, kind), thresholds))
    assert np.isfinite(metrics.accuracy(one_vs_rest(scores, truth, kind), thresholds))


def test_an_absent_class_is_undefined_and_left_out_of_the_mean() -> None:
    scores, truth = make_scores(60, 3), make_targets(60, 2, "multiclass")
    by_class = metrics.auroc(one_vs_rest(scores, truth, "multiclass"))
    assert np.isnan(by_class).tolist() == [False, False, True]
    assert mean_defined(metrics.auroc(one_vs_rest(scores, truth, "multiclass"))) == pytest.approx(
        by_class[:2].mean()
    )


def test_no_samples_at_all_are_undefined() -> None:
    empty = mean_defined(metrics.auroc(one_vs_rest(np.empty((0, 2)), np.empty(0, int), "binary")))
    assert np.isnan(empty)


def test_a_probability_that_is_no_number_leaves_the_ranking_undefined() -> None:
    scores, truth = make_scores(20, 2), make_targets(20, 2, "binary")
    scores[3] = np.nan
    assert np.isnan(mean_defined(metrics.auroc(one_vs_rest(scores, truth, "binary"))))


def test_roc_runs_from_corner_to_corner_and_is_empty_for_one_class() -> None:
    fpr, tpr = metrics.roc_points([0.1, 0.4, 0.35, 0.8, 0.5], [0, 0, 1, 1, np.nan])
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(0.75)
    assert metrics.roc_points([0.1, 0.4], [1, 1])[0] == []


def test_confusion_has_a_row_for_each_class_even_if_absent() -> None:
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]])
    counts = metrics.confusion_matrix(one_vs_rest(scores, [0, 0, 1], "multiclass"), [0.5] * 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_reliability_bins_hold_every_labelled_sample() -> None:
    scores = np.array([[0.95, 0.05], [0.92, 0.08], [0.0, 1.0], [0.4, 0.6]])
    bins = metrics.reliability_bins(one_vs_rest(scores, [0, 1, 1, 0], "binary"))
    assert [(entry["count"], entry["observed"]) for entry in bins] == [(2, 0.5), (1, 0.0), (1, 1.0)]
    assert bins[0]["mean_probability"] == pytest.approx(0.065)
    truth = make_targets(50, 3, "multilabel")
    labelled = metrics.reliability_bins(one_vs_rest(make_scores(50, 3), truth, "multilabel"))
    assert sum(entry["count"] for entry in labelled) == np.isfinite(truth).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_error_is_the_mean_gap_of_scikit_learns_curve(kind: str) -> None:
    scores, truth = make_scores(500, classes_of(kind)), make_targets(500, classes_of(kind), kind)
    questions = one_vs_rest(scores, truth, kind)
    expected = []
    for column, flags in zip(questions.scores.T, questions.truth.T, strict=True):
        known = np.flatnonzero(~np.isnan(flags))[:390]  # as many in each of ten bins
        observed, stated = calibration_curve(flags[known], column[known], n_bins=10, strategy="quantile")
        expected.append(np.abs(observed - stated).mean())
        flags[np.setdiff1d(np.arange(500), known)] = np.nan
    found = calibration_error(one_vs_rest(questions.scores, questions.truth, "multilabel"))
    assert found == pytest.approx(expected)


def test_calibration_error_is_derived_by_hand() -> None:
    scores = np.repeat([0.1, 0.6], [15, 5])  # 15 samples told 0.1 with 3 positives, 5 told 0.6 with 4
    truth = np.array([1] * 3 + [0] * 12 + [1] * 4 + [0])
    found = mean_defined(
        calibration_error(one_vs_rest(np.stack([1 - scores, scores], axis=1), truth, "binary"))
    )
    assert found == pytest.approx(15 / 20 * abs(3 / 15 - 0.1) + 5 / 20 * abs(4 / 5 - 0.6))


def test_calibration_error_sees_a_rare_class_overstated() -> None:
    """At one to nine, told 0.5 for all: balanced posteriors are off by the difference of the priors."""
    truth = np.array([1] + [0] * 9)
    assert mean_defined(
        calibration_error(one_vs_rest(np.full((10, 2), 0.5), truth, "binary"))
    ) == pytest.approx(0.4)
    weights = np.where(truth == 1, 9, 1)  # as though both were equally common
    assert mean_defined(calibration_error(one_vs_rest(np.full((10, 2), 0.5), truth, "binary"), weights)) == 0
