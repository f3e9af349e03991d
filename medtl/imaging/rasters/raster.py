"""Read PNG, JPEG, TIFF, BMP and WebP: one file becomes one two-dimensional image of one or three channels.

The orientation that EXIF or TIFF states is applied, as every viewer does. An alpha channel is dropped. Colour
whose three channels are equal everywhere is grey that was stored as colour, and becomes one channel. What
libtiff or a DICOM decoder reads is read in a child process.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.image import Image, ImageFacts, fill_nan, rounding_notes
from medtl.imaging.rasters import jpeg, png, tiff
from medtl.imaging.rasters.faults import (
    DAMAGE,
    check_bytes,
    check_pixels,
    damaged,
    reporting_damage,
    too_large,
)
from medtl.imaging.series import EXACT, Kind, Reading, Scan, Series, scan_each

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

NAME, TITLE = "raster", "PNG, JPEG, TIFF, BMP, WebP"
KIND: Kind = "image"
SUFFIXES: tuple[str, ...] = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jls", ".ljpeg"),
    *(".tif", ".tiff", ".bmp", ".dib", ".webp"),
)

ORIENTATION_TAG = 0x0112

# The sizes that the header behind a BMP's file header may have; a text may begin with BM, too.
BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

# What each mode of pillow is converted to; a mode that is not here is refused.
TARGET_MODES = {
    **dict.fromkeys(("1", "L", "LA"), "L"),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA"), "RGB"),
    **{mode: mode for mode in ("I;16", "I;16B", "I")},
}


@dataclass(frozen=True)
class Decoded:
    """Values (H, W) or (H, W, 3), upright, and what is to be said about them."""

    values: NDArray
    photometric: str
    bits: int
    decoder: str
    notes: list[str]


def recognises(path: Path, head: bytes) -> bool:
    """Look for the magic of one of the formats."""
    return _kind(head) is not None


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """List each file as a series; refuse by the header what would not be read exactly."""
    return scan_each(_list_image, files, workers)


def read(series: Series) -> Image:
    """Read one image. Raises ReadError raster-damaged, -too-large, -frames, -colour, -not-finite."""
    path = series.files[0]
    data = path.read_bytes()
    decoded = _decode(data, path)
    channels, notes = _channels(decoded.values, series)
    facts = ImageFacts(
        source=series.source,
        format=NAME,
        decoder=decoded.decoder,
        sha256=hashlib.sha256(data).hexdigest(),
        photometric=decoded.photometric,
        bits=decoded.bits,
        notes=(*series.notes, *decoded.notes, *notes),
    )
    return Image(channels, None, None, facts)


def _kind(head: bytes) -> str | None:
    if head.startswith(png.MAGIC):
        return "PNG"
    if head.startswith(jpeg.MAGIC):
        return "JPEG"
    if head.startswith(tiff.MAGICS):
        return "TIFF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADERS else None


def _list_image(path: Path) -> list[Series]:
    with path.open("rb") as file:
        kind = _kind(file.read(32))
        file.seek(0)
        if kind == "TIFF":
            tiff.find_page(file, path)
        elif kind == "JPEG":
            frame = _jpeg_frame(file, path)
            if frame.in_pillow:
                _open(file, path, kind)
        elif kind == "PNG":
            _open_png(file, path, whole=False)
        elif kind is not None:
            _open(file, path, kind)
    return [Series(path, (path,), NAME)]


def _decode(data: bytes, path: Path) -> Decoded:
    kind, file = _kind(data), io.BytesIO(data)
    if kind == "TIFF":
        page = tiff.find_page(file, path)
        values = tiff.decode(data, page, path)
        return Decoded(values, page.photometric, page.bits, _named("pillow"), page.notes)
    notes = []
    if kind == "JPEG":
        frame = _jpeg_frame(file, path)
        notes += ["the first picture of several"] if frame.multi_picture else []
        if not frame.in_pillow:
            values = jpeg.decode(data, frame, path)
            decoder = _named(jpeg.DECODERS[frame.process][2])
            return Decoded(values, "L", frame.bits, decoder, notes)
    if kind is None:
        raise damaged(path)
    picture = _open_png(file, path, whole=True) if kind == "PNG" else _open(file, path, kind)
    check_bytes(picture.width * picture.height * len(picture.getbands()), len(data), path)
    mode = picture.mode
    values, more = _pixels(picture, path)
    return Decoded(values, mode, 16 if mode.startswith("I") else 8, _named("pillow"), notes + more)


def _named(distribution: str) -> str:
    return f"{distribution} {version(distribution)}"


def _jpeg_frame(file: IO[bytes], path: Path) -> jpeg.Frame:
    """Return a JPEG's frame header. Raises ReadError raster-damaged, -too-large, -colour."""
    frame = jpeg.find_frame(file)
    file.seek(0)
    if frame is None or not frame.width or not frame.height:
        raise damaged(path)
    check_pixels(frame.width * frame.height, path)
    jpeg.check_decodable(frame, path)
    return frame


def _open_png(file: IO[bytes], path: Path, whole: bool) -> "Picture":
    try:
        with reporting_damage(path):
            data = png.essential(file, whole)
    except png.AnimationError as error:
        raise _several_frames(path) from error
    if png.is_deep_colour(data):
        reason = "has 16 bits per colour or an alpha channel beside 16 bits"
        raise ReadError("raster-colour", reason, where=path, fix="save it as 16-bit grey or 8-bit RGB")
    return _open(io.BytesIO(data), path, "PNG")


def _open(file: IO[bytes], path: Path, kind: str) -> "Picture":
    """Open lazily: the header is read and checked, no pixel is decompressed."""
    from PIL import Image as PillowImage

    # Limits of our own are checked here; what follows the first picture of a JPEG is not read.
    warnings.filterwarnings("ignore", category=PillowImage.DecompressionBombWarning)
    for message in ("Image appears to be a malformed MPO file", "Corrupt EXIF data"):
        warnings.filterwarnings("ignore", message=message)
    picture = None
    with reporting_damage(path), suppress(PillowImage.DecompressionBombError):
        picture = PillowImage.open(file, formats=(kind,))
    if picture is None:
        raise too_large("has too many pixels", path)
    check_pixels(picture.width * picture.height, path)
    if kind == "WEBP" and getattr(picture, "n_frames", 1) > 1:
        raise _several_frames(path)
    if picture.mode not in TARGET_MODES:
        reason = f"has colour model {picture.mode}"
        raise ReadError("raster-colour", reason, where=path, fix="save it as grey or RGB")
    return picture


def _several_frames(path: Path) -> ReadError:
    return ReadError("raster-frames", "has several frames", where=path, fix="save each frame as a file")


def _pixels(picture: "Picture", path: Path) -> tuple[NDArray, list[str]]:
    """Decompress to (H, W) or (H, W, 3), upright."""
    from PIL import ImageOps

    notes = []
    with reporting_damage(path):
        picture.load()
        turned = _is_turned(picture)
        upright = ImageOps.exif_transpose(picture) if turned else picture
        values = np.asarray(upright.convert(TARGET_MODES[picture.mode]))
    if turned is None:
        notes.append("EXIF orientation cannot be read: taken as upright")
    elif turned:
        notes.append("turned by its EXIF orientation")
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        notes.append("alpha dropped")
    if picture.mode == "P":
        notes.append("palette converted to RGB")
    return values, notes


def _is_turned(picture: "Picture") -> bool | None:
    """Return whether EXIF states another orientation than upright; None where it cannot be read."""
    from PIL import Image as PillowImage

    try:
        # Not by getexif, which is silent where opening has met the damage before.
        PillowImage.Exif().load(picture.info.get("exif", b""))
        return picture.getexif().get(ORIENTATION_TAG, 1) in range(2, 9)
    except DAMAGE:
        return None


def _channels(values: NDArray, series: Series) -> tuple[NDArray[np.float32], list[str]]:
    """Return values as float32 (C, H, W), of one channel where all are equal."""
    notes = list(rounding_notes(values))
    planes = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    pixels = np.array(planes, dtype=np.float32, order="C")
    if values.dtype.kind == "f":
        allowed, source = series.reading.fill_nan, series.source
        notes += fill_nan(pixels, allowed=allowed, code="raster-not-finite", source=source)
    if len(pixels) > 1 and (pixels == pixels[:1]).all():
        return np.ascontiguousarray(pixels[:1]), [*notes, "grey stored as colour"]
    return pixels, notes
