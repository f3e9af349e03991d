"""Read PNG and JPEG: one file becomes one two-dimensional image of one or three channels.

The EXIF orientation is applied, as every viewer does. An alpha channel is dropped. Colour whose three
channels are equal everywhere is grey that was stored as colour, and becomes one channel.
"""

import hashlib
import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.image import Image, ImageFacts, is_bomb
from medtl.imaging.series import EXACT, Kind, Reading, Scan, Series, scan_each

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

NAME, TITLE = "raster", "PNG, JPEG"
KIND: Kind = "image"
SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg")

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
PNG_COLOUR_TYPES = frozenset({2, 4, 6})
ORIENTATION_TAG = 0x0112

# Pixels in one image. Below pillow's own limit, and checked before anything is decompressed.
MOST_PIXELS = 2**26

# What each mode of pillow is converted to; a mode that is not here is refused.
TARGET_MODES = {
    **dict.fromkeys(("1", "L", "LA"), "L"),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA"), "RGB"),
    **{mode: mode for mode in ("I;16", "I;16B", "I")},
}

# What pillow raises on files that are damaged.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error)


def recognises(path: Path, head: bytes) -> bool:
    """Look for the magic of PNG or JPEG."""
    return head.startswith((PNG_MAGIC, JPEG_MAGIC))


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """List each file as a series; refuse by the header what would not be read exactly."""
    return scan_each(_list_image, files, workers)


def read(series: Series) -> Image:
    """Read one image. Raises ReadError raster-damaged, -too-large, -frames, -colour."""
    import PIL

    path = series.files[0]
    data = path.read_bytes()
    if data.startswith(PNG_MAGIC):
        _check_png(data, path)
    picture = _open(io.BytesIO(data), path)
    values = picture.width * picture.height * len(picture.getbands())
    if is_bomb(values, len(data)):
        reason = f"has {len(data)} bytes for {values} values"
        raise ReadError("raster-too-large", reason, where=path, fix="shrink it")
    pixels, notes = _pixels(picture, path)
    facts = ImageFacts(
        source=series.source,
        format=NAME,
        decoder=f"pillow {PIL.__version__}",
        sha256=hashlib.sha256(data).hexdigest(),
        photometric=picture.mode,
        bits=16 if picture.mode.startswith("I") else 8,
        notes=(*series.notes, *notes),
    )
    return Image(pixels, None, None, facts)


def _list_image(path: Path) -> list[Series]:
    with path.open("rb") as file:
        _open(file, path)
    return [Series(path, (path,), NAME)]


def _open(file: IO[bytes], path: Path) -> "Picture":
    """Open lazily: the header is read and checked, no pixel is decompressed."""
    from PIL import Image as PillowImage

    # Limits of our own are checked here.
    warnings.filterwarnings("ignore", category=PillowImage.DecompressionBombWarning)
    picture = None
    with _reporting_damage(path), suppress(PillowImage.DecompressionBombError):
        picture = PillowImage.open(file, formats=("PNG", "JPEG"))
    if picture is None or picture.width * picture.height > MOST_PIXELS:
        reason = f"has more than {MOST_PIXELS} pixels"
        raise ReadError("raster-too-large", reason, where=path, fix="shrink it")
    if getattr(picture, "n_frames", 1) > 1:
        raise ReadError("raster-frames", "has several frames", where=path, fix="save each frame as a file")
    if picture.mode not in TARGET_MODES:
        reason = f"has colour model {picture.mode}"
        raise ReadError("raster-colour", reason, where=path, fix="save it as grey or RGB")
    return picture


def _check_png(data: bytes, path: Path) -> None:
    """Check every chunk's CRC, which pillow does not while it decodes, and the depth of colour."""
    depth, colour_type = data[24:26] if len(data) > 25 else (0, 0)
    if depth == 16 and colour_type in PNG_COLOUR_TYPES:
        # pillow would cut it to 8 bits silently.
        reason = "has 16 bits per colour or an alpha channel beside 16 bits"
        raise ReadError("raster-colour", reason, where=path, fix="save it as 16-bit grey or 8-bit RGB")
    with _reporting_damage(path):
        _open(io.BytesIO(data), path).verify()


def _pixels(picture: "Picture", path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """Decompress to (C, H, W), upright."""
    from PIL import ImageOps

    notes = []
    with _reporting_damage(path):
        picture.load()
        turned = picture.getexif().get(ORIENTATION_TAG, 1) != 1
        upright = ImageOps.exif_transpose(picture) if turned else picture
        values = np.asarray(upright.convert(TARGET_MODES[picture.mode]), dtype=np.float32)
    if turned:
        notes.append("turned by its EXIF orientation")
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        notes.append("alpha dropped")
    if picture.mode == "P":
        notes.append("palette converted to RGB")
    if values.ndim == 2:
        return values[None], notes
    if (values == values[..., :1]).all():
        return np.ascontiguousarray(values[None, ..., 0]), [*notes, "grey stored as colour"]
    return np.ascontiguousarray(np.moveaxis(values, -1, 0)), notes


@contextmanager
def _reporting_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        fix = "copy it again from its source"
        raise ReadError("raster-damaged", "is corrupt or incomplete", where=path, fix=fix) from error
