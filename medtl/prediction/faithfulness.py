"""Check a heatmap against the truth where there is one: a mask of what should have been looked at."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Localisation:
    """How much of a heatmap's energy falls on a mask.

    energy: the share of the heatmap's sum inside the mask. chance: the share of the image that the mask
    covers, which is what a map that knows nothing would reach. hit: whether the maximum lies in the mask (the
    pointing game).
    """

    energy: float
    chance: float
    hit: bool

    @property
    def gain(self) -> float:
        """Energy over chance: 1 is what a map that knows nothing reaches."""
        return self.energy / self.chance


def localise(heatmap: NDArray[np.float32], mask: NDArray) -> Localisation:
    """Compare a heatmap with a mask on the same grid.

    Raises ValueError where the grids differ, the mask is empty, or the heatmap is zero everywhere.
    """
    inside = mask > 0
    if heatmap.shape != inside.shape:
        raise ValueError(f"heatmap {heatmap.shape} and mask {inside.shape} are on different grids")
    if not inside.any() or not heatmap.sum() > 0:
        raise ValueError("the mask or the heatmap is empty")
    peak = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    energy = float(heatmap[inside].sum() / heatmap.sum())
    return Localisation(energy, float(inside.mean()), bool(inside[peak]))
