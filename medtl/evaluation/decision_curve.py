"""Turn probabilities into net benefit over decision thresholds, beside acting on all and on none.

Net benefit (Vickers and Elkin 2006; Vickers 2019) is the share of patients treated rightly, less the share
treated wrongly times the odds of the threshold: acting at a probability of 10% means that one missed case is
as bad as nine false alarms. Its unit is true positives per sample. It is meaningful only for calibrated
probabilities and at the prevalence of these data.
"""

import numpy as np
from numpy.typing import NDArray

from medtl.evaluation.intervals import clustered_error, normal_quantile
from medtl.evaluation.metrics import Flags, Floats, Questions

THRESHOLDS = tuple(np.round(np.arange(1, 100) / 100, 2).tolist())


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


def net_benefit(flagged: Flags, truth: Floats, threshold: float) -> Floats:
    """Return what each sample adds to the net benefit, (N,); the net benefit is their mean."""
    odds = threshold / (1 - threshold)
    return np.where(flagged, np.where(truth == 1, 1.0, -odds), 0.0)


def _curve(scores: Floats, truth: Floats, patients: NDArray[np.int64], confidence: float) -> Curve:
    gains = [net_benefit(scores >= cut, truth, cut) for cut in THRESHOLDS]
    model = np.array([gain.mean() for gain in gains])
    errors = [clustered_error((gain - gain.mean()) / len(gain), patients) for gain in gains]
    reach = normal_quantile(confidence) * np.array(errors)
    acting = np.ones(len(truth), bool)
    rows = {
        "thresholds": np.array(THRESHOLDS),
        "model": model,
        "low": model - reach,
        "high": model + reach,
        "treat_all": np.array([net_benefit(acting, truth, cut).mean() for cut in THRESHOLDS]),
    }
    return {
        key: [round(value, 6) if np.isfinite(value) else None for value in row.tolist()]
        for key, row in rows.items()
    }
