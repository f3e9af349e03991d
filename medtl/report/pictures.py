"""Images and heatmaps in [0, 1] -> small pictures in true proportions, the heatmap as a coloured overlay."""

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

# Inferno without its black start: the overlay must not darken the image below it.
RAMP_START, RAMP_END = 0.25, 0.95
TRANSPARENT_BELOW = 0.1


@dataclass(frozen=True)
class Frame:
    """Where an image is shown: its size in px with true proportions, and a ruler if its spacing is known.

    ruler_px is 0 and ruler_text empty if the spacing is unknown.
    """

    width: int
    height: int
    ruler_px: float
    ruler_text: str

    def scaled_to(self, side: int) -> tuple[int, int]:
        """Return the width and height in px if the longer side has `side` px."""
        scale = side / max(self.width, self.height)
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))


@dataclass(frozen=True, eq=False)
class Overlay:
    """RGB uint8 (H, W, 3), and which of how many axial slices it shows, counted from 1 at the feet.

    spacing_mm is that of rows and columns; None if unknown.
    """

    pixels: NDArray[np.uint8]
    slice: int
    slices: int
    spacing_mm: tuple[float, float] | None


def frame_of(image: NDArray[np.float32], spacing_mm: tuple[float, ...] | None) -> Frame:
    """Return the frame of an image (..., H, W); pixels count as square if the spacing is unknown."""
    row_mm, column_mm = spacing_mm[-2:] if spacing_mm else (1.0, 1.0)
    height, width = image.shape[-2] * row_mm, image.shape[-1] * column_mm
    return frame_of_extent(height, width, known=spacing_mm is not None, scale=STAGE_SIDE / max(height, width))


def frame_of_extent(height: float, width: float, *, known: bool, scale: float) -> Frame:
    """Return the frame for an extent in mm (in arbitrary units if not known) at `scale` px each."""
    ruler = 0.0
    if known:  # the largest of 1, 2 or 5 times a power of ten within a quarter of the width
        power = 10.0 ** math.floor(math.log10(width / 4))
        ruler = max(step * power for step in (1, 2, 5) if step * power <= width / 4 * (1 + 1e-9))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Frame(*size, ruler * scale, f"{ruler:g} mm" if ruler else "")


def as_stack(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (D, H, W) of an image (H, W) or (D, H, W)."""
    return image.reshape(-1, *image.shape[-2:])


def peak_voxel(heatmap: NDArray[np.float32] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the voxel of `shape` where a heatmap is largest; the centre if there is none or it is empty."""
    if heatmap is None or not heatmap.any():
        return tuple(side // 2 for side in shape)
    return tuple(int(place) for place in np.unravel_index(int(heatmap.argmax()), shape))


def encode_grey(image: NDArray[np.float32]) -> str:
    """Encode an image (H, W) in [0, 1] as an 8-bit grey JPEG."""
    return _data_uri(Pillow.fromarray(to_bytes(image)), "JPEG", quality=JPEG_QUALITY, optimize=True)


def draw_picture(
    image: NDArray[np.float32],
    heatmap: NDArray[np.float32] | None,
    spacing_mm: tuple[float, ...] | None,
    side: int,
) -> bytes:
    """Return a JPEG of an image (H, W) in [0, 1] under its heatmap: true proportions, at most `side` px."""
    picture = Pillow.fromarray(_under_heatmap(image, np.zeros_like(image) if heatmap is None else heatmap))
    width, height = frame_of(image, spacing_mm).scaled_to(side)
    smaller = width * height < picture.width * picture.height
    resampling = Pillow.Resampling.BOX if smaller else Pillow.Resampling.BICUBIC
    buffer = io.BytesIO()
    picture.resize((width, height), resampling).save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def overlay_of(image: Image, heatmap: NDArray[np.float32]) -> Overlay:
    """Return the image under its heatmap (*spatial); of a volume the axial slice where that is largest."""
    from medtl.imaging.display import make_display  # which loads torch

    display = make_display(image, heatmap)
    assert display.heatmap is not None
    grey, heat = as_stack(display.grey), as_stack(display.heatmap)
    shown = peak_voxel(heat, heat.shape)[0]
    spacing = None if display.spacing_mm is None else (display.spacing_mm[-2], display.spacing_mm[-1])
    return Overlay(_under_heatmap(grey[shown], heat[shown]), shown + 1, len(grey), spacing)


def encode_colour_bar() -> str:
    """Encode the overlay's colours, from no influence to most, over the grey of soft tissue."""
    ramp = overlay_ramp()[None]
    return _data_uri(Pillow.fromarray(_blend(np.full(ramp.shape[:2], 128), ramp, 1.0)), "PNG", optimize=True)


@cache
def overlay_ramp() -> NDArray[np.uint8]:
    """Return RGBA (256, 4): hue and lightness both carry the value, so no colour vision is needed."""
    level = np.linspace(0, 1, 256)
    colours = np.asarray(colormaps["inferno"](RAMP_START + (RAMP_END - RAMP_START) * level))
    colours[:, 3] = np.clip((level - TRANSPARENT_BELOW) / (1 - TRANSPARENT_BELOW), 0, 1)
    return (colours * 255).round().astype(np.uint8)


def to_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return values in [0, 1] in 256 levels."""
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def _under_heatmap(grey: NDArray[np.float32], heatmap: NDArray[np.float32]) -> NDArray[np.uint8]:
    return _blend(to_bytes(grey), overlay_ramp()[to_bytes(heatmap)], OVERLAY_OPACITY)


def _blend(grey: NDArray[Any], colours: NDArray[np.uint8], strength: float) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3) of grey (H, W) under RGBA (H, W, 4)."""
    opacity = colours[..., 3:] / 255 * strength
    return (grey[..., None] * (1 - opacity) + colours[..., :3] * opacity).round().astype(np.uint8)


def _data_uri(picture: Pillow.Image, encoding: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, encoding, **options)
    return f"data:image/{encoding.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
