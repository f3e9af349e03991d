"""Predictions of several runs for the same samples -> the metrics of each, and differences from one of them.

Metrics of runs on the same patients are correlated, so that their difference is known better than either of
them. The difference of two areas has DeLong's error (1988), from the differences of the placements, summed by
patient (Obuchowski 1997); all others are taken within each of the same resamples of patients. The p-values of
the runs are adjusted after Holm (1979), for each metric separately.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtr

from medtl.data.task import Task
from medtl.errors import CheckpointError
from medtl.evaluation.evaluate import Evaluation, evaluate
from medtl.evaluation.intervals import (
    Interval,
    Placements,
    error_of_mean,
    interval_json,
    normal_interval,
    percentile_interval,
    place_all,
)
from medtl.evaluation.metrics import Floats, Questions
from medtl.evaluation.predictions import Predictions

# In the order of tables and pages.
COMPARED = (
    *("auroc", "auprc", "sensitivity", "specificity"),
    *("balanced_accuracy", "accuracy", "f1", "mcc", "brier"),
)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A run to be compared: its predictions and thresholds; recipe: schedule, seed, labels, if known."""

    name: str
    predictions: Predictions
    thresholds: tuple[float, ...]
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A metric of a run minus that of the reference. p: two-sided; p_holm: adjusted for all runs."""

    interval: Interval
    p: float
    p_holm: float = math.nan


@dataclass(frozen=True, eq=False)
class Compared:
    """One run's evaluation; differences by metric, none for the reference; placements by class."""

    name: str
    recipe: Mapping[str, Any]
    evaluation: Evaluation
    placements: tuple[Placements, ...]
    differences: Mapping[str, Difference]


def align(candidates: Sequence[Candidate], *, common: bool = False) -> list[Candidate]:
    """Return the candidates with their samples in one order; common: only those that all of them have.

    Raises CheckpointError runs-differ where samples, or their labels or patients, are not the same.
    """
    shared = set.intersection(*(set(one.predictions.sample_ids) for one in candidates))
    union = set.union(*(set(one.predictions.sample_ids) for one in candidates))
    if shared != union and not common:
        reason = f"{len(union - shared)} of {len(union)} samples are not in all runs"
        fix = "evaluate them on the same data with medtl evaluate, or add --common"
        raise CheckpointError("runs-differ", reason, fix=fix)
    if not shared:
        fix = "evaluate them on the same data, with one MEDTL_SALT"
        raise CheckpointError("runs-differ", "the runs have no sample in common", fix=fix)
    order = [name for name in candidates[0].predictions.sample_ids if name in shared]
    aligned = [replace(one, predictions=_in_order(one.predictions, order)) for one in candidates]
    ours = aligned[0].predictions
    for other in aligned[1:]:
        theirs = other.predictions
        same = np.array_equal(ours.targets, theirs.targets, equal_nan=ours.targets.dtype.kind == "f")
        for what, right in (("labels", same), ("patients", ours.patients == theirs.patients)):
            if not right:
                reason = f"the samples of {aligned[0].name} and {other.name} have different {what}"
                fix = "evaluate both with medtl evaluate on one label table"
                raise CheckpointError("runs-differ", reason, fix=fix)
    return aligned


def compare(
    candidates: Sequence[Candidate], task: Task, reference: str, *, resamples: int = 1000
) -> list[Compared]:
    """Evaluate aligned candidates, and compare each with the reference, in the order given."""
    evaluated = [_evaluate(one, task, resamples) for one in candidates]
    base = next(one for one in evaluated if one.name == reference)
    differences = {
        one.name: {metric: _difference(one, base, metric) for metric in COMPARED}
        for one in evaluated
        if one is not base
    }
    for metric in COMPARED:
        adjusted = holm([by_metric[metric].p for by_metric in differences.values()])
        for by_metric, p in zip(differences.values(), adjusted.tolist(), strict=True):
            by_metric[metric] = replace(by_metric[metric], p_holm=p)
    return [replace(one, differences=differences.get(one.name, {})) for one in evaluated]


def auroc_difference(
    ours: Sequence[Placements], theirs: Sequence[Placements], confidence: float
) -> Difference:
    """Return the difference of two areas, means over classes, of the same samples in the same order.

    No bounds if there is no spread; p is 1 if there is neither a difference nor a spread.
    """
    apart = [
        replace(a, area=a.area - b.area, influence=a.influence - b.influence)
        for a, b in zip(ours, theirs, strict=True)
        if not math.isnan(a.area - b.area)
    ]
    if not apart:
        return Difference(Interval(math.nan), math.nan)
    value, error = float(np.mean([placed.area for placed in apart])), error_of_mean(apart)
    if not error > 0:
        return Difference(Interval(value), 1.0 if value == 0 and error == 0 else math.nan)
    bounds = normal_interval(value, error, confidence)
    within = Interval(value, max(bounds.low, -1.0), min(bounds.high, 1.0))
    return Difference(within, float(2 * ndtr(-abs(value) / error)))


def holm(p_values: Sequence[float]) -> Floats:
    """Return p-values adjusted for their number, in the order given (Holm 1979); NaN is left out."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)[: int(np.isfinite(values).sum())]
    stepped = values[order] * np.arange(len(order), 0, -1)
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def to_json(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """Return plain data: [{name, recipe, metrics {name: {value, low, high}}, differences {.. p, p_holm}}]."""
    return [
        {
            "name": one.name,
            "recipe": dict(one.recipe),
            "metrics": {name: interval_json(one.evaluation.metrics[name]) for name in COMPARED},
            "differences": {
                name: {
                    **interval_json(difference.interval),
                    "p": None if math.isnan(difference.p) else difference.p,
                    "p_holm": None if math.isnan(difference.p_holm) else difference.p_holm,
                }
                for name, difference in one.differences.items()
            },
        }
        for one in runs
    ]


def _in_order(predictions: Predictions, order: Sequence[str]) -> Predictions:
    place = {name: row for row, name in enumerate(predictions.sample_ids)}
    rows = np.array([place[name] for name in order], dtype=np.int64)
    return Predictions(
        tuple(order),
        tuple(predictions.patients[row] for row in rows),
        tuple(predictions.split[row] for row in rows),
        predictions.targets[rows],
        predictions.probabilities[rows],
    )


def _evaluate(one: Candidate, task: Task, resamples: int) -> Compared:
    read = one.predictions
    questions = Questions(read.probabilities, read.targets, task, read.patients)
    evaluation = evaluate(questions, one.thresholds, resamples=resamples)
    return Compared(one.name, one.recipe, evaluation, tuple(place_all(questions)), {})


def _difference(one: Compared, base: Compared, name: str) -> Difference:
    """Return the difference of a metric; except for areas, its bounds are percentiles over the resamples.

    p is twice the share of resamples on the other side of 0.
    """
    if name == "auroc":
        return auroc_difference(one.placements, base.placements, base.evaluation.confidence)
    value = one.evaluation.metrics[name].value - base.evaluation.metrics[name].value
    drawn = one.evaluation.drawn[name] - base.evaluation.drawn[name]
    if one.evaluation.patients < 2:
        drawn = drawn[:0]
    interval = percentile_interval(value, drawn, base.evaluation.confidence)
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not len(defined):
        return Difference(interval, math.nan)
    beyond = 1 + min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return Difference(interval, min(1.0, 2 * beyond / (len(defined) + 1)))
