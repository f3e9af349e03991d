"""Turn images and heatmaps in [0, 1] into small pictures, in true proportions."""

import base64
import io
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image as Pillow

from medtl.imaging.image import Image

STAGE_SIDE = 560  # px of the longer side on a page
JPEG_QUALITY = 92
THUMBNAIL_SIDE = 120
OVERLAY_OPACITY = 0.6

# Inferno without its black start: the values that are shown must not darken the image below them.
RAMP_START, RAMP_END = 0.25, 0.95
SILENT_BELOW = 0.1


@dataclass(frozen=True)
class Frame:
    """Where an image is shown: its size in px with true proportions, and a ruler if its spacing is known.

    ruler_px is 0 and ruler_text empty where no spacing is known.
    """

    width: int
    height: int
    ruler_px: float
    ruler_text: str


def frame_of(image: NDArray[np.float32], spacing_mm: tuple[float, ...] | None) -> Frame:
    """Return the frame of an image (..., H, W); pixels count as square where the spacing is not known."""
    row_mm, column_mm = spacing_mm[-2:] if spacing_mm else (1.0, 1.0)
    height, width = image.shape[-2] * row_mm, image.shape[-1] * column_mm
    return frame_of_extent(height, width, known=spacing_mm is not None, scale=STAGE_SIDE / max(height, width))


def frame_of_extent(height: float, width: float, *, known: bool, scale: float) -> Frame:
    """Return the frame of so many mm, or units where they are not known to be mm, at `scale` px each."""
    size = max(1, round(width * scale)), max(1, round(height * scale))
    ruler = _round_length(width / 4) if known else 0.0
    return Frame(*size, ruler * scale, f"{ruler:g} mm" if ruler else "")


def peak_slice(heatmap: NDArray[np.float32] | None, depth: int) -> int:
    """Return the slice where the heatmap is largest; the middle one where there is nothing to see."""
    if heatmap is None or not heatmap.any():
        return depth // 2
    return int(heatmap.reshape(depth, -1).max(axis=1).argmax())


def encode_grey(image: NDArray[np.float32]) -> str:
    """Encode an image (H, W) in [0, 1] as an 8-bit grey JPEG."""
    return _data_uri(Pillow.fromarray(_to_bytes(image)), "JPEG", quality=JPEG_QUALITY, optimize=True)


def draw_picture(
    image: NDArray[np.float32],
    heatmap: NDArray[np.float32] | None,
    spacing_mm: tuple[float, ...] | None,
    side: int,
) -> bytes:
    """Return a JPEG of an image (H, W) in [0, 1] under its heatmap: true proportions, `side` px at most."""
    grey = np.repeat(_to_bytes(image)[..., None], 3, axis=2)
    colours = overlay_ramp()[np.zeros(image.shape, np.uint8) if heatmap is None else _to_bytes(heatmap)]
    picture = Pillow.fromarray(_blend(grey, colours, OVERLAY_OPACITY))
    frame = frame_of(image, spacing_mm)
    scale = side / max(frame.width, frame.height)
    size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    smaller = size[0] * size[1] < picture.width * picture.height
    resampling = Pillow.Resampling.BOX if smaller else Pillow.Resampling.BICUBIC
    buffer = io.BytesIO()
    picture.resize(size, resampling).save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def encode_colour_bar() -> str:
    """Encode the overlay's colours, from no influence to most, over the grey of soft tissue."""
    ramp = overlay_ramp()[None]
    return _data_uri(
        Pillow.fromarray(_blend(np.full_like(ramp[..., :3], 128), ramp, 1.0)), "PNG", optimize=True
    )


@cache
def overlay_ramp() -> NDArray[np.uint8]:
    """Return RGBA (256, 4): hue and lightness both carry the value, so no colour vision is needed."""
    level = np.linspace(0, 1, 256)
    colours = np.asarray(colormaps["inferno"](RAMP_START + (RAMP_END - RAMP_START) * level))
    colours[:, 3] = np.clip((level - SILENT_BELOW) / (1 - SILENT_BELOW), 0, 1)
    return (colours * 255).round().astype(np.uint8)


def _to_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def _blend(below: NDArray[np.uint8], colours: NDArray[np.uint8], strength: float) -> NDArray[np.uint8]:
    opacity = colours[..., 3:] / 255 * strength
    return (below * (1 - opacity) + colours[..., :3] * opacity).round().astype(np.uint8)


def _round_length(millimetres: float) -> float:
    """Return the largest of 1, 2 or 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(millimetres))
    return max(step * power for step in (1, 2, 5) if step * power <= millimetres * (1 + 1e-9))


def _data_uri(picture: Pillow.Image, encoding: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, encoding, **options)
    return f"data:image/{encoding.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
    from medtl.imaging.display import make_display  # which loads torch

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
