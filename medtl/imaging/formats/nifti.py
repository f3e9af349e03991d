"""Read NIfTI: one file becomes one volume, in the axis order of the file.

A single slice, with two dimensions or a third of extent 1, stays a volume of one slice: only so does its
affine keep saying where it lies.
"""

import gzip
import hashlib
import io
import logging
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.series import Scan, Series

# nibabel writes what it finds odd in a header to stderr.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)

NAME = "nifti"

GZIP_MAGIC = b"\x1f\x8b"
NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
NIFTI1_MAGIC, NIFTI2_MAGIC = 344, 4  # places of the magic in the header
MAGICS = {b"n+1\0": 1, b"ni1\0": 1, b"n+2\0": 2, b"ni2\0": 2}
READ_TYPES = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"})

# Voxels in one image, 1 GiB as float32. Checked by the header, before pixels are decompressed.
MOST_VOXELS = 2**28
# What may follow the pixels in a stream.
TRAILING_BYTES = 2**20
# How far apart sform and qform may put a corner of the volume.
CONFLICT_MM = 1.0
# Length of the spatial unit in mm (xyzt_units); a file that does not say means millimetres.
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def recognises(path: Path, head: bytes) -> bool:
    """Look for NIfTI's magic, in the file or in the gzip stream that it holds."""
    if head.startswith(GZIP_MAGIC):
        head = _inflated_head(path)
    return _version(head) is not None


def scan(files: Sequence[Path]) -> Scan:
    """List each file as a series; refuse by the header what would not be read exactly."""
    series: list[Series] = []
    refusals: list[ReadError] = []
    for path in files:
        try:
            check_header(parse_header(_inflated_head(path), path), path)
        except ReadError as error:
            refusals.append(error)
        else:
            series.append(Series(path, (path,), NAME))
    return Scan(tuple(series), tuple(refusals), 0)


def read(series: Series) -> Image:
    """Read one volume.

    Raises ReadError nifti-header, -pair, -damaged, -truncated, -too-large, -dimensions, -type, -affine,
    -not-finite.
    """
    path = series.files[0]
    data = path.read_bytes()
    header = parse_header(_inflated_head(path), path)
    check_header(header, path)
    stream = _inflate(data, _expected_bytes(header), path) if data.startswith(GZIP_MAGIC) else data
    if len(stream) < _expected_bytes(header):
        reason = f"has {len(stream)} of {_expected_bytes(header)} bytes"
        raise ReadError("nifti-truncated", reason, where=path, fix="copy it again from its source")
    affine = spatial_affine(header, path)
    facts = ImageFacts(
        source=str(path),
        format=NAME,
        decoder=f"nibabel {nibabel.__version__}",
        sha256=hashlib.sha256(data).hexdigest(),
        bits=header.get_data_dtype().itemsize * 8,
        notes=series.notes,
    )
    spacing_mm = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return Image(_voxels(header, stream, path)[None], affine, spacing_mm, facts)


def _inflated_head(path: Path) -> bytes:
    """Return the first bytes of the content; fewer where a gzip stream breaks off."""
    with path.open("rb") as file:
        head = file.read(NIFTI2_BYTES)
        if not head.startswith(GZIP_MAGIC):
            return head
        file.seek(0)
        try:
            return gzip.GzipFile(fileobj=file).read(NIFTI2_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return b""


def _version(head: bytes) -> int | None:
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if NIFTI1_BYTES in sizes:
        return MAGICS.get(head[NIFTI1_MAGIC : NIFTI1_MAGIC + 4])
    if NIFTI2_BYTES in sizes:
        return MAGICS.get(head[NIFTI2_MAGIC : NIFTI2_MAGIC + 4])
    return None


def parse_header(head: bytes, path: Path) -> Nifti1Header | Nifti2Header:
    """Parse a header from the first bytes of the content. Raises ReadError nifti-header, nifti-damaged."""
    number = _version(head)
    if number is None:
        raise ReadError("nifti-damaged", "does not begin with NIfTI", where=path, fix="copy it again")
    kind, size = (Nifti1Header, NIFTI1_BYTES) if number == 1 else (Nifti2Header, NIFTI2_BYTES)
    try:
        header = kind(head[:size], check=False)
        header.get_data_shape(), header.get_data_dtype(), header.get_slope_inter()
        return header
    except Exception as error:  # nibabel raises many kinds on fields that contradict each other
        reason = f"has a header that cannot be parsed ({type(error).__name__})"
        raise ReadError("nifti-header", reason, where=path, fix="write it again") from error


def check_header(header: Nifti1Header | Nifti2Header, path: Path) -> None:
    """Refuse what would not be read exactly, before any pixel is decompressed."""
    if bytes(header["magic"])[:2] == b"ni":
        raise ReadError(
            "nifti-pair", "has its pixels in another file", where=path, fix="save it as one .nii file"
        )
    _check_shape(header, path)
    dtype = header.get_data_dtype()
    if dtype.str[1:] not in READ_TYPES:
        reason = "has complex, colour or extended values"
        raise ReadError("nifti-type", reason, where=path, fix="save it with one real number per voxel")
    least = (
        NIFTI1_BYTES + 4 if isinstance(header, Nifti1Header) and not isinstance(header, Nifti2Header) else 544
    )
    offset = float(header["vox_offset"])
    if not least <= offset <= TRAILING_BYTES * 64 or offset != int(offset):
        reason = f"says that its pixels begin at byte {offset:.0f}"
        raise ReadError("nifti-header", reason, where=path, fix="write it again")
    spatial_affine(header, path)


def _check_shape(header: Nifti1Header | Nifti2Header, path: Path) -> None:
    shape = header.get_data_shape()
    if not 2 <= len(shape) <= 7 or min(shape) < 1:
        raise ReadError("nifti-header", "has no valid dimensions", where=path, fix="write it again")
    if math.prod(shape) > MOST_VOXELS:
        reason = f"has {math.prod(shape)} voxels, more than {MOST_VOXELS}"
        raise ReadError("nifti-too-large", reason, where=path, fix="split or shrink it")
    if math.prod(shape[3:]) > 1:
        reason = f"has {' x '.join(map(str, shape))} values: more than one volume"
        raise ReadError("nifti-dimensions", reason, where=path, fix="save each volume as a file")


def spatial_affine(header: Nifti1Header | Nifti2Header, path: Path) -> NDArray[np.float64]:
    """Return the affine (4, 4) in RAS+ mm: the sform, else the qform. Raises ReadError nifti-affine."""
    found = [affine for affine in (_sform(header), _qform(header, path)) if affine is not None]
    if not found:
        reason = "has neither sform nor qform: where it lies is unknown"
        raise ReadError("nifti-affine", reason, where=path, fix="set its sform")
    for affine in found:
        _check_regular(affine, path)
    scale = UNITS_MM.get(int(header["xyzt_units"]) & 7)
    if scale is None:
        raise ReadError(
            "nifti-header", "has an unknown unit of length", where=path, fix="write it in millimetres"
        )
    apart = _corner_distance(found[0], found[-1], header.get_data_shape()) * scale
    if apart > CONFLICT_MM:
        reason = f"sform and qform put a corner {apart:.1f} mm apart"
        raise ReadError("nifti-affine", reason, where=path, fix="correct one, or set its code to 0")
    return np.diag([scale, scale, scale, 1.0]) @ found[0]


def _sform(header: Nifti1Header | Nifti2Header) -> NDArray[np.float64] | None:
    return np.asarray(header.get_sform(), np.float64) if int(header["sform_code"]) > 0 else None


def _qform(header: Nifti1Header | Nifti2Header, path: Path) -> NDArray[np.float64] | None:
    if int(header["qform_code"]) <= 0:
        return None
    try:
        return np.asarray(header.get_qform(), np.float64)
    except Exception as error:  # nibabel raises several kinds for quaternions that are none
        raise ReadError("nifti-affine", "has an invalid qform", where=path, fix="set its sform") from error


def _check_regular(affine: NDArray[np.float64], path: Path) -> None:
    """Refuse an affine that is not finite or flattens the volume."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if np.isfinite(affine).all() and lengths.min() > 0:
        volume = abs(np.linalg.det(affine[:3, :3] / lengths))
        if volume > 1e-3:
            return
    raise ReadError("nifti-affine", "has a singular affine", where=path, fix="correct its sform or qform")


def _corner_distance(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """Return how far apart two affines put the corners of a volume, at most."""
    last = [extent - 1 for extent in (*shape, 1, 1)[:3]]
    corners = np.array([(i, j, k, 1) for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[2])])
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())


def _expected_bytes(header: Nifti1Header | Nifti2Header) -> int:
    voxels = math.prod(header.get_data_shape())
    return int(header["vox_offset"]) + voxels * header.get_data_dtype().itemsize


def _inflate(data: bytes, expected: int, path: Path) -> bytes:
    """Decompress the whole stream, so that its CRC is checked, and never more than the header announces."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            stream = file.read(expected + TRAILING_BYTES)
            more = file.read(1)
    except EOFError as error:
        fix = "copy it again from its source"
        raise ReadError("nifti-truncated", "is a gzip stream that breaks off", where=path, fix=fix) from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ReadError(
            "nifti-damaged", "is a corrupt gzip stream", where=path, fix="copy it again"
        ) from error
    if more:
        reason = "holds far more bytes than its header announces"
        raise ReadError("nifti-too-large", reason, where=path, fix="write it again")
    return stream


def _voxels(header: Nifti1Header | Nifti2Header, stream: bytes, path: Path) -> NDArray[np.float32]:
    """Return scaled values (i, j, k)."""
    kind = Nifti2Image if isinstance(header, Nifti2Header) else Nifti1Image
    try:
        image = kind.from_bytes(stream)
        values = np.asarray(image.dataobj)
    except Exception as error:  # as in parse_header: extensions and scaling are parsed here
        reason = f"cannot be parsed ({type(error).__name__})"
        raise ReadError("nifti-header", reason, where=path, fix="write it again") from error
    if not np.isfinite(values).all():
        raise ReadError("nifti-not-finite", "has NaN or infinite values", where=path, fix="fill or mask them")
    return np.ascontiguousarray(values.reshape((*values.shape, 1)[:3]), dtype=np.float32)
