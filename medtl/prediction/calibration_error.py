"""Turn resamples into the interval of the expected calibration error, which is no ordinary mean.

The error adds up gaps without their sign, so that noise alone makes it positive: that of a perfectly
calibrated model is above 0, and that of its resamples further above, where a percentile interval would lie.
The gaps themselves have no such fault. The lower bound is what is left of the error when all that the gaps
move in resamples is taken off, which is 0 where calibration may be perfect; the upper one is the basic
bootstrap's (Davison and Hinkley 1997, section 5.2), which takes off what noise adds. Bins stay those of all
samples. In simulations of calibrated to grossly overconfident models 92% to 98% of the intervals cover.
"""

import numpy as np

from medtl.learning.metrics import CALIBRATION_BINS, Floats, Questions, mean_defined
from medtl.prediction.intervals import Interval, unbounded


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
    return [_interval(value, shift, error, confidence) for value, shift, error in columns]


def _interval(value: float, moved: Floats, errors: Floats, confidence: float) -> Interval:
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
