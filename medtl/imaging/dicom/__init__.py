"""DICOM FILES -> IMAGES: headers, instances, frames, volumes; pixels decoded in processes of their own.

This is the format as medtl.imaging.reader knows it. pydicom is imported with the first DICOM file.
"""

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
# Value representations that the first elements of a file may have.
FIRST_VRS = frozenset({b"UL", b"OB", b"UI", b"SH", b"AE", b"CS", b"DA", b"TM"})

# pydicom imports gdcm, which takes any folder named dl in the working directory for a module that it needs.
sys.modules.setdefault("dl", None)  # type: ignore[arg-type]


def recognises(path: Path, head: bytes) -> bool:
    """Look for DICM after the preamble, or for a first element where there is none (PS3.10 7.1).

    In the file, or in the gzip stream that it holds.
    """
    head = gunzipped_head(head)
    if head[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == b"DICM":
        return True
    group, length = head[:2], int.from_bytes(head[4:8], "little")
    if group not in (b"\x02\x00", b"\x08\x00") or len(head) < PREAMBLE_BYTES:
        return False
    return head[4:6] in FIRST_VRS or (head[3] == 0 and 0 < length <= 64)


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """Group the planes in files into series, from headers alone."""
    from medtl.imaging.dicom import reader

    return reader.scan(files, workers, reading)


def read(series: Series) -> Image:
    """Read one series. Raises ReadError dicom-* for a plane, series-* for a stack."""
    from medtl.imaging.dicom import reader

    return reader.read(series)
