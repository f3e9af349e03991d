"""Calibration makes probabilities mean what they say, is plain data, and its measures equal references."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from medtl.data.task import Task
from medtl.evaluation.calibration import (
    Calibration,
    fit_calibration,
    negative_log_likelihood,
    to_probabilities,
)
from medtl.evaluation.calibration_metrics import (
    bin_gaps,
    calibration_errors,
    calibration_lines,
    error_intervals,
    estimate_intercept,
    estimate_slope,
)
from medtl.evaluation.evaluate import evaluate
from medtl.evaluation.metrics import Questions, mean_defined

from .test_metrics import calibration_error, one_vs_rest

BINARY = Task("binary", ("normal", "lesion"))
MULTICLASS = Task("multiclass", ("a", "b", "c"))
MULTILABEL = Task("multilabel", ("x", "y"))


def make_binary(samples: int, slope: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, 2) of a model whose log odds should be multiplied by `slope`."""
    generator = np.random.default_rng(seed)
    odds = 1.5 * generator.normal(size=samples)
    truth = (generator.random(samples) < expit(slope * odds)).astype(int)
    return np.stack([-odds / 2, odds / 2], axis=1), truth


def make_multiclass(samples: int, slope: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(samples, 3))
    chances = softmax(slope * logits, axis=1)
    return logits, np.array([generator.choice(3, p=row) for row in chances])


@pytest.mark.parametrize("slope", [0.4, 1.6])
def test_temperature_undoes_what_made_the_model_too_sure(slope: float) -> None:
    for task, made in ((BINARY, make_binary(4000, slope)), (MULTICLASS, make_multiclass(4000, slope))):
        found = fit_calibration(*made, task)[0]
        assert found is not None and found.temperatures[0] == pytest.approx(1 / slope, rel=0.1)
        assert negative_log_likelihood(*made, task.kind, found.temperatures) < negative_log_likelihood(
            *made, task.kind
        )


def test_temperature_equals_that_of_a_general_minimiser() -> None:
    logits, truth = make_multiclass(2000, 0.5)
    found = fit_calibration(logits, truth, MULTICLASS)[0]

    def loss(t: np.ndarray) -> float:
        return float(-np.log(softmax(logits / t[0], axis=1)[np.arange(2000), truth]).mean())

    assert found is not None
    assert found.temperatures[0] == pytest.approx(minimize(loss, [1.0]).x[0], rel=0.01)


def test_a_calibrated_model_stays_as_it_is_or_nearly() -> None:
    calibration, note = fit_calibration(*make_binary(3000, 1.0), BINARY)
    assert calibration is None or calibration.temperatures[0] == pytest.approx(1, abs=0.1)
    assert "probabilities" in note and "\n" not in note


def test_classes_told_apart_without_an_error_give_no_certainty() -> None:
    logits, truth = np.array([[3.0, -3.0]] * 6 + [[-3.0, 3.0]] * 6), np.repeat([0, 1], 6)
    found = fit_calibration(logits, truth, BINARY, "temperature")[0]
    assert found is not None
    assert to_probabilities(logits, "binary", found)[:, 1].max() == pytest.approx(7 / 8, abs=0.01)


def test_multilabel_has_a_temperature_for_each_class_and_leaves_out_missing_labels() -> None:
    generator = np.random.default_rng(0)
    logits = 2 * generator.normal(size=(4000, 2))
    truth = (generator.random((4000, 2)) < expit(logits * [0.5, 2.0])).astype(float)
    truth[:500, 1] = np.nan
    found = fit_calibration(logits, truth, MULTILABEL)[0]
    assert found is not None and found.temperatures == pytest.approx((2.0, 0.5), rel=0.12)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_isotonic_equals_scikit_learn_and_survives_json(kind: str) -> None:
    task = BINARY if kind == "binary" else MULTICLASS
    logits, truth = make_binary(500, 0.4) if kind == "binary" else make_multiclass(500, 0.4)
    found = fit_calibration(logits, truth, task, "isotonic")[0]
    assert found is not None
    again = Calibration.model_validate_json(found.model_dump_json())
    calibrated = to_probabilities(logits, task.kind, again)
    assert calibrated.sum(axis=1) == pytest.approx(np.ones(500))
    if kind == "binary":
        raw = softmax(logits, axis=1)[:, 1]
        assert calibrated[:, 1] == pytest.approx(IsotonicRegression().fit_transform(raw, truth))


def test_slope_and_intercept_equal_an_unpenalised_regression() -> None:
    logits, truth = make_binary(800, 0.6)
    odds, scores = logits[:, 1] - logits[:, 0], softmax(logits, axis=1)[:, 1]
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(odds[:, None], truth)
    assert estimate_slope(scores, truth.astype(float))[0] == pytest.approx(reference.coef_[0, 0], rel=1e-4)
    shift = estimate_intercept(scores, truth.astype(float))[0]
    assert expit(odds + shift).sum() == pytest.approx(truth.sum())  # the score equation at a slope of 1


def test_slope_is_undefined_for_one_class_and_for_perfect_answers() -> None:
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    assert np.isnan(estimate_slope(scores, np.ones(4))[0])
    assert np.isnan(estimate_slope(scores, np.array([0.0, 0, 1, 1]))[0])


def cover_lines(draws: int, samples: int) -> tuple[float, float]:
    """The share of intervals that hold the slope 0.7 and the slope's own truth for the ECE, respectively."""
    logits, truth = make_binary(200_000, 0.7, seed=10_000)
    whole = softmax(logits, axis=1)
    error = float(mean_defined(calibration_error(one_vs_rest(whole, truth, "binary"))))
    slopes = errors = 0
    for seed in range(draws):
        logits, truth = make_binary(samples, 0.7, seed)
        scores = softmax(logits, axis=1)
        questions = one_vs_rest(scores, truth, "binary")
        (slope,) = calibration_lines(questions, 0.95)["calibration_slope"]
        weights = np.random.default_rng(seed).multinomial(samples, np.full(samples, 1 / samples), 300)
        found = error_intervals(questions, bin_gaps(questions, weights.astype(float)), 0.95)[0]
        slopes += slope.low <= 0.7 <= slope.high
        errors += found.low <= error <= found.high
    return slopes / draws, errors / draws


def test_intervals_of_slope_and_error_cover() -> None:
    """Of 100 data sets 95 are expected; fewer than 87 come less than once in 500."""
    assert min(cover_lines(100, 300)) >= 0.87


@pytest.mark.long
def test_intervals_of_slope_and_error_cover_93_to_97_percent() -> None:
    slope, error = cover_lines(500, 400)
    assert 0.93 <= slope <= 0.97 and 0.92 <= error <= 0.98


def test_the_interval_of_the_error_holds_its_value_and_lies_mostly_below_it() -> None:
    below = []
    for seed in range(40):
        logits, truth = make_binary(60, 1.0, seed)
        patients = [str(row) for row in range(60)]
        questions = Questions(softmax(logits, axis=1), truth, BINARY, patients)
        found = evaluate(questions, (0.5,), resamples=100).metrics["ece"]
        assert 0 <= found.low <= found.value <= found.high
        below.append(found.value - found.low > found.high - found.value)
    assert np.mean(below) > 0.9


def equal_mass_error(scores: np.ndarray, truth: np.ndarray) -> float:
    """The calibration error in ten bins of equal mass, one distinct score after the other."""
    gaps = np.zeros(10)
    for value in np.unique(scores):
        at = scores == value
        middle = (scores < value).sum() + at.sum() / 2
        gaps[int(10 * middle / len(scores))] += (value - truth[at]).sum()
    return float(np.abs(gaps).sum() / len(scores))


def test_gaps_of_bins_add_up_to_the_calibration_error() -> None:
    logits, truth = make_multiclass(300, 0.5)
    scores = np.round(softmax(logits, axis=1), 2)
    questions = one_vs_rest(scores, truth, "multiclass")
    gaps = bin_gaps(questions, np.ones((1, 300)))
    expected = [equal_mass_error(*column) for column in questions.columns]
    assert calibration_errors(questions, gaps)[0] == pytest.approx(expected)
