"""DICOM FILES -> IMAGES: headers, instances, frames, volumes; pixels decoded in processes of their own.

This is the format as medtl.imaging.reader knows it. pydicom is imported with the first DICOM file.
"""

import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from medtl.imaging.containers import gunzipped_head
from medtl.imaging.image import Image
from medtl.imaging.series import DICOM, EXACT, Kind, Reading, Scan, Series

NAME, TITLE = DICOM, "DICOM"
KIND: Kind = "image"
SUFFIXES: tuple[str, ...] = (".dcm", ".dcm.gz")

PREAMBLE_BYTES = 128
# The groups with which a data set without preamble begins, how long its first element may be, and how many of
# its elements are looked at.
FIRST_GROUPS, MOST_FIRST_BYTES = (0x0002, 0x0008), 512
FIRST_ELEMENTS = 3
# Value representations whose length takes two bytes, and four behind two that are zero (PS3.5 7.1.2).
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

# pydicom imports gdcm, which takes any folder named dl in the working directory for a module that it needs.
sys.modules.setdefault("dl", None)  # type: ignore[arg-type]


def recognises(path: Path, head: bytes) -> bool:
    """Look for DICM after the preamble, or for the first elements where there is none (PS3.10 7.1).

    In the file, or in the gzip stream that it holds.
    """
    head = gunzipped_head(head)
    if head[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == b"DICM":
        return True
    return len(head) >= PREAMBLE_BYTES and any(_begins_data_set(head, order) for order in "<>")


def _begins_data_set(head: bytes, order: str) -> bool:
    """Say whether elements in ascending order of their tags follow one another from the first byte on."""
    at = before = 0
    for _ in range(FIRST_ELEMENTS):
        if at + 12 > len(head):
            return before > 0
        group, number, vr, length = struct.unpack_from(order + "HH2sH", head, at)
        if vr not in SHORT_VRS:
            (length,) = struct.unpack_from(order + "L", head, at + (8 if vr in LONG_VRS else 4))
        start, tag = at + (12 if vr in LONG_VRS else 8), group << 16 | number
        first = not before and (group not in FIRST_GROUPS or length > MOST_FIRST_BYTES)
        if first or tag <= before or length % 2 or length > 2**16:
            return False
        if order == ">" and vr not in SHORT_VRS | LONG_VRS:  # big-endian files are explicit
            return False
        at, before = start + length, tag
    return True


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """Group the planes in files into series, from headers alone."""
    from medtl.imaging.dicom import reader

    return reader.scan(files, workers, reading)


def read(series: Series) -> Image:
    """Read one series. Raises ReadError dicom-* for a plane, series-* for a stack."""
    from medtl.imaging.dicom import reader

    return reader.read(series)
