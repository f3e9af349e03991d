"""Parse the header of a NIfTI file, and refuse by it what would not be read exactly."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header as Header  # which that of NIfTI-2 is, too

# nibabel writes what it finds unusual in a header to stderr.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
NIFTI1_MAGIC, NIFTI2_MAGIC = 344, 4  # places of the magic in the header
MAGICS = {b"n+1\0": 1, b"ni1\0": 1, b"n+2\0": 2, b"ni2\0": 2}
READ_TYPES = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"})

# Intents by which the fourth axis counts components of one voxel: matrix, vector, quaternion, colour.
COMPONENT_INTENTS = frozenset({1004, 1005, 1006, 1007, 1008, 1009, 1010, 2003, 2004})

# Voxels in one volume, 1 GiB as float32. Checked by the header, before pixels are decompressed.
MOST_VOXELS = 2**28

# Volumes in one file: what NIfTI-1 can count.
MOST_VOLUMES = 2**15 - 1

# Where pixels begin at most, after a header and its extensions.
MOST_OFFSET = 2**26

# How far apart sform and qform may put a corner of the volume.
CONFLICT_MM = 1.0

# Length of the spatial unit in mm (xyzt_units); a file that does not say means millimetres.
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def nifti_version(head: bytes) -> int | None:
    """Return 1 or 2 for content that begins as NIfTI does, None for other content."""
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if NIFTI1_BYTES in sizes:
        return MAGICS.get(head[NIFTI1_MAGIC : NIFTI1_MAGIC + 4])
    if NIFTI2_BYTES in sizes:
        return MAGICS.get(head[NIFTI2_MAGIC : NIFTI2_MAGIC + 4])
    return None


def parse_header(head: bytes, path: Path) -> "Header":
    """Parse a header from the first bytes of the content. Raises ReadError nifti-header, nifti-damaged."""
    number = nifti_version(head)
    if number is None:
        raise ReadError("nifti-damaged", "does not begin with NIfTI", where=path, fix="copy it again")
    from nibabel import Nifti1Header, Nifti2Header  # a third of a second, with the first file that needs it

    kind, size = (Nifti1Header, NIFTI1_BYTES) if number == 1 else (Nifti2Header, NIFTI2_BYTES)
    try:
        header = kind(head[:size], check=False)
        header.get_data_dtype(), header.get_slope_inter()
    except Exception as error:  # nibabel raises many kinds on fields that contradict each other
        reason = f"has a header that cannot be parsed ({type(error).__name__})"
        raise ReadError("nifti-header", reason, where=path, fix="write it again") from error
    if int(header["sizeof_hdr"]) != size:  # nibabel takes the order of bytes from the dimensions
        reason = "has a header that contradicts itself in the order of its bytes"
        raise ReadError("nifti-header", reason, where=path, fix="write it again")
    return header


def check_header(header: "Header", path: Path) -> None:
    """Refuse what would not be read exactly, before any pixel is decompressed."""
    if bytes(header["magic"])[:2] == b"ni":
        fix = "save it as one .nii file"
        raise ReadError("nifti-pair", "has its pixels in another file", where=path, fix=fix)
    _check_shape(header, path)
    _check_type(header, path)
    offset = float(header["vox_offset"])
    if not int(header["sizeof_hdr"]) + 4 <= offset <= MOST_OFFSET or offset != int(offset):
        reason = f"says that its pixels begin at byte {offset:.0f}"
        raise ReadError("nifti-header", reason, where=path, fix="write it again")
    spatial_affine(header, volume_shape(header), path)


def _check_shape(header: "Header", path: Path) -> None:
    axes, shape = int(header["dim"][0]), _shape(header)
    if not 2 <= axes <= 7 or min(shape) < 1:
        raise ReadError("nifti-header", "has no valid dimensions", where=path, fix="write it again")
    voxels, volumes = math.prod(shape[:3]), volume_count(header)
    if voxels > MOST_VOXELS or volumes > MOST_VOLUMES:
        reason = f"has {volumes} x {voxels} voxels, more than {MOST_VOLUMES} x {MOST_VOXELS}"
        raise ReadError("nifti-too-large", reason, where=path, fix="split or shrink it")
    components = volumes > 1 and int(header["intent_code"]) in COMPONENT_INTENTS
    if math.prod(shape[4:]) > 1 or components:
        reason = f"has {' x '.join(map(str, shape))} values: several in a voxel"
        raise ReadError("nifti-dimensions", reason, where=path, fix="save one value a voxel")


def _check_type(header: "Header", path: Path) -> None:
    dtype = header.get_data_dtype()
    if dtype.str[1:] not in READ_TYPES:
        reason = "has complex, colour or extended values"
        raise ReadError("nifti-type", reason, where=path, fix="save it with one real number per voxel")
    if int(header["bitpix"]) != dtype.itemsize * 8:
        reason = f"says {int(header['bitpix'])} bits a voxel, and its data type has {dtype.itemsize * 8}"
        raise ReadError("nifti-header", reason, where=path, fix="write it again")
    if math.isinf(float(header["scl_slope"])):
        raise ReadError("nifti-header", "is scaled by infinity", where=path, fix="correct its scl_slope")


def _shape(header: "Header") -> tuple[int, ...]:
    return tuple(int(extent) for extent in header["dim"][1 : int(header["dim"][0]) + 1])


def volume_shape(header: "Header") -> tuple[int, int, int]:
    """Return the extents of one volume."""
    i, j, k = (*_shape(header), 1)[:3]
    return i, j, k


def volume_count(header: "Header") -> int:
    """Return how many volumes a file holds."""
    return (*_shape(header), 1, 1)[3]


def volume_bytes(header: "Header") -> int:
    """Return the bytes of one volume."""
    return math.prod(volume_shape(header)) * header.get_data_dtype().itemsize


def announced_bytes(header: "Header") -> int:
    """Return how long the content of a file is by its header."""
    return int(header["vox_offset"]) + volume_count(header) * volume_bytes(header)


def spatial_affine(header: "Header", shape: Sequence[int], path: Path) -> NDArray[np.float64]:
    """Return the affine (4, 4) in RAS+ mm of a volume: its sform where that has a code, else its qform.

    The order is that of nifti1.h, methods 3 and 2. Its method 1, sizes without a position, is refused. So are
    two forms that disagree, though the standard allows it: nothing in the file says which one is meant.
    Raises ReadError nifti-affine, nifti-header.
    """
    with np.errstate(all="ignore"):  # what overflows is not finite, and refused
        affines = [header.get_sform()] if int(header["sform_code"]) > 0 else []
        affines += [_qform(header, path)] if int(header["qform_code"]) > 0 else []
        if not affines:
            reason = "has neither sform nor qform: where it lies is unknown"
            raise ReadError("nifti-affine", reason, where=path, fix="set its sform")
        scale = UNITS_MM.get(int(header["xyzt_units"]) & 7)
        if scale is None:
            reason = "has an unknown unit of length"
            raise ReadError("nifti-header", reason, where=path, fix="write it in millimetres")
        scaled = [np.diag([scale, scale, scale, 1.0]) @ affine for affine in affines]
        for affine in scaled:
            _check_regular(affine, path)
        apart = _corner_distance(scaled[0], scaled[-1], shape)
    if not apart <= CONFLICT_MM:
        reason = f"sform and qform put a corner {apart:.1f} mm apart"
        raise ReadError("nifti-affine", reason, where=path, fix="correct one, or set its code to 0")
    return scaled[0]


def _qform(header: "Header", path: Path) -> NDArray[np.float64]:
    header = header.copy()
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # qfac: nifti1.h, "we take qfac=1"
    try:
        return header.get_qform()
    except Exception as error:  # nibabel raises several kinds for quaternions that are none
        fix = "correct it, or set its code to 0 beside an sform"
        raise ReadError("nifti-affine", "has an invalid qform", where=path, fix=fix) from error


def _check_regular(affine: NDArray[np.float64], path: Path) -> None:
    """Refuse an affine that is not finite or flattens the volume."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.min() > 0:
        volume = abs(np.linalg.det(affine[:3, :3] / lengths))
        if volume > 1e-3:
            return
    raise ReadError("nifti-affine", "has a singular affine", where=path, fix="correct its sform or qform")


def _corner_distance(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """Return how far apart two affines put the corners of a volume, at most."""
    i, j, k = (extent - 1 for extent in shape)
    corners = np.array([(x, y, z, 1) for x in (0, i) for y in (0, j) for z in (0, k)])
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())
