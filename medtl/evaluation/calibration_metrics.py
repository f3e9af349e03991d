"""Turn probabilities and the truth into the calibration slope and intercept, with intervals by patient.

Logistic recalibration (Cox 1958; Van Calster 2019): the slope is that of the truth on the logit of the
probability, 1 where it means what it says, below 1 where the model is too sure. The intercept is the shift of
the logit that is left when the slope is held at 1: above 0 where the class is commoner than it was told.
Errors are of the sandwich with patients as clusters (Liang and Zeger 1986).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from medtl.evaluation.intervals import Interval, clustered_error, normal_interval, unbounded
from medtl.evaluation.metrics import CALIBRATION_BINS, Floats, Questions, mean_defined

STEPS, CLOSE = 50, 1e-10
CERTAIN = 1e-12  # a probability of 0 or 1 has no logit
STEEPEST = 1e3  # a slope beyond it is on its way to infinity: the classes are told apart without an error
Estimate = tuple[float, Floats]


def calibration_lines(
    questions: Questions, patient_of: NDArray[np.int64], confidence: float
) -> dict[str, list[Interval]]:
    """Return calibration_slope and calibration_intercept: of each question, after their mean if several."""
    columns = list(zip(questions.scores.T, questions.truth.T, strict=True))
    kinds = {"calibration_slope": estimate_slope, "calibration_intercept": estimate_intercept}
    return {name: _intervals(fit, columns, patient_of, confidence) for name, fit in kinds.items()}


def estimate_slope(scores: Floats, truth: Floats) -> Estimate:
    """Return the slope and what each sample adds to its error (N,).

    NaN for one class, and where the classes are told apart without an error: then it is infinite.
    """
    known = np.isfinite(truth)
    design = np.stack([np.ones(int(known.sum())), _logits(scores[known])], axis=1)
    found = _fit(design, truth[known], np.zeros(len(design)))
    return _spread(found, 1, known)


def estimate_intercept(scores: Floats, truth: Floats) -> Estimate:
    """Return the intercept at a slope of 1 and what each sample adds to its error (N,); NaN for one class."""
    known = np.isfinite(truth)
    offset = _logits(scores[known])
    return _spread(_fit(np.ones((len(offset), 1)), truth[known], offset), 0, known)


def _intervals(
    fit: Callable[[Floats, Floats], Estimate],
    columns: Sequence[tuple[Floats, Floats]],
    patient_of: NDArray[np.int64],
    confidence: float,
) -> list[Interval]:
    found = [fit(*pair) for pair in columns]
    each = [_interval(*estimate, patient_of, confidence) for estimate in found]
    if len(each) == 1:
        return each
    defined = [estimate for estimate in found if math.isfinite(estimate[0])]
    if not defined:
        return [unbounded(math.nan), *each]
    mean, influence = (np.mean(parts, axis=0) for parts in zip(*defined, strict=True))
    return [_interval(float(mean), influence, patient_of, confidence), *each]


def _interval(value: float, influence: Floats, patient_of: NDArray[np.int64], confidence: float) -> Interval:
    if math.isnan(value):
        return unbounded(value)
    return normal_interval(value, clustered_error(influence, patient_of), confidence)


def _fit(design: Floats, truth: Floats, offset: Floats) -> tuple[Floats, Floats] | None:
    """Fit a logistic regression by Newton's method; None where it has no finite solution.

    Returns the coefficients and what each sample adds to the error of each, (n, parameters).
    """
    if len(np.unique(truth)) < 2 or (design.shape[1] > 1 and np.ptp(design[:, 1]) < CERTAIN):
        return None
    beta = np.zeros(design.shape[1])
    for _ in range(STEPS):
        stated = expit(design @ beta + offset)
        residuals = design * (truth - stated)[:, None]
        information = design.T @ (design * (stated * (1 - stated))[:, None])
        if np.linalg.cond(information) > 1 / CERTAIN:
            return None
        step = np.linalg.solve(information, residuals.sum(axis=0))
        beta = beta + np.clip(step, -2, 2)  # the first steps may lead too far
        if np.abs(step).max() < CLOSE:
            return beta, np.linalg.solve(information, residuals.T).T
    return None


def _spread(found: tuple[Floats, Floats] | None, place: int, known: NDArray[np.bool_]) -> Estimate:
    influence = np.zeros(len(known))
    if found is None or abs(found[0][place]) > STEEPEST:
        return math.nan, influence
    influence[known] = found[1][:, place]
    return float(found[0][place]), influence


def _logits(scores: Floats) -> Floats:
    return logit(np.clip(scores, CERTAIN, 1 - CERTAIN))


def bin_gaps(questions: Questions) -> tuple[Floats, Floats]:
    """Return for each question what each sample adds to its bin's gap, (R, N, bins), and who counts, (R, N).

    Bins hold equally many samples, ties share one, as in metrics.calibration_error.
    """
    columns = list(zip(questions.scores.T, questions.truth.T, strict=True))
    known = np.stack([np.isfinite(truth) for _, truth in columns]).astype(np.float64)
    return np.stack([_place_gaps(scores, truth) for scores, truth in columns]), known


def draw_gaps(gaps: Floats, known: Floats, weights: Floats) -> Floats:
    """Return the gaps of each resample, (B, R, bins), from weights (B, N)."""
    sums = np.stack([weights @ question for question in gaps], axis=1)
    totals = np.maximum(weights @ known.T, 1e-12)
    return sums / totals[..., None]


def error_intervals(
    values: Floats, gaps: Floats, drawn: Floats, patients: int, confidence: float
) -> list[Interval]:
    """Return the interval of the mean over the questions and of each.

    values: (1 + R,), NaN where undefined; gaps: (R, bins); drawn: (B, R, bins).
    """
    defined = np.where(np.isnan(values[1:]), np.nan, 1.0)
    moved = np.abs(drawn - gaps).sum(axis=-1) * defined
    errors = np.abs(drawn).sum(axis=-1) * defined
    moved, errors = (np.column_stack([mean_defined(rows), rows]) for rows in (moved, errors))
    if patients < 2:
        return [unbounded(float(value)) for value in values]
    columns = zip(values.tolist(), moved.T, errors.T, strict=True)
    return [_gap_interval(value, shift, error, confidence) for value, shift, error in columns]


def _gap_interval(value: float, moved: Floats, errors: Floats, confidence: float) -> Interval:
    if np.isnan(value):
        return unbounded(value)
    tail = (1 - confidence) / 2
    low = value - float(np.quantile(moved, 1 - tail))
    high = 2 * value - float(np.quantile(errors, tail))
    return Interval(value, max(0.0, low), max(value, high))


def _place_gaps(scores: Floats, truth: Floats) -> Floats:
    known = np.isfinite(truth)
    placed = np.zeros((len(scores), CALIBRATION_BINS))
    if not known.any():
        return placed
    _, place, counts = np.unique(scores[known], return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - counts / 2
    bins = np.floor(CALIBRATION_BINS * middles / counts.sum()).astype(np.int64)[place]
    placed[np.flatnonzero(known), bins] = scores[known] - truth[known]
    return placed
