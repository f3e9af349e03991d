"""The formats that medtl reads, in the order in which a file is offered to them.

A format is a module with the four names of `Format`. Files are told apart by content, never by extension.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

# pydicom imports gdcm, which takes any folder named dl in the working directory for a module that it needs.
sys.modules.setdefault("dl", None)  # type: ignore[arg-type]

from medtl.imaging.formats import dicom, medmnist, nifti, raster  # noqa: E402
from medtl.imaging.image import Image  # noqa: E402
from medtl.imaging.series import Scan, Series  # noqa: E402


class Format(Protocol):
    """What a module in this folder offers."""

    NAME: str

    def recognises(self, path: Path, head: bytes) -> bool:
        """Say whether the content is of this format; head is the first HEAD_BYTES of the file."""

    def scan(self, files: Sequence[Path], workers: int | None = None) -> Scan:
        """List the series in files of this format from their headers alone; workers as for work_in_order."""

    def read(self, series: Series) -> Image:
        """Read one series. Raises ReadError."""


FORMATS: tuple[Format, ...] = (dicom, nifti, raster, medmnist)
