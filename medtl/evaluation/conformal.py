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

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.data.task import Task
from medtl.evaluation.calibration import ConformalFloors
from medtl.evaluation.intervals import interval_json, share_interval
from medtl.evaluation.metrics import Flags, Floats, Questions

UNDECIDED = "?"


def fit_floors(questions: Questions, promised: float = 0.9) -> ConformalFloors:
    """Find the floors on validation data, whose probabilities are calibrated."""
    scores, several = questions.probabilities, questions.task.kind == "multilabel"
    among = questions.targets == 1 if several else questions.of_class
    floors, patients = _find_floors(scores, among, questions.patient_of, promised)
    found = ConformalFloors(promised=promised, floors=floors, patients=patients)
    if not several:
        return found
    absent, counts = _find_floors(1 - scores, questions.targets == 0, questions.patient_of, promised)
    return found.model_copy(update={"absent_floors": absent, "absent_patients": counts})


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


def measure_coverage(questions: Questions, floors: ConformalFloors) -> dict[str, Any]:
    """Return how often the truth is in the set on labelled data, with intervals by patient, as plain data.

    {promised, coverage, by_class {class: {value, low, high}}, sizes {size: count}}. In multilabel the
    coverage is over all labelled findings, and of the sizes 1 is a decided finding, 2 an undecided one.
    """
    truth, task, patient_of = questions.targets, questions.task, questions.patient_of
    members = in_sets(questions.probabilities, floors)
    if task.kind == "multilabel":
        known, among = np.isfinite(truth), truth == 1
        covered = np.where(among, members[..., 1], members[..., 0]) & known
        sizes = members.sum(axis=-1)[known]
    else:
        known = among = questions.of_class
        covered, sizes = members & among, members.sum(axis=1)
    places = np.broadcast_to(patient_of[:, None], known.shape)
    columns = zip(task.classes, covered.T, among.T, strict=True)
    all_of_them = np.ones(int(known.sum()), bool)
    return {
        "promised": floors.promised,
        "coverage": interval_json(share_interval(covered[known], all_of_them, places[known])),
        "by_class": {name: interval_json(share_interval(c, a, patient_of)) for name, c, a in columns},
        "sizes": {
            str(size): int(count) for size, count in zip(*np.unique(sizes, return_counts=True), strict=True)
        },
    }


def _find_floors(
    scores: Floats, among: Flags, patient_of: NDArray[np.int64], promised: float
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return the floor of each answer and how many patients it comes from; scores, among: (N, K).

    The highest probability such that at most a share 1 - promised of the patients' weights lies below it,
    counting one further patient, the new one, as below.
    """
    floors, patients = [], []
    for column, flags in zip(scores.T, among.T, strict=True):
        _, place, samples = np.unique(patient_of[flags], return_inverse=True, return_counts=True)
        order = np.argsort(column[flags], kind="stable")
        below = 1 + np.concatenate([[0.0], np.cumsum(1 / samples[place][order])[:-1]])
        fitting = np.flatnonzero(below <= (1 - promised) * (len(samples) + 1) + 1e-9)
        floors.append(float(column[flags][order][fitting[-1]]) if len(fitting) else 0.0)
        patients.append(len(samples))
    return tuple(floors), tuple(patients)
