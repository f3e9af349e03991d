"""Turn scores into the area under the ROC curve with the interval of DeLong, by patient where they repeat.

Each sample's placement is the share of the other class that it is ranked right against. The area is their
mean, and its variance that of the placements (DeLong 1988, by the ranks of Sun and Xu 2014), of their sums
within patients where these have several samples (Obuchowski 1997). The bounds are symmetric in the logit.

Where every pair is ranked right the placements do not vary, and any such interval would be a point. Then the
bound is the exact one of Clopper and Pearson (1934) for as many right answers as there are pairs of patients
of which each is in one pair only: those pairs are independent, and all of them were ranked right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from medtl.learning.metrics import Floats, Questions
from medtl.prediction.intervals import (
    Interval,
    clustered_error,
    exact_interval,
    logit_interval,
    mean_of_bounds,
    unbounded,
)


@dataclass(frozen=True, eq=False)
class Placements:
    """An area with what each sample adds to its doubt.

    area: NaN for one class. influence: (N,), how far each sample pulls the area from its value, 0 for samples
    without a label. positive, negative: (N,), who is of which class. patients: (N,). pairs: how many pairs of
    patients, each in one of them only, were ranked.
    """

    area: float
    influence: Floats
    positive: NDArray[np.bool_]
    negative: NDArray[np.bool_]
    patients: NDArray[np.int64]
    pairs: int


def place_all(questions: Questions, patient_of: NDArray[np.int64]) -> list[Placements]:
    """Return the placements of each question."""
    columns = zip(questions.scores.T, questions.truth.T, strict=True)
    return [place(scores, truth, patient_of) for scores, truth in columns]


def place(scores: Floats, truth: Floats, patient_of: NDArray[np.int64]) -> Placements:
    """Return the placements of scores (N,); truth (N,) is NaN where not labelled."""
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
    pairs = _count_pairs(patient_of[positive], patient_of[negative])
    return Placements(area, influence, positive, negative, patient_of, pairs)


def standard_error(placed: Placements) -> float:
    """Return the standard error of an area (Obuchowski 1997); NaN where a class has a single patient.

    With a patient for each sample it is DeLong's.
    """
    _, patient_of = np.unique(placed.patients, return_inverse=True)
    mine = np.bincount(patient_of, weights=placed.influence * placed.positive)
    others = np.bincount(patient_of, weights=placed.influence * placed.negative)
    counts = [len(np.unique(patient_of[among])) for among in (placed.positive, placed.negative)]
    labelled = len(np.unique(patient_of[placed.positive | placed.negative]))
    if min(counts) < 2:
        return math.nan
    first, second, both = (count / (count - 1) for count in (*counts, labelled))
    variance = first * (mine @ mine) + second * (others @ others) + 2 * both * (mine @ others)
    return math.sqrt(max(float(variance), 0.0))


def auroc_interval(placed: Placements, confidence: float) -> Interval:
    """Return an area with its interval; without bounds where there are no two patients to compare."""
    if math.isnan(placed.area) or placed.pairs < 1:
        return unbounded(placed.area)
    if placed.area in (0.0, 1.0):
        bounds = exact_interval(round(placed.area * placed.pairs), placed.pairs, confidence)
        return Interval(placed.area, bounds.low, bounds.high)
    return logit_interval(placed.area, standard_error(placed), confidence)


def mean_auroc_interval(each: Sequence[Placements], confidence: float) -> Interval:
    """Return the mean of the defined areas of several questions about the same samples."""
    defined = [placed for placed in each if not math.isnan(placed.area)]
    if len(defined) < 2:
        return auroc_interval(defined[0], confidence) if defined else unbounded(math.nan)
    area = float(np.mean([placed.area for placed in defined]))
    if area in (0.0, 1.0):
        return mean_of_bounds(area, [auroc_interval(placed, confidence) for placed in defined])
    influence = np.mean([placed.influence for placed in defined], axis=0)
    labelled = np.any([placed.positive | placed.negative for placed in defined], axis=0)
    error = clustered_error(influence[labelled], defined[0].patients[labelled])
    return logit_interval(area, error, confidence)


def _count_pairs(positive: NDArray[np.int64], negative: NDArray[np.int64]) -> int:
    """Return how many pairs of a patient with a positive and another with a negative can be formed."""
    first, second = np.unique(positive), np.unique(negative)
    return min(len(first), len(second), len(np.union1d(first, second)) // 2)
