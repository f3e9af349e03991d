"""Turn images and heatmaps in [0, 1] into data URIs that a page can hold."""

import base64
import io
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

STAGE_SIDE = 560  # px of the longer side on a page
LARGEST_SIDE = 768  # px that are kept of the longer side; more cannot be seen on a page
LOSSLESS_PIXELS = 2_000_000  # up to here PNG; larger stacks are JPEG at a quality that shows no difference
JPEG_QUALITY = 92
THUMBNAIL_SIDE = 96
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


@dataclass(frozen=True)
class Slice:
    """One slice to show: the image, the overlay (empty without a heatmap), and the heatmap's peak in it."""

    image: str
    overlay: str
    peak: float


def frame_of(image: NDArray[np.float32], spacing_mm: tuple[float, ...] | None) -> Frame:
    """Return the frame of an image (..., H, W); pixels count as square where the spacing is not known."""
    row_mm, column_mm = spacing_mm[-2:] if spacing_mm else (1.0, 1.0)
    height_mm, width_mm = image.shape[-2] * row_mm, image.shape[-1] * column_mm
    scale = STAGE_SIDE / max(height_mm, width_mm)
    width, height = max(1, round(width_mm * scale)), max(1, round(height_mm * scale))
    ruler_mm = _round_length(width_mm / 4) if spacing_mm else 0.0
    return Frame(width, height, ruler_mm * scale, f"{ruler_mm:g} mm" if ruler_mm else "")


def encode_slices(image: NDArray[np.float32], heatmap: NDArray[np.float32] | None) -> list[Slice]:
    """Encode each slice of (D, H, W), or the one of (H, W)."""
    stack = image.reshape(-1, *image.shape[-2:])
    heat = None if heatmap is None else heatmap.reshape(stack.shape)
    lossless = image.size <= LOSSLESS_PIXELS
    return [
        Slice(
            encode_grey(stack[index], lossless=lossless),
            "" if heat is None else encode_overlay(heat[index]),
            0.0 if heat is None else float(heat[index].max()),
        )
        for index in range(len(stack))
    ]


def peak_slice(heatmap: NDArray[np.float32] | None, depth: int) -> int:
    """Return the slice where the heatmap is largest; the middle one where there is nothing to see."""
    if heatmap is None or not heatmap.any():
        return depth // 2
    return int(heatmap.reshape(depth, -1).max(axis=1).argmax())


def encode_grey(image: NDArray[np.float32], *, lossless: bool = True) -> str:
    """Encode an image (H, W) in [0, 1] as 8-bit grey: PNG, or JPEG."""
    picture = _shrink(Image.fromarray(_to_bytes(image)), LARGEST_SIDE)
    if lossless:
        return _data_uri(picture, "PNG", optimize=True)
    return _data_uri(picture, "JPEG", quality=JPEG_QUALITY, optimize=True)


def encode_overlay(heatmap: NDArray[np.float32]) -> str:
    """Encode a heatmap (H, W) in [0, 1] as a PNG whose opacity rises with the value."""
    picture = _shrink(Image.fromarray(_to_bytes(heatmap)), LARGEST_SIDE)
    ramp = overlay_ramp()
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(ramp[:, :3].tobytes())
    return _data_uri(picture, "PNG", optimize=True, transparency=ramp[:, 3].tobytes())


def encode_thumbnail(
    image: NDArray[np.float32], heatmap: NDArray[np.float32] | None, spacing_mm: tuple[float, ...] | None
) -> str:
    """Encode a small JPEG of an image (H, W) with its heatmap, in true proportions."""
    grey = np.repeat(_to_bytes(image)[..., None], 3, axis=2)
    colours = overlay_ramp()[np.zeros(image.shape, np.uint8) if heatmap is None else _to_bytes(heatmap)]
    pixels = _blend(grey, colours, OVERLAY_OPACITY)
    frame = frame_of(image, spacing_mm)
    scale = THUMBNAIL_SIDE / max(frame.width, frame.height)
    size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    return _data_uri(picture, "JPEG", quality=85, optimize=True)


def encode_colour_bar() -> str:
    """Encode the overlay's colours, from no influence to most, over the grey of soft tissue."""
    ramp = overlay_ramp()[None]
    return _data_uri(
        Image.fromarray(_blend(np.full_like(ramp[..., :3], 128), ramp, 1.0)), "PNG", optimize=True
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


def _shrink(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BOX)


def _round_length(millimetres: float) -> float:
    """Return the largest of 1, 2 or 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(millimetres))
    return max(step * power for step in (1, 2, 5) if step * power <= millimetres * (1 + 1e-9))


def _data_uri(picture: Image.Image, encoding: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, encoding, **options)
    return f"data:image/{encoding.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
