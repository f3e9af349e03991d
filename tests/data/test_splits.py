"""Patients stay whole, classes in proportion; impossible splits are refused; label budgets are nested."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medtl.data.splits import (
    SplitConfig,
    SplitRow,
    check_no_leak,
    draw_labels,
    read_splits,
    split_samples,
    write_splits,
)
from medtl.data.task import Sample, Task
from medtl.errors import OutputError, SplitError
from medtl.imaging.series import Series

BINARY = Task("binary", ("normal", "lesion"))
MULTILABEL = Task("multilabel", ("x", "y"))


def make_samples(groups: list[list], salt: str = "") -> tuple[Sample, ...]:
    """One patient for each group of targets, and one sample for each target."""
    samples = []
    for patient, group in enumerate(groups):
        for number, target in enumerate(group):
            path = Path(f"p{patient:04d}/{number}.png")
            sample_id = f"s{salt}{patient}-{number}"
            samples.append(Sample(sample_id, Series(path, (path,), "png"), f"{salt}{patient}", target=target))
    return tuple(samples)


def parts_of(samples: tuple[Sample, ...]) -> dict[str, str | None]:
    return {sample.series.path.as_posix(): sample.split for sample in samples}


def shares(samples: tuple[Sample, ...], part: str) -> dict[object, float]:
    """The share of each target that lies in a part."""
    total = Counter(sample.target for sample in samples)
    inside = Counter(sample.target for sample in samples if sample.split == part)
    return {target: inside[target] / total[target] for target in total}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=2, max_size=30),
    st.integers(0, 3),
)
def test_every_patient_is_whole_and_every_class_is_in_train_and_val(
    groups: list[list[int]], seed: int
) -> None:
    samples = make_samples(groups)
    patients_with = [sum(target in group for group in groups) for target in (0, 1)]
    if min(patients_with) < 2:
        with pytest.raises(SplitError, match="class-too-small"):
            split_samples(samples, BINARY, SplitConfig(seed=seed))
        return
    split = split_samples(samples, BINARY, SplitConfig(seed=seed))
    assert [replace(sample, split=None) for sample in split] == list(samples)
    for patient in range(len(groups)):
        assert len({sample.split for sample in split if sample.patient_id == str(patient)}) == 1
    for part in ("train", "val"):
        assert {sample.target for sample in split if sample.split == part} == {0, 1}


def test_single_samples_keep_the_proportion_of_a_rare_class() -> None:
    samples = make_samples([[int(index % 10 == 0)] for index in range(500)])
    split = split_samples(samples, BINARY, SplitConfig(val=0.2, test=0.1))
    assert shares(split, "val") == pytest.approx({0: 0.2, 1: 0.2})
    assert shares(split, "test") == pytest.approx({0: 0.1, 1: 0.1})


def test_patients_of_uneven_size_keep_the_proportions_nearly() -> None:
    generator = np.random.default_rng(0)
    groups = [generator.integers(0, 2, 1 + generator.geometric(0.3)).tolist() for _ in range(120)]
    split = split_samples(make_samples(groups), BINARY, SplitConfig(val=0.25))
    assert shares(split, "val") == pytest.approx({0: 0.25, 1: 0.25}, abs=0.02)
    sizes = Counter(sample.patient_id for sample in split if sample.split == "val")
    assert max(sizes.values()) > 3  # large patients are not all in train


def test_a_large_patient_does_not_overfill_a_small_part() -> None:
    """A tenth of 26 samples per class: one patient of 8 would be three times too many."""
    sizes = [10, 8, 6, 1, 1]
    groups = [[target] * size for size in sizes for target in (0, 1)]
    split = split_samples(make_samples(groups), BINARY, SplitConfig(val=0.1))
    assert max(shares(split, "val").values()) < 0.2


def test_the_seed_decides_and_neither_row_order_nor_salt_does() -> None:
    groups = [[index % 2] * (1 + index % 3) for index in range(40)]
    samples = make_samples(groups)
    expected = parts_of(split_samples(samples, BINARY, SplitConfig()))
    shuffled = random.Random(1).sample(samples, len(samples))
    assert parts_of(split_samples(shuffled, BINARY, SplitConfig())) == expected
    salted = make_samples(groups, salt="other")[::-1]
    assert parts_of(split_samples(salted, BINARY, SplitConfig())) == expected
    assert parts_of(split_samples(samples, BINARY, SplitConfig(seed=1))) != expected


def test_the_samples_come_back_in_the_order_given() -> None:
    samples = make_samples([[index % 2] for index in range(10)])[::-1]
    split = split_samples(samples, BINARY, SplitConfig())
    assert [sample.sample_id for sample in split] == [sample.sample_id for sample in samples]


def test_a_class_of_two_patients_is_in_train_and_in_val() -> None:
    samples = make_samples([[1], [1], *[[0]] * 30])
    split = split_samples(samples, BINARY, SplitConfig(val=0.1, test=0.2))
    assert {sample.split for sample in split if sample.target == 1} == {"train", "val"}


def test_a_class_of_one_patient_is_refused_by_name_even_with_many_samples() -> None:
    with pytest.raises(SplitError) as caught:
        split_samples(make_samples([[1] * 50, *[[0]] * 30]), BINARY, SplitConfig())
    assert caught.value.code == "class-too-small"
    assert "class 'lesion' needs two patients, one for train and one for val, and has 1" in str(caught.value)


def test_three_classes_that_each_two_of_three_patients_share_are_refused() -> None:
    task = Task("multiclass", ("a", "b", "c"))
    with pytest.raises(SplitError, match="class-too-small"):
        split_samples(make_samples([[0, 1], [1, 2], [0, 2]]), task, SplitConfig())


def test_multilabel_has_each_class_and_its_absence_in_train_and_val() -> None:
    generator = np.random.default_rng(0)
    targets = [tuple(map(float, row)) for row in generator.random((200, 2)) < (0.05, 0.5)]
    split = split_samples(make_samples([[target] for target in targets]), MULTILABEL, SplitConfig())
    for column in range(2):
        share = np.mean([sample.split == "val" for sample in split if sample.target[column] == 1])  # type: ignore[index]
        assert share == pytest.approx(0.2, abs=0.06)


def test_multilabel_without_negatives_is_refused() -> None:
    samples = make_samples([[(1.0, 0.0)], [(1.0, 1.0)], [(1.0, 1.0)], [(1.0, None)], [(1.0, 0.0)]])
    with pytest.raises(SplitError, match=r"absence of 'x' needs two patients.*has 0"):
        split_samples(samples, MULTILABEL, SplitConfig())


def give_parts(samples: tuple[Sample, ...], parts: list[str | None]) -> tuple[Sample, ...]:
    return tuple(replace(sample, split=part) for sample, part in zip(samples, parts, strict=True))  # type: ignore[arg-type]


def test_a_split_that_the_table_brings_is_kept() -> None:
    parts = ["train", "val", "test", "train", "val", "train"]
    given = give_parts(make_samples([[0], [1], [0], [1], [0], [0]]), parts)
    assert split_samples(given, BINARY, SplitConfig()) == given


def test_val_is_drawn_from_train_where_the_table_has_none() -> None:
    samples = make_samples([[index % 2] * 2 for index in range(50)])
    given = give_parts(
        samples, ["test" if index % 5 == 0 else "train" for index in range(50) for _ in range(2)]
    )
    split = split_samples(given, BINARY, SplitConfig(val=0.2))
    assert Counter(sample.split for sample in split) == {"train": 60, "val": 20, "test": 20}
    assert all((a.split == "test") == (b.split == "test") for a, b in zip(given, split, strict=True))
    check_no_leak(split)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        (["train", "train", None, "val"], "split-incomplete"),
        (["val", "val", "test", "test"], "split-empty"),
        (["train", "val", "train", "val"], "class-too-small"),
    ],
    ids=["partly-empty", "no-train", "train-of-one-class"],
)
def test_a_split_that_cannot_be_trained_on_is_refused(parts: list[str | None], code: str) -> None:
    with pytest.raises(SplitError) as caught:
        split_samples(give_parts(make_samples([[0], [1], [0], [1]]), parts), BINARY, SplitConfig())
    assert caught.value.code == code


def test_a_leak_is_refused_without_showing_the_patient() -> None:
    samples = make_samples([[0, 1], [0, 1]], salt="Doe^Jane")
    given = [replace(sample, sample_id=f"s{index}") for index, sample in enumerate(samples)]
    leaky = give_parts(tuple(given), ["train", "val", "train", "train"])
    with pytest.raises(SplitError, match=r"train and val \(samples s0, s1\)") as caught:
        split_samples(leaky, BINARY, SplitConfig())
    assert caught.value.code == "patient-leak"
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"val": 0.0}, {"val": 1.0}, {"val": 0.6, "test": 0.4}, {"test": -0.1}, {"x": 1}]
)
def test_shares_that_leave_a_part_empty_are_no_config(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SplitConfig(**values)


def fold_of(samples: tuple[Sample, ...], folds: int, **settings: float) -> list[tuple[Sample, ...]]:
    """Split samples once for each fold."""
    configs = [
        SplitConfig.model_validate({"folds": folds, "fold": fold, **settings}) for fold in range(folds)
    ]
    return [split_samples(samples, BINARY, config) for config in configs]


def names_in(split: tuple[Sample, ...], part: str) -> set[str]:
    """Return the paths of a part; they do not depend on the salt."""
    return {sample.series.path.as_posix() for sample in split if sample.split == part}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=2, max_size=40),
    st.integers(2, 5),
    st.sampled_from([0.0, 0.2]),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_every_patient_is_in_val_once_over_the_folds(
    groups: list[list[int]], folds: int, test: float, seed: int, repeat: int
) -> None:
    samples = make_samples(groups)
    if min(sum(target in group for group in groups) for target in (0, 1)) < folds:
        with pytest.raises(SplitError, match="class-too-small"):
            fold_of(samples, folds, test=test, seed=seed, repeat=repeat)
        return
    try:
        splits = fold_of(samples, folds, test=test, seed=seed, repeat=repeat)
    except SplitError as error:  # patients who share classes may leave no way
        assert error.code == "class-too-small" and "no split was found" in error.reason
        return
    held_back = names_in(splits[0], "test")
    assert bool(held_back) == bool(test)
    everything = {sample.series.path.as_posix() for sample in samples}
    for split in splits:
        check_no_leak(split)
        assert names_in(split, "test") == held_back
        assert names_in(split, "train") | names_in(split, "val") | held_back == everything
        for part in ("train", "val"):
            assert {sample.target for sample in split if sample.split == part} == {0, 1}
    turns = Counter(name for split in splits for name in names_in(split, "val"))
    assert turns == dict.fromkeys(everything - held_back, 1)


def test_folds_are_of_one_size_and_keep_the_proportions() -> None:
    generator = np.random.default_rng(0)
    groups = [[int(generator.random() < 0.2)] * int(generator.integers(1, 5)) for _ in range(200)]
    for split in fold_of(make_samples(groups), 5, test=0.1):
        assert shares(split, "val") == pytest.approx({0: 0.18, 1: 0.18}, abs=0.03)
        assert shares(split, "test") == pytest.approx({0: 0.1, 1: 0.1}, abs=0.03)


def test_folds_depend_on_seed_and_repeat_and_not_on_row_order_or_salt() -> None:
    groups = [[index % 2] * (1 + index % 3) for index in range(40)]
    samples = make_samples(groups)
    expected = [parts_of(split) for split in fold_of(samples, 4, test=0.2)]
    shuffled = random.Random(1).sample(make_samples(groups, salt="other"), len(samples))
    assert [parts_of(split) for split in fold_of(tuple(shuffled), 4, test=0.2)] == expected
    assert [parts_of(split) for split in fold_of(samples, 4, test=0.2, seed=1)] != expected


def test_a_repeat_deals_the_folds_anew_and_keeps_test() -> None:
    samples = make_samples([[index % 2] for index in range(60)])
    first, second = (fold_of(samples, 3, test=0.2, repeat=repeat) for repeat in (0, 1))
    assert names_in(first[0], "test") == names_in(second[0], "test")
    assert {frozenset(names_in(split, "val")) for split in first}.isdisjoint(
        frozenset(names_in(split, "val")) for split in second
    )


def test_a_class_with_fewer_patients_than_folds_is_refused_by_name() -> None:
    samples = make_samples([*[[1]] * 4, *[[0]] * 30])
    with pytest.raises(SplitError, match=r"class 'lesion' needs 5 patients, one for each fold, and has 4"):
        fold_of(samples, 5)


def test_folds_are_dealt_from_the_train_that_the_table_brings() -> None:
    samples = make_samples([[index % 2] for index in range(40)])
    given = give_parts(samples, ["test" if index % 4 == 0 else "train" for index in range(40)])
    splits = fold_of(given, 3, test=0.5)
    for split in splits:
        assert names_in(split, "test") == names_in(given, "test")
    turns = Counter(name for split in splits for name in names_in(split, "val"))
    assert turns == dict.fromkeys(names_in(given, "train"), 1)


def test_folds_and_a_val_of_the_table_contradict_each_other() -> None:
    given = give_parts(make_samples([[0], [1], [0], [1]]), ["train", "train", "val", "val"])
    with pytest.raises(SplitError) as caught:
        fold_of(given, 2)
    assert caught.value.code == "split-brought"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"folds": 1}, "greater than or equal to 2"),
        ({"folds": 2.5}, "integer"),
        ({"folds": 5, "fold": 5}, "fold 5 is not one of 0 to 4"),
        ({"folds": 5, "fold": -1}, "greater than or equal to 0"),
        ({"folds": 5, "repeat": -1}, "greater than or equal to 0"),
        ({"fold": 1}, "need folds"),
        ({"repeat": 1}, "need folds"),
        ({"near_duplicates": "drop"}, "'group', 'warn' or 'ignore'"),
    ],
    ids=str,
)
def test_folds_that_do_not_exist_are_no_config(values: dict[str, float], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SplitConfig.model_validate(values)


def test_the_share_of_val_does_not_matter_where_there_are_folds() -> None:
    samples = make_samples([[index % 2] for index in range(30)])
    assert fold_of(samples, 3, val=0.9, test=0.2) == fold_of(samples, 3, test=0.2)


def test_splits_come_back_as_written_without_paths_or_patients(tmp_path: Path) -> None:
    samples = give_parts(make_samples([[0], [1], [0]], salt="Doe"), ["train", "val", "test"])
    samples = tuple(replace(sample, sample_id=f"s{index}") for index, sample in enumerate(samples))
    write_splits(tmp_path / "splits.csv", samples[::-1])
    assert (
        tmp_path / "splits.csv"
    ).read_text() == "sample_id,split,target\ns0,train,0\ns1,val,1\ns2,test,0\n"
    expected = {"s0": SplitRow("train", 0), "s1": SplitRow("val", 1), "s2": SplitRow("test", 0)}
    assert read_splits(tmp_path / "splits.csv") == expected


def test_multilabel_and_missing_targets_come_back_as_written(tmp_path: Path) -> None:
    samples = give_parts(make_samples([[(1.0, None)], [(0.0, 1.0)], [None]]), ["train", "val", "test"])
    write_splits(tmp_path / "splits.csv", samples)
    rows = read_splits(tmp_path / "splits.csv")
    assert {sample.sample_id: sample.target for sample in samples} == {
        k: row.target for k, row in rows.items()
    }


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    samples = give_parts(make_samples([[0]]), ["train"])
    with pytest.raises(OutputError, match="output-unwritable"):
        write_splits(tmp_path / "file" / "splits.csv", samples)


@pytest.mark.parametrize(
    "content",
    ["", "a,b,c\n", "sample_id,split,target\ns1,later,0\n", "sample_id,split,target\ns1,train\n", "\xff"],
    ids=["empty", "another-table", "unknown-part", "short-row", "not-text"],
)
def test_a_damaged_splits_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "splits.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(SplitError, match="split-damaged"):
        read_splits(tmp_path / "splits.csv")


def test_an_absent_splits_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="file-unreadable"):
        read_splits(tmp_path / "splits.csv")


# Label budgets: whole patients, classes in proportion, nested, seeded; val and test are not touched.
THREE_CLASSES = Task("multiclass", ("none", "common", "rare"))
PARTS = ("train", "train", "train", "val", "test")


def make_budgeted_samples(patients: int = 100, each: int = 1) -> tuple[Sample, ...]:
    """Return samples of patients with `each`; of ten patients six are none, three common, one rare."""
    targets = (0, 0, 0, 0, 0, 0, 1, 1, 1, 2)
    return tuple(
        Sample(
            f"s{patient:03d}-{number}",
            Series(Path(f"{patient:03d}-{number}.png"), (), "raster"),
            f"p{patient}",
            target=targets[patient % 10],
            split=PARTS[(patient // 10) % 5],  # type: ignore[arg-type]
        )
        for patient in range(patients)
        for number in range(each)
    )


def train_of(samples: tuple[Sample, ...]) -> set[str]:
    return {sample.sample_id for sample in samples if sample.split == "train"}


def test_without_a_budget_all_samples_teach() -> None:
    samples = make_budgeted_samples()
    assert draw_labels(samples, THREE_CLASSES, None, 0) == samples


def test_what_is_not_training_is_not_touched_and_the_order_stays() -> None:
    samples = make_budgeted_samples()
    drawn = draw_labels(samples, THREE_CLASSES, 20, 0)
    assert [s for s in drawn if s.split != "train"] == [s for s in samples if s.split != "train"]
    assert [s for s in samples if s in drawn] == list(drawn)


@pytest.mark.parametrize("seed", range(5))
def test_budgets_are_nested(seed: int) -> None:
    samples = make_budgeted_samples(each=3)
    sets = [train_of(draw_labels(samples, THREE_CLASSES, budget, seed)) for budget in (9, 20, 50, 111, 180)]
    assert all(small < large for small, large in pairwise(sets))
    assert [len(found) for found in sets] == [9, 18, 48, 111, 180]


def test_classes_are_in_proportion() -> None:
    drawn = draw_labels(make_budgeted_samples(), THREE_CLASSES, 20, 0)
    counts = np.bincount([int(s.target) for s in drawn if s.split == "train"])  # type: ignore[arg-type]
    assert counts.tolist() == [12, 6, 2]


def test_a_budget_of_one_patient_a_class_has_every_class() -> None:
    drawn = draw_labels(make_budgeted_samples(), THREE_CLASSES, 3, 0)
    assert sorted(s.target for s in drawn if s.split == "train") == [0, 1, 2]  # type: ignore[type-var]


def test_patients_come_whole() -> None:
    samples = make_budgeted_samples(each=4)
    drawn = [s.patient_id for s in draw_labels(samples, THREE_CLASSES, 30, 1) if s.split == "train"]
    assert len(drawn) == 28 and all(drawn.count(patient) == 4 for patient in drawn)


def test_the_seed_and_nothing_else_decides() -> None:
    samples = make_budgeted_samples()
    first = train_of(draw_labels(samples, THREE_CLASSES, 20, 0))
    assert first == train_of(draw_labels(tuple(reversed(samples)), THREE_CLASSES, 20, 0))
    assert first != train_of(draw_labels(samples, THREE_CLASSES, 20, 1))


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (61, "training has 60 labels, fewer than the 61 asked for"),
        (1, "a budget of 1 has no room for class none, as patients come whole"),
    ],
)
def test_what_cannot_be_drawn_is_refused(budget: int, reason: str) -> None:
    with pytest.raises(SplitError, match=reason) as caught:
        draw_labels(make_budgeted_samples(), THREE_CLASSES, budget, 0)
    assert caught.value.code == "label-budget"


def test_findings_that_are_rare_are_drawn_in_multilabel() -> None:
    task = Task("multilabel", ("a", "b"))
    samples = tuple(
        Sample(
            f"s{row}",
            Series(Path(f"{row:03d}.png"), (), "raster"),
            f"p{row}",
            target=(float(row % 2), None if row % 3 else float(row % 30 == 0)),
            split="train",
        )
        for row in range(90)
    )
    drawn = draw_labels(samples, task, 12, 0)
    assert len(drawn) == 12
    assert any(s.target[0] == 1 for s in drawn) and any(s.target[1] == 1 for s in drawn)  # type: ignore[index]
