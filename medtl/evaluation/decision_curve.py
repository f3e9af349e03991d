"""Turn probabilities into net benefit over decision thresholds, beside acting on all and on none.

Net benefit (Vickers and Elkin 2006; Vickers 2019) is the share of patients treated rightly, less the share
treated wrongly times the odds of the threshold: acting at a probability of 10% means that one missed case is
as bad as nine false alarms. Its unit is true positives per sample. It is meaningful only for calibrated
probabilities and at the prevalence of these data.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.evaluation.intervals import clustered_error, normal_quantile
from medtl.evaluation.metrics import Flags, Floats, Questions

THRESHOLDS = tuple(np.round(np.arange(1, 100) / 100, 2).tolist())


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit at each threshold: of the model with its interval, and of acting on all; on none: 0."""

    thresholds: tuple[float, ...]
    model: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    treat_all: tuple[float, ...]


def decision_curves(questions: Questions, confidence: float = 0.95) -> dict[str, DecisionCurve]:
    """Return the curve of each class against the rest, in binary of the positive one; none for one class."""
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


def to_json(curves: Mapping[str, DecisionCurve]) -> dict[str, Any]:
    """Return plain data: {class: {thresholds, model, low, high, treat_all}}; an unknown bound is None."""
    return {
        name: {
            key: [round(value, 6) if np.isfinite(value) else None for value in row]
            for key, row in asdict(curve).items()
        }
        for name, curve in curves.items()
    }


def _curve(scores: Floats, truth: Floats, patients: NDArray[np.int64], confidence: float) -> DecisionCurve:
    gains = [net_benefit(scores >= cut, truth, cut) for cut in THRESHOLDS]
    model = np.array([gain.mean() for gain in gains])
    errors = [clustered_error((gain - gain.mean()) / len(gain), patients) for gain in gains]
    reach = normal_quantile(confidence) * np.array(errors)
    acting = np.ones(len(truth), bool)
    everyone = [float(net_benefit(acting, truth, cut).mean()) for cut in THRESHOLDS]
    rows = (THRESHOLDS, model.tolist(), (model - reach).tolist(), (model + reach).tolist(), everyone)
    return DecisionCurve(*map(tuple, rows))
