"""Read FreeSurfer's MGH, plain (.mgh) or gzip (.mgz): each of its frames is a volume."""

import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.series import EXACT, Kind, Reading, Scan, Series, scan_each
from medtl.imaging.volumes.nifti_header import is_regular
from medtl.imaging.volumes.volume_file import (
    GZIP_MAGIC,
    MOST_VOXELS,
    Layout,
    inflated_start,
    list_volumes,
    read_volume,
    too_large,
)

NAME, TITLE = "mgh", "MGH"
KIND: Kind = "volume"
SUFFIXES: tuple[str, ...] = (".mgh", ".mgz", ".mgh.gz")

FAMILY = "volume"
START = 284  # where pixels begin
# version, four extents, type, degrees of freedom, whether the rest of the header says where the volume lies
FIELDS = struct.Struct(">7ih")
VERSION, MOST_EXTENT, MOST_TYPE = 1, 2**20, 31
TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


def recognises(path: Path, head: bytes) -> bool:
    """Look for a version, extents, a type and a flag as MGH has them: it has no magic."""
    head = inflated_start(path) if head.startswith(GZIP_MAGIC) else head
    if len(head) < START:
        return False
    version, *extents, kind, _, placed = FIELDS.unpack_from(head)
    plausible = all(0 < extent <= MOST_EXTENT for extent in extents)
    return version == VERSION and plausible and 0 <= kind <= MOST_TYPE and placed in (0, 1)


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """List each frame of each file as a series; refuse by the header what would not be read exactly."""
    return scan_each(partial(_list_volumes, reading=reading), files, workers)


def read(series: Series) -> Image:
    """Read one frame, or all as channels.

    Raises ReadError volume-header, -damaged, -truncated, -too-large, -type, -affine, -not-finite.
    """
    import nibabel

    return read_volume(series, _read_layout, f"nibabel {nibabel.__version__}")


def _list_volumes(path: Path, reading: Reading) -> list[Series]:
    return list_volumes([path], NAME, _read_layout, reading)


def _read_layout(head: bytes, path: Path) -> Layout:
    from nibabel.freesurfer.mghformat import MGHHeader

    if len(head) < START:
        raise ReadError("volume-header", "has no header of MGH", where=path, fix="copy it again")
    version, i, j, k, count, kind, _, placed = FIELDS.unpack_from(head)
    if version != VERSION or min(i, j, k, count) < 1:
        raise ReadError("volume-header", "has no valid dimensions", where=path, fix="write it again")
    if i * j * k > MOST_VOXELS:
        raise too_large(f"has {i * j * k} voxels, more than {MOST_VOXELS}", FAMILY, path)
    if kind not in TYPES:
        reason, fix = f"has values of type {kind}", "save it with one real number per voxel"
        raise ReadError("volume-type", reason, where=path, fix=fix)
    if placed != 1:
        reason = "says that where it lies is unknown (goodRASFlag)"
        raise ReadError("volume-affine", reason, where=path, fix="set it with mri_convert")
    with np.errstate(all="ignore"):
        affine = MGHHeader(head[:START], check=False).get_affine()
    if not is_regular(affine):
        raise ReadError("volume-affine", "has a singular affine", where=path, fix="write it again")
    affine = np.asarray(affine, dtype=np.float64)
    return Layout((i, j, k), count, np.dtype(TYPES[kind]), START, None, affine, family=FAMILY, trailer=True)
