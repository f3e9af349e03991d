"""Compared runs with different numbers of labels -> learning curves, and the labels that transfer saves.

Runs of one schedule and budget differ in their seed, which draws the labels as well. A point of a curve is
the mean of their areas, with the range over the seeds; a run that repeats a seed adds nothing.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medtl.evaluation.comparison import Compared, auroc_difference, holm
from medtl.evaluation.intervals import Placements, interval_json

SCRATCH = "scratch"
CERTAIN = 0.05


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """The mean area after a number of labels (the mean of those drawn), with the range over its seeds."""

    labels: float
    value: float
    low: float
    high: float
    seeds: int
    placements: tuple[Placements, ...]


def learning_curves(runs: Sequence[Compared]) -> dict[str, list[CurvePoint]]:
    """Return the points of each schedule by rising labels; nothing if no schedule has several budgets.

    If runs differ in their backbone, each backbone has its own curves. Of runs of one seed the first counts.
    """
    repeated = repeated_seeds(runs)
    known = [one for one in _with_area(runs) if one.name not in repeated]
    several = len({one.recipe["backbone"] for one in known}) > 1
    cells: dict[str, dict[float, list[Compared]]] = defaultdict(lambda: defaultdict(list))
    for one in known:
        name = f"{one.recipe['schedule']}, {one.recipe['backbone']}" if several else one.recipe["schedule"]
        cells[name][_budget(one)].append(one)
    if not any(len(cell) > 1 for cell in cells.values()):
        return {}
    return {name: [_point(cell[budget]) for budget in sorted(cell)] for name, cell in cells.items()}


def repeated_seeds(runs: Sequence[Compared]) -> dict[str, str]:
    """Return the runs that repeat backbone, schedule, budget and seed of an earlier one: name -> its name."""
    first: dict[tuple[Any, ...], str] = {}
    named = {
        one.name: first.setdefault(
            (one.recipe["backbone"], one.recipe["schedule"], _budget(one), one.recipe["seed"]), one.name
        )
        for one in _with_area(runs)
    }
    return {name: earlier for name, earlier in named.items() if earlier != name}


def worth_in_labels(
    curves: Mapping[str, Sequence[CurvePoint]], confidence: float = 0.95
) -> dict[str, Any] | None:
    """Return the largest saving of labels that the data show, None if they show none.

    {name, labels, beaten, reached, value, beaten_value, seeds, difference}: `name` with `labels` labels is
    better than scratch with up to `beaten`, which is more; with `reached` scratch is as good, None if it
    never is.

    A saving must hold for new patients (paired DeLong between means over seeds, adjusted after Holm for all
    pairs that were tested) and for every seed (the ranges do not overlap). There is none if scratch is as
    good with fewer labels than those beaten: its curve need not rise.
    """
    pairs = [
        (name, ours, theirs, scratch, auroc_difference(ours.placements, theirs.placements, confidence))
        for name, points, scratch in _beside_scratch(curves)
        for ours in points
        for theirs in scratch
        if ours.labels < theirs.labels
    ]
    adjusted = holm([difference.p for *_, difference in pairs]).tolist()
    shown: list[dict[str, Any]] = []
    for (name, ours, theirs, scratch, difference), p in zip(pairs, adjusted, strict=True):
        reached = min((point.labels for point in scratch if point.value >= ours.value), default=None)
        certain = difference.interval.value > 0 and p < CERTAIN and ours.low > theirs.high
        if certain and (reached is None or reached > theirs.labels):
            saving = {
                "name": name,
                "labels": ours.labels,
                "beaten": theirs.labels,
                "reached": reached,
                "value": ours.value,
                "beaten_value": theirs.value,
                "seeds": [ours.seeds, theirs.seeds],
                "difference": {**interval_json(difference.interval), "p_holm": p},
            }
            shown.append(saving)
    return max(shown, key=lambda one: (one["beaten"] / one["labels"], one["value"]), default=None)


def has_more_of_scratch(curves: Mapping[str, Sequence[CurvePoint]]) -> bool:
    """Say whether a saving could be shown for any schedule: scratch had more labels."""
    return any(points[0].labels < scratch[-1].labels for _, points, scratch in _beside_scratch(curves))


def curves_json(curves: Mapping[str, Sequence[CurvePoint]]) -> list[dict[str, Any]]:
    """Return plain data: [{name, points [{labels, value, low, high, seeds}]}]."""
    keys = ("labels", "value", "low", "high", "seeds")
    return [
        {"name": name, "points": [{key: getattr(point, key) for key in keys} for point in points]}
        for name, points in curves.items()
    ]


def _with_area(runs: Sequence[Compared]) -> list[Compared]:
    return [one for one in runs if one.recipe and not math.isnan(one.evaluation.metrics["auroc"].value)]


def _budget(one: Compared) -> int:
    return int(one.recipe["label_budget"] or one.recipe["labels"])


def _beside_scratch(
    curves: Mapping[str, Sequence[CurvePoint]],
) -> Iterator[tuple[str, Sequence[CurvePoint], Sequence[CurvePoint]]]:
    """Yield each curve by name, with that of the same backbone from scratch."""
    for name, points in curves.items():
        _, comma, backbone = name.partition(", ")
        scratch = curves.get(SCRATCH + comma + backbone, points)
        if scratch is not points:
            yield name, points, scratch


def _point(runs: Sequence[Compared]) -> CurvePoint:
    areas = np.array([one.evaluation.metrics["auroc"].value for one in runs])
    means = []
    for each in zip(*(one.placements for one in runs), strict=True):
        influence = np.mean([placed.influence for placed in each], axis=0)
        means.append(replace(each[0], area=float(np.mean([p.area for p in each])), influence=influence))
    return CurvePoint(
        float(np.mean([one.recipe["labels"] for one in runs])),
        float(areas.mean()),
        float(areas.min()),
        float(areas.max()),
        len(runs),
        tuple(means),
    )
