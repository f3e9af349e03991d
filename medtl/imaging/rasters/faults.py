"""What readers of raster files share: limits of size, refusals, and decoding in a child process."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.image import is_bomb

# Pixels in one image. Below pillow's own limit, and checked before anything is decompressed.
MOST_PIXELS = 2**26

# What pillow raises on files that are damaged.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error)


def damaged(path: Path) -> ReadError:
    """Return the refusal of a file that is not as it was written."""
    fix = "copy it again from its source"
    return ReadError("raster-damaged", "is corrupt or incomplete", where=path, fix=fix)


def too_large(reason: str, path: Path) -> ReadError:
    """Return the refusal of a file that is larger than the limit."""
    return ReadError("raster-too-large", reason, where=path, fix="shrink it")


@contextmanager
def reporting_damage(path: Path) -> Iterator[None]:
    """Turn what pillow raises on damaged files into ReadError raster-damaged."""
    try:
        yield
    except DAMAGE as error:
        raise damaged(path) from error


def check_pixels(pixels: int, path: Path) -> None:
    """Raise ReadError raster-too-large for more pixels than the limit."""
    if pixels > MOST_PIXELS:
        raise too_large(f"has more than {MOST_PIXELS} pixels", path)


def check_bytes(values: int, stored: int, path: Path) -> None:
    """Raise ReadError raster-too-large where so many values cannot honestly come from so few bytes."""
    if is_bomb(values, stored):
        raise too_large(f"has {stored} bytes for {values} values", path)


def decode_apart(data: bytes, request: dict[str, Any], values: int, path: Path) -> NDArray:
    """Decode so many values in a child process. Raises ReadError raster-damaged, raster-too-large."""
    from medtl.imaging.dicom.decoders import DecoderLostError, FrameRefusedError, decode_frame

    try:
        return decode_frame(data, request, values)
    except FrameRefusedError as error:
        if error.args[0] == MemoryError.__name__:
            raise too_large("needs too much memory", path) from error
        raise damaged(path) from error
    except DecoderLostError as error:
        raise damaged(path) from error
