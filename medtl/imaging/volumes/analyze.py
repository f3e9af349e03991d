"""Read Analyze 7.5, a header (.hdr) and its pixels (.img), as SPM wrote it.

The format does not say where its first axis points. By SPM's convention, which nibabel follows, it increases
to the patient's left, the second to the front, the third up; each image notes that.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.series import EXACT, Kind, Reading, Scan, Series, scan_each
from medtl.imaging.volumes.nifti_header import MOST_OFFSET, NIFTI1_BYTES, is_regular, nifti_version
from medtl.imaging.volumes.volume_file import (
    GZIP_MAGIC,
    MOST_VOXELS,
    Layout,
    inflated_start,
    list_volumes,
    pixels_beside,
    read_volume,
    stem_of,
    too_large,
)

if TYPE_CHECKING:
    from nibabel.spm2analyze import Spm2AnalyzeHeader as Header

NAME, TITLE = "analyze", "Analyze"
KIND: Kind = "volume"
SUFFIXES: tuple[str, ...] = (".hdr", ".hdr.gz")

FAMILY = "volume"
READ_TYPES = frozenset({"u1", "i2", "i4", "f4", "f8"})
DIMENSIONS = slice(40, 42)
MOST_AXES = 7
ORDERS: dict[Literal["little", "big"], str] = {"little": "<", "big": ">"}
ORIENT = 252  # place of the byte that names another plane than the transverse one
CONVENTION = "left and right by the convention of Analyze: its first axis points left"


def recognises(path: Path, head: bytes) -> bool:
    """Look for Analyze's size of header and number of dimensions, in one order of bytes."""
    head = inflated_start(path) if head.startswith(GZIP_MAGIC) else head
    return len(head) >= NIFTI1_BYTES and nifti_version(head) is None and _order(head) is not None


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """List each volume of each file as a series; refuse by the header what would not be read exactly."""
    return scan_each(partial(_list_volumes, reading=reading), files, workers)


def read(series: Series) -> Image:
    """Read one volume, or all as channels.

    Raises ReadError volume-header, -pair, -damaged, -truncated, -too-large, -dimensions, -type, -affine,
    -not-finite.
    """
    import nibabel

    return read_volume(series, _read_layout, f"nibabel {nibabel.__version__}")


def _list_volumes(path: Path, reading: Reading) -> list[Series]:
    matrix = path.with_name(stem_of(path) + ".mat")
    if matrix.exists():
        reason = f"is placed by SPM's {matrix.name}"
        raise ReadError("volume-affine", reason, where=path, fix="convert both to NIfTI with SPM or nibabel")
    return list_volumes([path, pixels_beside(path, FAMILY)], NAME, _read_layout, reading)


def _order(head: bytes) -> str | None:
    for order in ORDERS:
        size = int.from_bytes(head[:4], order)
        axes = int.from_bytes(head[DIMENSIONS], order)
        if size == NIFTI1_BYTES and 1 <= axes <= MOST_AXES:
            return ORDERS[order]
    return None


def _read_layout(head: bytes, path: Path) -> Layout:
    from nibabel.spm2analyze import Spm2AnalyzeHeader

    order = _order(head)
    if order is None or len(head) < NIFTI1_BYTES:
        raise _contradiction("is no header of Analyze", path)
    header = Spm2AnalyzeHeader(head[:NIFTI1_BYTES], endianness=order, check=False)
    shape, count = _extents(header, path)
    dtype = _value_type(header, path)
    start = float(header["vox_offset"])
    if not 0 <= start <= MOST_OFFSET or start != int(start):
        raise _contradiction(f"says that its pixels begin at byte {start:.0f}", path)
    slope, inter = header.get_slope_inter()
    plain = slope is None or (slope, inter) == (1.0, 0.0)
    scaling = None if plain else (float(slope), float(inter))
    notes = (CONVENTION, *([] if plain else ["scaled as SPM does"]))
    affine = _affine(header, head, path)
    return Layout(shape, count, dtype, int(start), scaling, affine, notes=notes, family=FAMILY)


def _extents(header: "Header", path: Path) -> tuple[tuple[int, int, int], int]:
    axes, *extents = (int(extent) for extent in header["dim"])
    i, j, k, count, *others = (*extents[:axes], 1, 1, 1)
    if min(extents[:axes]) < 1:
        raise _contradiction("has no valid dimensions", path)
    if i * j * k > MOST_VOXELS:
        raise too_large(f"has {i * j * k} voxels, more than {MOST_VOXELS}", FAMILY, path)
    if axes < 2 or np.prod(others) > 1:
        raise ReadError("volume-dimensions", f"has {axes} axes", where=path, fix="save one value per voxel")
    return (i, j, k), count


def _value_type(header: "Header", path: Path) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except Exception as error:  # nibabel raises several kinds on unknown codes
        raise _contradiction("has an unknown type of values", path) from error
    if dtype.str[1:] not in READ_TYPES:
        reason = "has binary, complex or colour values"
        raise ReadError("volume-type", reason, where=path, fix="save it with one real number per voxel")
    if int(header["bitpix"]) != dtype.itemsize * 8:
        raise _contradiction(f"says {int(header['bitpix'])} bits per voxel", path)
    return dtype


def _affine(header: "Header", head: bytes, path: Path) -> np.ndarray:
    if head[ORIENT] != 0:
        reason = f"has slices of another plane by its field orient ({head[ORIENT]})"
        raise ReadError("volume-affine", reason, where=path, fix="convert it to NIfTI, and check its sides")
    if int(header["dim"][0]) < 3 and not header["pixdim"][3] > 0:
        header["pixdim"][3] = 1
    affine = header.get_best_affine()
    if not (header["pixdim"][1:4] > 0).all() or not is_regular(affine):
        fix = "convert it to NIfTI with its voxel sizes"
        raise ReadError("volume-affine", "has no voxel sizes above 0", where=path, fix=fix)
    return np.asarray(affine, dtype=np.float64)


def _contradiction(reason: str, path: Path) -> ReadError:
    return ReadError("volume-header", reason, where=path, fix="write it again")
