"""Split samples into train, val and test, or into folds: each patient in one part, classes in proportion.

Patients are assigned one by one, the largest first, each to the part where it brings the counts of classes
nearest to those expected (by the chi-square distance). Before that each class gets a patient in every part.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from medtl.core.files import write_csv
from medtl.core.ids import make_generator
from medtl.data.task import Sample, Split, Target, Task, place_of
from medtl.errors import SplitError

ATTEMPTS = 20
HEADER = ["sample_id", "split", "target"]
NearDuplicates = Literal["group", "warn", "ignore"]
Counts = NDArray[np.float64]  # of samples, of each patient or part (N) in each stratum: (N, strata)


class SplitConfig(BaseModel, extra="forbid", frozen=True):
    """Shares of the samples in the parts; the rest is train. A split column of the table comes before it.

    folds: split all but test into this many folds; val is number `fold` of them, from 0, train the others,
    and the share `val` is not used. repeat: other folds, with the same test. near_duplicates: `group` makes
    one patient of a group of near-duplicates, `warn` only reports it, `ignore` does not look; by default a
    group is joined where a sample in it has no patient id, and reported where all have one.
    """

    val: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 0
    folds: int | None = Field(default=None, ge=2)
    fold: int = Field(default=0, ge=0)
    repeat: int = Field(default=0, ge=0)
    near_duplicates: NearDuplicates | None = None

    @model_validator(mode="after")
    def _keys_fit(self) -> "SplitConfig":
        if self.folds is None and self.val + self.test >= 1:
            raise ValueError("val and test leave nothing to train on")
        if self.folds is None and (self.fold or self.repeat):
            raise ValueError("fold and repeat need folds: say how many")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not one of 0 to {self.folds - 1}")
        return self


class SplitRow(NamedTuple):
    """One row of splits.csv."""

    split: Split
    target: Target | None


@dataclass(frozen=True, eq=False)
class Patients:
    """Patients in an order that depends on neither the rows' order nor the salt.

    counts: float64 (patients, strata), how many samples of each has in each stratum: a class, and in
    multilabel also its absence. strata: their names. of_sample: (samples,), the patient of each sample.
    """

    counts: Counts
    strata: tuple[str, ...]
    of_sample: NDArray[np.int64]


def split_samples(samples: Sequence[Sample], task: Task, config: SplitConfig) -> tuple[Sample, ...]:
    """Return the samples with their part of the split, in the order given.

    A split given with the samples is used as it is; where it has no val, val is drawn from its train. Raises
    SplitError split-empty, split-incomplete, split-brought, class-too-small, patient-leak.
    """
    given = [sample.split for sample in samples]
    if not any(given):
        return _assign(samples, task, config)
    if not all(given):
        reason = f"{given.count(None)} of {len(given)} samples have no split"
        raise SplitError("split-incomplete", reason, fix="fill the split column in, or remove it")
    check_no_leak(samples)
    if "train" not in given:
        fix = "give more patients, or another split"
        raise SplitError("split-empty", "no sample is in train", fix=fix)
    if "val" not in given:
        samples = _draw_val(samples, task, config)
    elif config.folds is not None:
        fix = "leave split.folds out, or call val train in the table"
        raise SplitError("split-brought", "split.folds is set, and the table has a val part", fix=fix)
    _check_trainable(samples, task)
    return tuple(samples)


def check_no_leak(samples: Sequence[Sample]) -> None:
    """Raise SplitError patient-leak where a patient is in more than one part; no patient id is shown."""
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    for sample in samples:
        if sample.split:
            parts[sample.patient_id].setdefault(sample.split, sample.sample_id)
    leaks = [found for found in parts.values() if len(found) > 1]
    if leaks:
        names, ids = " and ".join(leaks[0]), ", ".join(leaks[0].values())
        reason = f"{len(leaks)} patients are in several parts, one is in {names} (samples {ids})"
        raise SplitError("patient-leak", reason, fix="split by patient_id")


def write_splits(path: Path, samples: Sequence[Sample]) -> None:
    """Write sample_id, split and target, atomically, in order of sample_id; no path and no patient id.

    target: the index of the class; in multilabel 1, 0 or nothing for each class, joined by "|". Raises
    OutputError output-unwritable.
    """
    ordered = sorted(samples, key=lambda sample: sample.sample_id)
    rows = [[sample.sample_id, sample.split or "", _target_text(sample.target)] for sample in ordered]
    write_csv(path, [HEADER, *rows])


def read_splits(path: Path) -> dict[str, SplitRow]:
    """Read what write_splits wrote, by sample_id. Raises SplitError file-unreadable, split-damaged."""
    try:
        header, *lines = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
        if header != HEADER or any(split not in get_args(Split) for _, split, _ in lines):
            raise ValueError
        return {name: SplitRow(split, _parse_target(target)) for name, split, target in lines}  # type: ignore[arg-type]
    except OSError as error:
        reason = error.strerror or str(error)
        raise SplitError("file-unreadable", reason, where=path, fix="name a run that has it") from error
    except (ValueError, csv.Error) as error:
        reason = "is not a splits.csv that medtl wrote"
        raise SplitError("split-damaged", reason, where=path, fix="restore it, or train again") from error


def _target_text(target: Target | None) -> str:
    if target is None:
        return ""
    if isinstance(target, tuple):
        return "|".join("" if value is None else f"{value:g}" for value in target)
    return str(target)


def _parse_target(text: str) -> Target | None:
    if "|" in text:
        return tuple(float(part) if part else None for part in text.split("|"))
    return int(text) if text else None


def _draw_val(samples: Sequence[Sample], task: Task, config: SplitConfig) -> tuple[Sample, ...]:
    """Move patients from train to val; test stays as it is."""
    train = [sample for sample in samples if sample.split == "train"]
    share = min(config.val * len(samples) / len(train), 0.5)
    drawing = config.model_copy(update={"val": share, "test": 0.0})
    assigned = {sample.sample_id: sample for sample in _assign(train, task, drawing)}
    return tuple(assigned.get(sample.sample_id, sample) for sample in samples)


def _check_trainable(samples: Sequence[Sample], task: Task) -> None:
    """Refuse a given split whose train part lacks a class."""
    train = _group_patients([sample for sample in samples if sample.split == "train"], task)
    absent = [name for name, count in zip(train.strata, train.counts.sum(axis=0), strict=True) if count == 0]
    if absent:
        reason, fix = f"train has no sample of {absent[0]}", "correct the split column, or remove it"
        raise SplitError("class-too-small", reason, fix=fix)


def _assign(samples: Sequence[Sample], task: Task, config: SplitConfig) -> tuple[Sample, ...]:
    """Assign patients to parts, so that train and val have each class."""
    patients = _group_patients(samples, task)
    parts = _assign_folds(patients, config) if config.folds else _assign_shares(patients, config)
    pairs = zip(samples, patients.of_sample, strict=True)
    return tuple(replace(sample, split=parts[patient]) for sample, patient in pairs)


def _assign_shares(patients: Patients, config: SplitConfig) -> list[Split]:
    _check_patients(patients, 2, "one for train and one for val")
    shares = [config.val, config.test] if config.test else [config.val]
    assigned = _assign_whole(patients.counts, [1 - sum(shares), *shares], 2, config.seed, "split")
    return [get_args(Split)[index] for index in assigned]


def _assign_folds(patients: Patients, config: SplitConfig) -> list[Split]:
    """Assign twice: to folds and test, by the seed alone, then all but test to folds."""
    folds = config.folds or 0
    _check_patients(patients, folds, "one for each fold")
    rest = np.arange(len(patients.counts))
    if config.test > 0:
        portions = [*[(1 - config.test) / folds] * folds, config.test]
        assigned = _assign_whole(patients.counts, portions, folds, config.seed, "test")
        rest = np.flatnonzero(assigned < folds)
    portions = [1 / folds] * folds
    assigned = _assign_whole(patients.counts[rest], portions, folds, config.seed, "fold", config.repeat)
    parts: list[Split] = ["test"] * len(patients.counts)
    for patient, fold in zip(rest, assigned, strict=True):
        parts[patient] = "val" if fold == config.fold else "train"
    return parts


def _assign_whole(
    counts: Counts, portions: Sequence[float], whole: int, seed: int, purpose: str, *counters: int
) -> NDArray[np.int64]:
    """Return the part of each patient: every part has one, and the first `whole` parts have every class."""
    for attempt in range(ATTEMPTS):
        order = make_generator(seed, purpose, *counters, attempt).permutation(len(counts))
        assigned = _assign_each(counts, portions, order)
        filled = [counts[assigned == part] for part in range(len(portions))]
        if all(map(len, filled)) and all((part.sum(axis=0) > 0).all() for part in filled[:whole]):
            return assigned
    reason = "no split was found with each class in train and val, and every part filled"
    raise SplitError("class-too-small", reason, fix="add patients of the rare classes, or leave those out")


def _group_patients(samples: Sequence[Sample], task: Task) -> Patients:
    """Group samples by patient, in order of their paths, and count their classes."""
    numbers: dict[str, int] = {}
    for sample in sorted(samples, key=place_of):
        numbers.setdefault(sample.patient_id, len(numbers))
    of_sample = np.array([numbers[sample.patient_id] for sample in samples], dtype=np.int64)
    strata = tuple(f"class {name!r}" for name in task.classes)
    if task.kind == "multilabel":
        strata += tuple(f"absence of {name!r}" for name in task.classes)
    counts = np.zeros((len(numbers), len(strata)))
    memberships = np.array([_membership(sample, task) for sample in samples]).reshape(-1, len(strata))
    np.add.at(counts, of_sample, memberships)
    return Patients(counts, strata, of_sample)


def _membership(sample: Sample, task: Task) -> list[bool]:
    if isinstance(sample.target, tuple):
        return [value == 1 for value in sample.target] + [value == 0 for value in sample.target]
    return [sample.target == index for index in range(len(task.classes))]


def _check_patients(patients: Patients, least: int, what_for: str) -> None:
    for name, count in zip(patients.strata, (patients.counts > 0).sum(axis=0), strict=True):
        if count < least:
            needed = "two" if least == 2 else least
            reason = f"{name} needs {needed} patients, {what_for}, and has {count}"
            raise SplitError("class-too-small", reason, fix="add patients, or leave the class out")


def _assign_each(counts: Counts, portions: Sequence[float], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the part (patients,) of each patient.

    counts: (patients, strata); portions: (parts,), which add up to 1; order: of the patients, before the
    largest are put first. The parts that need every class come first: a class that only two patients have is
    in the first two.
    """
    expected = np.outer(portions, counts.sum(axis=0))
    filled = np.zeros_like(expected)
    assigned = np.full(len(counts), -1)
    largest_first = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]

    def give(patient: int, part: int) -> None:
        assigned[patient] = part
        filled[part] += counts[patient]

    patients_with = (counts > 0).sum(axis=0)
    for stratum in np.argsort(patients_with, kind="stable"):
        for part in range(min(patients_with[stratum], len(portions))):
            free = order[(assigned[order] < 0) & (counts[order, stratum] > 0)]
            if filled[part, stratum] == 0 and len(free):
                give(free[np.argmin(_costs(counts[free], filled[part], expected[part]))], part)
    for patient in largest_first:
        if assigned[patient] < 0:
            give(patient, int(np.argmin(_costs(counts[patient], filled, expected))))
    return assigned


def _costs(counts: Counts, filled: Counts, expected: Counts) -> NDArray[np.float64]:
    """Return how much adding counts increases the chi-square, sum((filled - expected)^2 / expected)."""
    return (counts * (2 * (filled - expected) + counts) / expected).sum(axis=-1)


def draw_labels(samples: Sequence[Sample], task: Task, budget: int | None, seed: int) -> tuple[Sample, ...]:
    """Return the samples without the training ones that a budget leaves out; val and test stay as they are.

    Patients come whole, so there are at most `budget` samples of train, and classes in proportion. Raises
    SplitError label-budget where train has fewer, or where the budget has no room for every class of it.
    """
    if budget is None:
        return tuple(samples)
    training = [sample for sample in samples if sample.split == "train"]
    if budget > len(training):
        raise _no_budget(f"training has {len(training)} labels, fewer than the {budget} asked for")
    patients = _group_patients(training, task)
    order = _order(patients, seed)
    drawn = order[np.bincount(patients.of_sample)[order].cumsum() <= budget]
    positives = patients.counts[:, : len(task.classes)]
    lacking = np.flatnonzero((positives.sum(axis=0) > 0) & (positives[drawn].sum(axis=0) == 0))
    if len(lacking):
        name = task.classes[lacking[0]]
        raise _no_budget(f"a budget of {budget} has no room for class {name}, as patients come whole")
    rows = np.flatnonzero(np.isin(patients.of_sample, drawn))
    kept = {training[row].sample_id for row in rows}
    return tuple(sample for sample in samples if sample.split != "train" or sample.sample_id in kept)


def _order(patients: Patients, seed: int) -> NDArray[np.int64]:
    """Return patients at random, each time of the class that is furthest behind its share of the samples."""
    present = patients.counts > 0
    class_of = np.where(present, present.sum(axis=0), np.inf).argmin(axis=1)  # the rarest of a patient's
    sizes = np.bincount(patients.of_sample)
    shuffled = make_generator(seed, "labels").permutation(len(sizes))[::-1]
    taken, total = np.zeros_like(sizes), np.zeros_like(sizes)
    for name in np.unique(class_of):
        members = shuffled[class_of[shuffled] == name]
        taken[members] = sizes[members].cumsum() - sizes[members]
        total[members] = sizes[members].sum()
    return np.lexsort((class_of, total, taken / total))


def _no_budget(reason: str) -> SplitError:
    return SplitError("label-budget", reason, where="--label-budget", fix="ask for another number")
