"""Follow the stream of a NIfTI file to its end, where the checksum is, and keep one volume of it or all."""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from medtl.errors import ReadError
from medtl.imaging.formats.nifti_header import (
    NIFTI2_BYTES,
    Header,
    announced_bytes,
)

GZIP_MAGIC = b"\x1f\x8b"
GZIP_WBITS = 31  # tells zlib to expect gzip's header and trailer, and to check both (RFC 1952)
# Bytes of all volumes of a file; of a large gzip file each volume costs inflating them all.
MOST_BYTES = 2**33
# What may follow the pixels.
TRAILING_BYTES = 2**20
# Members of a gzip stream: some, and one for each MEMBER_BYTES. Blocked gzip puts 64 KiB into each.
MOST_MEMBERS, MEMBER_BYTES = 64, 2**14
# No deflate stream inflates to more than this many times its length (zlib's technical notes).
DEFLATE_RATIO = 1032
# How many times their length incompressible bytes take in a gzip stream at most, blocked gzip included.
MOST_GROWTH = 1.01
# A stream that announces more than BOMB_BYTES out of less than a BOMB_RATIO-th of them is not inflated.
BOMB_BYTES, BOMB_RATIO = 2**28, 100
# How much is read, and inflated, at a time.
RAW_BYTES, PIECE_BYTES = 2**14, 2**20


def inflated_head(first: bytes) -> bytes:
    """Return the first bytes of the content; fewer where a gzip stream breaks off."""
    if not first.startswith(GZIP_MAGIC):
        return first[:NIFTI2_BYTES]
    try:
        return zlib.decompressobj(GZIP_WBITS).decompress(first, NIFTI2_BYTES)
    except zlib.error:
        return b""


def inflate(raw: Iterable[bytes], header: Header, path: Path) -> Iterator[bytes]:
    """Yield what the members of a gzip stream hold, in pieces; zlib compares the CRC of each at its end."""
    most_members = MOST_MEMBERS + announced_bytes(header) // MEMBER_BYTES
    member, left = zlib.decompressobj(GZIP_WBITS), most_members
    try:
        for chunk in raw:
            while chunk := chunk.lstrip(b"\0") if member.eof else chunk:  # zeros may pad a finished stream
                if member.eof:
                    member, left = zlib.decompressobj(GZIP_WBITS), left - 1
                if not left:
                    raise _overlong(f"is a gzip stream of more than {most_members} members", path)
                yield member.decompress(chunk, PIECE_BYTES)
                chunk = member.unused_data if member.eof else member.unconsumed_tail
    except zlib.error as error:
        reason = "is a corrupt gzip stream"
        raise ReadError("nifti-damaged", reason, where=path, fix="copy it again from its source") from error
    if not member.eof:
        raise _truncated("is a gzip stream that breaks off", path)


def keep_bytes(
    pieces: Iterable[bytes], header: Header, start: int, size: int, path: Path
) -> tuple[bytearray, int]:
    """Keep some bytes of the content and read the rest, for its checksum alone.

    Returns them with the number of bytes behind the last volume. Reads no more than the header announces.
    """
    kept, announced, position = bytearray(size), announced_bytes(header), 0
    for piece in pieces:
        begin, end = max(start, position), min(start + size, position + len(piece))
        if begin < end:
            kept[begin - start : end - start] = piece[begin - position : end - position]
        position += len(piece)
        if position > announced + TRAILING_BYTES:
            raise _overlong("holds far more bytes than its header announces", path)
    if position < announced:
        raise _truncated(f"has {position} of {announced} bytes", path)
    return kept, position - announced


def check_length(header: Header, file_bytes: int, path: Path, packed: bool) -> None:
    """Compare the bytes that a header announces with those that the file can hold."""
    announced = announced_bytes(header)
    if announced > MOST_BYTES:
        reason = f"announces {announced} bytes, more than {MOST_BYTES}"
        raise ReadError("nifti-too-large", reason, where=path, fix="split or shrink it")
    if file_bytes > announced * MOST_GROWTH + TRAILING_BYTES:
        raise _overlong("holds far more bytes than its header announces", path)
    if announced > file_bytes * (DEFLATE_RATIO if packed else 1):
        raise _truncated(f"has {file_bytes} bytes, too few for the {announced} that it announces", path)
    if packed and announced > max(BOMB_BYTES, BOMB_RATIO * file_bytes):
        reason = f"announces {announced} bytes in {file_bytes} of gzip"
        raise ReadError("nifti-too-large", reason, where=path, fix="if it is not a bomb, save it as .nii")


def _overlong(reason: str, path: Path) -> ReadError:
    return ReadError("nifti-too-large", reason, where=path, fix="write it again")


def _truncated(reason: str, path: Path) -> ReadError:
    return ReadError("nifti-truncated", reason, where=path, fix="copy it again from its source")
