"""FILE -> Instance by reading a plain header straight from its bytes, and decoding only what is needed.

pydicom makes an object of each element, also of each one nested in sequences that nobody needs: reading the
header of a real MR slice takes it four times as long. What is not plain to the letter of PS3.5 is left to it:
other byte orders, deflated files, tags out of order, unknown value representations, nested elements that are
needed, and all refusals.
"""

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pydicom import uid
from pydicom.datadict import dictionary_VR
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from medtl.imaging.containers import open_file, size_and_time
from medtl.imaging.dicom.elements import FRAME_GROUP_KEYWORDS, Header, Values, decoded_values
from medtl.imaging.dicom.header import (
    PIXEL_TAGS,
    PROGRAM_MAGICS,
    UNDEFINED_LENGTH,
    locate_pixels,
    names_image,
    place_of,
)
from medtl.imaging.dicom.instance import KEYWORDS_BY_TAG, Instance, describe
from medtl.imaging.dicom.tiles import GRID_TAGS
from medtl.imaging.series import HEAD_BYTES

# Bytes that are read of a file: at first, and where the header is longer. A longer one is left to pydicom.
WINDOWS = (2**14, 2**18, 2**22)
META_START = 132

PLAIN_SYNTAXES = {*uid.AllTransferSyntaxes} - {uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
SYNTAX_TAG, MEDIA_CLASS_TAG = 0x00020010, 0x00020002

VR_NAMES = {vr.value.encode(): vr.value for vr in VR if len(vr.value) == 2}
LONG_VRS = frozenset(vr.value.encode() for vr in EXPLICIT_VR_LENGTH_32)
SHORT_VRS = frozenset(VR_NAMES) - LONG_VRS
KINDS_BY_TAG = {int(tag): dictionary_VR(tag) for tag in KEYWORDS_BY_TAG}
GRID = "United Imaging grid"
NEEDED = {int(tag): keyword for tag, keyword in KEYWORDS_BY_TAG.items()}
NEEDED |= dict.fromkeys(map(int, GRID_TAGS), GRID)  # which pydicom has to read

ITEM, SEQUENCE_END, ITEM_END = 0xFFFEE000, 0xFFFEE0DD, b"\xfe\xff\x0d\xe0"

_short, _long, _implicit = struct.Struct("<HH2sH"), struct.Struct("<L"), struct.Struct("<HHL")

# The tag of an element, its value representation ("" where unknown), length, and where its value begins.
Element = tuple[int, str, int, int]
ReadElement = Callable[[bytes, int], Element]


class NotPlainError(Exception):
    """A header that is left to pydicom."""


def walk_header(path: Path) -> Instance | None:
    """Return the one plane of a file whose header is plain, None where pydicom has to read it.

    Raises ReadError dicom-header as describe does.
    """
    with open_file(path) as file:
        try:
            header, syntax, pixels = _read(file)
        except (NotPlainError, struct.error, RecursionError):  # cut short, or nested without end
            return None
        place = place_of(pixels, file)
    instance = describe(header, path, syntax, place)
    return None if instance.may_be_tiled or instance.frames > 1 else instance


def _read(file: BinaryIO) -> tuple[Header, uid.UID, tuple[int, int]]:
    """Read as much of a file as its header needs; return its values and where its pixel data are."""
    data, (file_bytes, _) = b"", size_and_time(file)
    for window in WINDOWS:
        data += file.read(window - len(data))
        with suppress(struct.error):  # beyond the window
            syntax, media_class, start = _walk_meta(data)
            header, end = _walk_elements(data, start, implicit=syntax == uid.ImplicitVRLittleEndian)
            break
    else:
        raise NotPlainError
    named = [str(value) for value in header.get("SOPClassUID", ())] or [media_class]
    image = names_image(uid.UID(named[0] or media_class)) and {"Rows", "Columns"} <= header.keys()
    pixels = locate_pixels(data[end : end + 12], end, file_bytes)
    if pixels is None or not image or len(named) > 1:
        raise NotPlainError
    return header, syntax, pixels


def _walk_meta(data: bytes) -> tuple[uid.UID, str, int]:
    """Return the transfer syntax, the SOP class that the file meta group names, and where the group ends."""
    deflated = uid.DeflatedExplicitVRLittleEndian.encode() in data[:HEAD_BYTES]
    if data[META_START - 4 : META_START] != b"DICM" or data.startswith(PROGRAM_MAGICS) or deflated:
        raise NotPlainError
    values: dict[int, str] = {}
    at = META_START
    while data[at : at + 2] == b"\x02\x00":
        tag, _, length, at = _explicit_element(data, at)
        if length == UNDEFINED_LENGTH:
            raise NotPlainError
        if tag in (SYNTAX_TAG, MEDIA_CLASS_TAG):
            values[tag] = data[at : at + length].decode("latin-1").strip(" \0")
        at += length
    syntax = uid.UID(values.get(SYNTAX_TAG, ""))
    if syntax not in PLAIN_SYNTAXES:
        raise NotPlainError
    return syntax, values.get(MEDIA_CLASS_TAG, ""), at


def _walk_elements(data: bytes, at: int, *, implicit: bool) -> tuple[Header, int]:
    """Return the values that are needed, and where the pixel data begin."""
    header: Header = {}
    element = _implicit_element if implicit else _explicit_element
    if implicit and data[at + 4 : at + 6].isalpha() and data[at + 4 : at + 6].isupper():
        raise NotPlainError  # explicit after all
    before = 0x0007FFFF
    while True:
        tag, kind, length, value = element(data, at)
        if tag <= before:
            raise NotPlainError
        if tag in PIXEL_TAGS:
            return header, at
        before = tag
        if length == UNDEFINED_LENGTH:
            if tag in NEEDED or kind != "SQ":
                raise NotPlainError
            at = _skip_sequence(data, value, element)
            continue
        at = value + length
        if tag in NEEDED:
            if at > len(data):
                raise struct.error
            header[NEEDED[tag]] = _values(data[value:at], tag, kind, header)


def _explicit_element(data: bytes, at: int) -> Element:
    group, number, vr, length = _short.unpack_from(data, at)
    if vr in SHORT_VRS:
        return group << 16 | number, VR_NAMES[vr], length, at + 8
    if vr in LONG_VRS:
        return group << 16 | number, VR_NAMES[vr], _long.unpack_from(data, at + 8)[0], at + 12
    raise NotPlainError


def _implicit_element(data: bytes, at: int) -> Element:
    group, number, length = _implicit.unpack_from(data, at)
    tag, kind = group << 16 | number, ""
    if length == UNDEFINED_LENGTH:
        with suppress(KeyError):
            kind = dictionary_VR(tag)
    return tag, kind, length, at + 8


def _values(content: bytes, tag: int, kind: str, header: Header) -> Values:
    """Decode the value of an element as pydicom does."""
    if NEEDED[tag] in FRAME_GROUP_KEYWORDS or NEEDED[tag] == GRID:
        raise NotPlainError
    kind = kind if kind and kind != "UN" else KINDS_BY_TAG[tag]
    if kind == "SQ" and content:
        raise NotPlainError
    if kind == "SQ":
        return (0,)
    if kind == "US or SS":
        kind = "SS" if header.get("PixelRepresentation") == (1,) else "US"
    values = decoded_values(content, kind)
    if values is None:
        raise NotPlainError
    return values


def _skip_sequence(data: bytes, at: int, element: ReadElement) -> int:
    """Return where a sequence of undefined length ends, whose first item begins at a place."""
    while True:
        group, number, length = _implicit.unpack_from(data, at)
        tag, at = group << 16 | number, at + 8
        if tag == SEQUENCE_END:
            return at
        if tag != ITEM:
            raise NotPlainError
        at = _skip_item(data, at, element) if length == UNDEFINED_LENGTH else at + length


def _skip_item(data: bytes, at: int, element: ReadElement) -> int:
    """Return where an item of undefined length ends, whose first element begins at a place."""
    while data[at : at + 4] != ITEM_END:
        _, kind, length, at = element(data, at)
        if length != UNDEFINED_LENGTH:
            at += length
        elif kind == "SQ":
            at = _skip_sequence(data, at, element)
        else:
            raise NotPlainError
    return at + 8
