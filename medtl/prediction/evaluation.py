"""Turn probabilities and targets into metrics, each with the interval that resampled patients give.

The interval is the percentile bootstrap over patients (Efron 1979; Field and Welsh 2007 for clusters): the
samples of a patient come and go together, because they are no independent evidence. Thresholds are taken as
given. An interval cannot see beyond its samples: where every answer is right, all resamples say so too, and
it is as narrow as a point.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.errors import CheckpointError, LabelError
from medtl.imaging.manifest import Task
from medtl.imaging.randomness import make_generator
from medtl.learning import metrics
from medtl.learning.metrics import Floats, ReliabilityBin

log = logging.getLogger(__name__)

FALLBACK_THRESHOLD = 0.5
FEWEST_DEFINED = 0.5  # the share of resamples below which an interval would be that of a chosen few
BLOCK = 4_000_000  # numbers in one block of weights, 32 MB
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Interval:
    """A metric with the bounds of its interval; NaN is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RocCurve:
    """Corners of a ROC curve; empty where it is undefined."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """What a set of predictions is worth.

    metrics: by name; for several classes the mean over them, each against the rest. per_class: class -> name
    -> interval, empty in binary, where it would repeat metrics. thresholds: as choose_thresholds returns
    them. confusion: counts, rows are the truth; empty in multilabel. roc: by class, in binary of the positive
    one. class_counts: samples that have each class. undefined: for each metric how many of the resamples had
    no value for it.
    """

    task: Task
    metrics: Mapping[str, Interval]
    per_class: Mapping[str, Mapping[str, Interval]]
    thresholds: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]
    roc: Mapping[str, RocCurve]
    reliability: tuple[ReliabilityBin, ...]
    samples: int
    patients: int
    class_counts: Mapping[str, int]
    resamples: int
    undefined: Mapping[str, int]
    confidence: float


def choose_thresholds(probabilities: ArrayLike, targets: ArrayLike, task: Task) -> tuple[float, ...]:
    """Return Youden's threshold of each class against the rest: K of them, in binary one (of the last class).

    Meant for validation data. A class that is all or nothing there gets 0.5, with a warning.
    """
    questions = metrics.one_vs_rest(probabilities, targets, task.kind)
    found = [
        metrics.youden_threshold(*pair) for pair in zip(questions.scores.T, questions.truth.T, strict=True)
    ]
    for name, threshold in zip(_asked_classes(task), found, strict=True):
        if math.isnan(threshold):
            log.warning("no threshold can be chosen for class %s: %s is used", name, FALLBACK_THRESHOLD)
    return tuple(FALLBACK_THRESHOLD if math.isnan(threshold) else threshold for threshold in found)


def evaluate(
    probabilities: ArrayLike,
    targets: ArrayLike,
    task: Task,
    patients: Sequence[str],
    thresholds: Sequence[float],
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Evaluation:
    """Judge probabilities (N, K) by targets (N,), or (N, K) with NaN in multilabel.

    patients: (N,), who each sample is of. thresholds: (K,), in binary (1,). Raises LabelError split-empty
    without samples, and CheckpointError scores-invalid for probabilities that are none.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    asked = _asked_classes(task)
    _check_scores(scores, truth, task)
    _check_thresholds(thresholds, asked)
    _, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    point = _measure(scores, truth, thresholds, np.ones((1, len(scores))), task)
    drawn = _measure_resamples(scores, truth, thresholds, patient_of, task, resamples, seed)
    count = int(patient_of.max()) + 1
    bounds = {name: _intervals(point[name][0], drawn[name], count, confidence) for name in point}
    return Evaluation(
        task=task,
        metrics={name: columns[0] for name, columns in bounds.items()},
        per_class=_by_class(bounds, asked),
        thresholds=tuple(map(float, thresholds)),
        confusion=_confusion(scores, truth, thresholds, task),
        roc=_roc_curves(scores, truth, task),
        reliability=tuple(metrics.reliability_bins(scores, truth, kind=task.kind)),
        samples=len(truth),
        patients=count,
        class_counts=_class_counts(truth, task),
        resamples=resamples,
        undefined={name: int(np.isnan(values[:, 0]).sum()) for name, values in drawn.items()},
        confidence=confidence,
    )


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return plain data without NaN: {"auroc": {"value", "low", "high"}, ..., "per_class", "confusion", ...}.

    What is undefined is None, and then the metric says "undefined": true.
    """
    return {
        **{name: _interval_json(interval) for name, interval in evaluation.metrics.items()},
        "per_class": {
            name: {metric: _interval_json(interval) for metric, interval in rows.items()}
            for name, rows in evaluation.per_class.items()
        },
        "classes": list(evaluation.task.classes),
        "thresholds": list(evaluation.thresholds),
        "confusion": [list(row) for row in evaluation.confusion],
        "roc": {name: {"fpr": list(c.fpr), "tpr": list(c.tpr)} for name, c in evaluation.roc.items()},
        "reliability": [asdict(entry) for entry in evaluation.reliability],
        "counts": {"samples": evaluation.samples, "patients": evaluation.patients},
        "class_counts": dict(evaluation.class_counts),
        "confidence": evaluation.confidence,
        "resamples": {"drawn": evaluation.resamples, "undefined": dict(evaluation.undefined)},
    }


def _asked_classes(task: Task) -> tuple[str, ...]:
    """Return the classes that are judged against the rest: all, or in binary the positive one."""
    return task.classes[-1:] if task.kind == "binary" else task.classes


def _check_scores(scores: Floats, truth: NDArray, task: Task) -> None:
    if not len(truth):
        raise LabelError("split-empty", "there are no samples to evaluate", fix="give labelled samples")
    expected = (len(truth), len(task.classes))
    if scores.shape != expected:
        reason = f"the probabilities have shape {scores.shape}, not {expected}"
        raise CheckpointError("scores-invalid", reason, fix="evaluate with the task of the checkpoint")
    right = ((scores >= -TOLERANCE) & (scores <= 1 + TOLERANCE)).all(axis=1)  # NaN is neither
    if not right.all():
        reason = f"{(~right).sum()} of {len(scores)} samples have probabilities that are no numbers in [0, 1]"
        raise CheckpointError("scores-invalid", reason, fix="train again, at a lower rate")


def _check_thresholds(thresholds: Sequence[float], asked: Sequence[str]) -> None:
    if len(thresholds) != len(asked) or not np.isfinite(thresholds).all():
        reason = f"thresholds {tuple(thresholds)} are not one number for each of {len(asked)} classes"
        raise CheckpointError("scores-invalid", reason, fix="choose them again on validation data")


def _measure(
    scores: Floats, truth: NDArray, thresholds: Sequence[float], weights: Floats, task: Task
) -> dict[str, Floats]:
    """Return each metric for B weightings: (B, 1), or (B, 1 + R) with its R classes after the mean."""
    kind = task.kind
    by_class = {
        "auroc": metrics.auroc_by_class(scores, truth, weights, kind=kind),
        "auprc": metrics.auprc_by_class(scores, truth, weights, kind=kind),
        "sensitivity": metrics.sensitivity_by_class(scores, truth, thresholds, weights, kind=kind),
        "specificity": metrics.specificity_by_class(scores, truth, thresholds, weights, kind=kind),
    }
    overall = {
        "balanced_accuracy": metrics.balanced_accuracy(scores, truth, thresholds, weights, kind=kind),
        "accuracy": metrics.accuracy(scores, truth, thresholds, weights, kind=kind),
        "brier": metrics.brier(scores, truth, weights, kind=kind),
    }
    table = {
        name: np.column_stack([metrics.mean_defined(values), values]) for name, values in by_class.items()
    }
    return table | {name: values[:, None] for name, values in overall.items()}


def _measure_resamples(
    scores: Floats,
    truth: NDArray,
    thresholds: Sequence[float],
    patient_of: NDArray[np.int64],
    task: Task,
    resamples: int,
    seed: int,
) -> dict[str, Floats]:
    blocks = [
        _measure(scores, truth, thresholds, weights, task)
        for weights in _draw_weights(patient_of, resamples, make_generator(seed, "bootstrap"))
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _draw_weights(
    patient_of: NDArray[np.int64], resamples: int, generator: np.random.Generator
) -> Iterator[Floats]:
    """Yield how often each sample is in each resample, (B, N), in blocks of resamples."""
    patients = int(patient_of.max()) + 1
    step = max(1, BLOCK // len(patient_of))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(patients, size=(rows, patients)) + patients * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)
        yield times[:, patient_of].astype(np.float64)


def _intervals(point: Floats, drawn: Floats, patients: int, confidence: float) -> list[Interval]:
    """Return an interval for each column of point (R,) and drawn (B, R)."""
    return [
        _interval(float(value), column if patients > 1 else column[:0], confidence)
        for value, column in zip(point, drawn.T, strict=True)
    ]


def _interval(value: float, drawn: Floats, confidence: float) -> Interval:
    """Return the percentile interval; without bounds where most resamples have no value."""
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not len(defined) or len(defined) < FEWEST_DEFINED * len(drawn):
        return Interval(value, math.nan, math.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _by_class(bounds: Mapping[str, list[Interval]], asked: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Turn columns into class -> metric -> interval; a single class is the metric itself."""
    if len(asked) == 1:
        return {}
    return {
        name: {metric: columns[index] for metric, columns in bounds.items() if len(columns) > 1}
        for index, name in enumerate(asked, start=1)
    }


def _confusion(
    scores: Floats, truth: NDArray, thresholds: Sequence[float], task: Task
) -> tuple[tuple[int, ...], ...]:
    counts = metrics.confusion_matrix(scores, truth, thresholds, kind=task.kind)
    return tuple(tuple(int(count) for count in row) for row in counts)


def _roc_curves(scores: Floats, truth: NDArray, task: Task) -> dict[str, RocCurve]:
    questions = metrics.one_vs_rest(scores, truth, task.kind)
    curves = {}
    for name, column, flags in zip(_asked_classes(task), questions.scores.T, questions.truth.T, strict=True):
        fpr, tpr = metrics.roc_points(column, flags)
        curves[name] = RocCurve(tuple(fpr.tolist()), tuple(tpr.tolist()))
    return curves


def _class_counts(truth: NDArray, task: Task) -> dict[str, int]:
    if task.kind == "multilabel":
        counts = (truth == 1).sum(axis=0)
    else:
        counts = np.bincount(truth, minlength=len(task.classes))
    return {name: int(count) for name, count in zip(task.classes, counts, strict=True)}


def _interval_json(interval: Interval) -> dict[str, float | bool | None]:
    numbers = {name: None if math.isnan(number) else number for name, number in asdict(interval).items()}
    return {**numbers, "undefined": True} if numbers["value"] is None else numbers
