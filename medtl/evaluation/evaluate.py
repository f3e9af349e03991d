"""Turn probabilities and targets into metrics, each with an interval in which patients are the units.

The samples of one patient are not independent, so they are resampled together. Areas have DeLong's interval,
shares Wilson's, the calibration line the sandwich's, all clustered by patient; every other metric has the
percentile bootstrap over patients (Efron 1979; Field and Welsh 2007 for clusters). Thresholds are taken as
given. Resamples cannot see beyond their samples: if all of them agree, the interval would be a point, and is
undefined instead.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.core.ids import make_generator
from medtl.data.task import Task
from medtl.errors import CheckpointError, LabelError
from medtl.evaluation import metrics
from medtl.evaluation.calibration_metrics import bin_gaps, calibration_lines, error_intervals
from medtl.evaluation.decision_curve import Curve, decision_curves
from medtl.evaluation.intervals import (
    Interval,
    auroc_interval,
    interval_json,
    intervals_json,
    mean_auroc_interval,
    mean_of_bounds,
    percentile_interval,
    place_all,
    share_interval,
)
from medtl.evaluation.metrics import Floats, Questions, mean_defined, share

# Numbers in one block of weights (16 MB), which stays in the processor's caches.
BLOCK = 2_000_000
TOLERANCE = 1e-6
# In the order of tables and pages; those at a prevalence only where one is stated.
METRICS = (
    *("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "ppv_at_prevalence", "npv_at_prevalence"),
    *("balanced_accuracy", "accuracy", "f1", "mcc", "brier", "ece"),
    *("calibration_slope", "calibration_intercept"),
)

Columns = dict[str, list[Interval]]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a set of predictions.

    metrics: by name; for several classes the mean over them, each against the rest. auroc_bootstrap: the area
    with the interval of resampled patients, beside DeLong's. per_class: class -> name -> interval, empty in
    binary, where it would repeat metrics. thresholds: as choose_thresholds returns them. confusion: counts,
    rows are the truth; empty in multilabel. roc: by class, in binary of the positive one, the corners {fpr,
    tpr}, empty if undefined. reliability: as reliability_bins returns it; decision: as decision_curves does.
    prevalence: by class, as assumed by ppv_at_prevalence and npv_at_prevalence.
    class_counts: samples of each class. undefined: by metric, in how many of the resamples it is undefined.
    drawn: by metric, its value in each resample, (B,); the same patients are drawn for other predictions of
    the same samples, so that these are pairs.
    """

    task: Task
    metrics: Mapping[str, Interval]
    auroc_bootstrap: Interval
    per_class: Mapping[str, Mapping[str, Interval]]
    thresholds: tuple[float, ...]
    confusion: list[list[int]]
    roc: Mapping[str, Mapping[str, list[float]]]
    reliability: list[dict[str, float]]
    decision: Mapping[str, Curve]
    prevalence: Mapping[str, float]
    samples: int
    patients: int
    class_counts: Mapping[str, int]
    resamples: int
    undefined: Mapping[str, int]
    confidence: float
    drawn: Mapping[str, Floats] = field(default_factory=dict, compare=False, repr=False)


def evaluate(
    questions: Questions,
    thresholds: Sequence[float],
    *,
    prevalence: Mapping[str, float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Evaluation:
    """Evaluate predictions with their truth and patients.

    thresholds: (K,), in binary (1,). prevalence: how common a class is where the model will be used. Raises
    LabelError split-empty without samples, and CheckpointError scores-invalid for probabilities outside
    [0, 1].
    """
    _check_inputs(questions, thresholds)
    task, cuts = questions.task, tuple(map(float, thresholds))
    measure = partial(_measure, questions, cuts, prevalence)
    point = measure(np.ones((1, len(questions.targets))))
    drawn, gaps = _resample(questions, measure, resamples, seed)
    columns = {
        **_intervals(questions, cuts, point, drawn, confidence),
        "ece": error_intervals(questions, gaps, confidence),
        **calibration_lines(questions, confidence),
    }
    bounds = {name: columns[name] for name in METRICS if name in columns}
    of_mean = {name: values[:, 0] for name, values in drawn.items()}
    members = questions.targets == 1 if task.kind == "multilabel" else questions.of_class
    return Evaluation(
        task=task,
        metrics={name: column[0] for name, column in bounds.items()},
        auroc_bootstrap=percentile_interval(float(point["auroc"][0, 0]), of_mean["auroc"], confidence),
        per_class=_by_class(bounds, task.asked_classes),
        thresholds=cuts,
        confusion=metrics.confusion_matrix(questions, cuts).tolist(),
        roc={
            name: dict(zip(("fpr", "tpr"), metrics.roc_points(*column), strict=True))
            for name, column in zip(task.asked_classes, questions.columns, strict=True)
        },
        reliability=metrics.reliability_bins(questions),
        decision=decision_curves(questions, confidence),
        prevalence=dict(prevalence or {}),
        samples=len(questions.targets),
        patients=int(questions.patient_of.max()) + 1,
        class_counts=dict(zip(task.classes, members.sum(axis=0).tolist(), strict=True)),
        resamples=resamples,
        undefined={name: int(np.isnan(values).sum()) for name, values in of_mean.items()},
        confidence=confidence,
        drawn=of_mean,
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
        "confusion": evaluation.confusion,
        "roc": dict(evaluation.roc),
        "reliability": evaluation.reliability,
        "decision": dict(evaluation.decision),
        **({"prevalence": dict(evaluation.prevalence)} if evaluation.prevalence else {}),
        "counts": {"samples": evaluation.samples, "patients": evaluation.patients},
        "class_counts": dict(evaluation.class_counts),
        "confidence": evaluation.confidence,
        "resamples": {"drawn": evaluation.resamples, "undefined": dict(evaluation.undefined)},
    }


def _check_inputs(questions: Questions, thresholds: Sequence[float]) -> None:
    scores, task = questions.probabilities, questions.task
    if not len(scores):
        raise LabelError("split-empty", "there are no samples to evaluate", fix="give labelled samples")
    expected = (len(questions.targets), len(task.classes))
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


def _measure(
    questions: Questions, cuts: Sequence[float], prevalence: Mapping[str, float] | None, weights: Floats
) -> dict[str, Floats]:
    """Return each metric for B weightings: (B, 1), or (B, 1 + R) with its R classes after the mean."""
    by_class = {
        "auroc": metrics.auroc(questions, weights),
        "auprc": metrics.auprc(questions, weights),
        **{name: share(*pair, weights) for name, pair in metrics.rates(questions, cuts).items()},
        "f1": metrics.f1(questions, cuts, weights),
    }
    if prevalence:
        rates = by_class["sensitivity"], by_class["specificity"]
        common = [prevalence.get(name, np.nan) for name in questions.task.asked_classes]
        values = metrics.at_prevalence(*rates, np.broadcast_to(common, rates[0].shape))
        by_class |= dict(zip(("ppv_at_prevalence", "npv_at_prevalence"), values, strict=True))
    overall = {
        "balanced_accuracy": metrics.balanced_accuracy(questions, cuts, weights),
        "accuracy": metrics.accuracy(questions, cuts, weights),
        "mcc": metrics.mcc(questions, cuts, weights),
        "brier": metrics.brier(questions, weights),
    }
    table = {name: np.column_stack([mean_defined(values), values]) for name, values in by_class.items()}
    return table | {name: values[:, None] for name, values in overall.items()}


def _resample(
    questions: Questions, measure: Callable[[Floats], dict[str, Floats]], resamples: int, seed: int
) -> tuple[dict[str, Floats], Floats]:
    """Return each metric of each resample, (B, 1 + R), and the gaps of calibration, (B, R, bins)."""
    blocks, gaps = [], []
    for weights in _draw_weights(questions.patient_of, resamples, make_generator(seed, "bootstrap")):
        blocks.append(measure(weights))
        gaps.append(bin_gaps(questions, weights))
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


def _intervals(
    questions: Questions,
    cuts: Sequence[float],
    point: Mapping[str, Floats],
    drawn: Mapping[str, Floats],
    confidence: float,
) -> Columns:
    """Return for each metric the interval of its mean and of each class."""
    columns = {
        name: [
            percentile_interval(value, column, confidence)
            for value, column in zip(point[name][0].tolist(), drawn[name].T, strict=True)
        ]
        for name in point
    }
    placed = place_all(questions)
    columns["auroc"] = [
        mean_auroc_interval(placed, confidence),
        *(auroc_interval(area, confidence) for area in placed),
    ]
    shares = {
        **metrics.rates(questions, cuts),
        "accuracy": questions.right_answers(cuts),
        "balanced_accuracy": questions.right_by_class(cuts),
    }
    for name, pair in shares.items():
        by_class = zip(pair[0].T, pair[1].T, strict=True)
        each = [share_interval(hits, among, questions.patient_of, confidence) for hits, among in by_class]
        mean, *classes = columns[name]
        columns[name] = [_mean_interval(each, mean), *each[: len(classes)]]
    return columns


def _mean_interval(each: list[Interval], drawn: Interval) -> Interval:
    """Return the interval of a mean over classes as resamples give it, or that of a single class.

    If resamples give no bounds, they are the means of the classes' own.
    """
    if len(each) == 1:
        return each[0]
    if math.isnan(drawn.value) or not math.isnan(drawn.low):
        return drawn
    return mean_of_bounds(drawn.value, each)


def _by_class(bounds: Columns, asked: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Turn columns into class -> metric -> interval; a single class is the metric itself."""
    if len(asked) == 1:
        return {}
    return {
        name: {metric: columns[index] for metric, columns in bounds.items() if len(columns) > 1}
        for index, name in enumerate(asked, start=1)
    }
