"""Turn probabilities and targets into metrics, each with an interval in which patients are the units.

The samples of a patient come and go together, because they are no independent evidence. Areas have DeLong's
interval, shares Wilson's, the calibration line the sandwich's, all clustered by patient; what else there is
has the percentile bootstrap over patients (Efron 1979; Field and Welsh 2007 for clusters). Thresholds are
taken as given. Resamples cannot see beyond their samples: where all of them agree, their interval would be a
point, and is undefined instead.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.core.seeds import make_generator
from medtl.data.task import Task
from medtl.errors import CheckpointError, LabelError
from medtl.evaluation import decision_curve, metrics
from medtl.evaluation.calibration_metrics import bin_gaps, calibration_lines, draw_gaps, error_intervals
from medtl.evaluation.decision_curve import DecisionCurve, decision_curves
from medtl.evaluation.intervals import (
    Interval,
    auroc_interval,
    interval_json,
    mean_auroc_interval,
    mean_of_bounds,
    percentile_interval,
    place_all,
    share_interval,
)
from medtl.evaluation.metrics import Floats, ReliabilityBin

BLOCK = 4_000_000  # numbers in one block of weights, 32 MB
TOLERANCE = 1e-6
# In the order in which a reader meets them.
ORDER = (
    *("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "ppv_at_prevalence", "npv_at_prevalence"),
    *("balanced_accuracy", "accuracy", "f1", "mcc", "brier", "ece"),
    *("calibration_slope", "calibration_intercept"),
)

Columns = dict[str, list[Interval]]


@dataclass(frozen=True)
class RocCurve:
    """Corners of a ROC curve; empty where it is undefined."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """What a set of predictions is worth.

    metrics: by name; for several classes the mean over them, each against the rest. auroc_bootstrap: the area
    with the interval of resampled patients, beside DeLong's. per_class: class -> name -> interval, empty in
    binary, where it would repeat metrics. thresholds: as choose_thresholds returns them. confusion: counts,
    rows are the truth; empty in multilabel. roc: by class, in binary of the positive one. decision: net
    benefit by class. prevalence: by class, what ppv_at_prevalence and npv_at_prevalence are for.
    class_counts: samples that have each class. undefined: for each metric how many of the resamples had no
    value for it. drawn: for each metric what it is in each resample, (B,): paired with those of other
    predictions of the same samples, as the same patients are drawn.
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
class _Judged:
    """What is judged: probabilities (N, K), targets, thresholds, whose samples they are (N,), and how."""

    scores: Floats
    truth: NDArray
    task: Task
    thresholds: tuple[float, ...]
    patient_of: NDArray[np.int64]
    prevalence: Floats | None
    confidence: float

    @property
    def questions(self) -> metrics.Questions:
        return metrics.one_vs_rest(self.scores, self.truth, self.task.kind)


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
    """Judge probabilities (N, K) by targets (N,), or (N, K) with NaN in multilabel.

    patients: (N,), who each sample is of. thresholds: (K,), in binary (1,). prevalence: how common a class is
    where the model is to be used. Raises LabelError split-empty without samples, and CheckpointError
    scores-invalid for probabilities that are none.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    asked = task.asked_classes
    _check_scores(scores, truth, task)
    _check_thresholds(thresholds, asked)
    _, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    stated = np.array([(prevalence or {}).get(name, np.nan) for name in asked]) if prevalence else None
    judged = _Judged(scores, truth, task, tuple(map(float, thresholds)), patient_of, stated, confidence)
    point, drawn, gaps = _measure(judged, np.ones((1, len(scores)))), *_resample(judged, resamples, seed)
    columns = _intervals(judged, point, drawn) | _calibration(judged, gaps)
    bounds = {name: columns[name] for name in ORDER if name in columns}
    areas = drawn["auroc"][:, 0] if patient_of.max() else drawn["auroc"][:0, 0]
    return Evaluation(
        task=task,
        metrics={name: column[0] for name, column in bounds.items()},
        auroc_bootstrap=percentile_interval(float(point["auroc"][0, 0]), areas, confidence),
        per_class=_by_class(bounds, asked),
        thresholds=judged.thresholds,
        confusion=_confusion(judged),
        roc=_roc_curves(judged),
        reliability=tuple(metrics.reliability_bins(scores, truth, kind=task.kind)),
        decision=decision_curves(scores, truth, task, patient_of, confidence),
        prevalence=dict(prevalence or {}),
        samples=len(truth),
        patients=int(patient_of.max()) + 1,
        class_counts=_class_counts(truth, task),
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
        **{name: interval_json(interval) for name, interval in evaluation.metrics.items()},
        "auroc_bootstrap": interval_json(evaluation.auroc_bootstrap),
        "per_class": {
            name: {metric: interval_json(interval) for metric, interval in rows.items()}
            for name, rows in evaluation.per_class.items()
        },
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


def _measure(judged: _Judged, weights: Floats) -> dict[str, Floats]:
    """Return each metric for B weightings: (B, 1), or (B, 1 + R) with its R classes after the mean."""
    scores, truth, cuts, kind = judged.scores, judged.truth, judged.thresholds, judged.task.kind
    by_class = {
        "auroc": metrics.auroc_by_class(scores, truth, weights, kind=kind),
        "auprc": metrics.auprc_by_class(scores, truth, weights, kind=kind),
        "sensitivity": metrics.sensitivity_by_class(scores, truth, cuts, weights, kind=kind),
        "specificity": metrics.specificity_by_class(scores, truth, cuts, weights, kind=kind),
        "ppv": metrics.ppv_by_class(scores, truth, cuts, weights, kind=kind),
        "npv": metrics.npv_by_class(scores, truth, cuts, weights, kind=kind),
        "f1": metrics.f1_by_class(scores, truth, cuts, weights, kind=kind),
    }
    if judged.prevalence is not None:
        rates = by_class["sensitivity"], by_class["specificity"]
        found = metrics.at_prevalence(*rates, np.broadcast_to(judged.prevalence, rates[0].shape))
        by_class |= dict(zip(("ppv_at_prevalence", "npv_at_prevalence"), found, strict=True))
    overall = {
        "balanced_accuracy": metrics.balanced_accuracy(scores, truth, cuts, weights, kind=kind),
        "accuracy": metrics.accuracy(scores, truth, cuts, weights, kind=kind),
        "mcc": metrics.mcc(scores, truth, cuts, weights, kind=kind),
        "brier": metrics.brier(scores, truth, weights, kind=kind),
    }
    table = {
        name: np.column_stack([metrics.mean_defined(values), values]) for name, values in by_class.items()
    }
    return table | {name: values[:, None] for name, values in overall.items()}


def _resample(judged: _Judged, resamples: int, seed: int) -> tuple[dict[str, Floats], Floats]:
    """Return each metric of each resample, (B, 1 + R), and the gaps of calibration, (B, R, bins)."""
    placed = bin_gaps(judged.questions)
    blocks, gaps = [], []
    for weights in _draw_weights(judged.patient_of, resamples, make_generator(seed, "bootstrap")):
        blocks.append(_measure(judged, weights))
        gaps.append(draw_gaps(*placed, weights))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}, np.concatenate(
        gaps
    )


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


def _intervals(judged: _Judged, point: Mapping[str, Floats], drawn: Mapping[str, Floats]) -> Columns:
    """Return for each metric the interval of its mean and of each class."""
    several = judged.patient_of.max() > 0
    columns = {
        name: [
            percentile_interval(float(value), column if several else column[:0], judged.confidence)
            for value, column in zip(point[name][0], drawn[name].T, strict=True)
        ]
        for name in point
    }
    placed = place_all(judged.questions, judged.patient_of)
    columns["auroc"] = [
        mean_auroc_interval(placed, judged.confidence),
        *(auroc_interval(area, judged.confidence) for area in placed),
    ]
    for name, each in _shares(judged).items():
        columns[name] = [_or_bounds_of(each, columns[name][0]), *each]
    return columns | _accuracies(judged, columns)


def _shares(judged: _Judged) -> Columns:
    """Return the intervals of what is a share of some samples, for each class."""
    questions = judged.questions
    known, positive = np.isfinite(questions.truth), questions.truth == 1
    flagged = questions.scores >= np.asarray(judged.thresholds)
    shares = {
        "sensitivity": (flagged, positive),
        "specificity": (~flagged, known & ~positive),
        "ppv": (positive, flagged & known),
        "npv": (~positive, ~flagged & known),
    }
    return {name: _share_columns(judged, *pair) for name, pair in shares.items()}


def _accuracies(judged: _Judged, columns: Columns) -> Columns:
    """Return accuracy, a share where there is one answer, and balanced accuracy, the mean of shares."""
    truth, task = judged.truth, judged.task
    answers = metrics.predict_classes(judged.scores, judged.thresholds, task.kind)
    if task.kind == "multilabel":
        groups = np.concatenate([truth == 0, truth == 1], axis=1)
        right = np.concatenate([answers == truth] * 2, axis=1)
        each = _share_columns(judged, answers == truth, np.isfinite(truth))
    else:
        groups = truth[:, None] == np.arange(len(task.classes))
        right = np.broadcast_to((answers == truth)[:, None], groups.shape)
        each = _share_columns(judged, right[:, :1], np.ones((len(truth), 1), bool))
    return {
        "accuracy": [_or_bounds_of(each, columns["accuracy"][0])],
        "balanced_accuracy": [
            _fill_bounds(_share_columns(judged, right, groups), columns["balanced_accuracy"][0])
        ],
    }


def _share_columns(judged: _Judged, hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> list[Interval]:
    return [
        share_interval(h, a, judged.patient_of, judged.confidence)
        for h, a in zip(hits.T, among.T, strict=True)
    ]


def _or_bounds_of(each: list[Interval], drawn: Interval) -> Interval:
    """Return the interval of a single class, or that which resamples give the mean of several."""
    return each[0] if len(each) == 1 else _fill_bounds(each, drawn)


def _fill_bounds(each: list[Interval], drawn: Interval) -> Interval:
    """Return what resamples give; where they give no bounds, those that the parts of the mean have."""
    if math.isnan(drawn.value) or not math.isnan(drawn.low):
        return drawn
    return mean_of_bounds(drawn.value, each)


def _calibration(judged: _Judged, drawn_gaps: Floats) -> Columns:
    by_class = metrics.calibration_error_by_class(judged.scores, judged.truth, kind=judged.task.kind)
    values = np.append(metrics.mean_defined(by_class), by_class)
    (gaps,) = draw_gaps(*bin_gaps(judged.questions), np.ones((1, len(judged.truth))))
    patients = int(judged.patient_of.max()) + 1
    lines = calibration_lines(judged.questions, judged.patient_of, judged.confidence)
    return {"ece": error_intervals(values, gaps, drawn_gaps, patients, judged.confidence), **lines}


def _by_class(bounds: Mapping[str, list[Interval]], asked: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Turn columns into class -> metric -> interval; a single class is the metric itself."""
    if len(asked) == 1:
        return {}
    return {
        name: {metric: columns[index] for metric, columns in bounds.items() if len(columns) > 1}
        for index, name in enumerate(asked, start=1)
    }


def _confusion(judged: _Judged) -> tuple[tuple[int, ...], ...]:
    counts = metrics.confusion_matrix(judged.scores, judged.truth, judged.thresholds, kind=judged.task.kind)
    return tuple(tuple(int(count) for count in row) for row in counts)


def _roc_curves(judged: _Judged) -> dict[str, RocCurve]:
    questions, curves = judged.questions, {}
    columns = zip(judged.task.asked_classes, questions.scores.T, questions.truth.T, strict=True)
    for name, scores, truth in columns:
        fpr, tpr = metrics.roc_points(scores, truth)
        curves[name] = RocCurve(tuple(fpr.tolist()), tuple(tpr.tolist()))
    return curves


def _class_counts(truth: NDArray, task: Task) -> dict[str, int]:
    if task.kind == "multilabel":
        counts = (truth == 1).sum(axis=0)
    else:
        counts = np.bincount(truth, minlength=len(task.classes))
    return {name: int(count) for name, count in zip(task.classes, counts, strict=True)}
