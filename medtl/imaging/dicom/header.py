"""FILE -> pydicom Dataset: its header alone, or all of it, inflated where it is deflated."""

import os
import struct
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medtl.errors import ReadError
from medtl.imaging.containers import GZIP_MAGIC, gunzip, open_file, size_and_time
from medtl.imaging.dicom.elements import reporting_malformed, silence_warnings, values_of
from medtl.imaging.dicom.instance import KEYWORDS_BY_TAG, Place
from medtl.imaging.dicom.tiles import PRIVATE_TAGS
from medtl.imaging.series import HEAD_BYTES

# What a preamble may not begin with: the file would run (PS3.10 7.5).
PROGRAM_MAGICS = (b"MZ", b"\x7fELF", b"#!", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
PIXEL_VRS = frozenset({b"OB", b"OW", b"OF", b"OD", b"UN"})
UNDEFINED_LENGTH = 0xFFFFFFFF
SOP_CLASS_TAG = Tag("SOPClassUID")

HEADER_TAGS = [*KEYWORDS_BY_TAG, *PRIVATE_TAGS]
SYNTAX_BY_BYTES = "names no transfer syntax: its bytes say which"

# Bytes that a deflated file may inflate to.
MOST_INFLATED_BYTES = 2**27


@dataclass(frozen=True, eq=False)
class Parsed:
    """A DICOM file parsed by pydicom: whole, or up to its pixel data, whose place is then known.

    repairs: what the file left to its bytes, one phrase each.
    """

    path: Path
    dataset: Dataset
    transfer_syntax: UID
    place: Place | None = None
    repairs: tuple[str, ...] = ()


def read_header(path: Path) -> Parsed:
    """Read the header of one file. Raises ReadError dicom-header, -truncated, -transfer-syntax, -no-image."""
    with open_file(path) as file:
        if file.read(4).startswith(PROGRAM_MAGICS):
            reason = "begins with a program"
            raise ReadError("file-unknown", reason, where=path, fix="copy it from its source")
        file.seek(0)
        stream = inflated(file, path)
        parsed = parse(stream, path, header_only=True)
        with reporting_malformed(path):
            start, little_endian = stream.tell(), parsed.dataset.original_encoding[1]
            pixels = locate_pixels(stream.read(12), start, stream.seek(0, os.SEEK_END), little_endian)
        if pixels is None:
            raise _truncated(path)
        if parsed.repairs and pixels[1] == UNDEFINED_LENGTH:
            raise _unnamed_syntax(path)
        place = place_of(pixels, file) if stream is file else None
    return replace(parsed, place=place)


def place_of(pixels: tuple[int, int], file: BinaryIO) -> Place | None:
    """Return where a file keeps its pixel data, from locate_pixels; None where they are compressed."""
    return Place(*pixels, *size_and_time(file)) if pixels[1] != UNDEFINED_LENGTH else None


def read_dataset(path: Path, data: bytes) -> Parsed:
    """Parse a whole file from its bytes. Raises ReadError as read_header does."""
    return parse(inflated(BytesIO(data), path), path, header_only=False)


def parse(file: BinaryIO, path: Path, *, header_only: bool) -> Parsed:
    """Parse a stream up to its pixel data, or all of it."""
    silence_warnings()
    tags: list | None = HEADER_TAGS if header_only else None
    with reporting_malformed(path):
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=header_only, specific_tags=tags)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if syntax and not isinstance(syntax, str):  # two values
            raise _unnamed_syntax(path)
        _check_is_image(dataset, path)
        if syntax:
            return Parsed(path, dataset, UID(syntax))
        dataset.file_meta.TransferSyntaxUID = _uncompressed_syntax(dataset)  # pixels are decoded by it
    return Parsed(path, dataset, dataset.file_meta.TransferSyntaxUID, repairs=(SYNTAX_BY_BYTES,))


def _uncompressed_syntax(dataset: Dataset) -> UID:
    """Return the syntax of uncompressed files as which pydicom has parsed a dataset, by its first bytes."""
    implicit, little_endian = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian


def _unnamed_syntax(path: Path) -> ReadError:
    reason, fix = "does not name the transfer syntax", "export it again, with file meta information"
    return ReadError("dicom-transfer-syntax", f"{reason} of its compressed pixels", where=path, fix=fix)


def inflated(file: BinaryIO, path: Path) -> BinaryIO:
    """Return the stream, inflated up to a limit where it is gzip or deflated; pydicom would have no limit."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if head.startswith(GZIP_MAGIC):
        return inflated(BytesIO(gunzip(file.read(), path)), path)
    if DeflatedExplicitVRLittleEndian.encode() not in head:
        return file
    data = file.read()
    # The file meta group ends where its first element says, which is its length (PS3.10 7.1).
    meta = 132 if data[128:132] == b"DICM" else 0
    start = meta + 12 + int.from_bytes(data[meta + 8 : meta + 12], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with reporting_malformed(path):
        body = inflater.decompress(data[start:], MOST_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        reason = f"inflates to more than {MOST_INFLATED_BYTES} bytes"
        raise ReadError("dicom-too-large", reason, where=path, fix="rewrite it uncompressed")
    if not inflater.eof:
        raise _truncated(path)
    # The transfer syntaxes have the same length, so that the file meta group is as long as it says.
    deflated, plain = (uid.encode() for uid in (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian))
    return BytesIO(data[:start].replace(deflated, plain.ljust(len(deflated), b"\0")) + body)


def _check_is_image(dataset: Dataset, path: Path) -> None:
    named = values_of(dataset, SOP_CLASS_TAG) if SOP_CLASS_TAG in dataset else ()
    kind, of_file = UID(str(*named)), UID(str(dataset.file_meta.get("MediaStorageSOPClassUID", "")))
    kind = kind if kind.keyword or (kind and not of_file.keyword) else of_file
    # Where nothing follows it, an unknown class is half of one: the file is cut there.
    unknown = bool(kind) and "Rows" not in dataset and max(dataset.keys(), default=0) > SOP_CLASS_TAG
    if not names_image(kind) and (kind.keyword or unknown):
        name = kind.name if kind.keyword else "an object of unknown kind"
        reason, fix = f"is not an image: {name}", "name image files only"
        error = ReadError("dicom-no-image", reason, where=path, fix=fix)
        error.kind = name.removesuffix(" Storage")
        raise error
    if "Rows" not in dataset or "Columns" not in dataset:
        raise _truncated(path)  # pydicom returns an empty dataset where the file is cut short


def _truncated(path: Path) -> ReadError:
    fix = "copy it again from its source"
    return ReadError("dicom-truncated", "ends before its pixel data do", where=path, fix=fix)


def names_image(sop_class: UID) -> bool:
    """Say whether a SOP class is of images."""
    return "ImageStorage" in sop_class.keyword and not sop_class.keyword.startswith("RT")


def locate_pixels(
    element: bytes, start: int, file_bytes: int, little_endian: bool | None = True
) -> tuple[int, int] | None:
    """Return where pixel data begin, and their length, from the first 12 bytes of their element.

    The length is UNDEFINED_LENGTH where they are compressed. None where the element is another one, or the
    file ends before the pixel data do.
    """
    # By the bytes, not by the transfer syntax: real files contradict theirs, and pydicom follows the bytes.
    explicit = element[4:6] in PIXEL_VRS
    layout = ("<" if little_endian else ">") + ("HHxxxxL" if explicit else "HHL")
    size = struct.calcsize(layout)
    if len(element) < size:
        return None
    group, number, length = struct.unpack(layout, element[:size])
    whole = length == UNDEFINED_LENGTH or start + size + length <= file_bytes
    return (start + size, length) if whole and (group << 16 | number) in PIXEL_TAGS else None
