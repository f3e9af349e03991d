"""Deal samples into train, val and test, or into folds: each patient in one part, classes in proportion.

Patients are dealt one by one, the largest first, each to the part where it brings the counts of the classes
nearest to those expected (by the chi-square distance). Before that each class gets a patient in every part.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from medtl.core.files import write_csv
from medtl.core.seeds import make_generator
from medtl.data.task import Sample, Split, Target, Task, place_of
from medtl.errors import SplitError

ATTEMPTS = 20
HEADER = ["sample_id", "split", "target"]
NearDuplicates = Literal["group", "warn", "ignore"]


class SplitConfig(BaseModel, extra="forbid", frozen=True):
    """Shares of the samples in the parts; the rest is train. A split column of the table comes before it.

    folds: deal what test leaves into this many folds; val is number `fold` of them, from 0, train the others,
    and the share `val` is not used. repeat: another deal into folds, with the same test. near_duplicates:
    `group` makes one patient of a group of near-duplicates, `warn` only reports it, `ignore` does not look;
    by default a group is joined where a sample in it has no patient id, and reported where all have one.
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


@dataclass(frozen=True)
class SplitRow:
    """One row of splits.csv."""

    split: Split
    target: Target | None


@dataclass(frozen=True, eq=False)
class Patients:
    """Patients in an order that depends on neither the rows' order nor the salt.

    counts: float64 (patients, strata), how many samples of each has in each stratum: a class, and in
    multilabel also its absence. strata: their names. samples: the indices of each patient's samples.
    """

    counts: NDArray[np.float64]
    strata: tuple[str, ...]
    samples: tuple[tuple[int, ...], ...]


def split_samples(samples: Sequence[Sample], task: Task, config: SplitConfig) -> tuple[Sample, ...]:
    """Return the samples with their part of the split, in the order given.

    A split given with the samples is used as it is; where it has no val, val is drawn from its train. Raises
    SplitError split-empty, split-incomplete, split-brought, class-too-small, patient-leak.
    """
    given = [sample.split for sample in samples]
    if not any(given):
        return _deal(samples, task, config)
    if not all(given):
        reason = f"{given.count(None)} of {len(given)} samples have no split"
        raise SplitError("split-incomplete", reason, fix="fill the split column in, or remove it")
    check_no_leak(samples)
    if "val" not in given:
        samples = _draw_val(samples, task, config)
    elif config.folds is not None:
        fix = "leave split.folds out, or call val train in the table"
        raise SplitError("split-brought", "split.folds is set, and the table has a val part", fix=fix)
    _check_filled(samples, ("train", "val"))
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
    SplitError split-incomplete, OutputError output-unwritable.
    """
    if not all(sample.split for sample in samples):
        raise SplitError(
            "split-incomplete", "a sample has no split", where=path, fix="split the samples first"
        )
    ordered = sorted(samples, key=lambda sample: sample.sample_id)
    rows = [[sample.sample_id, sample.split or "", _target_text(sample.target)] for sample in ordered]
    write_csv(path, [HEADER, *rows])


def read_splits(path: Path) -> dict[str, SplitRow]:
    """Read what write_splits wrote, by sample_id. Raises SplitError file-unreadable, split-damaged."""
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        if lines[0] != HEADER:
            raise ValueError
        rows: dict[str, SplitRow] = {}
        for sample_id, split, target in lines[1:]:
            if split not in get_args(Split):
                raise ValueError(split)
            rows[sample_id] = SplitRow(split, _parse_target(target))  # type: ignore[arg-type]
    except OSError as error:
        reason = error.strerror or str(error)
        raise SplitError("file-unreadable", reason, where=path, fix="name a run that has it") from error
    except (ValueError, IndexError, csv.Error) as error:
        reason = "is not a splits.csv that medtl wrote"
        raise SplitError("split-damaged", reason, where=path, fix="restore it, or train again") from error
    return rows


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
    _check_filled(samples, ("train",))
    train = [sample for sample in samples if sample.split == "train"]
    share = min(config.val * len(samples) / len(train), 0.5)
    drawing = config.model_copy(update={"val": share, "test": 0.0})
    dealt = {sample.sample_id: sample for sample in _deal(train, task, drawing)}
    return tuple(dealt.get(sample.sample_id, sample) for sample in samples)


def _check_filled(samples: Sequence[Sample], parts: Sequence[Split]) -> None:
    for part in parts:
        if not any(sample.split == part for sample in samples):
            raise SplitError(
                "split-empty", f"no sample is in {part}", fix="give more patients, or another split"
            )


def _check_trainable(samples: Sequence[Sample], task: Task) -> None:
    """Refuse a given split whose train part lacks a class."""
    train = group_patients([sample for sample in samples if sample.split == "train"], task)
    for name, count in zip(train.strata, (train.counts > 0).sum(axis=0), strict=True):
        if count == 0:
            reason = f"train has no sample of {name}"
            raise SplitError("class-too-small", reason, fix="correct the split column, or remove it")


def _deal(samples: Sequence[Sample], task: Task, config: SplitConfig) -> tuple[Sample, ...]:
    """Deal patients into parts, so that train and val have each class."""
    patients = group_patients(samples, task)
    parts = _deal_folds(patients, config) if config.folds else _deal_shares(patients, config)
    part_of = {
        index: part for indices, part in zip(patients.samples, parts, strict=True) for index in indices
    }
    return tuple(replace(sample, split=part_of[index]) for index, sample in enumerate(samples))


def _deal_shares(patients: Patients, config: SplitConfig) -> list[Split]:
    _check_patients(patients, 2, "one for train and one for val")
    shares: dict[Split, float] = {"val": config.val, "test": config.test}
    shares = {part: share for part, share in shares.items() if share > 0}
    parts: list[Split] = ["train", *shares]
    dealt = _deal_whole(
        patients.counts, [1 - sum(shares.values()), *shares.values()], 2, config.seed, "split"
    )
    return [parts[index] for index in dealt]


def _deal_folds(patients: Patients, config: SplitConfig) -> list[Split]:
    """Deal twice: into folds and test, by the seed alone, then all but test into folds."""
    folds = config.folds or 0
    _check_patients(patients, folds, "one for each fold")
    rest = np.arange(len(patients.counts))
    if config.test > 0:
        portions = [*[(1 - config.test) / folds] * folds, config.test]
        dealt = _deal_whole(patients.counts, portions, folds, config.seed, "test")
        rest = np.flatnonzero(dealt < folds)
    purpose = ("fold", config.repeat)
    dealt = _deal_whole(patients.counts[rest], [1 / folds] * folds, folds, config.seed, *purpose)
    parts: list[Split] = ["test"] * len(patients.counts)
    for patient, fold in zip(rest, dealt, strict=True):
        parts[patient] = "val" if fold == config.fold else "train"
    return parts


def _deal_whole(
    counts: NDArray[np.float64],
    portions: Sequence[float],
    whole: int,
    seed: int,
    purpose: str,
    *counters: int,
) -> NDArray[np.int64]:
    """Return the part of each patient: every part has one, and the first `whole` parts have every class."""
    for attempt in range(ATTEMPTS):
        order = make_generator(seed, purpose, *counters, attempt).permutation(len(counts))
        dealt = deal_patients(counts, np.array(portions), order)
        filled = [counts[dealt == part] for part in range(len(portions))]
        if all(map(len, filled)) and all((part.sum(axis=0) > 0).all() for part in filled[:whole]):
            return dealt
    reason = "no split was found with each class in train and val, and every part filled"
    raise SplitError("class-too-small", reason, fix="add patients of the rare classes, or leave those out")


def group_patients(samples: Sequence[Sample], task: Task) -> Patients:
    """Group samples by patient, in order of their paths, and count their classes."""
    order = sorted(range(len(samples)), key=lambda index: place_of(samples[index]))
    members: dict[str, list[int]] = defaultdict(list)
    for index in order:
        members[samples[index].patient_id].append(index)
    strata = tuple(f"class {name!r}" for name in task.classes)
    if task.kind == "multilabel":
        strata += tuple(f"absence of {name!r}" for name in task.classes)
    memberships = np.array([_membership(sample, task) for sample in samples]).reshape(-1, len(strata))
    counts = [memberships[indices].sum(axis=0) for indices in members.values()]
    return Patients(
        np.array(counts, dtype=np.float64).reshape(-1, len(strata)),
        strata,
        tuple(map(tuple, members.values())),
    )


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


def deal_patients(
    counts: NDArray[np.float64], portions: NDArray[np.float64], order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the part (patients,) of each patient.

    counts: (patients, strata); portions: (parts,), which add up to 1; order: of the patients, before the
    largest are put first. The parts that need every class come first: a class that only two patients have is
    in the first two.
    """
    expected = np.outer(portions, counts.sum(axis=0))
    filled = np.zeros_like(expected)
    dealt = np.full(len(counts), -1)
    largest_first = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]

    def give(patient: int, part: int) -> None:
        dealt[patient] = part
        filled[part] += counts[patient]

    patients_with = (counts > 0).sum(axis=0)
    for stratum in np.argsort(patients_with, kind="stable"):
        for part in range(min(patients_with[stratum], len(portions))):
            free = order[(dealt[order] < 0) & (counts[order, stratum] > 0)]
            if filled[part, stratum] == 0 and len(free):
                give(free[np.argmin(_costs(counts[free], filled[part], expected[part]))], part)
    for patient in largest_first:
        if dealt[patient] < 0:
            give(patient, int(np.argmin(_costs(counts[patient], filled, expected))))
    return dealt


def _costs(
    counts: NDArray[np.float64], filled: NDArray[np.float64], expected: NDArray[np.float64]
) -> NDArray[np.float64]:
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
        raise _wrong(f"training has {len(training)} labels, fewer than the {budget} asked for")
    patients = group_patients(training, task)
    order = list(_order(patients, seed))
    sizes = np.cumsum([len(patients.samples[patient]) for patient in order])
    drawn = order[: int(np.searchsorted(sizes, budget, side="right"))]
    positives = patients.counts[:, : len(task.classes)]
    lacking = np.flatnonzero((positives.sum(axis=0) > 0) & (positives[drawn].sum(axis=0) == 0))
    if len(lacking):
        raise _wrong(
            f"a budget of {budget} has no room for class {task.classes[lacking[0]]}, as patients come whole"
        )
    kept = {training[row].sample_id for patient in drawn for row in patients.samples[patient]}
    return tuple(sample for sample in samples if sample.split != "train" or sample.sample_id in kept)


def _order(patients: Patients, seed: int) -> Iterator[int]:
    """Yield patients at random, each time of the class that is furthest behind its share of the samples."""
    present = patients.counts > 0
    class_of = np.where(present, present.sum(axis=0), np.inf).argmin(axis=1)  # the rarest of a patient's
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


def _wrong(reason: str) -> SplitError:
    return SplitError("label-budget", reason, where="--label-budget", fix="ask for another number")
