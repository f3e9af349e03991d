"""Images and heatmaps in [0, 1] -> small pictures in true proportions, the heatmap as a coloured overlay."""

import base64
import hashlib
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.Image import Resampling

from medtl.core.files import replacing
from medtl.imaging.image import Image

STAGE_SIDE = 560  # px of the longer side on a page
THUMBNAIL_SIDE = 120
OVERLAY_OPACITY = 0.6

# Inferno without its black start: the overlay must not darken the image below it.
RAMP_START, RAMP_END = 0.25, 0.95
TRANSPARENT_BELOW = 0.1


@dataclass(frozen=True, eq=False)
class Overlay:
    """RGB uint8 (H, W, 3), and which of how many axial slices it shows, counted from 1 at the feet.

    spacing_mm is that of rows and columns; None if unknown.
    """

    pixels: NDArray[np.uint8]
    slice: int
    slices: int
    spacing_mm: tuple[float, float] | None


def shown_size(shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None, side: int) -> tuple[int, int]:
    """Return width and height in px of an image (..., H, W), the longer one `side`, in true proportions.

    Pixels count as square if the spacing is unknown.
    """
    row_mm, column_mm = spacing_mm[-2:] if spacing_mm else (1.0, 1.0)
    height, width = shape[-2] * row_mm, shape[-1] * column_mm
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


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
    return data_uri(_encode(Pillow.fromarray(to_bytes(image)), "JPEG", quality=92), "image/jpeg")


def write_picture(
    folder: Path,
    image: NDArray[np.float32],
    heatmap: NDArray[np.float32] | None,
    spacing_mm: tuple[float, ...] | None,
    side: int,
) -> str:
    """Write a JPEG of an image (H, W) in [0, 1] under its heatmap; return its name, a hash of its content."""
    picture = Pillow.fromarray(_under_heatmap(image, np.zeros_like(image) if heatmap is None else heatmap))
    width, height = shown_size(image.shape, spacing_mm, side)
    resampling = Resampling.BOX if width * height < picture.width * picture.height else Resampling.BICUBIC
    content = _encode(picture.resize((width, height), resampling), "JPEG", quality=85)
    name = f"{hashlib.blake2b(content, digest_size=10).hexdigest()}.jpg"
    with replacing(folder / name) as temporary:
        temporary.write_bytes(content)
    return name


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
    picture = Pillow.fromarray(_blend(np.full(ramp.shape[:2], 128), ramp, 1.0))
    return data_uri(_encode(picture, "PNG"), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """Return a picture as part of a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


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


def _encode(picture: Pillow.Image, encoding: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, encoding, optimize=True, **options)
    return buffer.getvalue()
