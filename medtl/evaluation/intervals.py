"""Turn an estimate and its spread into an interval that stays within the estimate's range.

Patients are the independent units: the contributions of their samples to an estimate are summed by patient,
and the error comes from those sums (Obuchowski 1997 for areas, Rao and Scott 1992 for shares).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, expit, logit

from medtl.evaluation.metrics import Flags, Floats, Questions, index_patients

FEWEST_DEFINED = 0.5  # with a smaller share of resamples an interval would describe a biased selection
SAME = 1e-12
CONFIDENCE = 0.95  # of every interval, unless another is asked for


@dataclass(frozen=True)
class Interval:
    """A metric with the bounds of its interval, if they are known; NaN is undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan


def interval_json(interval: Interval) -> dict[str, float | bool | None]:
    """Return {value, low, high}, None for what is undefined, and "undefined": True if the value is."""
    numbers = {name: None if math.isnan(number) else number for name, number in asdict(interval).items()}
    return {**numbers, "undefined": True} if numbers["value"] is None else numbers


def intervals_json(by_name: Mapping[str, Interval]) -> dict[str, dict[str, float | bool | None]]:
    """Return plain data by name."""
    return {name: interval_json(interval) for name, interval in by_name.items()}


def normal_quantile(confidence: float) -> float:
    """Return how many standard errors an interval reaches to each side."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def clustered_error(contributions: Floats, patient_of: NDArray[np.int64]) -> float:
    """Return the standard error of a sum of centred contributions (N,); NaN for a single patient."""
    sums = np.bincount(index_patients(patient_of), weights=contributions)
    count = len(sums)
    return math.sqrt(count / (count - 1) * float(sums @ sums)) if count > 1 else math.nan


def logit_interval(value: float, error: float, confidence: float) -> Interval:
    """Return the interval of a number in (0, 1) that is symmetric in its logit, so that it stays inside.

    error: the standard error of the value itself (delta method; Pepe 2003, section 5.2.3).
    """
    if not 0 < value < 1 or not math.isfinite(error):
        return Interval(value)
    reach = normal_quantile(confidence) * error / (value * (1 - value))
    return Interval(value, *(float(expit(logit(value) + side)) for side in (-reach, reach)))


def normal_interval(value: float, error: float, confidence: float) -> Interval:
    """Return the interval of a number without limits."""
    reach = normal_quantile(confidence) * error
    return Interval(value, value - reach, value + reach)


def exact_interval(hits: int, trials: int, confidence: float) -> Interval:
    """Return the interval of Clopper and Pearson (1934) for a share of independent trials."""
    tail, misses = (1 - confidence) / 2, trials - hits
    low = float(betaincinv(hits, misses + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, misses, 1 - tail)) if misses else 1.0
    return Interval(hits / trials, low, high)


def wilson_interval(share: float, trials: float, confidence: float) -> Interval:
    """Return Wilson's score interval (1927) of a share; trials may be a fraction."""
    z = normal_quantile(confidence)
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    return Interval(share, min(low, share), max(high, share))  # rounding at 0 and 1


def share_interval(
    hits: Flags, among: Flags, patient_of: NDArray[np.int64], confidence: float = CONFIDENCE
) -> Interval:
    """Return Wilson's interval of the share of hits among the samples in `among`, all (N,).

    If patients repeat, the trials are divided by the design effect, the variance between patients over that
    of independent samples (Rao and Scott 1992). It cannot be estimated if all or none are hits: then each
    patient counts once.
    """
    if not among.any():
        return Interval(math.nan)
    flags, patients = hits[among].astype(np.float64), patient_of[among]
    share, count, groups = float(flags.mean()), len(flags), len(np.unique(patients))
    if len(np.unique(patient_of)) < 2:
        return Interval(share)
    if groups == count or not 0 < share < 1:
        return wilson_interval(share, groups, confidence)
    error = clustered_error((flags - share) / count, patients)
    effect = count if math.isnan(error) else error**2 / (share * (1 - share) / count)
    return wilson_interval(share, count / max(effect, 1.0), confidence)


def percentile_interval(value: float, drawn: Floats, confidence: float) -> Interval:
    """Return the percentiles of resamples (B,); no bounds if most are undefined, or if all are equal."""
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not len(defined) or len(defined) < FEWEST_DEFINED * len(drawn):
        return Interval(value)
    if np.ptp(defined) < SAME:
        return Interval(value)
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def mean_of_bounds(value: float, parts: list[Interval]) -> Interval:
    """Return an interval of a mean of estimates: the mean of their bounds.

    Exact if the estimates rise and fall together, otherwise too wide. Undefined parts are left out, as they
    are of the mean.
    """
    known = [part for part in parts if not math.isnan(part.value)]
    if not known or any(math.isnan(part.low) for part in known):
        return Interval(value)
    low, high = (sum(getattr(part, side) for part in known) / len(known) for side in ("low", "high"))
    return Interval(value, low, high)


def difference_interval(first: Interval, second: Interval) -> Interval:
    """Return the interval of first minus second, which are independent (Zou and Donner 2008, MOVER)."""
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, value - below, value + above)


@dataclass(frozen=True, eq=False)
class Placements:
    """An area with each sample's influence on it.

    area: NaN for one class. influence: (N,), how far each sample pulls the area from its value, 0 for samples
    without a label. positive, negative: (N,), the samples of each class. patients: (N,). pairs: how many
    disjoint pairs of a patient with a positive and another one with a negative there are.
    """

    area: float
    influence: Floats
    positive: Flags
    negative: Flags
    patients: NDArray[np.int64]
    pairs: int


def place_all(questions: Questions) -> list[Placements]:
    """Return the placements of each question."""
    return [place(scores, truth, questions.patient_of) for scores, truth in questions.columns]


def place(scores: Floats, truth: Floats, patient_of: NDArray[np.int64]) -> Placements:
    """Return the placements of scores (N,); truth (N,) is NaN where not labelled."""
    from scipy.stats import rankdata

    positive, negative = truth == 1, truth == 0
    influence = np.zeros(len(scores))
    if not (positive.any() and negative.any() and np.isfinite(scores[positive | negative]).all()):
        return Placements(math.nan, influence, positive, negative, patient_of, 0)
    above, below = scores[positive], scores[negative]
    ranks = rankdata(np.concatenate([above, below]))
    beaten = (ranks[: len(above)] - rankdata(above)) / len(below)
    cleared = 1 - (ranks[len(above) :] - rankdata(below)) / len(above)
    area = float(beaten.mean())
    influence[positive] = (beaten - area) / len(above)
    influence[negative] = (cleared - area) / len(below)
    first, second = np.unique(patient_of[positive]), np.unique(patient_of[negative])
    pairs = min(len(first), len(second), len(np.union1d(first, second)) // 2)
    return Placements(area, influence, positive, negative, patient_of, pairs)


def standard_error(placed: Placements) -> float:
    """Return the standard error of an area (Obuchowski 1997); NaN if a class has a single patient.

    With one sample a patient it is DeLong's.
    """
    among = placed.positive, placed.negative
    mine, others = (np.bincount(placed.patients, weights=placed.influence * flags) for flags in among)
    counts = [len(np.unique(placed.patients[flags])) for flags in (*among, placed.positive | placed.negative)]
    if min(counts) < 2:
        return math.nan
    first, second, both = (count / (count - 1) for count in counts)
    variance = first * (mine @ mine) + second * (others @ others) + 2 * both * (mine @ others)
    return math.sqrt(max(float(variance), 0.0))


def error_of_mean(each: Sequence[Placements]) -> float:
    """Return the standard error of the mean of areas of several questions about the same samples."""
    if len(each) == 1:
        return standard_error(each[0])
    influence: Floats = np.mean([placed.influence for placed in each], axis=0)
    labelled = np.any([placed.positive | placed.negative for placed in each], axis=0)
    return clustered_error(influence[labelled], each[0].patients[labelled])


def auroc_interval(placed: Placements, confidence: float) -> Interval:
    """Return an area with its interval; no bounds if there are no two patients to compare."""
    if math.isnan(placed.area) or placed.pairs < 1:
        return Interval(placed.area)
    if placed.area in (0.0, 1.0):
        bounds = exact_interval(round(placed.area * placed.pairs), placed.pairs, confidence)
        return Interval(placed.area, bounds.low, bounds.high)
    return logit_interval(placed.area, standard_error(placed), confidence)


def mean_auroc_interval(each: Sequence[Placements], confidence: float) -> Interval:
    """Return the mean of the defined areas of several questions about the same samples."""
    defined = [placed for placed in each if not math.isnan(placed.area)]
    if len(defined) < 2:
        return auroc_interval(defined[0], confidence) if defined else Interval(math.nan)
    area = float(np.mean([placed.area for placed in defined]))
    if area in (0.0, 1.0):
        return mean_of_bounds(area, [auroc_interval(placed, confidence) for placed in defined])
    return logit_interval(area, error_of_mean(defined), confidence)
