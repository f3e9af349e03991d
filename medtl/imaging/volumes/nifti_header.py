"""HEADER OF A NIFTI FILE -> Layout: where its volumes lie, in the file and in the patient."""

import logging
import math
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.volumes.volume_file import MOST_VOXELS, Layout, too_large

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header as Header  # which that of NIfTI-2 is, too

# nibabel writes what it finds unusual in a header to stderr.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
NIFTI1_MAGIC, NIFTI2_MAGIC = 344, 4  # places of the magic in the header
MAGICS = {b"n+1\0": 1, b"ni1\0": 1, b"n+2\0": 2, b"ni2\0": 2}
READ_TYPES = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"})
COLOUR_TYPES = {128: 3, 2304: 4}  # RGB24, RGBA32

# Intents by which the fourth axis counts components of one voxel: matrix, vector, quaternion, colour.
COMPONENT_INTENTS = frozenset({1004, 1005, 1006, 1007, 1008, 1009, 1010, 2003, 2004})

# Volumes in one file: what NIfTI-1 can count.
MOST_VOLUMES = 2**15 - 1

# Where pixels begin at most, after a header and its extensions.
MOST_OFFSET = 2**26

# How far apart sform and qform of one code may put a corner of the volume.
CONFLICT_MM = 1.0

# How far the squared length of (b, c, d) may exceed 1 by rounding, and by what nibabel itself lets pass.
LONG_QUATERNION, SLIGHTLY_LONG = 1e-5, 3e-7

# Length of the spatial unit in mm (xyzt_units); a file that does not say means millimetres.
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
UNIT_NAMES = {1: "metres", 3: "micrometres"}

# What codes of sform and qform say about the space.
SPACES = {1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI", 5: "template"}


def nifti_version(head: bytes) -> int | None:
    """Return 1 or 2 for content that begins as NIfTI does, None for other content."""
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if NIFTI1_BYTES in sizes:
        return MAGICS.get(head[NIFTI1_MAGIC : NIFTI1_MAGIC + 4])
    if NIFTI2_BYTES in sizes:
        return MAGICS.get(head[NIFTI2_MAGIC : NIFTI2_MAGIC + 4])
    return None


def read_layout(head: bytes, path: Path) -> Layout:
    """Read a header from the first bytes of the content; refuse by it what would not be read exactly.

    Raises ReadError nifti-header, -damaged, -dimensions, -too-large, -type, -affine.
    """
    header = _parse(head, path)
    shape, count, components = _extents(header, path)
    dtype, colours = _value_type(header, path)
    start = _start(header, path)
    slope, inter = header.get_slope_inter()
    plain = slope is None or (slope, inter) == (1.0, 0.0) or colours > 1
    scaling = None if plain else (float(slope), float(inter))
    affine, notes = _affine(header, shape, path)
    return Layout(
        shape,
        count,
        dtype,
        start,
        scaling,
        affine,
        components=components,
        interleaved=colours,
        colour=colours > 1,
        notes=notes,
    )


def is_pair(head: bytes) -> bool:
    """Say whether a header has its pixels in another file, by its magic."""
    number = nifti_version(head)
    place = NIFTI1_MAGIC if number == 1 else NIFTI2_MAGIC
    return number is not None and head[place : place + 2] == b"ni"


def _start(header: "Header", path: Path) -> int:
    """Return the byte at which pixels begin; in a pair they have a file of their own."""
    start = float(header["vox_offset"])
    pair = bytes(header["magic"])[:2] == b"ni"
    earliest = 0 if pair else int(header["sizeof_hdr"]) + 4
    if not earliest <= start <= MOST_OFFSET or start != int(start):
        raise _contradiction(f"says that its pixels begin at byte {start:.0f}", path)
    return int(start)


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


def _extents(header: "Header", path: Path) -> tuple[tuple[int, int, int], int, bool]:
    """Return the shape of a volume, how many there are, and whether they are components of its voxels."""
    axes, *extents = (int(extent) for extent in header["dim"])
    given = extents[:axes]
    if not 2 <= axes <= 7 or min(given) < 1:
        raise _contradiction("has no valid dimensions", path)
    i, j, k, times, each, *others = (*given, 1, 1, 1)
    if i * j * k > MOST_VOXELS or max(times, each) > MOST_VOLUMES:
        reason = f"has {times} x {i * j * k} voxels, more than {MOST_VOLUMES} x {MOST_VOXELS}"
        raise too_large(reason, "nifti", path)
    if math.prod(others) > 1 or (times > 1 and each > 1):
        reason = f"has {' x '.join(map(str, given))} values: several in a voxel"
        raise ReadError("nifti-dimensions", reason, where=path, fix="save one value per voxel")
    components = each > 1 or (times > 1 and int(header["intent_code"]) in COMPONENT_INTENTS)
    return (i, j, k), times * each, components


def _value_type(header: "Header", path: Path) -> tuple[np.dtype, int]:
    """Return the type of stored values, and how many of them lie together as a colour."""
    colours = COLOUR_TYPES.get(int(header["datatype"]), 1)
    dtype = np.dtype("u1") if colours > 1 else header.get_data_dtype()
    if dtype.str[1:] not in READ_TYPES:
        reason = "has complex or extended values"
        raise ReadError("nifti-type", reason, where=path, fix="save it with one real number per voxel")
    bits = int(header["bitpix"])
    if bits != dtype.itemsize * 8 * colours:
        raise _contradiction(f"says {bits} bits per voxel, and its type has {dtype.itemsize * 8}", path)
    if math.isinf(float(header["scl_slope"])):
        raise ReadError("nifti-header", "is scaled by infinity", where=path, fix="correct its scl_slope")
    return dtype, colours


def _affine(
    header: "Header", shape: tuple[int, int, int], path: Path
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return the affine (4, 4) in RAS+ mm, and notes: its sform where that has a code, else its qform.

    The order is that of nifti1.h, methods 3 and 2. Its method 1, sizes without a position, is refused.
    """
    unit = int(header["xyzt_units"]) & 7
    if unit not in UNITS_MM:
        raise ReadError("nifti-header", "has an unknown unit of length", where=path, fix="write it in mm")
    if (ruling := int(header["sform_code"]) or int(header["qform_code"])) > max(SPACES):
        fix = "set its sform_code to that of the space"
        raise ReadError("nifti-affine", f"is in an unknown space, of code {ruling}", where=path, fix=fix)
    scale = np.diag([UNITS_MM[unit]] * 3 + [1.0])
    notes = (f"lengths in {UNIT_NAMES[unit]} converted to mm",) if unit in UNIT_NAMES else ()
    with np.errstate(all="ignore"):  # what overflows is not finite, and refused
        if int(header["sform_code"]) > 0:
            sform = scale @ header.get_sform()
            if not is_regular(sform):
                fix = "correct it, or set its code to 0 beside a qform"
                raise ReadError("nifti-affine", "has a singular sform", where=path, fix=fix)
            return sform, (*notes, *_compare(header, sform, scale, shape, path))
        if int(header["qform_code"]) > 0:
            qform, lengthened = _qform(header)
            if qform is None or not is_regular(scale @ qform):
                fix = "correct it, or set an sform"
                raise ReadError("nifti-affine", "has an invalid qform", where=path, fix=fix)
            rounded = ("its quaternion, longer than 1, was taken as of length 1",) if lengthened else ()
            return scale @ qform, (*notes, *rounded)
    reason = "has neither sform nor qform: where it lies is unknown"
    raise ReadError("nifti-affine", reason, where=path, fix="set its sform")


def _compare(
    header: "Header", sform: NDArray, scale: NDArray, shape: tuple[int, int, int], path: Path
) -> tuple[str, ...]:
    """Return a note where the qform does not place a volume as its sform does, which counts.

    Two that name one space and disagree are refused: nothing in the file says which one is meant.
    """
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if qform_code <= 0:
        return ()
    qform, _ = _qform(header)
    if qform is None or not is_regular(scale @ qform):
        return ("its qform is invalid: read by its sform",)
    corners = np.array([(*corner, 1) for corner in product(*((0, extent - 1) for extent in shape))])
    apart = np.linalg.norm(corners @ (sform - scale @ qform).T, axis=1).max()
    if apart <= CONFLICT_MM:
        return ()
    if sform_code == qform_code:
        reason = f"sform and qform of one code put a corner {apart:.1f} mm apart"
        raise ReadError("nifti-affine", reason, where=path, fix="correct one, or set its code to 0")
    spaces = [SPACES.get(code, f"code {code}") for code in (sform_code, qform_code)]
    return (f"placed by its sform ({spaces[0]}); its qform ({spaces[1]}) is {apart:.1f} mm away",)


def _qform(header: "Header") -> tuple[NDArray[np.float64] | None, bool]:
    """Return the qform, None where it is invalid, and whether its quaternion was longer than 1.

    An axis that the file does not have needs no size (nifti1_io takes 1, too).
    """
    header = header.copy()
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # qfac: nifti1.h, "we take qfac=1"
    if header["dim"][0] < 3 and not header["pixdim"][3] > 0:
        header["pixdim"][3] = 1
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = float(np.linalg.norm([float(header[name]) for name in names]))
    lengthened = SLIGHTLY_LONG < length**2 - 1 <= LONG_QUATERNION
    if lengthened:
        for name in names:
            header[name] = float(header[name]) / length
    try:
        return header.get_qform(), lengthened
    except Exception:  # nibabel raises several kinds for invalid quaternions and sizes
        return None, False


def is_regular(affine: NDArray[np.float64]) -> bool:
    """Say whether an affine is finite and does not flatten the volume."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and np.isfinite(lengths).all() and lengths.min() > 0):
        return False
    return abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3


def _contradiction(reason: str, path: Path) -> ReadError:
    return ReadError("nifti-header", reason, where=path, fix="write it again")
