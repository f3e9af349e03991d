"""Differences between runs: DeLong's by definition, and honest by simulation; what labels are worth."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from medtl.data.task import Task
from medtl.errors import CheckpointError
from medtl.evaluation.comparison import (
    COMPARED,
    Candidate,
    Compared,
    align,
    auroc_difference,
    compare,
    holm,
    to_json,
)
from medtl.evaluation.intervals import place
from medtl.evaluation.learning_curves import (
    has_more_of_scratch,
    learning_curves,
    repeated_seeds,
    worth_in_labels,
)
from medtl.evaluation.predictions import Predictions

BINARY = Task("binary", ("normal", "lesion"))


def make_scores(
    samples: int, apart: tuple[float, ...], seed: int, per_patient: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores (R, N) of R runs that share half of their noise, truth and patients (N,)."""
    generator = np.random.default_rng(seed)
    patient_of = np.arange(samples) // per_patient
    truth = (patient_of % 2).astype(float)
    shared = generator.normal(size=patient_of.max() + 1)[patient_of]
    noise = 0.7 * shared + 0.7 * generator.normal(size=(len(apart), samples))
    return np.array(apart)[:, None] * truth + noise, truth, patient_of


def make_candidate(name: str, scores: np.ndarray, truth: np.ndarray, **recipe: object) -> Candidate:
    chances = norm.cdf(scores / 3)
    ids = tuple(f"s{row}" for row in range(len(truth)))
    table = Predictions(
        ids, ids, ("val",) * len(truth), truth.astype(np.int64), np.column_stack([1 - chances, chances])
    )
    return Candidate(name, table, (0.5,), recipe)


def runs_at(apart: dict[str, float], samples: int = 120, seed: int = 0) -> list[Compared]:
    scores, truth, _ = make_scores(samples, tuple(apart.values()), seed)
    made = [make_candidate(name, row, truth) for name, row in zip(apart, scores, strict=True)]
    return compare(made, BINARY, next(iter(apart)), resamples=200)


def test_the_error_is_that_of_the_covariance_of_placements() -> None:
    """DeLong 1988, equation 5, written out: the covariance matrix of the placements of both runs."""
    (first, second), truth, patients = make_scores(80, (1.0, 1.6), 1)
    found = auroc_difference([place(second, truth, patients)], [place(first, truth, patients)], 0.95)

    def kernel(scores: np.ndarray) -> np.ndarray:
        above, below = scores[truth == 1][:, None], scores[truth == 0][None]
        return (above > below) + 0.5 * (above == below)

    kernels = [kernel(second), kernel(first)]
    value = kernels[0].mean() - kernels[1].mean()
    variance = sum(
        (np.array([1, -1]) @ np.cov([matrix.mean(axis=axis) for matrix in kernels]) @ [1, -1])
        / kernels[0].shape[1 - axis]
        for axis in (0, 1)
    )
    assert found.interval.value == pytest.approx(value)
    assert found.interval.high - value == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    assert found.p == pytest.approx(2 * norm.sf(abs(value) / math.sqrt(variance)), rel=1e-6)


@pytest.mark.parametrize("per_patient", [1, 4])
def test_equal_runs_differ_as_often_as_is_promised(per_patient: int) -> None:
    wrong = 0
    for seed in range(400):
        (first, second), truth, patients = make_scores(80 * per_patient, (1.2, 1.2), seed, per_patient)
        wrong += (
            auroc_difference(
                [place(a, truth, patients) for a in (first,)], [place(second, truth, patients)], 0.95
            ).p
            < 0.05
        )
    assert 0.02 < wrong / 400 < 0.09


def test_a_paired_difference_is_known_better_than_two_areas() -> None:
    base, better = runs_at({"base": 1.0, "better": 1.3}, samples=300)
    areas = [run.evaluation.metrics["auroc"] for run in (base, better)]
    apart = math.hypot(*(area.high - area.low for area in areas))
    difference = better.differences["auroc"].interval
    assert difference.high - difference.low < 0.8 * apart
    assert difference.value == pytest.approx(areas[1].value - areas[0].value)


def test_a_run_against_itself_differs_in_nothing() -> None:
    scores, truth, _ = make_scores(60, (1.0,), 0)
    _, same = compare([make_candidate(name, scores[0], truth) for name in "ab"], BINARY, "a", resamples=100)
    for name, found in same.differences.items():
        assert found.interval.value == 0 and found.p == found.p_holm == 1, name
        assert math.isnan(found.interval.low), "all agree: no interval, rather than a point"


def test_two_perfect_runs_have_a_difference_without_bounds() -> None:
    truth = np.arange(20) % 2.0
    runs = [make_candidate("a", truth * 4, truth), make_candidate("b", truth * 6, truth)]
    _, other = compare(runs, BINARY, "a", resamples=50)
    assert other.differences["auroc"].interval.value == 0 and other.differences["auroc"].p == 1
    assert other.differences["brier"].interval.high < 0, "other metrics tell them apart"


def test_what_is_undefined_stays_so() -> None:
    truth = np.zeros(10)
    runs = [make_candidate(name, np.arange(10.0), truth) for name in "ab"]
    _, other = compare(runs, BINARY, "a", resamples=20)
    assert math.isnan(other.differences["auroc"].p) and math.isnan(other.differences["auroc"].p_holm)
    assert to_json([other])[0]["differences"]["auroc"]["p"] is None


def test_holm_is_holms() -> None:
    """The example of R's documentation of the method, worked by hand."""
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.9])[[0, 2]].tolist() == [1.0, 1.0]
    assert np.isnan(holm([0.5, math.nan])[1]) and holm([0.5, math.nan])[0] == 0.5
    assert holm([]).tolist() == []


def test_the_adjustment_is_for_all_runs_of_a_metric() -> None:
    runs = runs_at({"base": 1.0, "a": 1.3, "b": 1.8, "c": 1.05})
    for name in COMPARED:
        raw = [run.differences[name].p for run in runs[1:]]
        assert [run.differences[name].p_holm for run in runs[1:]] == pytest.approx(holm(raw).tolist())


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_several_classes_are_compared_in_their_mean(kind: str) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=150)
    flags = np.eye(3)[labels]
    truth = labels if kind == "multiclass" else np.where(generator.random((150, 3)) < 0.1, np.nan, flags)
    ids = tuple(f"s{row}" for row in range(150))
    runs = []
    for name, signal in (("weak", 0.5), ("strong", 2.5)):
        raw = signal * flags + generator.normal(size=(150, 3))
        chances = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
        table = Predictions(ids, ids, ("",) * 150, truth, chances)
        runs.append(Candidate(name, table, (0.5,) * 3, {}))
    weak, strong = compare(runs, Task(kind, ("a", "b", "c")), "weak", resamples=100)  # type: ignore[arg-type]
    found = strong.differences["auroc"]
    assert found.interval.value == pytest.approx(
        strong.evaluation.metrics["auroc"].value - weak.evaluation.metrics["auroc"].value
    )
    assert found.p_holm < 0.001 and found.interval.low > 0


def test_samples_are_brought_into_one_order() -> None:
    scores, truth, _ = make_scores(40, (1.0, 1.5), 2)
    first, second = (make_candidate(name, row, truth) for name, row in zip("ab", scores, strict=True))
    turned = second.predictions
    rows = np.random.default_rng(0).permutation(40)
    mixed = Predictions(
        *(tuple(np.array(column)[rows]) for column in (turned.sample_ids, turned.patients, turned.split)),
        turned.targets[rows],
        turned.probabilities[rows],
    )
    straight, aligned = align([first, replace(second, predictions=mixed)])
    assert aligned.predictions.sample_ids == straight.predictions.sample_ids
    assert np.array_equal(aligned.predictions.probabilities, turned.probabilities)


def test_runs_without_a_common_sample_are_refused() -> None:
    scores, truth, _ = make_scores(10, (1.0,), 0)
    first = make_candidate("a", scores[0], truth)
    renamed = replace(first.predictions, sample_ids=tuple(f"t{row}" for row in range(10)))
    with pytest.raises(CheckpointError, match="no sample in common"):
        align([first, Candidate("b", renamed, (0.5,), {})], common=True)


def test_runs_with_other_patients_are_refused() -> None:
    scores, truth, _ = make_scores(10, (1.0,), 0)
    first = make_candidate("a", scores[0], truth)
    regrouped = replace(first.predictions, patients=("one",) * 10)
    with pytest.raises(CheckpointError, match="different patients"):
        align([first, Candidate("b", regrouped, (0.5,), {})])


@pytest.mark.parametrize("samples", [1, 2])
def test_a_patient_or_two_are_compared_without_bounds(samples: int) -> None:
    truth = np.arange(samples) % 2.0
    made = [make_candidate(name, np.arange(samples) + offset, truth) for offset, name in enumerate("ab")]
    _, other = compare(made, BINARY, "a", resamples=20)
    found = to_json([other])[0]["differences"]["auroc"]
    assert found["low"] is None and found["p"] is None


def make_ladder(apart: dict[tuple[str, int], float], seeds: int = 3, samples: int = 400) -> list[Compared]:
    """Return evaluated runs of (schedule, labels) whose classes are so far apart."""
    names = [(*cell, seed) for cell in apart for seed in range(seeds)]
    scores, truth, _ = make_scores(samples, tuple(apart[name[:2]] for name in names), 0)
    made = [
        make_candidate(
            "-".join(map(str, name)),
            row,
            truth,
            schedule=name[0],
            backbone="tiny",
            labels=name[1],
            label_budget=name[1],
            seed=name[2],
        )
        for name, row in zip(names, scores, strict=True)
    ]
    return compare(made, BINARY, made[0].name, resamples=20)


def test_a_saving_that_the_data_show_is_found() -> None:
    cells = {("scratch", 50): 0.2, ("scratch", 200): 0.6, ("scratch", 800): 2.2, ("gradual", 50): 1.8}
    curves = learning_curves(make_ladder(cells))
    assert [point.labels for point in curves["scratch"]] == [50, 200, 800]
    assert all(point.seeds == 3 and point.low <= point.value <= point.high for point in curves["gradual"])
    worth = worth_in_labels(curves)
    assert worth is not None
    found = [worth[key] for key in ("name", "labels", "beaten", "reached", "seeds")]
    assert found == ["gradual", 50, 200, 800, [3, 3]]
    assert worth["difference"]["low"] > 0 and worth["difference"]["p_holm"] < 0.05


def test_no_saving_is_claimed_where_the_data_show_none() -> None:
    cells = {("scratch", 50): 1.0, ("scratch", 200): 1.4, ("gradual", 50): 1.4}
    curves = learning_curves(make_ladder(cells))
    assert worth_in_labels(curves) is None and has_more_of_scratch(curves)


@pytest.mark.parametrize("enough", [50, 100])
def test_no_saving_is_claimed_where_scratch_with_fewer_labels_is_as_good(enough: int) -> None:
    """A curve that dips: what is better than scratch with 200 labels is no better than with `enough`."""
    cells = {("scratch", enough): 2.6, ("scratch", 200): 0.4, ("gradual", 50): 1.8}
    curves = learning_curves(make_ladder(cells))
    beaten = curves["scratch"][1]
    difference = auroc_difference(curves["gradual"][0].placements, beaten.placements, 0.95)
    assert difference.interval.low > 0 and difference.p < 0.001
    assert worth_in_labels(curves) is None and has_more_of_scratch(curves)


def test_no_saving_is_claimed_of_seeds_that_overlap() -> None:
    """The mean is better beyond chance, yet one seed of scratch is as good as one of the transferred."""
    runs = make_ladder({("scratch", 50): 0.2, ("scratch", 200): 0.6, ("gradual", 50): 1.8})
    (lucky,) = [row for row, run in enumerate(runs) if run.name == "scratch-200-1"]
    (good,) = [run for run in runs if run.name == "gradual-50-1"]
    runs[lucky] = replace(good, recipe=runs[lucky].recipe)
    assert worth_in_labels(learning_curves(runs)) is None


def test_a_run_that_repeats_a_seed_is_no_second_seed() -> None:
    runs = make_ladder({("scratch", 50): 0.2, ("scratch", 200): 0.6, ("gradual", 50): 1.8}, seeds=1)
    again = replace(runs[2], name="gradual-50-again")
    assert repeated_seeds([*runs, again]) == {"gradual-50-again": "gradual-50-0"}
    curves = learning_curves([*runs, again])
    assert [point.seeds for point in curves["gradual"]] == [1]
    assert curves["gradual"][0].value == runs[2].evaluation.metrics["auroc"].value
    other = replace(again, recipe={**again.recipe, "seed": 7})
    assert [point.seeds for point in learning_curves([*runs, other])["gradual"]] == [2]


def test_one_budget_is_no_curve() -> None:
    runs = make_ladder({("scratch", 50): 1.0, ("gradual", 50): 1.4}, seeds=1)
    assert learning_curves(runs) == {} and not has_more_of_scratch({})


def test_backbones_have_curves_of_their_own() -> None:
    runs = make_ladder({("scratch", 50): 0.4, ("scratch", 200): 0.6, ("full", 50): 1.9}, seeds=1)
    runs[2] = replace(runs[2], recipe={**runs[2].recipe, "backbone": "other"})
    curves = learning_curves(runs)
    assert set(curves) == {"scratch, tiny", "full, other"}
    assert worth_in_labels(curves) is None, "scratch of another backbone is no measure"
