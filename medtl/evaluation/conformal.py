"""Turn validation probabilities into floors, and floors into prediction sets that hold the truth as promised.

Split conformal prediction, class by class (LAC, Sadinle 2019): a class is in the set where its probability is
at least its floor, the probability below which it fell for a share 1 - promised of the validation samples
that were of it. So of the patients of each class, and not only of all, the promised share is covered, if new
patients come as the validation ones did (are exchangeable with them). Where a patient has several samples,
they share one weight (Lee, Barber and Willett 2023), and the promise is for a sample of a new patient.
A class with too few patients to promise anything is in every set.

The validation data also chose the checkpoint and its calibration, which the theory does not allow for: the
coverage on data that the run never saw is what counts, and `measure_coverage` gives it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.data.task import Task
from medtl.evaluation.calibration import ConformalFloors
from medtl.evaluation.intervals import Interval, interval_json, share_interval
from medtl.evaluation.metrics import Floats

UNDECIDED = "?"


@dataclass(frozen=True)
class Coverage:
    """How well prediction sets keep their promise on labelled data.

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
    _, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
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
    """Return which answers the sets hold: (N, K), or (N, K, 2) in multilabel: absent, present.

    A set that would be empty holds the most probable answer, which can only cover more.
    """
    if not floors.absent_floors:
        return _never_empty(probabilities, probabilities >= np.asarray(floors.floors))
    both = np.stack([1 - probabilities, probabilities], axis=-1)
    held = both >= np.stack([floors.absent_floors, floors.floors], axis=-1)
    return _never_empty(both, held)


def set_texts(probabilities: Floats, floors: ConformalFloors, task: Task) -> list[str]:
    """Write each set in one cell, by "|": the classes that it holds.

    In multilabel the findings that are present, and with a "?" those that may be; absent ones are left out.
    """
    held = in_sets(probabilities, floors)
    if task.kind != "multilabel":
        return ["|".join(name for name, member in zip(task.classes, row) if member) for row in held]
    return [
        "|".join(
            name + (UNDECIDED if absent else "")
            for name, (absent, present) in zip(task.classes, row, strict=True)
            if present
        )
        for row in held
    ]


def measure_coverage(
    probabilities: ArrayLike,
    targets: ArrayLike,
    task: Task,
    patients: Sequence[str],
    floors: ConformalFloors,
    confidence: float = 0.95,
) -> Coverage:
    """Return how often the sets hold the truth on labelled data, with intervals by patient."""
    scores, truth = np.asarray(probabilities, np.float64), np.asarray(targets)
    _, patient_of = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    held = in_sets(scores, floors)
    if task.kind == "multilabel":
        known = np.isfinite(truth)
        covered = np.where(truth == 1, held[..., 1], held[..., 0]) & known
        among = truth == 1
        sizes = held.sum(axis=-1)[known]
    else:
        among = truth[:, None] == np.arange(len(task.classes))
        covered, sizes = held & among, held.sum(axis=1)
        known = among
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
        "by_class": {name: interval_json(found) for name, found in coverage.by_class.items()},
        "sizes": {str(size): count for size, count in coverage.sizes.items()},
    }


def _find_floor(
    scores: Floats, among: NDArray[np.bool_], patient_of: NDArray[np.int64], promised: float
) -> tuple[float, int]:
    """Return the floor of one answer and how many patients it comes from.

    The highest probability such that at most a share 1 - promised of the patients' weights lies below it,
    where a patient yet to come counts as one that may lie below any.
    """
    values = scores[among]
    _, place, samples = np.unique(patient_of[among], return_inverse=True, return_counts=True)
    weights = 1 / samples[place]
    allowed = (1 - promised) * (len(samples) + 1) + 1e-9
    order = np.argsort(values, kind="stable")
    below = 1 + np.concatenate([[0.0], np.cumsum(weights[order])[:-1]])
    fitting = np.flatnonzero(below <= allowed)
    return (float(values[order][fitting[-1]]) if len(fitting) else 0.0), len(samples)


def _never_empty(probabilities: Floats, held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    best = probabilities == probabilities.max(axis=-1, keepdims=True)
    return np.where(held.any(axis=-1, keepdims=True), held, best)
