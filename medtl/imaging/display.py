"""IMAGE -> what people look at: axial slices with their window, no larger than a screen needs."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Orientation
from numpy.typing import NDArray

from medtl.imaging.image import Image, Voi, Window
from medtl.imaging.preprocessing import RAS_LABELS, as_meta, shown_channel

# Slices from the feet up, rows to the back, columns to the left: as radiologists see an axial slice.
AXIAL = "SPL"
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True, eq=False)
class Display:
    """What is shown and, on the same grid, a heatmap in [0, 1]: float32 (H, W) or (D, H, W).

    values: in the units of the pixels, or in [0, 1] where the file maps them other than linearly. window: the
    values that are black and white. spacing_mm follows the axes; None where the file does not say.
    """

    values: NDArray[np.float32]
    window: tuple[float, float]
    heatmap: NDArray[np.float32] | None
    spacing_mm: tuple[float, ...] | None

    @property
    def grey(self) -> NDArray[np.float32]:
        """The values as the window shows them, in [0, 1]."""
        low, high = self.window
        return np.clip((self.values - low) / (high - low), 0.0, 1.0).astype(np.float32)


def make_display(
    image: Image, heatmap: NDArray[np.float32] | None = None, longest_side: int = 512
) -> Display:
    """Return the image, and a heatmap on its grid (*spatial), for display.

    Of several volumes as channels, the first is shown. The window is the file's where it has one, otherwise
    from the 0.5 to the 99.5 percentile.
    """
    values, window = _windowed(shown_channel(image), image.facts.voi)
    grids = [values] if heatmap is None else [values, heatmap]
    spacing = image.spacing_mm
    if image.affine is not None:
        grids, spacing = _to_axial(grids, image.affine)
    shrunk = [_shrink(grid, _shown_size(grid, image, longest_side)) for grid in grids]
    if spacing is not None:
        sizes = zip(spacing, grids[0].shape, shrunk[0].shape, strict=True)
        spacing = tuple(step * (before / after) for step, before, after in sizes)
    return Display(shrunk[0], window, shrunk[1] if heatmap is not None else None, spacing)


def _windowed(grey: NDArray[np.float32], voi: Voi | None) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Return values and their window; a VOI that is not linear is applied to the values."""
    if isinstance(voi, Window) and voi.function != "SIGMOID" and voi.width > 1:
        shift, narrowing = (0.5, 1.0) if voi.function == "LINEAR" else (0.0, 0.0)  # PS3.3 C.11.2.1.2.1
        low = voi.centre - shift - (voi.width - narrowing) / 2
        return grey, (low, low + voi.width - narrowing)
    if voi is not None:
        return voi.apply(grey), (0.0, 1.0)
    low, high = (float(value) for value in np.percentile(grey, PERCENTILES))
    return grey, (low, max(high, low + 1e-6 * max(1.0, abs(low))))


def _to_axial(
    grids: list[NDArray[np.float32]], affine: NDArray[np.float64]
) -> tuple[list[NDArray[np.float32]], tuple[float, ...]]:
    stacked = MetaTensor(torch.from_numpy(np.stack(grids)), affine=torch.from_numpy(affine))
    axial = as_meta(Orientation(axcodes=AXIAL, labels=RAS_LABELS)(stacked))
    spacing = np.linalg.norm(np.asarray(axial.affine)[:3, :3], axis=0)
    return list(axial.numpy()), tuple(float(value) for value in spacing)


def _shown_size(grid: NDArray[np.float32], image: Image, longest_side: int) -> tuple[int, int]:
    """Return rows and columns for a screen, in proportion where only the sides of a pixel are known."""
    rows, columns = grid.shape[-2:]
    tall = rows * (image.facts.pixel_aspect or 1.0)
    factor = min(1.0, longest_side / max(tall, columns))
    return max(1, round(tall * factor)), max(1, round(columns * factor))


def _shrink(grid: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    if size == grid.shape[-2:]:
        return grid
    slices = torch.from_numpy(np.ascontiguousarray(grid)).reshape(-1, 1, *grid.shape[-2:])
    return F.interpolate(slices, size=size, mode="area").reshape(*grid.shape[:-2], *size).numpy()
