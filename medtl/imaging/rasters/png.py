"""PNG chunks: each is checked by its CRC, and those that say nothing about pixels are left out.

Nothing inflates metadata that way: colour profiles and XMP may be large in sound files, and bombs in others.
"""

import io
import struct
import zlib
from typing import IO

MAGIC = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = frozenset({2, 4, 6})

# Beside the critical chunks, whose names begin with a capital: transparency and orientation.
KEPT = (b"tRNS", b"eXIf")
MOST_EXIF_BYTES = 2**16


class AnimationError(Exception):
    """A PNG holds several frames."""


def essential(file: IO[bytes], whole: bool) -> bytes:
    """Return a PNG without its metadata; where not `whole`, up to its pixels and without checking CRCs.

    Raises AnimationError; ValueError or struct.error for a damaged file.
    """
    kept = io.BytesIO()
    kept.write(file.read(len(MAGIC)))
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        length, kind = struct.unpack(">L4s", head)
        if kind == b"IDAT" and not whole:
            kept.write(head)
            break
        if whole or _matters(kind, length) or kind == b"acTL":
            body = file.read(length + 4)
            _check(kind, body, length)
            if kind == b"acTL" and body[:4] not in (b"\0\0\0\0", b"\0\0\0\1"):
                raise AnimationError
            if _matters(kind, length):
                kept.write(head + body)
        else:
            file.seek(length + 4, io.SEEK_CUR)
    return kept.getvalue()


def is_deep_colour(data: bytes) -> bool:
    """Say whether colour or alpha has 16 bits, which pillow would cut to 8."""
    depth, colour_type = data[24:26] if len(data) > 25 else (0, 0)
    return depth == 16 and colour_type in COLOUR_TYPES


def _matters(kind: bytes, length: int) -> bool:
    return kind[:1].isupper() or (kind in KEPT and length <= MOST_EXIF_BYTES)


def _check(kind: bytes, body: bytes, length: int) -> None:
    if len(body) < length + 4 or zlib.crc32(body[:length], zlib.crc32(kind)) != int.from_bytes(body[length:]):
        raise ValueError("a chunk is damaged or cut off")
