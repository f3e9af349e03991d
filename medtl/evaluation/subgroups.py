"""Turn predictions and attributes of each sample into metrics by subgroup, the worst group and its gap.

A group is evaluated as the whole is, with the same thresholds. With too few patients it is undefined, and so
is every metric that needs a class that it lacks. The gap of the worst group is to all others together: to the
best group it would be large by chance alone. Its interval allows for having picked the worst of G groups
(Bonferroni: 1 - (1 - confidence) / G), and combines those of both sides (Zou and Donner 2008).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.core.files import write_csv
from medtl.evaluation.evaluate import Evaluation, evaluate
from medtl.evaluation.intervals import (
    CONFIDENCE,
    Interval,
    difference_interval,
    interval_json,
    intervals_json,
    mean_auroc_interval,
    place_all,
)
from medtl.evaluation.metrics import Questions

FEWEST_PATIENTS = 10
MOST_GROUPS = 20
FEW_NUMBERS = 6  # up to so many different numbers are groups themselves, such as field strengths
BANDS = 4
AGE_BANDS = (18.0, 40.0, 65.0, 80.0)
NOT_STATED = "not stated"
SHOWN = ("auroc", "sensitivity", "specificity", "ppv", "npv", "balanced_accuracy", "brier", "ece")
AGE_UNITS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # PS3.5 6.2, AS
NUMBERS = ("metric", "value", "low", "high")


def name_groups(attribute: str, values: Sequence[str]) -> list[str]:
    """Return the group of each sample: the value itself, or its band if the values are numbers.

    Ages (also as DICOM writes them, "045Y") are banded at 18, 40, 65 and 80 years, other numbers at their
    quartiles.
    """
    stated = [value.strip() for value in values]
    numbers = {value: _number(value) for value in stated if value}
    known = {value: number for value, number in numbers.items() if number is not None}
    is_age = re.match(r"(patient[\s_-]*)?age\b|age_", attribute.casefold()) is not None
    if not known or len(known) < len(numbers) or (not is_age and len(set(known.values())) <= FEW_NUMBERS):
        return [value or NOT_STATED for value in stated]
    every = [known[value] for value in stated if value]
    quartiles = np.unique(np.quantile(every, np.arange(1, BANDS) / BANDS)).tolist()
    edges = AGE_BANDS if is_age else tuple(edge for edge in quartiles if edge > min(every))
    return [_band(known[value], edges, is_age) if value else NOT_STATED for value in stated]


def evaluate_subgroups(
    questions: Questions,
    thresholds: Sequence[float],
    attributes: Mapping[str, Sequence[str]],
    resamples: int = 500,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Evaluate the groups of each attribute; also return a note on each that makes no groups.

    [{attribute, worst, gap, groups: [{name, samples, patients, metrics, reason}]}], plain data; None is
    undefined, and `reason` says why. thresholds: as in evaluate. attributes: values (N,) by name.
    """
    groupings, notes = [], []
    measure = partial(evaluate, thresholds=thresholds, resamples=resamples)
    for attribute, values in attributes.items():
        names = np.asarray(name_groups(attribute, values), dtype=str)
        count = len(np.unique(names))
        if 1 < count <= MOST_GROUPS:
            order = sorted(set(names.tolist()), key=_natural)
            groups = [_evaluate_group(name, questions.of(names == name), measure) for name in order]
            worst, gap = _find_worst(questions, names, groups)
            found = {"attribute": attribute, "worst": worst, "gap": interval_json(gap), "groups": groups}
            groupings.append(found)
        elif count > MOST_GROUPS:
            notes.append(f"no subgroups by {attribute}: {count} different values")
    return groupings, notes


def _evaluate_group(
    name: str, questions: Questions, measure: Callable[[Questions], Evaluation]
) -> dict[str, Any]:
    samples, patients = len(questions.targets), len(set(questions.patients))
    metrics: Mapping[str, Interval] = dict.fromkeys(SHOWN, Interval(math.nan))
    reason = f"fewer than {FEWEST_PATIENTS} patients"
    if patients >= FEWEST_PATIENTS:
        metrics = measure(questions).metrics
        reason = "only one class" if math.isnan(metrics["auroc"].value) else ""
    shown = intervals_json({key: metrics[key] for key in SHOWN})
    return {"name": name, "samples": samples, "patients": patients, "metrics": shown, "reason": reason}


def _find_worst(
    questions: Questions, names: NDArray[np.str_], groups: Sequence[Mapping[str, Any]]
) -> tuple[str, Interval]:
    """Return the group of the lowest AUROC, "" if fewer than two have one, and its gap.

    names: (N,), of the groups. The gap is the AUROC of all others minus that of the worst, with an interval
    that allows for having picked it.
    """
    areas = {group["name"]: group["metrics"]["auroc"]["value"] for group in groups}
    defined = {name: area for name, area in areas.items() if area is not None}
    if len(defined) < 2:
        return "", Interval(math.nan)
    worst = min(defined, key=lambda name: defined[name])
    sides = np.isin(names, [name for name in defined if name != worst]), names == worst
    for_all = 1 - (1 - CONFIDENCE) / len(defined)
    others, lowest = (mean_auroc_interval(place_all(questions.of(side)), for_all) for side in sides)
    return worst, difference_interval(others, lowest)


def _number(text: str) -> float | None:
    match = re.fullmatch(r"(-?\d+(?:[.,]\d+)?)\s*([YMWD]?)", text, re.IGNORECASE)
    return float(match[1].replace(",", ".")) * AGE_UNITS[match[2].upper()] if match else None


def _band(number: float, edges: Sequence[float], whole_numbers: bool) -> str:
    place = int(np.searchsorted(edges, number, side="right"))
    if place == 0:
        return f"below {edges[0]:g}"
    low = edges[place - 1]
    if place == len(edges):
        return f"{low:g} or more"
    return f"{low:g} to {edges[place] - 1:g}" if whole_numbers else f"{low:.4g} to below {edges[place]:.4g}"


def _natural(name: str) -> tuple[bool, bool, float, str]:
    """Order names by their first number, "below" first and "not stated" last."""
    match = re.search(r"-?\d+(?:\.\d+)?", name)
    low = float(match[0]) if match else 0.0
    return name == NOT_STATED, not name.startswith("below "), low, name


def write_metrics(path: Path, evaluation: Evaluation) -> None:
    """Write class, metric, value, low, high; the class is empty for all classes together."""
    metrics = {**evaluation.metrics, "auroc_bootstrap": evaluation.auroc_bootstrap}
    by_class = {"": metrics, **evaluation.per_class}
    rows = [[name, *row] for name, found in by_class.items() for row in _rows(intervals_json(found))]
    write_csv(path, [["class", *NUMBERS], *rows])


def write_subgroups(path: Path, groupings: Sequence[Mapping[str, Any]]) -> None:
    """Write attribute, group, samples, patients, reason, metric, value, low, high; the gap comes last."""
    rows: list[list[str | float]] = []
    for grouping in groupings:
        for group in grouping["groups"]:
            about = [group[key] for key in ("name", "samples", "patients", "reason")]
            rows += [[grouping["attribute"], *about, *row] for row in _rows(group["metrics"])]
        (gap,) = _rows({"auroc_gap": grouping["gap"]})
        rows.append([grouping["attribute"], grouping["worst"], "", "", "", *gap])
    write_csv(path, [["attribute", "group", "samples", "patients", "reason", *NUMBERS], *rows])


def _rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[list[str | float]]:
    """Return name, value, low and high of each metric; what is undefined is an empty cell."""
    cells = {name: [entry[key] for key in NUMBERS[1:]] for name, entry in metrics.items()}
    return [[name, *("" if cell is None else cell for cell in row)] for name, row in cells.items()]
