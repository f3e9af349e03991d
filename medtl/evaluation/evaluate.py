"""Turn probabilities and targets into metrics, each with an interval in which patients are the units.

The samples of one patient are not independent, so they are resampled together. Areas have DeLong's interval,
shares Wilson's, the calibration line the sandwich's, all clustered by patient; every other metric has the
percentile bootstrap over patients (Efron 1979; Field and Welsh 2007 for clusters). Thresholds are taken as
given. Resamples cannot see beyond their samples: if all of them agree, the interval would be a point, and is
undefined instead.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.core.ids import make_generator
from medtl.data.task import Task
from medtl.errors import CheckpointError, LabelError
from medtl.evaluation import decision_curve, metrics
from medtl.evaluation.calibration_metrics import bin_gaps, calibration_lines, draw_gaps, error_intervals
from medtl.evaluation.decision_curve import DecisionCurve, decision_curves
from medtl.evaluation.intervals import (
    Interval,
    auroc_interval,
    index_patients,
    interval_json,
    intervals_json,
    mean_auroc_interval,
    mean_of_bounds,
    percentile_interval,
    place_all,
    share_interval,
)
from medtl.evaluation.metrics import Flags, Floats, Questions, ReliabilityBin, mean_defined, share

BLOCK = 4_000_000  # numbers in one block of weights, 32 MB
TOLERANCE = 1e-6
# In the order of tables and pages.
ORDER = (
    *("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "ppv_at_prevalence", "npv_at_prevalence"),
    *("balanced_accuracy", "accuracy", "f1", "mcc", "brier", "ece"),
    *("calibration_slope", "calibration_intercept"),
)

Columns = dict[str, list[Interval]]


@dataclass(frozen=True)
class RocCurve:
    """Corners of a ROC curve; empty if it is undefined."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a set of predictions.

    metrics: by name; for several classes the mean over them, each against the rest. auroc_bootstrap: the area
    with the interval of resampled patients, beside DeLong's. per_class: class -> name -> interval, empty in
    binary, where it would repeat metrics. thresholds: as choose_thresholds returns them. confusion: counts,
    rows are the truth; empty in multilabel. roc: by class, in binary of the positive one. decision: net
    benefit by class. prevalence: by class, as assumed by ppv_at_prevalence and npv_at_prevalence.
    class_counts: samples of each class. undefined: by metric, in how many of the resamples it is undefined.
    drawn: by metric, its value in each resample, (B,); the same patients are drawn for other predictions of
    the same samples, so that these are pairs.
    """

    task: Task
    metrics: Mapping[str, Interval]
    auroc_bootstrap: Interval
    per_class: Mapping[str, Mapping[str, Interval]]
    thresholds: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]
    roc: Mapping[str, RocCurve]
    reliability: tuple[ReliabilityBin, ...]
    decision: Mapping[str, DecisionCurve]
    prevalence: Mapping[str, float]
    samples: int
    patients: int
    class_counts: Mapping[str, int]
    resamples: int
    undefined: Mapping[str, int]
    confidence: float
    drawn: Mapping[str, Floats] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What is evaluated. patient_of: (N,), whose each sample is. prevalence: (R,)."""

    questions: Questions
    task: Task
    thresholds: tuple[float, ...]
    patient_of: NDArray[np.int64]
    prevalence: Floats | None
    confidence: float


def evaluate(
    probabilities: ArrayLike,
    targets: ArrayLike,
    task: Task,
    patients: Sequence[str],
    thresholds: Sequence[float],
    *,
    prevalence: Mapping[str, float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Evaluation:
    """Evaluate probabilities (N, K) against targets (N,), or (N, K) with NaN in multilabel.

    patients: (N,), whose each sample is. thresholds: (K,), in binary (1,). prevalence: how common a class is
    where the model will be used. Raises LabelError split-empty without samples, and CheckpointError
    scores-invalid for probabilities outside [0, 1].
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    asked = task.asked_classes
    _check_inputs(scores, truth, task, thresholds)
    patient_of = index_patients(patients)
    common = np.array([prevalence.get(name, np.nan) for name in asked]) if prevalence else None
    cuts, questions = tuple(map(float, thresholds)), Questions(scores, truth, task.kind)
    members = truth == 1 if task.kind == "multilabel" else questions.of_class
    inputs = _Inputs(questions, task, cuts, patient_of, common, confidence)
    point = _measure(inputs, np.ones((1, len(scores))))
    drawn, gaps = _resample(inputs, resamples, seed)
    columns = _intervals(inputs, point, drawn) | _calibration(inputs, gaps)
    bounds = {name: columns[name] for name in ORDER if name in columns}
    areas = drawn["auroc"][:, 0] if patient_of.max() else drawn["auroc"][:0, 0]
    return Evaluation(
        task=task,
        metrics={name: column[0] for name, column in bounds.items()},
        auroc_bootstrap=percentile_interval(float(point["auroc"][0, 0]), areas, confidence),
        per_class=_by_class(bounds, asked),
        thresholds=cuts,
        confusion=tuple(map(tuple, metrics.confusion_matrix(questions, cuts).tolist())),
        roc={
            name: RocCurve(*(tuple(rates.tolist()) for rates in metrics.roc_points(*column)))
            for name, column in zip(asked, questions.columns, strict=True)
        },
        reliability=tuple(metrics.reliability_bins(questions)),
        decision=decision_curves(questions, task, patient_of, confidence),
        prevalence=dict(prevalence or {}),
        samples=len(truth),
        patients=int(patient_of.max()) + 1,
        class_counts=dict(zip(task.classes, members.sum(axis=0).tolist(), strict=True)),
        resamples=resamples,
        undefined={name: int(np.isnan(values[:, 0]).sum()) for name, values in drawn.items()},
        confidence=confidence,
        drawn={name: values[:, 0] for name, values in drawn.items()},
    )


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return plain data without NaN: {"auroc": {"value", "low", "high"}, ..., "per_class", "confusion", ...}.

    What is undefined is None, and then the metric says "undefined": true.
    """
    return {
        **intervals_json(evaluation.metrics),
        "auroc_bootstrap": interval_json(evaluation.auroc_bootstrap),
        "per_class": {name: intervals_json(intervals) for name, intervals in evaluation.per_class.items()},
        "classes": list(evaluation.task.classes),
        "thresholds": list(evaluation.thresholds),
        "confusion": [list(row) for row in evaluation.confusion],
        "roc": {name: {"fpr": list(c.fpr), "tpr": list(c.tpr)} for name, c in evaluation.roc.items()},
        "reliability": [asdict(entry) for entry in evaluation.reliability],
        "decision": decision_curve.to_json(evaluation.decision),
        **({"prevalence": dict(evaluation.prevalence)} if evaluation.prevalence else {}),
        "counts": {"samples": evaluation.samples, "patients": evaluation.patients},
        "class_counts": dict(evaluation.class_counts),
        "confidence": evaluation.confidence,
        "resamples": {"drawn": evaluation.resamples, "undefined": dict(evaluation.undefined)},
    }


def _check_inputs(scores: Floats, truth: NDArray, task: Task, thresholds: Sequence[float]) -> None:
    if not len(truth):
        raise LabelError("split-empty", "there are no samples to evaluate", fix="give labelled samples")
    expected = (len(truth), len(task.classes))
    if scores.shape != expected:
        reason = f"the probabilities have shape {scores.shape}, not {expected}"
        raise CheckpointError("scores-invalid", reason, fix="evaluate with the task of the checkpoint")
    right = ((scores >= -TOLERANCE) & (scores <= 1 + TOLERANCE)).all(axis=1)  # NaN is neither
    if not right.all():
        reason = f"{(~right).sum()} of {len(scores)} samples have probabilities outside [0, 1] or NaN"
        raise CheckpointError("scores-invalid", reason, fix="train again, at a lower learning rate")
    asked = len(task.asked_classes)
    if len(thresholds) != asked or not np.isfinite(thresholds).all():
        reason = f"thresholds {tuple(thresholds)} are not one number for each of {asked} classes"
        raise CheckpointError("scores-invalid", reason, fix="choose them again on validation data")


def _measure(inputs: _Inputs, weights: Floats) -> dict[str, Floats]:
    """Return each metric for B weightings: (B, 1), or (B, 1 + R) with its R classes after the mean."""
    questions, cuts = inputs.questions, inputs.thresholds
    by_class = {
        "auroc": metrics.auroc(questions, weights),
        "auprc": metrics.auprc(questions, weights),
        **{name: share(*pair, weights) for name, pair in metrics.rates(questions, cuts).items()},
        "f1": metrics.f1(questions, cuts, weights),
    }
    if inputs.prevalence is not None:
        rates = by_class["sensitivity"], by_class["specificity"]
        values = metrics.at_prevalence(*rates, np.broadcast_to(inputs.prevalence, rates[0].shape))
        by_class |= dict(zip(("ppv_at_prevalence", "npv_at_prevalence"), values, strict=True))
    overall = {
        "balanced_accuracy": metrics.balanced_accuracy(questions, cuts, weights),
        "accuracy": metrics.accuracy(questions, cuts, weights),
        "mcc": metrics.mcc(questions, cuts, weights),
        "brier": metrics.brier(questions, weights),
    }
    table = {name: np.column_stack([mean_defined(values), values]) for name, values in by_class.items()}
    return table | {name: values[:, None] for name, values in overall.items()}


def _resample(inputs: _Inputs, resamples: int, seed: int) -> tuple[dict[str, Floats], Floats]:
    """Return each metric of each resample, (B, 1 + R), and the gaps of calibration, (B, R, bins)."""
    placed = bin_gaps(inputs.questions)
    blocks, gaps = [], []
    for weights in _draw_weights(inputs.patient_of, resamples, make_generator(seed, "bootstrap")):
        blocks.append(_measure(inputs, weights))
        gaps.append(draw_gaps(*placed, weights))
    drawn = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return drawn, np.concatenate(gaps)


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


def _intervals(inputs: _Inputs, point: Mapping[str, Floats], drawn: Mapping[str, Floats]) -> Columns:
    """Return for each metric the interval of its mean and of each class."""
    questions, several = inputs.questions, inputs.patient_of.max() > 0
    columns = {
        name: [
            percentile_interval(float(value), column if several else column[:0], inputs.confidence)
            for value, column in zip(point[name][0], drawn[name].T, strict=True)
        ]
        for name in point
    }
    placed = place_all(questions, inputs.patient_of)
    columns["auroc"] = [
        mean_auroc_interval(placed, inputs.confidence),
        *(auroc_interval(area, inputs.confidence) for area in placed),
    ]
    for name, pair in metrics.rates(questions, inputs.thresholds).items():
        each = _share_intervals(inputs, *pair)
        columns[name] = [_mean_interval(each, columns[name][0]), *each]
    right = _share_intervals(inputs, *questions.right_answers(inputs.thresholds))
    columns["accuracy"] = [_mean_interval(right, columns["accuracy"][0])]
    recalls = _share_intervals(inputs, *questions.right_by_class(inputs.thresholds))
    columns["balanced_accuracy"] = [_mean_interval(recalls, columns["balanced_accuracy"][0])]
    return columns


def _share_intervals(inputs: _Inputs, hits: Flags, among: Flags) -> list[Interval]:
    return [
        share_interval(h, a, inputs.patient_of, inputs.confidence)
        for h, a in zip(hits.T, among.T, strict=True)
    ]


def _mean_interval(each: list[Interval], drawn: Interval) -> Interval:
    """Return the interval of a mean over classes as resamples give it, or that of a single class.

    If resamples give no bounds, they are the means of the classes' own.
    """
    if len(each) == 1:
        return each[0]
    if math.isnan(drawn.value) or not math.isnan(drawn.low):
        return drawn
    return mean_of_bounds(drawn.value, each)


def _calibration(inputs: _Inputs, drawn_gaps: Floats) -> Columns:
    questions, patient_of = inputs.questions, inputs.patient_of
    by_class = metrics.calibration_error(questions)
    values = np.append(mean_defined(by_class), by_class)
    (gaps,) = draw_gaps(*bin_gaps(questions), np.ones((1, len(patient_of))))
    several = bool(patient_of.max() > 0)
    lines = calibration_lines(questions, patient_of, inputs.confidence)
    return {"ece": error_intervals(values, gaps, drawn_gaps, several, inputs.confidence), **lines}


def _by_class(bounds: Mapping[str, list[Interval]], asked: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Turn columns into class -> metric -> interval; a single class is the metric itself."""
    if len(asked) == 1:
        return {}
    return {
        name: {metric: columns[index] for metric, columns in bounds.items() if len(columns) > 1}
        for index, name in enumerate(asked, start=1)
    }
