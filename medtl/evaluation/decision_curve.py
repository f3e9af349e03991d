"""Turn probabilities into net benefit over decision thresholds, beside acting on all and on none.

Net benefit (Vickers and Elkin 2006; Vickers 2019) counts the patients rightly acted on, less those wrongly
acted on at the rate at which the threshold weighs them: who acts at a probability of 10% finds one missed
case as bad as nine false alarms. It is in true positives per sample, and means what it says only for
calibrated probabilities and at the prevalence of these data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.data.task import Task
from medtl.evaluation import metrics
from medtl.evaluation.intervals import clustered_error, normal_quantile
from medtl.evaluation.metrics import Floats

THRESHOLDS = tuple(np.round(np.arange(1, 100) / 100, 2).tolist())


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit at each threshold: of the model with its interval, and of acting on all; on none: 0."""

    thresholds: tuple[float, ...]
    model: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    treat_all: tuple[float, ...]


def decision_curves(
    probabilities: ArrayLike,
    targets: ArrayLike,
    task: Task,
    patient_of: NDArray[np.int64],
    confidence: float = 0.95,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, DecisionCurve]:
    """Return the curve of each class against the rest, in binary of the positive one; none for one class."""
    questions = metrics.one_vs_rest(probabilities, targets, task.kind)
    columns = zip(task.asked_classes, questions.scores.T, questions.truth.T, strict=True)
    return {
        name: _curve(scores, truth, patient_of, confidence, thresholds)
        for name, scores, truth in columns
        if len(np.unique(truth[np.isfinite(truth)])) == 2
    }


def net_benefit(flagged: NDArray[np.bool_], truth: Floats, threshold: float) -> Floats:
    """Return what each sample adds to the net benefit, (N,); the net benefit is their mean."""
    odds = threshold / (1 - threshold)
    return np.where(flagged, np.where(truth == 1, 1.0, -odds), 0.0)


def to_json(curves: Mapping[str, DecisionCurve]) -> dict[str, Any]:
    """Return plain data: {class: {thresholds, model, low, high, treat_all}}; an unknown bound is None."""
    return {name: {key: _plain(row) for key, row in asdict(curve).items()} for name, curve in curves.items()}


def _curve(
    scores: Floats,
    truth: Floats,
    patient_of: NDArray[np.int64],
    confidence: float,
    thresholds: Sequence[float],
) -> DecisionCurve:
    known = np.isfinite(truth)
    scores, truth, patients = scores[known], truth[known], patient_of[known]
    gains = [net_benefit(scores >= cut, truth, cut) for cut in thresholds]
    model = np.array([gain.mean() for gain in gains])
    errors = [clustered_error((gain - gain.mean()) / len(gain), patients) for gain in gains]
    reach = normal_quantile(confidence) * np.array(errors)
    acting = np.ones(len(truth), bool)
    everyone = [float(net_benefit(acting, truth, cut).mean()) for cut in thresholds]
    rows = (thresholds, model.tolist(), (model - reach).tolist(), (model + reach).tolist(), everyone)
    return DecisionCurve(*map(tuple, rows))


def _plain(row: Sequence[float]) -> list[float | None]:
    return [round(value, 6) if np.isfinite(value) else None for value in row]
