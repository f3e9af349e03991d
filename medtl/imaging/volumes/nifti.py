"""Read NIfTI, as one file or as a header and its pixels in two, and write it."""

import gzip
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtl.core.files import replacing
from medtl.imaging.image import Image
from medtl.imaging.series import EXACT, Kind, Reading, Scan, Series, scan_each
from medtl.imaging.volumes.nifti_header import is_pair, nifti_version, read_layout
from medtl.imaging.volumes.volume_file import (
    GZIP_MAGIC,
    inflated_start,
    list_volumes,
    pixels_beside,
    read_volume,
)

NAME, TITLE = "nifti", "NIfTI"
KIND: Kind = "volume"
SUFFIXES: tuple[str, ...] = (".nii", ".nii.gz")


def recognises(path: Path, head: bytes) -> bool:
    """Look for NIfTI's magic, in the file or in the gzip stream that it holds."""
    return nifti_version(inflated_start(path) if head.startswith(GZIP_MAGIC) else head) is not None


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """List each volume of each file as a series; refuse by the header what would not be read exactly."""
    return scan_each(partial(_list_volumes, reading=reading), files, workers)


def read(series: Series) -> Image:
    """Read one volume, or all as channels. Its sha256 is that of the whole file.

    Raises ReadError nifti-header, -pair, -damaged, -truncated, -too-large, -dimensions, -type, -affine,
    -not-finite.
    """
    import nibabel

    return read_volume(series, read_layout, f"nibabel {nibabel.__version__}")


def _list_volumes(path: Path, reading: Reading) -> list[Series]:
    files = [path]
    if is_pair(inflated_start(path)):
        files.append(pixels_beside(path, NAME))
    return list_volumes(files, NAME, read_layout, reading)


def write_volume(path: Path, values: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
    """Write values, with the axes of an Image, and its affine (RAS+ mm) as .nii.gz, atomically.

    The same content gives the same bytes. Raises OutputError output-unwritable.
    """
    import nibabel

    content = nibabel.Nifti1Image(np.asarray(values, dtype=np.float32), affine).to_bytes()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0))
