"""File or bytes -> Instance: its UIDs, transfer syntax and a hash of its content; pixels are not read."""

import hashlib
import re
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.misc import is_dicom

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import reporting_malformed, silence_warnings
from medtl.imaging.series import unreadable

TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# PS3.5 9.1, but with leading zeros allowed, which old devices write. It can never be a path.
UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*")
# The preamble, DICM, and the element that holds the length of the meta information (PS3.10 7.1).
META_START = 128 + 4 + 12


class Instance(NamedTuple):
    """A DICOM instance as stored in a file or message. content: SHA-256 of all its bytes."""

    path: Path
    sop_class: str
    sop_instance: str
    study: str
    series: str
    transfer_syntax: str
    manufacturer: str
    content: str


def read_instance(path: Path) -> Instance:
    """Read a file. Raises ReadError as read_file and identify do."""
    return identify(read_file(path), path)


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises ReadError file-unreadable, file-missing."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def identify(content: bytes, path: Path) -> Instance:
    """Read the identity of a DICOM file from its bytes; path is its present or future place, for errors.

    Raises ReadError dicom-header if it is not DICOM, or lacks a UID by which a PACS files it.
    """
    silence_warnings()
    with reporting_malformed(path):
        tags = [*TAGS, "Manufacturer"]
        header = pydicom.dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=tags)
        uids = {keyword: str(header.get(keyword) or "") for keyword in TAGS}
        uids["TransferSyntaxUID"] = str(header.file_meta.get("TransferSyntaxUID") or "")
        manufacturer = str(header.get("Manufacturer") or "")
    for keyword, uid in uids.items():
        if not uid:
            fix = "export it again from its source"
            raise ReadError("dicom-header", f"lacks {keyword}", where=path, fix=fix)
    content_hash = hashlib.sha256(content).hexdigest()
    return Instance._make((path, *uids.values(), manufacturer, content_hash))


def data_set(content: bytes) -> bytes:
    """Return a file's bytes without its meta information, which names what wrote it."""
    length = int.from_bytes(content[META_START - 4 : META_START], "little")
    return content[META_START + length :]


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file's name or preamble marks it as DICOM."""
    with suppress(OSError):
        return path.suffix.lower() == ".dcm" or is_dicom(path)
    return False


def key_of_uid(uid: str) -> str:
    """Return the file name for a UID: a hash, so that no UID can lead out of a folder."""
    return hashlib.sha256(uid.encode()).hexdigest()[:24]
