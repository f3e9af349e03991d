"""Prediction sets hold the truth as often as promised, for each class and by patient."""

import numpy as np
import pytest

from medtl.data.task import Task
from medtl.evaluation.calibration import ConformalFloors
from medtl.evaluation.conformal import fit_floors, in_sets, measure_coverage, set_texts
from medtl.evaluation.metrics import Questions

BINARY = Task("binary", ("normal", "lesion"))
MULTICLASS = Task("multiclass", ("a", "b", "c"))
MULTILABEL = Task("multilabel", ("x", "y"))


def make_scores(samples: int, seed: int, repeats: int = 1) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rare class c; the samples of a patient are nearly alike."""
    generator = np.random.default_rng(seed)
    truth = np.repeat(generator.choice(3, samples // repeats, p=[0.6, 0.3, 0.1]), repeats)
    patients = np.repeat(np.arange(len(truth) // repeats), repeats)
    noise = np.repeat(generator.normal(size=(len(truth) // repeats, 3)), repeats, axis=0)
    scores = np.exp(noise + 0.1 * generator.normal(size=(len(truth), 3)) + 1.5 * np.eye(3)[truth])
    return scores / scores.sum(axis=1, keepdims=True), truth, [str(patient) for patient in patients]


def test_floor_is_the_quantile_of_sadinle_by_hand() -> None:
    """Of 19 positives the second lowest is the floor at 90%: (19 + 1) / 10 = 2."""
    positive = np.append(np.linspace(0.05, 0.95, 19), 0.5)
    scores, truth = np.stack([1 - positive, positive], axis=1), np.array([1] * 19 + [0])
    found = fit_floors(Questions(scores, truth, BINARY, [str(i) for i in range(20)]))
    assert found.floors[1] == pytest.approx(0.10)
    assert found.floors[0] == 0.0 and found.patients == (1, 19)  # a single negative promises nothing


def test_copies_of_a_patient_weigh_as_much_as_the_patient() -> None:
    scores, truth, patients = make_scores(200, 0)
    once = fit_floors(Questions(scores, truth, MULTICLASS, patients))
    copied = np.repeat(scores, 4, 0), np.repeat(truth, 4), MULTICLASS, list(np.repeat(patients, 4))
    assert fit_floors(Questions(*copied)) == once


@pytest.mark.parametrize("repeats", [1, 3])
def test_sets_cover_each_class_of_new_patients_as_promised(repeats: int) -> None:
    """Means over 60 calibrations: within three standard errors of nine tenths, or above."""
    found = []
    for seed in range(60):
        scores, truth, patients = make_scores(600, seed, repeats)
        floors = fit_floors(Questions(scores, truth, MULTICLASS, patients))
        scores, truth, patients = make_scores(900, 1000 + seed, repeats)
        coverage = measure_coverage(Questions(scores, truth, MULTICLASS, patients), floors)
        found.append([interval["value"] for interval in coverage["by_class"].values()])
    means, errors = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(60)
    assert (means >= 0.9 - 3 * errors).all() and (means[:2] < 0.93).all()


def test_findings_of_multilabel_are_decided_or_not() -> None:
    generator = np.random.default_rng(0)

    def make(samples: int) -> Questions:
        truth = generator.integers(0, 2, (samples, 2)).astype(float)
        scores = 1 / (1 + np.exp(-(generator.normal(size=(samples, 2)) + 2 * truth - 1)))
        truth[: samples // 4, 1] = np.nan
        return Questions(scores, truth, MULTILABEL, [str(place) for place in range(samples)])

    fitted, held_out = make(1000), make(2000)
    coverage = measure_coverage(held_out, fit_floors(fitted))
    assert coverage["coverage"]["value"] == pytest.approx(0.9, abs=0.025)
    assert sum(coverage["sizes"].values()) == np.isfinite(held_out.targets).sum()


def test_sets_are_written_with_what_is_undecided() -> None:
    plain = ConformalFloors(promised=0.9, floors=(0.4, 0.3))
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    assert set_texts(scores, plain, BINARY) == ["normal", "normal|lesion", "lesion"]
    both = ConformalFloors(promised=0.9, floors=(0.3, 0.5), absent_floors=(0.4, 0.4))
    # y at 0.55: its absence has 0.45, which is above the floor of 0.4
    assert set_texts(np.array([[0.9, 0.1], [0.5, 0.55], [0.5, 0.7]]), both, MULTILABEL) == [
        "x",
        "x?|y?",
        "x?|y",
    ]


def test_no_set_is_empty() -> None:
    floors = ConformalFloors(promised=0.9, floors=(0.9, 0.9, 0.9))
    assert in_sets(np.array([[0.4, 0.35, 0.25]]), floors).tolist() == [[True, False, False]]
