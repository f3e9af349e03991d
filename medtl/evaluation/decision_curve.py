"""Turn probabilities into net benefit over decision thresholds, beside acting on all and on none.

Net benefit (Vickers and Elkin 2006; Vickers 2019) is the share of patients treated rightly, less the share
treated wrongly times the odds of the threshold: acting at a probability of 10% means that one missed case is
as bad as nine false alarms. Its unit is true positives per sample. It is meaningful only for calibrated
probabilities and at the prevalence of these data.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.evaluation.intervals import clustered_error, normal_quantile
from medtl.evaluation.metrics import Flags, Floats, Questions

THRESHOLDS = np.round(np.arange(1, 100) / 100, 2)


# Its thresholds, the net benefit of the model with its interval, and that of acting on all; on none it is 0.
Curve = dict[str, list[float | None]]


def decision_curves(questions: Questions, confidence: float = 0.95) -> dict[str, Curve]:
    """Return the curve of each class against the rest, in binary of the positive one; none for one class.

    {class: {thresholds, model, low, high, treat_all}}; an unknown bound is None.
    """
    curves = {}
    for name, (scores, truth) in zip(questions.task.asked_classes, questions.columns, strict=True):
        known = np.isfinite(truth)
        if len(np.unique(truth[known])) == 2:
            curves[name] = _curve(scores[known], truth[known], questions.patient_of[known], confidence)
    return curves


def net_benefit(flagged: Flags, truth: Floats, threshold: ArrayLike) -> Floats:
    """Return what each sample adds to the net benefit, (N,); the net benefit is their mean."""
    odds = np.asarray(threshold) / (1 - np.asarray(threshold))
    return np.where(flagged, np.where(truth == 1, 1.0, -odds), 0.0)


def _curve(scores: Floats, truth: Floats, patients: NDArray[np.int64], confidence: float) -> Curve:
    cuts = THRESHOLDS[:, None]
    gains = net_benefit(scores >= cuts, truth, cuts)  # (thresholds, N)
    model = gains.mean(axis=1)
    errors = [clustered_error((gain - gain.mean()) / len(gain), patients) for gain in gains]
    reach = normal_quantile(confidence) * np.array(errors)
    treat_all = net_benefit(np.ones(len(truth), bool), truth, cuts).mean(axis=1)
    names = ("thresholds", "model", "low", "high", "treat_all")
    rows = zip(names, (THRESHOLDS, model, model - reach, model + reach, treat_all), strict=True)
    return {
        key: [round(value, 6) if np.isfinite(value) else None for value in row.tolist()] for key, row in rows
    }
