"""Where to cut scores of one class against the rest: the threshold that a rule asks for.

scores, truth: (N,); truth is NaN where not labelled. A threshold lies midway between two scores, so that
rounding cannot move a sample across it; of one class alone it is NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.learning.metrics import Floats, labelled


def youden_threshold(scores: ArrayLike, truth: ArrayLike) -> float:
    """Return the threshold with the largest sensitivity + specificity - 1 (Youden 1950).

    Among equals it is the lowest, which misses the fewest.
    """
    return _choose_cut(scores, truth, lambda cuts: cuts.cleared - cuts.missed)


def sensitivity_threshold(scores: ArrayLike, truth: ArrayLike, sensitivity: float) -> float:
    """Return the highest threshold, the most specific one, that keeps this sensitivity."""
    reached = 1 - sensitivity + 1e-12
    return _choose_cut(
        scores, truth, lambda cuts: np.where(cuts.missed <= reached, np.arange(len(cuts.first)), -1)
    )


def specificity_threshold(scores: ArrayLike, truth: ArrayLike, specificity: float) -> float:
    """Return the lowest threshold, the most sensitive one, with this specificity."""
    return _choose_cut(
        scores,
        truth,
        lambda cuts: np.where(cuts.cleared >= specificity - 1e-12, -np.arange(len(cuts.first)), -np.inf),
    )


def cost_threshold(scores: ArrayLike, truth: ArrayLike, miss: float, alarm: float) -> float:
    """Return the threshold of least cost, at `miss` for each missed and `alarm` for each false one.

    As common as the class is among the samples, so common it is taken to be.
    """
    return _choose_cut(
        scores,
        truth,
        lambda cuts: -(miss * cuts.missed * cuts.positives + alarm * (1 - cuts.cleared) * cuts.negatives),
    )


@dataclass(frozen=True, eq=False)
class _Cuts:
    """Places between ascending scores to cut at: at first[i] and above is flagged.

    missed: the share of positives below each; cleared: that of negatives. The last one flags nothing.
    """

    values: Floats
    first: NDArray[np.int64]
    missed: Floats
    cleared: Floats
    positives: int
    negatives: int


def _choose_cut(scores: ArrayLike, truth: ArrayLike, worth: Callable[[_Cuts], Floats]) -> float:
    """Return the threshold of most worth, the lowest among equals."""
    values, flags = labelled(scores, truth)
    if len(np.unique(flags)) < 2:
        return float("nan")
    cuts = _list_cuts(values, flags)
    best = int(cuts.first[int(np.argmax(np.round(worth(cuts), 12)))])
    values = cuts.values
    if best == len(values):
        return _above(float(values[-1]))
    below = values[best - 1] if best else min(0.0, values[0])
    middle = float((below + values[best]) / 2)
    return middle if middle > below else float(values[best])


def _above(highest: float) -> float:
    """Return a threshold that nothing reaches: midway to 1, or just above."""
    middle = (highest + 1) / 2
    return middle if middle > highest else float(np.nextafter(highest, np.inf))


def _list_cuts(values: Floats, flags: NDArray[np.bool_]) -> _Cuts:
    order = np.argsort(values, kind="stable")
    values, flags = values[order], flags[order]
    first = np.append(np.flatnonzero(np.diff(values, prepend=-np.inf)), len(values))
    positives, negatives = int(flags.sum()), int((~flags).sum())
    missed = np.concatenate([[0], np.cumsum(flags)])[first] / positives
    cleared = np.concatenate([[0], np.cumsum(~flags)])[first] / negatives
    return _Cuts(values, first, missed, cleared, positives, negatives)
