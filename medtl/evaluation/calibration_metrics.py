"""Turn probabilities and the truth into calibration slope, intercept and error, with intervals by patient.

Logistic recalibration (Cox 1958; Van Calster 2019): the slope is that of the truth on the logit of the
probability, 1 for calibrated probabilities and below 1 for an overconfident model. The intercept is the shift
of the logit at a slope of 1: above 0 if the class is commoner than predicted. Errors are of the sandwich with
patients as clusters (Liang and Zeger 1986).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from medtl.evaluation.intervals import Interval, clustered_error, normal_interval, unbounded
from medtl.evaluation.metrics import CALIBRATION_BINS, Floats, Questions, mean_defined

STEPS, CLOSE = 50, 1e-10
CERTAIN = 1e-12  # a probability of 0 or 1 has no logit
STEEPEST = 1e3  # a steeper slope diverges: the classes are separated without an error
Estimate = tuple[float, Floats]


def calibration_lines(
    questions: Questions, patient_of: NDArray[np.int64], confidence: float
) -> dict[str, list[Interval]]:
    """Return calibration_slope and calibration_intercept: of each question, after their mean if several."""
    kinds = {"calibration_slope": estimate_slope, "calibration_intercept": estimate_intercept}
    return {name: _intervals(fit, questions, patient_of, confidence) for name, fit in kinds.items()}


def estimate_slope(scores: Floats, truth: Floats) -> Estimate:
    """Return the slope and the influence of each sample (N,).

    NaN for one class, and if the classes are separated without an error: then it is infinite.
    """
    known = np.isfinite(truth)
    logits = logit(np.clip(scores[known], CERTAIN, 1 - CERTAIN))
    return _fit(np.stack([np.ones_like(logits), logits], axis=1), truth, np.zeros_like(logits))


def estimate_intercept(scores: Floats, truth: Floats) -> Estimate:
    """Return the intercept at a slope of 1 and the influence of each sample (N,); NaN for one class."""
    known = np.isfinite(truth)
    logits = logit(np.clip(scores[known], CERTAIN, 1 - CERTAIN))
    return _fit(np.ones((len(logits), 1)), truth, logits)


def _intervals(
    fit: Callable[[Floats, Floats], Estimate],
    questions: Questions,
    patient_of: NDArray[np.int64],
    confidence: float,
) -> list[Interval]:
    estimates = [fit(*column) for column in questions.columns]
    if len(estimates) > 1:
        defined = [estimate for estimate in estimates if math.isfinite(estimate[0])]
        mean = [np.mean(parts, axis=0) for parts in zip(*(defined or estimates), strict=True)]
        estimates = [(float(mean[0]), mean[1]), *estimates]
    return [
        normal_interval(value, clustered_error(influence, patient_of), confidence)
        for value, influence in estimates
    ]


def _fit(design: Floats, truth: Floats, offset: Floats) -> Estimate:
    """Fit a logistic regression by Newton's method to the labelled samples (n, parameters), (n,).

    Returns its last coefficient with the influence of each sample, (N,); NaN if there is no finite solution.
    """
    known = np.isfinite(truth)
    labels, influence = truth[known], np.zeros(len(truth))
    nothing = math.nan, influence
    if len(np.unique(labels)) < 2 or (design.shape[1] > 1 and np.ptp(design[:, 1]) < CERTAIN):
        return nothing
    beta = np.zeros(design.shape[1])
    for _ in range(STEPS):
        stated = expit(design @ beta + offset)
        residuals = design * (labels - stated)[:, None]
        information = design.T @ (design * (stated * (1 - stated))[:, None])
        if np.linalg.cond(information) > 1 / CERTAIN:
            return nothing
        step = np.linalg.solve(information, residuals.sum(axis=0))
        beta = beta + np.clip(step, -2, 2)  # the first steps may overshoot
        if np.abs(step).max() < CLOSE:
            break
    else:
        return nothing
    if abs(beta[-1]) > STEEPEST:
        return nothing
    influence[known] = np.linalg.solve(information, residuals.T)[-1]
    return float(beta[-1]), influence


def bin_gaps(questions: Questions) -> tuple[Floats, Floats]:
    """Return each sample's part in the gap of its bin, (R, N, bins), and which are labelled, (R, N).

    Bins hold equally many samples, ties share one, as in metrics.calibration_error.
    """
    labelled = np.isfinite(questions.truth).T
    gaps = np.zeros((*labelled.shape, CALIBRATION_BINS))
    for row, (scores, truth) in enumerate(questions.columns):
        known = np.flatnonzero(labelled[row])
        _, place, counts = np.unique(scores[known], return_inverse=True, return_counts=True)
        middles = np.cumsum(counts) - counts / 2
        bins = np.floor(CALIBRATION_BINS * middles / max(1, len(known))).astype(np.int64)[place]
        gaps[row, known, bins] = scores[known] - truth[known]
    return gaps, labelled.astype(np.float64)


def draw_gaps(gaps: Floats, known: Floats, weights: Floats) -> Floats:
    """Return the gaps of each resample, (B, R, bins), from weights (B, N)."""
    sums = np.stack([weights @ question for question in gaps], axis=1)
    totals = np.maximum(weights @ known.T, 1e-12)
    return sums / totals[..., None]


def error_intervals(
    values: Floats, gaps: Floats, drawn: Floats, several: bool, confidence: float
) -> list[Interval]:
    """Return the interval of the mean over the questions and of each.

    values: (1 + R,), NaN where undefined; gaps: (R, bins); drawn: (B, R, bins). several: there is more than
    one patient.
    """
    defined = np.where(np.isnan(values[1:]), np.nan, 1.0)
    moved = np.abs(drawn - gaps).sum(axis=-1) * defined
    errors = np.abs(drawn).sum(axis=-1) * defined
    moved, errors = (np.column_stack([mean_defined(rows), rows]) for rows in (moved, errors))
    tail, intervals = (1 - confidence) / 2, []
    for value, shift, error in zip(values.tolist(), moved.T, errors.T, strict=True):
        if math.isnan(value) or not several:
            intervals.append(unbounded(value))
            continue
        low = value - float(np.quantile(shift, 1 - tail))
        high = 2 * value - float(np.quantile(error, tail))
        intervals.append(Interval(value, max(0.0, low), max(value, high)))
    return intervals
