"""Areas and shares equal published formulas, stay in range, are no points, and cover the truth."""

from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medtl.evaluation import metrics
from medtl.evaluation.intervals import (
    Interval,
    auroc_interval,
    difference_interval,
    exact_interval,
    mean_auroc_interval,
    percentile_interval,
    place,
    share_interval,
    standard_error,
    wilson_interval,
)
from medtl.evaluation.metrics import mean_defined

from .test_metrics import one_vs_rest

TRUE_AREA = NormalDist().cdf(1.2 / np.sqrt(2))


def make_scores(samples: int, seed: int, per_patient: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of unit normals 1.2 apart; samples of a patient share their class and most of their noise."""
    generator = np.random.default_rng(seed)
    patient_of = np.arange(samples) // per_patient
    truth = np.repeat(generator.permutation(np.arange(-(-samples // per_patient)) % 2), per_patient)[:samples]
    shared = generator.normal(size=patient_of.max() + 1)[patient_of]
    share = 0.0 if per_patient == 1 else 0.7
    noise = np.sqrt(share) * shared + np.sqrt(1 - share) * generator.normal(size=samples)
    return noise + 1.2 * truth, truth.astype(float), patient_of


def delong_by_definition(scores: np.ndarray, truth: np.ndarray) -> float:
    """The variance of DeLong 1988, equation 7, pair by pair."""
    above, below = scores[truth == 1][:, None], scores[truth == 0][None]
    wins = (above > below) + (above == below) / 2
    return wins.mean(axis=1).var(ddof=1) / len(above) + wins.mean(axis=0).var(ddof=1) / below.size


@pytest.mark.parametrize("digits", [None, 0])
def test_area_and_variance_are_delongs_with_and_without_ties(digits: int | None) -> None:
    scores, truth, patients = make_scores(90, 0)
    scores = scores if digits is None else np.round(scores, digits)
    placed = place(scores, truth, patients)
    assert placed.area == pytest.approx(roc_auc_score(truth, scores))
    assert standard_error(placed) ** 2 == pytest.approx(delong_by_definition(scores, truth))


def test_clustered_variance_is_obuchowskis_by_hand() -> None:
    """Patients: {0.9+, 0.2-}, {0.8+, 0.4+}, {0.5-}, {0.1-, 0.6-}."""
    scores = np.array([0.9, 0.2, 0.8, 0.4, 0.5, 0.1, 0.6])
    truth = np.array([1, 0, 1, 1, 0, 0, 0])
    placed = place(scores, truth, np.array([0, 0, 1, 1, 2, 3, 3]))
    area = 10 / 12  # 0.9 and 0.8 beat all four, 0.4 beats two
    positives = np.array([1 - area, 1 + 0.5 - 2 * area, 0, 0])
    negatives = np.array([1 - area, 0, 2 / 3 - area, 1 + 2 / 3 - 2 * area])
    expected = (
        2 / 1 * (positives**2).sum() / 3**2
        + 3 / 2 * (negatives**2).sum() / 4**2
        + 2 * 4 / 3 * (positives * negatives).sum() / 12
    )
    assert placed.area == pytest.approx(area)
    assert standard_error(placed) ** 2 == pytest.approx(expected)


def test_copies_within_patients_change_nothing() -> None:
    scores, truth, patients = make_scores(60, 1)
    once = auroc_interval(place(scores, truth, patients), 0.95)
    thrice = auroc_interval(place(*(np.repeat(a, 3) for a in (scores, truth, patients))), 0.95)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_bounds_near_one_stay_below_one() -> None:
    scores, truth = np.append(np.arange(19.0), 16.5), np.array([0] * 18 + [1] * 2)
    found = auroc_interval(place(scores, truth, np.arange(20)), 0.95)
    assert 0 < found.low < found.value < found.high < 1


@pytest.mark.parametrize("reverse", [False, True])
def test_a_perfect_area_has_the_exact_bound_of_disjoint_pairs(reverse: bool) -> None:
    truth = np.repeat([0.0, 1.0], [30, 8])
    found = auroc_interval(place(truth[::-1] if reverse else truth, truth, np.arange(38)), 0.95)
    far = 0.025 ** (1 / 8)
    perfect = found.value == 1
    assert perfect or reverse
    if perfect:
        assert (found.low, found.high) == pytest.approx((far, 1.0))


def test_one_patient_or_one_class_has_no_bounds() -> None:
    scores, truth, _ = make_scores(20, 0)
    lone = auroc_interval(place(scores, truth, np.zeros(20, int)), 0.95)
    assert 0 < lone.value < 1 and np.isnan(lone.low)
    assert np.isnan(auroc_interval(place(scores, np.ones(20), np.arange(20)), 0.95).value)


def test_mean_over_classes_leaves_out_the_undefined_ones() -> None:
    scores, truth, patients = make_scores(80, 2)
    one = place(scores, truth, patients)
    none = place(scores, np.ones(80), patients)
    assert mean_auroc_interval([one, none], 0.95) == auroc_interval(one, 0.95)
    same = mean_auroc_interval([one, one], 0.95)
    assert (same.low, same.high) == pytest.approx(
        (auroc_interval(one, 0.95).low, auroc_interval(one, 0.95).high), abs=0.005
    )


def test_wilson_and_exact_equal_published_values() -> None:
    """Newcombe 1998, table I: 81 of 263, and 0 of 20."""
    assert wilson_interval(81 / 263, 263, 0.95).low == pytest.approx(0.2553, abs=5e-5)
    assert wilson_interval(81 / 263, 263, 0.95).high == pytest.approx(0.3662, abs=5e-5)
    assert wilson_interval(0.0, 20, 0.95).high == pytest.approx(0.1611, abs=5e-5)
    assert exact_interval(81, 263, 0.95).low == pytest.approx(0.2527, abs=5e-5)
    assert exact_interval(0, 20, 0.95) == Interval(0.0, 0.0, pytest.approx(0.1684, abs=5e-5))


def test_share_of_repeated_patients_is_as_wide_as_that_of_patients() -> None:
    flags = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0, 1], bool)
    everyone, patients = np.ones(10, bool), np.arange(10)
    once = share_interval(flags, everyone, patients, 0.95)
    copied = share_interval(*(np.repeat(a, 5) for a in (flags, everyone, patients)), 0.95)
    assert once == wilson_interval(0.7, 10, 0.95)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.03)
    perfect = share_interval(np.ones(50, bool), np.ones(50, bool), np.repeat(patients, 5), 0.95)
    assert perfect.low == pytest.approx(wilson_interval(1.0, 10, 0.95).low)


def test_resamples_that_all_agree_bound_nothing() -> None:
    assert np.isnan(percentile_interval(1.0, np.ones(100), 0.95).low)
    assert percentile_interval(0.5, np.linspace(0, 1, 101), 0.9).low == pytest.approx(0.05)


def test_difference_of_shares_is_newcombes() -> None:
    """Newcombe 1998 (two shares), method 10: 56/70 against 48/80 is 0.2 (0.0524 to 0.3339)."""
    found = difference_interval(wilson_interval(56 / 70, 70, 0.95), wilson_interval(48 / 80, 80, 0.95))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def coverage(draws: int, samples: int, per_patient: int) -> float:
    hits = 0
    for seed in range(draws):
        found = auroc_interval(place(*make_scores(samples, seed, per_patient)), 0.95)
        hits += found.low <= TRUE_AREA <= found.high
    return hits / draws


@pytest.mark.parametrize(("samples", "per_patient"), [(60, 1), (150, 3)])
def test_delong_intervals_cover_the_true_area(samples: int, per_patient: int) -> None:
    """Of 200 data sets 190 are expected, and fewer than 180 come less than 3 times in 1,000."""
    assert coverage(200, samples, per_patient) >= 0.90


@pytest.mark.long
@pytest.mark.parametrize(("samples", "per_patient"), [(60, 1), (120, 1), (150, 3), (300, 3)])
def test_delong_intervals_cover_93_to_97_percent(samples: int, per_patient: int) -> None:
    assert 0.93 <= coverage(500, samples, per_patient) <= 0.97


def test_metrics_agree_on_the_area() -> None:
    scores, truth, patients = make_scores(70, 5)
    squashed = 1 / (1 + np.exp(-scores))
    both = np.stack([1 - squashed, squashed], axis=1)
    found = mean_defined(metrics.auroc(one_vs_rest(both, truth.astype(int), "binary")))
    assert place(squashed, truth, patients).area == pytest.approx(float(found))
