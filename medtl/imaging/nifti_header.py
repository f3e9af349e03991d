"""HEADER OF A NIFTI FILE -> Layout: where its volumes lie, in the file and in the patient."""

import logging
import math
from dataclasses import dataclass
from itertools import product
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


@dataclass(frozen=True, eq=False)
class Layout:
    """What a header says about its volumes: they follow one another from byte `start`, first axis fastest.

    scaling is (slope, intercept), None where stored values are meant as they are; affine is in RAS+ mm.
    """

    shape: tuple[int, int, int]
    count: int
    dtype: np.dtype
    start: int
    scaling: tuple[float, float] | None
    affine: NDArray[np.float64]

    @property
    def volume_bytes(self) -> int:
        """The bytes of one volume."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """How many bytes the content of the file has at least."""
        return self.start + self.count * self.volume_bytes


def read_layout(head: bytes, path: Path) -> Layout:
    """Read a header from the first bytes of the content; refuse by it what would not be read exactly.

    Raises ReadError nifti-header, -damaged, -pair, -dimensions, -too-large, -type, -affine.
    """
    header = _parse(head, path)
    if bytes(header["magic"])[:2] == b"ni":
        fix = "save it as one .nii file"
        raise ReadError("nifti-pair", "has its pixels in another file", where=path, fix=fix)
    shape, count = _extents(header, path)
    dtype = _value_type(header, path)
    start = float(header["vox_offset"])
    if not int(header["sizeof_hdr"]) + 4 <= start <= MOST_OFFSET or start != int(start):
        raise _contradiction(f"says that its pixels begin at byte {start:.0f}", path)
    slope, inter = header.get_slope_inter()
    scaling = None if slope is None or (slope, inter) == (1.0, 0.0) else (float(slope), float(inter))
    return Layout(shape, count, dtype, int(start), scaling, _affine(header, shape, path))


def _parse(head: bytes, path: Path) -> "Header":
    number = nifti_version(head)
    if number is None:
        raise ReadError("nifti-damaged", "does not begin with NIfTI", where=path, fix="copy it again")
    from nibabel import Nifti1Header, Nifti2Header  # a third of a second, with the first file that needs it

    kind, size = (Nifti1Header, NIFTI1_BYTES) if number == 1 else (Nifti2Header, NIFTI2_BYTES)
    try:
        header = kind(head[:size], check=False)
        header.get_data_dtype(), header.get_slope_inter()
    except Exception as error:  # nibabel raises many kinds on fields that contradict each other
        raise _contradiction(f"has a header that cannot be parsed ({type(error).__name__})", path) from error
    if int(header["sizeof_hdr"]) != size:  # nibabel takes the order of bytes from the dimensions
        raise _contradiction("has a header that contradicts itself in the order of its bytes", path)
    return header


def _extents(header: "Header", path: Path) -> tuple[tuple[int, int, int], int]:
    """Return the shape of a volume, and how many volumes there are."""
    axes, *extents = (int(extent) for extent in header["dim"])
    given = extents[:axes]
    if not 2 <= axes <= 7 or min(given) < 1:
        raise _contradiction("has no valid dimensions", path)
    i, j, k, count, *others = (*given, 1, 1)
    if i * j * k > MOST_VOXELS or count > MOST_VOLUMES:
        reason = f"has {count} x {i * j * k} voxels, more than {MOST_VOLUMES} x {MOST_VOXELS}"
        raise ReadError("nifti-too-large", reason, where=path, fix="split or shrink it")
    components = count > 1 and int(header["intent_code"]) in COMPONENT_INTENTS
    if math.prod(others) > 1 or components:
        reason = f"has {' x '.join(map(str, given))} values: several in a voxel"
        raise ReadError("nifti-dimensions", reason, where=path, fix="save one value per voxel")
    return (i, j, k), count


def _value_type(header: "Header", path: Path) -> np.dtype:
    dtype = header.get_data_dtype()
    if dtype.str[1:] not in READ_TYPES:
        reason = "has complex, colour or extended values"
        raise ReadError("nifti-type", reason, where=path, fix="save it with one real number per voxel")
    bits = int(header["bitpix"])
    if bits != dtype.itemsize * 8:
        raise _contradiction(f"says {bits} bits per voxel, and its type has {dtype.itemsize * 8}", path)
    if math.isinf(float(header["scl_slope"])):
        raise ReadError("nifti-header", "is scaled by infinity", where=path, fix="correct its scl_slope")
    return dtype


def _affine(header: "Header", shape: tuple[int, int, int], path: Path) -> NDArray[np.float64]:
    """Return the affine (4, 4) in RAS+ mm of a volume: its sform where that has a code, else its qform.

    The order is that of nifti1.h, methods 3 and 2. Its method 1, sizes without a position, is refused. So are
    two forms that disagree, though the standard allows it: nothing in the file says which one is meant.
    """
    scale = UNITS_MM.get(int(header["xyzt_units"]) & 7)
    if scale is None:
        raise ReadError("nifti-header", "has an unknown unit of length", where=path, fix="write it in mm")
    with np.errstate(all="ignore"):  # what overflows is not finite, and refused
        forms = [header.get_sform()] if int(header["sform_code"]) > 0 else []
        forms += [_qform(header, path)] if int(header["qform_code"]) > 0 else []
        if not forms:
            reason = "has neither sform nor qform: where it lies is unknown"
            raise ReadError("nifti-affine", reason, where=path, fix="set its sform")
        affines = [np.diag([scale, scale, scale, 1.0]) @ form for form in forms]
        if not all(map(_is_regular, affines)):
            fix = "correct its sform or qform"
            raise ReadError("nifti-affine", "has a singular affine", where=path, fix=fix)
        corners = np.array([(*corner, 1) for corner in product(*((0, extent - 1) for extent in shape))])
        apart = np.linalg.norm(corners @ (affines[0] - affines[-1]).T, axis=1).max()
    if not apart <= CONFLICT_MM:
        reason = f"sform and qform put a corner {apart:.1f} mm apart"
        raise ReadError("nifti-affine", reason, where=path, fix="correct one, or set its code to 0")
    return affines[0]


def _qform(header: "Header", path: Path) -> NDArray[np.float64]:
    header = header.copy()
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # qfac: nifti1.h, "we take qfac=1"
    try:
        return header.get_qform()
    except Exception as error:  # nibabel raises several kinds for invalid quaternions
        fix = "correct it, or set its code to 0 beside an sform"
        raise ReadError("nifti-affine", "has an invalid qform", where=path, fix=fix) from error


def _is_regular(affine: NDArray[np.float64]) -> bool:
    """Say whether an affine is finite and does not flatten the volume."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.min() > 0):
        return False
    return abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3


def _contradiction(reason: str, path: Path) -> ReadError:
    return ReadError("nifti-header", reason, where=path, fix="write it again")
