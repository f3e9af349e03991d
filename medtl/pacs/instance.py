"""Read what an instance says of itself: to send it, or to know whether what arrived is what was announced.

file or bytes -> Instance: its UIDs and transfer syntax, and a key of its content; pixels are not looked at
"""

import hashlib
import re
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pydicom

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import reporting_malformed, silence_warnings
from medtl.imaging.series import unreadable

TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# PS3.5 9.1, but for leading zeros, which old devices write: nothing of it could be a path.
UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*")
PREAMBLE = 128
MAGIC = b"DICM"


class Instance(NamedTuple):
    """A DICOM instance as a file or a message holds it. content: SHA-256 of all its bytes."""

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
    """Return the bytes of a file. Raises ReadError file-unreadable, file-missing where it is gone."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def identify(content: bytes, path: Path) -> Instance:
    """Read the identity of the bytes of a DICOM file; path is where they are, or shall be, for errors.

    Raises ReadError dicom-header where they are no DICOM file, or lack a UID by which a PACS files it.
    """
    silence_warnings()
    with reporting_malformed(path):
        tags = [*TAGS, "Manufacturer"]
        found = pydicom.dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=tags)
        uids = [str(found.get(keyword) or "") for keyword in TAGS]
        syntax = str(found.file_meta.get("TransferSyntaxUID") or "")
        maker = str(found.get("Manufacturer") or "")
    said = dict(zip(TAGS, uids, strict=True), TransferSyntaxUID=syntax)
    absent = [name for name, uid in said.items() if not uid]
    if absent:
        fix = "export it again from its source"
        raise ReadError("dicom-header", f"lacks {absent[0]}", where=path, fix=fix)
    sop_class, sop_instance, study, series = uids
    key = hashlib.sha256(content).hexdigest()
    return Instance(path, sop_class, sop_instance, study, series, syntax, maker, key)


def data_set(content: bytes) -> bytes:
    """Return a file's bytes without its meta information, which names what wrote it (PS3.10 7.1)."""
    after_length = PREAMBLE + len(MAGIC) + 12
    length = int.from_bytes(content[after_length - 4 : after_length], "little")
    return content[after_length + length :]


def looks_like_dicom(path: Path) -> bool:
    """Say whether a file is one that somebody took for DICOM, by its name or by its preamble."""
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC
    except OSError:
        return False


def key_of_uid(uid: str) -> str:
    """Return the name under which something is kept: it leads nowhere, whatever the UID is."""
    return hashlib.sha256(uid.encode()).hexdigest()[:24]
