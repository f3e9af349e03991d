"""Turn probabilities and the truth into calibration slope, intercept and error, with intervals by patient.

Logistic recalibration (Cox 1958; Van Calster 2019): the slope is that of the truth on the logit of the
probability, 1 for calibrated probabilities and below 1 for an overconfident model. The intercept is the shift
of the logit at a slope of 1: above 0 if the class is commoner than predicted. Errors are of the sandwich with
patients as clusters (Liang and Zeger 1986).
"""

import math

import numpy as np
from scipy.special import expit, logit

from medtl.evaluation.intervals import Interval, clustered_error, normal_interval
from medtl.evaluation.metrics import Floats, Questions, mean_defined

# As many as a reliability diagram shows; each further one adds the noise of its own rate to the error.
CALIBRATION_BINS = 10
STEPS, CLOSE = 50, 1e-10
CERTAIN = 1e-12  # a probability of 0 or 1 has no logit
STEEPEST = 1e3  # a steeper slope diverges: the classes are separated without an error
Estimate = tuple[float, Floats]


def calibration_lines(questions: Questions, confidence: float) -> dict[str, list[Interval]]:
    """Return calibration_slope and calibration_intercept: of each question, after their mean if several."""
    lines = {}
    for name, fit in (("calibration_slope", estimate_slope), ("calibration_intercept", estimate_intercept)):
        estimates = [fit(*column) for column in questions.columns]
        if len(estimates) > 1:
            defined = [estimate for estimate in estimates if math.isfinite(estimate[0])]
            mean, influence = (np.mean(parts, axis=0) for parts in zip(*(defined or estimates), strict=True))
            estimates = [(float(mean), influence), *estimates]
        lines[name] = [
            normal_interval(value, clustered_error(influence, questions.patient_of), confidence)
            for value, influence in estimates
        ]
    return lines


def estimate_slope(scores: Floats, truth: Floats) -> Estimate:
    """Return the slope and the influence of each sample (N,).

    NaN for one class, and if the classes are separated without an error: then it is infinite.
    """
    return _fit(scores, truth, sloped=True)


def estimate_intercept(scores: Floats, truth: Floats) -> Estimate:
    """Return the intercept at a slope of 1 and the influence of each sample (N,); NaN for one class."""
    return _fit(scores, truth, sloped=False)


def _fit(scores: Floats, truth: Floats, *, sloped: bool) -> Estimate:
    """Fit a logistic regression on the logits of the labelled samples by Newton's method.

    Returns its last coefficient with the influence of each sample, (N,); NaN if there is no finite solution.
    """
    known = np.isfinite(truth)
    labels, influence, beta = truth[known], np.zeros(len(truth)), np.zeros(1 + sloped)
    logits = logit(np.clip(scores[known], CERTAIN, 1 - CERTAIN))
    ones = np.ones_like(logits)
    design = np.stack([ones, logits], axis=1) if sloped else ones[:, None]
    for _ in range(STEPS if len(np.unique(labels)) > 1 else 0):
        stated = expit(design @ beta + (0 if sloped else logits))
        residuals = design * (labels - stated)[:, None]
        information = design.T @ (design * (stated * (1 - stated))[:, None])
        if np.linalg.cond(information) > 1 / CERTAIN:
            break
        step = np.linalg.solve(information, residuals.sum(axis=0))
        beta = beta + np.clip(step, -2, 2)  # the first steps may overshoot
        if np.abs(step).max() < CLOSE and abs(beta[-1]) < STEEPEST:
            influence[known] = np.linalg.solve(information, residuals.T)[-1]
            return float(beta[-1]), influence
    return math.nan, influence


def bin_gaps(questions: Questions, weights: Floats) -> Floats:
    """Return the mean of score - truth in each bin times its share of the samples, (B, R, bins).

    Bins hold equally many samples and not equal widths: if a class is rare, nearly all its scores would share
    one of those. Ties share a bin.
    """
    columns = []
    for scores, truth in questions.columns:
        known = np.flatnonzero(np.isfinite(truth))
        _, place, counts = np.unique(scores[known], return_inverse=True, return_counts=True)
        middles = np.cumsum(counts) - counts / 2
        bins = np.floor(CALIBRATION_BINS * middles / max(1, len(known))).astype(np.int64)[place]
        gaps = np.zeros((len(scores), CALIBRATION_BINS))
        gaps[known, bins] = scores[known] - truth[known]
        total = np.maximum(weights[:, known].sum(axis=1, keepdims=True), 1e-12)
        columns.append(weights @ gaps / total)
    return np.stack(columns, axis=1)


def calibration_errors(questions: Questions, gaps: Floats) -> Floats:
    """Return the expected calibration error by class, (B, R), from gaps (Naeini 2015, Nixon 2019).

    gaps: as bin_gaps returns them. NaN without a positive or without a negative.
    """
    several = [len(np.unique(truth[np.isfinite(truth)])) > 1 for truth in questions.truth.T]
    return np.where(several, np.abs(gaps).sum(axis=-1), np.nan)


def error_intervals(questions: Questions, drawn: Floats, confidence: float) -> list[Interval]:
    """Return the interval of the calibration error: of the mean over the questions, and of each.

    drawn: the gaps of resamples of the patients, (B, R, bins).
    """
    point = bin_gaps(questions, np.ones((1, len(questions.truth))))
    by_class = (calibration_errors(questions, gaps) for gaps in (point, drawn - point, drawn))
    values, moved, errors = (np.column_stack([mean_defined(rows), rows]) for rows in by_class)
    tail, intervals = (1 - confidence) / 2, []
    for value, shift, error in zip(values[0].tolist(), moved.T, errors.T, strict=True):
        if math.isnan(value) or not questions.patient_of.any():  # a single patient
            intervals.append(Interval(value))
            continue
        low = value - float(np.quantile(shift, 1 - tail))
        high = 2 * value - float(np.quantile(error, tail))
        intervals.append(Interval(value, max(0.0, low), max(value, high)))
    return intervals
