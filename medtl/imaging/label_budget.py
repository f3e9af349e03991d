"""Split samples -> those that may teach: a budget of labelled training samples, drawn by whole patients.

The draw is one order of the training patients, of which a budget takes the beginning: so the samples of a
smaller budget are among those of a larger one of the same seed.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from medtl.errors import SplitError
from medtl.imaging.randomness import make_generator
from medtl.imaging.sample import Sample
from medtl.imaging.splits import Patients, group_patients
from medtl.imaging.task import Task


def draw_labels(samples: Sequence[Sample], task: Task, budget: int | None, seed: int) -> tuple[Sample, ...]:
    """Return the samples without the training ones that a budget leaves out; val and test stay as they are.

    Patients come whole, so there are at most `budget` samples of train, and classes in proportion. Raises
    SplitError label-budget where train has fewer, or where the budget has no room for every class of it.
    """
    if budget is None:
        return tuple(samples)
    training = [sample for sample in samples if sample.split == "train"]
    if budget > len(training):
        raise _wrong(f"training has {len(training)} labels, fewer than the {budget} asked for")
    patients = group_patients(training, task)
    drawn = _draw(patients, budget, seed)
    positives = patients.counts[:, : len(task.classes)]
    lacking = np.flatnonzero((positives.sum(axis=0) > 0) & (positives[drawn].sum(axis=0) == 0))
    if len(lacking):
        raise _wrong(
            f"a budget of {budget} has no room for class {task.classes[lacking[0]]}, as patients come whole"
        )
    kept = {training[row].sample_id for patient in drawn for row in patients.samples[patient]}
    return tuple(sample for sample in samples if sample.split != "train" or sample.sample_id in kept)


def _draw(patients: Patients, budget: int, seed: int) -> list[int]:
    """Return the longest beginning of the order that holds at most `budget` samples."""
    order = list(_order(patients, seed))
    sizes = [len(patients.samples[patient]) for patient in order]
    return order[: int(np.searchsorted(np.cumsum(sizes), budget, side="right"))]


def _order(patients: Patients, seed: int) -> Iterator[int]:
    """Yield patients at random, each time of the class that is furthest behind its share of the samples."""
    class_of = _rarest_classes(patients)
    shuffled = make_generator(seed, "labels").permutation(len(class_of))
    waiting = {int(name): [int(p) for p in shuffled if class_of[p] == name] for name in np.unique(class_of)}
    sizes = {name: sum(len(patients.samples[p]) for p in members) for name, members in waiting.items()}
    taken = dict.fromkeys(waiting, 0)
    while waiting:
        behind = min(waiting, key=lambda name: (taken[name] / sizes[name], sizes[name], name))
        patient = waiting[behind].pop()
        taken[behind] += len(patients.samples[patient])
        if not waiting[behind]:
            del waiting[behind]
        yield patient


def _rarest_classes(patients: Patients) -> NDArray[np.int64]:
    """Return which of a patient's strata the fewest patients have, for each patient."""
    present = patients.counts > 0
    return np.where(present, present.sum(axis=0), np.inf).argmin(axis=1)


def _wrong(reason: str) -> SplitError:
    return SplitError("label-budget", reason, where="--label-budget", fix="ask for another number")
