"""ENCAPSULATED PIXEL DATA -> the bytes of each frame, and what its own markers say of its size and depth."""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Codestreams: SOC and SIZ of JPEG 2000, the box that wraps it in a JP2 file; SOI of JPEG and JPEG-LS.
J2K_START, JP2_START = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# The frame headers SOF0 to SOF15 of JPEG, SOF55 of JPEG-LS.
START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
# The boxes before a codestream in a JP2 file take some hundred bytes.
MOST_BOX_BYTES = 2**12

ITEM, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)

# Where each fragment of a frame lies.
Places = list[tuple[int, int]]


class Codestream(NamedTuple):
    """What a frame says of itself; signed is None where its kind of codestream cannot say it."""

    rows: int
    columns: int
    precision: int
    signed: bool | None

    @property
    def container(self) -> int:
        """The bits of the words that hold its samples."""
        return next((bits for bits in (8, 16) if self.precision <= bits), 32)


def read_codestream(frame: bytes) -> Codestream | None:
    """Read the header of a JPEG 2000, JPEG or JPEG-LS codestream; None for other frames."""
    start = frame.find(J2K_START, 0, MOST_BOX_BYTES) if frame.startswith((J2K_START, JP2_START)) else -1
    if start >= 0 and len(frame) > start + 42:
        right, bottom, left, top = struct.unpack_from(">4L", frame, start + 8)
        depth = frame[start + 42]
        return Codestream(bottom - top, right - left, (depth & 0x7F) + 1, bool(depth & 0x80))
    place = 2 if frame.startswith(JPEG_START[:2]) else len(frame)
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4])
        if marker in START_OF_FRAME:
            rows, columns = struct.unpack_from(">2H", frame, place + 5)
            return Codestream(rows, columns, frame[place + 4], None)
        place += 1 if marker == 0xFF else 2 + length
    return None


def split_frames(data: bytes, count: int, offsets: Sequence[int]) -> tuple[list[Places], bool] | None:
    """Return the fragments of each frame, and whether an offset table had to be put right.

    `offsets` are those of the Extended Offset Table, empty where there is none: the Basic one then counts.
    None where fragments cannot be told apart into `count` frames. Raises ValueError where they are no items.
    """
    table, fragments = _items(data)
    table = tuple(offsets) or table
    begin = fragments[0][0] if fragments else 0
    by_offset = {start - begin: number for number, (start, _) in enumerate(fragments)}
    filled = [place for place in fragments if place[1] > place[0]]
    opening = [number for number, place in enumerate(filled) if _opens(data, place[0])]
    whole = len({*table}) == len(table) == count and table[0] == 0 and by_offset.keys() >= {*table}
    right = not table or (whole and list(table) == sorted(table))
    if count == 1:
        return ([filled], not right) if len(opening) <= 1 and filled else None
    if len(filled) == count:
        return [[place] for place in filled], not right
    if right and table:
        ends = [by_offset[offset] for offset in table[1:]] + [len(fragments)]
        frames = [
            [place for place in fragments[by_offset[offset] : end] if place[1] > place[0]]
            for offset, end in zip(table, ends, strict=True)
        ]
        if all(frames) and (not opening or all(_opens(data, frame[0][0]) for frame in frames)):
            return frames, False
    if len(opening) == count and opening[0] == 0:
        ends = [*opening[1:], len(filled)]
        return [filled[start:end] for start, end in zip(opening, ends, strict=True)], bool(table)
    return None


def _items(data: bytes) -> tuple[tuple[int, ...], Places]:
    """Return the Basic Offset Table, and where each fragment lies."""
    places: Places = []
    at = 0
    while at + 8 <= len(data):
        *tag, length = struct.unpack_from("<HHL", data, at)
        if tuple(tag) == SEQUENCE_END:
            break
        if tuple(tag) != ITEM or at + 8 + length > len(data):
            raise ValueError("neither a fragment nor the end of all")
        places.append((at + 8, at + 8 + length))
        at += 8 + length
    if not places:
        raise ValueError("no offset table")
    (start, end), *fragments = places
    return struct.unpack_from(f"<{(end - start) // 4}L", data, start), fragments


def _opens(data: bytes, start: int) -> bool:
    """Say whether a codestream begins at a place."""
    return data.startswith((J2K_START, JP2_START, JPEG_START), start)


def tidied(frame: bytes) -> Iterator[bytes]:
    """Yield a frame with its end marker, and without some of the zeros before it.

    Some writers of JPEG-LS put zeros there, which CharLS refuses; the last one may be a part of the image.
    """
    ended = JPEG_END in frame
    body = frame[: frame.rfind(JPEG_END)] if ended else frame
    zeros = len(body) - len(body.rstrip(b"\0"))
    for count in sorted({0, 1, 2, 3, zeros - 1, zeros}):
        if int(ended) <= count <= zeros:
            yield body[: len(body) - count] + JPEG_END
