"""TIFF directories: what a file holds, and whether pillow reads it exactly; decoded in a child process.

libtiff, which pillow decodes with, is written in C and prints what it finds wrong.
"""

import io
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.rasters.faults import (
    check_bytes,
    check_pixels,
    damaged,
    decode_apart,
    reporting_damage,
)

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
DESCRIPTION, STRIPS, ORIENTATION, SAMPLES, STRIP_ROWS, PLANAR = 270, 273, 274, 277, 278, 284
TILE_WIDTH, TILE_HEIGHT, TILES, EXTRA, FORMAT = 322, 323, 324, 338, 339
NEEDED = frozenset(
    {SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, DESCRIPTION, STRIPS, ORIENTATION}
    | {SAMPLES, STRIP_ROWS, PLANAR, TILE_WIDTH, TILE_HEIGHT, TILES, EXTRA, FORMAT}
)
ASCII = 2
TYPES = {1: "B", ASCII: "B", 3: "H", 4: "L", 13: "L", 16: "Q"}
# Directories of a file, entries of a directory, values of an entry, and characters of a text that are read.
MOST_PAGES, MOST_ENTRIES, MOST_VALUES, MOST_TEXT = 1024, 512, 16, 4096
# Bits of NewSubfileType: a smaller version of another page, and its transparency.
PREVIEW, MASK = 1, 4

NO_COMPRESSION, JPEG = 1, 7
# None, CCITT of three kinds, LZW, JPEG, deflate under two numbers, PackBits.
COMPRESSIONS = frozenset({NO_COMPRESSION, 2, 3, 4, 5, JPEG, 8, 32946, 32773})
# The bits of a value that a compression takes, where it does not take any.
BITS_OF = {2: 1, 3: 1, 4: 1, JPEG: 8}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
PHOTOMETRICS = {
    WHITE_IS_ZERO: "MinIsWhite",
    BLACK_IS_ZERO: "MinIsBlack",
    RGB: "RGB",
    PALETTE: "palette",
    YCBCR: "YCbCr",
}
OTHER_PHOTOMETRICS = {4: "a transparency mask", 5: "CMYK", 8: "CIELab"}
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2
NUMBERS = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "floating-point"}

# What a page's description begins or says, and what it then is.
SLIDES = {b"Aperio": "an Aperio slide (SVS)", b"<OME": "OME-TIFF", b"DPUfsImport": "a Philips slide"}

IMAGEJ_STACK = re.compile(rb"^ImageJ=.*^images=(\d{1,9})$", re.DOTALL | re.MULTILINE)
FIX = "save it as 8- or 16-bit grey, 8-bit RGB or 32-bit float"

Tags = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class Page:
    """The first page of a file: its directory, where that lies, and how many smaller versions follow."""

    big_endian: bool
    big: bool
    place: int
    tags: Tags
    previews: int = 0

    def one(self, tag: int, default: int) -> int:
        """Return the first value of a tag."""
        return (*self.tags.get(tag, ()), default)[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self.one(WIDTH, 0), self.one(HEIGHT, 0)

    @property
    def photometric(self) -> str:
        """The name of its photometric interpretation."""
        return PHOTOMETRICS.get(self.one(PHOTOMETRIC, -1), "")

    @property
    def bits(self) -> int:
        """Bits of one value; 0 where they differ."""
        stated = set(self.tags.get(BITS, (1,)))
        return stated.pop() if len(stated) == 1 else 0

    @property
    def numbers(self) -> int:
        """UNSIGNED, SIGNED or FLOAT; 0 where values differ in it."""
        stated = set(self.tags.get(FORMAT, (UNSIGNED,)))
        return stated.pop() if len(stated) == 1 else 0

    @property
    def mode(self) -> str:
        """What pillow converts it to; "" for grey as it is stored."""
        if self.one(PHOTOMETRIC, -1) in (RGB, PALETTE, YCBCR):
            return "RGBA" if self.one(SAMPLES, 1) > 3 else "RGB"
        return "L" if self.bits <= 8 else ""

    @property
    def notes(self) -> list[str]:
        """What reading changes or leaves out."""
        notes = ["smaller versions left out"] if self.previews else []
        if self.one(ORIENTATION, 1) in range(2, 9):
            notes.append("turned by its TIFF orientation")
        if self.tags.get(EXTRA) or self.mode == "RGBA":
            notes.append("alpha dropped")
        if self.one(PHOTOMETRIC, -1) == PALETTE:
            notes.append("palette converted to RGB")
        if self.one(PHOTOMETRIC, -1) == WHITE_IS_ZERO:
            notes.append("inverted from MinIsWhite")
        return notes


def find_page(file: IO[bytes], path: Path) -> Page:
    """Return the one page that a file is of, by its directories.

    Raises ReadError raster-damaged, -too-large, -frames, -colour.
    """
    with reporting_damage(path):
        found = dict(islice(_directories(file), MOST_PAGES))
        pages = list(found.values())
        if not pages:
            raise ValueError("no page")
        file.seek(0)
        head = file.read(4)
    first, further = pages[0], pages[1:]
    page = Page(head.startswith(b"MM"), b"+" in head, next(iter(found)), first, len(further))
    main = [tags for tags in further if not _has_bits(tags, PREVIEW | MASK)]
    if main or _has_bits(first, PREVIEW):
        raise _several_pages(pages, path)
    if min(page.size) < 1 or PHOTOMETRIC not in first:
        raise damaged(path)
    check_pixels(page.size[0] * page.size[1], path)
    _check_kind(page, path)
    _check_parts(page, path)
    if _hides_stack(page, file.seek(0, io.SEEK_END)):
        raise _several_pages(pages, path)
    return page


def decode(data: bytes, page: Page, path: Path) -> NDArray:
    """Decode a page to (H, W) or (H, W, 3), upright, with larger values brighter.

    Raises ReadError raster-damaged, -too-large, -colour.
    """
    width, height = page.size
    count = width * height * page.one(SAMPLES, 1)
    parts = page.one(TILE_WIDTH, 0) * page.one(TILE_HEIGHT, 0) * page.one(SAMPLES, 1)
    check_bytes(max(count, parts), len(data), path)
    inverted = page.one(PHOTOMETRIC, -1) == WHITE_IS_ZERO
    request = {"transfer_syntax": "", "plugin": "libtiff", "mode": page.mode}
    values = decode_apart(_as_black_is_zero(data, page, path) if inverted else data, request, count, path)
    turned = page.one(ORIENTATION, 1) in range(5, 9)
    if values.shape[:2] != ((width, height) if turned else (height, width)):
        raise damaged(path)
    if page.mode == "RGBA":
        if page.one(EXTRA, STRAIGHT) == PREMULTIPLIED and values[..., 3].min() < 255:
            reason = "has colours that are multiplied by its transparency"
            raise ReadError("raster-colour", reason, where=path, fix="save it without transparency")
        values = values[..., :3]
    if page.numbers == SIGNED and page.bits == 8:
        values = values.view(np.int8)
    if page.numbers == UNSIGNED and page.bits == 32:
        values = values.view(np.uint32)
    return (255 if page.bits < 8 else 2**page.bits - 1) - values if inverted else values


def _directories(file: IO[bytes]) -> Iterator[tuple[int, Tags]]:
    """Yield the place and the tags of each page's directory, in order. Raises ValueError, struct.error."""
    file.seek(0)
    head = file.read(16)
    order, big = (">" if head.startswith(b"MM") else "<"), b"+" in head[:4]
    (place,) = struct.unpack_from(order + ("Q" if big else "L"), head, 8 if big else 4)
    seen = set()
    while place:
        if place in seen:
            raise ValueError("directories in a circle")
        seen.add(place)
        file.seek(place)
        (count,) = _unpack(file, order + ("Q" if big else "H"))
        if count > MOST_ENTRIES:
            raise ValueError("too many entries")
        form = order + ("HHQ8s" if big else "HHL4s")
        rows = file.read(count * struct.calcsize(form))
        link = file.read(8 if big else 4)
        entries = [entry for entry in struct.iter_unpack(form, rows) if entry[0] in NEEDED]
        yield place, {entry[0]: _values(file, order, *entry) for entry in entries}
        place = int.from_bytes(link, "big" if order == ">" else "little")


def _values(file: IO[bytes], order: str, tag: int, kind: int, count: int, inline: bytes) -> tuple[int, ...]:
    """Return the first values of an entry, or for strips and tiles their number. Raises as _directories."""
    kind = ASCII if tag == DESCRIPTION else kind
    if kind not in TYPES:
        raise ValueError("a tag of another type than it has")
    if tag in (STRIPS, TILES):
        return (count,)
    size = struct.calcsize(order + TYPES[kind])
    form = f"{order}{min(count, MOST_TEXT if kind == ASCII else MOST_VALUES)}{TYPES[kind]}"
    if count * size <= len(inline):
        return struct.unpack_from(form, inline)
    file.seek(int.from_bytes(inline, "big" if order == ">" else "little"))
    return _unpack(file, form)


def _unpack(file: IO[bytes], form: str) -> tuple:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _has_bits(tags: Tags, bits: int) -> bool:
    return bool((*tags.get(SUBFILE, ()), 0)[0] & bits)


def _several_pages(pages: list[Tags], path: Path) -> ReadError:
    description = bytes(pages[0].get(DESCRIPTION, ()))
    slide = next((name for mark, name in SLIDES.items() if mark in description), "TIFF")
    count = "several" if len(pages) in (1, MOST_PAGES) else len(pages)
    reason = f"is {slide} of {count} pages"
    return ReadError("raster-frames", reason, where=path, fix="save each page as a file of its own")


def _hides_stack(page: Page, stored: int) -> bool:
    """Say whether ImageJ wrote more images behind that of the only directory, as it does beyond 4 GB."""
    stated = IMAGEJ_STACK.search(bytes(page.tags.get(DESCRIPTION, ())))
    images = int(stated[1]) if stated else 1
    width, height = page.size
    return images > 1 and stored * 8 >= images * width * height * page.bits


def _check_kind(page: Page, path: Path) -> None:
    """Raise ReadError raster-colour unless pillow reads such values exactly."""
    compression = page.one(COMPRESSION, NO_COMPRESSION)
    if compression not in COMPRESSIONS:
        reason = f"is TIFF with compression {compression}"
        raise ReadError("raster-colour", reason, where=path, fix="save it uncompressed, or with LZW")
    if _is_exact(page) and not (page.big and page.big_endian):
        return
    plain_tags = {**page.tags, COMPRESSION: (NO_COMPRESSION,), FILL_ORDER: (1,), PLANAR: (1,)}
    if _is_exact(replace(page, big_endian=False, tags=plain_tags)):
        reason = "is TIFF in an order of bytes or planes that is not read exactly"
        fix = "save it uncompressed, little-endian and interleaved"
        raise ReadError("raster-colour", reason, where=path, fix=fix)
    values = f"{page.bits or 'mixed'}-bit {NUMBERS.get(page.numbers, 'other')} values"
    number = page.one(PHOTOMETRIC, -1)
    meaning = page.photometric or OTHER_PHOTOMETRICS.get(number, f"photometric interpretation {number}")
    reason = f"is TIFF of {page.one(SAMPLES, 1)} x {values} as {meaning}"
    raise ReadError("raster-colour", reason, where=path, fix=FIX)


def _is_exact(page: Page) -> bool:
    """Say whether pillow reads values of this kind, in this compression, exactly."""
    compression = page.one(COMPRESSION, NO_COMPRESSION)
    kinds = {WHITE_IS_ZERO: _is_grey, BLACK_IS_ZERO: _is_grey, RGB: _is_rgb, PALETTE: _is_palette}
    fits = {**kinds, YCBCR: _is_jpeg_colour}.get(page.one(PHOTOMETRIC, -1), lambda _: False)
    return page.bits == BITS_OF.get(compression, page.bits) and fits(page)


def _is_grey(page: Page) -> bool:
    """Whether pillow reads grey of this kind exactly: it swaps the bytes of some big-endian values twice."""
    compressed = page.one(COMPRESSION, NO_COMPRESSION) != NO_COMPRESSION
    swapped = page.big_endian and compressed
    if page.one(SAMPLES, 1) == 2:
        straight = page.tags.get(EXTRA) in ((UNSPECIFIED,), (STRAIGHT,)) and page.one(PLANAR, 1) == 1
        return straight and page.bits == 8 and page.numbers == UNSIGNED and page.one(FILL_ORDER, 1) == 1
    if page.one(SAMPLES, 1) != 1 or page.tags.get(EXTRA):
        return False
    if page.numbers != UNSIGNED:
        depths = (8, 16, 32) if page.numbers == SIGNED else (32,)
        plain = page.one(PHOTOMETRIC, -1) == BLACK_IS_ZERO and page.one(FILL_ORDER, 1) == 1
        return plain and page.bits in depths and (page.bits == 8 or not swapped)
    if page.one(FILL_ORDER, 1) != 1:
        return page.bits in (1, 2, 4, 8) or (page.bits == 16 and not page.big_endian)
    if page.bits in (12, 32):
        return not page.big_endian and (page.bits == 12 or page.one(PHOTOMETRIC, -1) == BLACK_IS_ZERO)
    return page.bits in (1, 2, 4, 8, 16)


def _is_rgb(page: Page) -> bool:
    samples, extra = page.one(SAMPLES, 1), len(page.tags.get(EXTRA, ()))
    layout = page.one(PLANAR, 1) == 1 or (samples == 3 and not extra)
    bytes_of = page.bits == 8 and page.numbers == UNSIGNED and page.one(FILL_ORDER, 1) == 1
    return bytes_of and layout and (samples, extra) in ((3, 0), (4, 0), (4, 1))


def _is_palette(page: Page) -> bool:
    single = page.one(SAMPLES, 1) == 1 and not page.tags.get(EXTRA)
    return single and page.bits in (1, 2, 4, 8) and page.numbers == UNSIGNED


def _is_jpeg_colour(page: Page) -> bool:
    return page.one(COMPRESSION, NO_COMPRESSION) == JPEG and page.one(SAMPLES, 1) == 3 and page.bits == 8


def _check_parts(page: Page, path: Path) -> None:
    """Raise ReadError raster-damaged where strips or tiles are missing, which pillow leaves black."""
    width, height = page.size
    layers = page.one(SAMPLES, 1) if page.one(PLANAR, 1) == 2 else 1
    if TILES in page.tags:
        tile_width, tile_height = page.one(TILE_WIDTH, 0), page.one(TILE_HEIGHT, 0)
        if min(tile_width, tile_height) < 1:
            raise damaged(path)
        check_pixels(tile_width * tile_height, path)
        needed = -(-width // tile_width) * -(-height // tile_height) * layers
    else:
        needed = -(-height // min(max(page.one(STRIP_ROWS, height), 1), height)) * layers
    if page.one(TILES, page.one(STRIPS, 0)) < needed:
        raise damaged(path)


def _as_black_is_zero(data: bytes, page: Page, path: Path) -> bytes:
    """Return a file of inverted grey that says it is not: pillow then leaves values as they are stored."""
    order = ">" if page.big_endian else "<"
    count = struct.pack(order + ("Q" if page.big else "L"), 1)
    for kind, form in ((3, "H"), (4, "L")):
        entry = struct.pack(order + "HH", PHOTOMETRIC, kind) + count
        zero, one = (entry + struct.pack(order + form, value) for value in (WHITE_IS_ZERO, BLACK_IS_ZERO))
        place = data.find(zero, page.place)
        if place >= 0:
            return data[:place] + one + data[place + len(zero) :]
    raise damaged(path)
