"""SLICES that are tilted or unevenly spaced -> the even grid that holds them all -> their volume on it.

Each slice is shifted in its plane, then slices are interpolated along the normal, both linearly. The grid has
the pixels of the slices; what lies outside every slice gets one value.
"""

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

# The grid is as fine as the narrowest gap, so that no slice is lost, but no finer than this share of the
# usual one: two slices that nearly touch would make hundreds of others.
FINEST_SHARE = 0.5

# Gaps within this share of the usual one, and shifts of less than this part of a pixel, are none.
EVEN_SHARE = 0.01
LEAST_SHIFT = 0.05


@dataclass(frozen=True, eq=False)
class Grid:
    """An even grid, and where slices begin on it: offsets (D, 3) in voxels along slices, rows and columns.

    step_mm is the distance of its slices; first (2,) the pixels by which it begins before the first slice.
    """

    shape: tuple[int, int, int]
    step_mm: float
    first: NDArray[np.float64]
    offsets: NDArray[np.float64]


def even_grid(along_mm: NDArray[np.float64], aside: NDArray[np.float64], rows: int, columns: int) -> Grid:
    """Return the grid of slices that lie `along_mm` (D,) the normal, shifted `aside` (D, 2) by pixels."""
    gaps = np.diff(along_mm)
    usual, length = float(np.median(gaps)), float(along_mm[-1] - along_mm[0])
    if np.ptp(gaps) <= EVEN_SHARE * usual:
        number = len(gaps)
        steps = np.arange(len(along_mm), dtype=np.float64)
    else:
        number = max(1, round(length / max(float(gaps.min()), FINEST_SHARE * usual)))
        steps = (along_mm - along_mm[0]) * (number / length)
    if np.abs(aside).max() < LEAST_SHIFT:
        aside = np.zeros_like(aside)
    first = np.floor(aside.min(axis=0))
    more_rows, more_columns = (np.ceil(aside.max(axis=0)) - first).astype(int).tolist()
    shape = (number + 1, rows + more_rows, columns + more_columns)
    return Grid(shape, length / number, first, np.column_stack([steps, aside - first]))


def resample(
    volume: NDArray[np.float32], offsets: NDArray[np.float64], shape: tuple[int, int, int], outside: float
) -> NDArray[np.float32]:
    """Return a volume (C, D, H, W), whose slices begin at offsets (D, 3), on a grid of another shape.

    `outside` is the value of what no slice covers, or only one of the two between which it lies.
    """
    result = np.empty((len(volume), *shape), np.float32)
    shifted = lru_cache(maxsize=2)(partial(_shifted, volume, offsets, shape[1:]))
    steps = offsets[:, 0]
    for index in range(shape[0]):
        below = int(np.clip(np.searchsorted(steps, index, "right") - 1, 0, len(steps) - 2))
        share = np.float32(np.clip((index - steps[below]) / (steps[below + 1] - steps[below]), 0, 1))
        one = shifted(below + 1) if share == 1 else shifted(below)
        between = 0 < share < 1
        result[:, index] = one + share * (shifted(below + 1) - one) if between else one
    result[np.isnan(result)] = outside
    return result


def _shifted(
    volume: NDArray[np.float32],
    offsets: NDArray[np.float64],
    size: tuple[int, int],
    index: int,
) -> NDArray[np.float32]:
    """Return one slice (C, H, W) on the rows and columns of the grid, NaN where it does not cover them."""
    from scipy.ndimage import affine_transform

    shift = offsets[index, 1:]
    if not shift.any() and volume.shape[2:] == size:
        return volume[:, index]
    options = {"output_shape": size, "output": np.float32, "order": 1, "cval": np.nan}
    return np.stack([affine_transform(plane, [1, 1], -shift, **options) for plane in volume[:, index]])
