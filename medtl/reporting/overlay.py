"""Lay a heatmap over its image, as one picture."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl.imaging.display import make_display
from medtl.imaging.image import Image
from medtl.reporting.figures import OVERLAY_OPACITY, overlay_ramp, peak_slice


@dataclass(frozen=True, eq=False)
class Overlay:
    """RGB uint8 (H, W, 3), and which of how many axial slices it shows, counted from 1 at the feet.

    spacing_mm is that of rows and columns; None where the file does not say.
    """

    pixels: NDArray[np.uint8]
    slice: int
    slices: int
    spacing_mm: tuple[float, float] | None


def overlay_of(image: Image, heatmap: NDArray[np.float32]) -> Overlay:
    """Return the image under its heatmap (*spatial); of a volume the axial slice where that is largest."""
    display = make_display(image, heatmap)
    assert display.heatmap is not None
    stacks = [grid.reshape(-1, *grid.shape[-2:]) for grid in (display.grey, display.heatmap)]
    shown = peak_slice(display.heatmap, len(stacks[0]))
    grey, heat = (np.round(np.clip(stack[shown], 0, 1) * 255).astype(np.uint8) for stack in stacks)
    colours = overlay_ramp()[heat]
    opacity = colours[..., 3:] / 255 * OVERLAY_OPACITY
    mixed = grey[..., None] * (1 - opacity) + colours[..., :3] * opacity
    spacing = None if display.spacing_mm is None else (display.spacing_mm[-2], display.spacing_mm[-1])
    return Overlay(mixed.round().astype(np.uint8), shown + 1, len(stacks[0]), spacing)
