"""Turn validation probabilities into floors, and floors into prediction sets with the promised coverage.

Split conformal prediction, class by class (LAC, Sadinle 2019): a class is in the set if its probability is at
least its floor, the 1 - promised quantile of its probability among the validation samples of that class. So
the promised share is covered of the patients of each class, and not only of all, if new patients are
exchangeable with the validation patients. Several samples of one patient share one weight (Lee, Barber and
Willett 2023), and the promise is for one sample of a new patient. A class with too few patients for any
promise is in every set.

The validation data also chose the checkpoint and its calibration, which the theory does not allow for: what
counts is the coverage on data that the run never saw, which `measure_coverage` gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.data.task import Task
from medtl.evaluation.calibration import ConformalFloors
from medtl.evaluation.intervals import Interval, index_patients, interval_json, intervals_json, share_interval
from medtl.evaluation.metrics import Floats

UNDECIDED = "?"


@dataclass(frozen=True)
class Coverage:
    """The coverage of prediction sets on labelled data.

    coverage: how often the truth is in the set; in multilabel over all labelled findings. by_class: of the
    samples of each class. sizes: how many samples have a set of each size; in multilabel how many findings
    are decided (1) or not (2).
    """

    promised: float
    coverage: Interval
    by_class: Mapping[str, Interval]
    sizes: Mapping[int, int]


def fit_floors(
    probabilities: ArrayLike,
    targets: ArrayLike,
    task: Task,
    patients: Sequence[str],
    promised: float = 0.9,
) -> ConformalFloors:
    """Find the floors on validation data: probabilities (N, K), as calibrated."""
    scores, truth = np.asarray(probabilities, np.float64), np.asarray(targets)
    patient_of = index_patients(patients)
    classes = range(len(task.classes))
    if task.kind == "multilabel":
        present = [_find_floor(scores[:, k], truth[:, k] == 1, patient_of, promised) for k in classes]
        absent = [_find_floor(1 - scores[:, k], truth[:, k] == 0, patient_of, promised) for k in classes]
    else:
        present = [_find_floor(scores[:, k], truth == k, patient_of, promised) for k in classes]
        absent = []
    floors, counts = zip(*present, strict=True)
    absent_floors, absent_counts = zip(*absent, strict=True) if absent else ((), ())
    return ConformalFloors(
        promised=promised,
        floors=floors,
        absent_floors=absent_floors,
        patients=counts,
        absent_patients=absent_counts,
    )


def in_sets(probabilities: Floats, floors: ConformalFloors) -> NDArray[np.bool_]:
    """Return the members of each set: (N, K), or (N, K, 2) in multilabel: absent, present.

    A set that would be empty gets the most probable answer, which can only increase the coverage.
    """
    limits = np.asarray(floors.floors)
    if floors.absent_floors:
        probabilities = np.stack([1 - probabilities, probabilities], axis=-1)
        limits = np.stack([floors.absent_floors, floors.floors], axis=-1)
    members = probabilities >= limits
    best = probabilities == probabilities.max(axis=-1, keepdims=True)
    return np.where(members.any(axis=-1, keepdims=True), members, best)


def set_texts(probabilities: Floats, floors: ConformalFloors, task: Task) -> list[str]:
    """Return each set as one text, its classes joined by "|".

    In multilabel the findings that are present, and with a "?" those that may be; absent ones are left out.
    """
    members = in_sets(probabilities, floors)
    if task.kind != "multilabel":
        return ["|".join(name for name, member in zip(task.classes, row) if member) for row in members]
    return [
        "|".join(
            name + (UNDECIDED if absent else "")
            for name, (absent, present) in zip(task.classes, row, strict=True)
            if present
        )
        for row in members
    ]


def measure_coverage(
    probabilities: ArrayLike,
    targets: ArrayLike,
    task: Task,
    patients: Sequence[str],
    floors: ConformalFloors,
    confidence: float = 0.95,
) -> Coverage:
    """Return how often the truth is in the set on labelled data, with intervals by patient."""
    scores, truth = np.asarray(probabilities, np.float64), np.asarray(targets)
    patient_of = index_patients(patients)
    members = in_sets(scores, floors)
    if task.kind == "multilabel":
        known, among = np.isfinite(truth), truth == 1
        covered = np.where(among, members[..., 1], members[..., 0]) & known
        sizes = members.sum(axis=-1)[known]
    else:
        known = among = truth[:, None] == np.arange(len(task.classes))
        covered, sizes = members & among, members.sum(axis=1)
    places = np.broadcast_to(patient_of[:, None], known.shape)
    columns = zip(task.classes, covered.T, among.T, strict=True)
    return Coverage(
        floors.promised,
        share_interval(covered[known], np.ones(int(known.sum()), bool), places[known], confidence),
        {name: share_interval(c, a, patient_of, confidence) for name, c, a in columns},
        {int(size): int(count) for size, count in zip(*np.unique(sizes, return_counts=True), strict=True)},
    )


def coverage_json(coverage: Coverage) -> dict[str, Any]:
    """Return plain data: {promised, coverage, by_class {class: {value, low, high}}, sizes {size: count}}."""
    return {
        "promised": coverage.promised,
        "coverage": interval_json(coverage.coverage),
        "by_class": intervals_json(coverage.by_class),
        "sizes": {str(size): count for size, count in coverage.sizes.items()},
    }


def _find_floor(
    scores: Floats, among: NDArray[np.bool_], patient_of: NDArray[np.int64], promised: float
) -> tuple[float, int]:
    """Return the floor of one answer and how many patients it comes from.

    The highest probability such that at most a share 1 - promised of the patients' weights lies below it,
    counting one further patient, the new one, as below.
    """
    values = scores[among]
    _, place, samples = np.unique(patient_of[among], return_inverse=True, return_counts=True)
    weights = 1 / samples[place]
    allowed = (1 - promised) * (len(samples) + 1) + 1e-9
    order = np.argsort(values, kind="stable")
    below = 1 + np.concatenate([[0.0], np.cumsum(weights[order])[:-1]])
    fitting = np.flatnonzero(below <= allowed)
    return (float(values[order][fitting[-1]]) if len(fitting) else 0.0), len(samples)
