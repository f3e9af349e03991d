"""Label budgets: whole patients, classes in proportion, nested, seeded; val and test are not touched."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from medtl.data.splits import draw_labels
from medtl.data.task import Sample, Task
from medtl.errors import SplitError
from medtl.imaging.series import Series

TASK = Task("multiclass", ("none", "common", "rare"))
PARTS = ("train", "train", "train", "val", "test")


def make_samples(patients: int = 100, each: int = 1) -> tuple[Sample, ...]:
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
    samples = make_samples()
    assert draw_labels(samples, TASK, None, 0) == samples


def test_what_is_not_training_is_not_touched_and_the_order_stays() -> None:
    samples = make_samples()
    drawn = draw_labels(samples, TASK, 20, 0)
    assert [s for s in drawn if s.split != "train"] == [s for s in samples if s.split != "train"]
    assert [s for s in samples if s in drawn] == list(drawn)


@pytest.mark.parametrize("seed", range(5))
def test_budgets_are_nested(seed: int) -> None:
    samples = make_samples(each=3)
    sets = [train_of(draw_labels(samples, TASK, budget, seed)) for budget in (9, 20, 50, 111, 180)]
    assert all(small < large for small, large in pairwise(sets))
    assert [len(found) for found in sets] == [9, 18, 48, 111, 180]


def test_classes_are_in_proportion() -> None:
    drawn = draw_labels(make_samples(), TASK, 20, 0)
    counts = np.bincount([int(s.target) for s in drawn if s.split == "train"])  # type: ignore[arg-type]
    assert counts.tolist() == [12, 6, 2]


def test_a_budget_of_one_patient_a_class_has_every_class() -> None:
    drawn = draw_labels(make_samples(), TASK, 3, 0)
    assert sorted(s.target for s in drawn if s.split == "train") == [0, 1, 2]  # type: ignore[type-var]


def test_patients_come_whole() -> None:
    samples = make_samples(each=4)
    drawn = [s.patient_id for s in draw_labels(samples, TASK, 30, 1) if s.split == "train"]
    assert len(drawn) == 28 and all(drawn.count(patient) == 4 for patient in drawn)


def test_the_seed_and_nothing_else_decides() -> None:
    samples = make_samples()
    first = train_of(draw_labels(samples, TASK, 20, 0))
    assert first == train_of(draw_labels(tuple(reversed(samples)), TASK, 20, 0))
    assert first != train_of(draw_labels(samples, TASK, 20, 1))


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (61, "training has 60 labels, fewer than the 61 asked for"),
        (1, "a budget of 1 has no room for class none, as patients come whole"),
    ],
)
def test_what_cannot_be_drawn_is_refused(budget: int, reason: str) -> None:
    with pytest.raises(SplitError, match=reason) as caught:
        draw_labels(make_samples(), TASK, budget, 0)
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
