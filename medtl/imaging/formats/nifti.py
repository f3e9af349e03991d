"""Read NIfTI: one file becomes one volume, in the axis order of the file, or as many as its time axis has.

A single slice, with two dimensions or a third of extent 1, stays a volume of one slice: only so does its
affine keep saying where it lies. A file of several volumes holds the items "volume/0", "volume/1", ...; each
is read on its own, from a stream that is always followed to its end, where the checksum is.
"""

import hashlib
import logging
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.series import Scan, Series

# nibabel writes what it finds odd in a header to stderr.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)

NAME = "nifti"
Header = Nifti1Header | Nifti2Header

GZIP_MAGIC = b"\x1f\x8b"
GZIP_WBITS = 31  # tells zlib to expect gzip's header and trailer, and to check both (RFC 1952)
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
# Bytes of all volumes of a file; each volume of a gzip file costs inflating them all.
MOST_BYTES = 2**33
# Where pixels begin at most, after a header and its extensions.
MOST_OFFSET = 2**26
# What may follow the pixels.
TRAILING_BYTES = 2**20
# Members of a gzip stream: some, and one for each MEMBER_BYTES. Blocked gzip puts 64 KiB into each.
MOST_MEMBERS, MEMBER_BYTES = 64, 2**14
# No deflate stream inflates to more than this many times its length (zlib's technical notes).
DEFLATE_RATIO = 1032
# How many times their length incompressible bytes take in a gzip stream at most, blocked gzip included.
MOST_GROWTH = 1.01
# A stream that announces more than BOMB_BYTES out of less than a BOMB_RATIO-th of them is not inflated.
BOMB_BYTES, BOMB_RATIO = 2**28, 100
# How much is read, and inflated, at a time.
RAW_BYTES, PIECE_BYTES = 2**14, 2**20
# How far apart sform and qform may put a corner of the volume.
CONFLICT_MM = 1.0
# Length of the spatial unit in mm (xyzt_units); a file that does not say means millimetres.
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def recognises(path: Path, head: bytes) -> bool:
    """Look for NIfTI's magic, in the file or in the gzip stream that it holds."""
    if not head.startswith(GZIP_MAGIC):
        return _version(head) is not None
    with path.open("rb") as file:
        return _version(_inflated_head(file.read(RAW_BYTES))) is not None


def scan(files: Sequence[Path]) -> Scan:
    """List each volume of each file as a series; refuse by the header what would not be read exactly."""
    series: list[Series] = []
    refusals: list[ReadError] = []
    for path in files:
        try:
            with path.open("rb") as file:
                header = _checked_header(file.read(RAW_BYTES), os.fstat(file.fileno()).st_size, path)
        except ReadError as error:
            refusals.append(error)
        else:
            series += _list_volumes(header, path)
    return Scan(tuple(series), tuple(refusals), 0)


def read(series: Series) -> Image:
    """Read one volume. Its sha256 is that of the whole file.

    Raises ReadError nifti-header, -pair, -damaged, -truncated, -too-large, -dimensions, -type, -affine,
    -not-finite.
    """
    path = series.files[0]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        raw = _hashed(file, digest)
        first = next(raw, b"")
        header = _checked_header(first, os.fstat(file.fileno()).st_size, path)
        whole = chain([first], raw)
        pieces = _inflate(whole, _most_members(header), path) if first.startswith(GZIP_MAGIC) else whole
        stored, trailing = _keep_volume(pieces, header, _volume_number(series, header), path)
    source = f"{path}#{series.item}" if series.item else str(path)
    affine = spatial_affine(header, path)
    facts = ImageFacts(
        source=source,
        format=NAME,
        decoder=f"nibabel {nibabel.__version__}",
        sha256=digest.hexdigest(),
        bits=header.get_data_dtype().itemsize * 8,
        notes=(*series.notes, *([f"{trailing} bytes follow its pixels"] if trailing else [])),
    )
    spacing_mm = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return Image(_voxels(header, stored, source)[None], affine, spacing_mm, facts)


def _list_volumes(header: Header, path: Path) -> Iterator[Series]:
    count = _volume_count(header)
    notes = (f"one of {count} volumes of its file",) if count > 1 else ()
    for item in _items(count):
        yield Series(path, (path,), NAME, item=item, notes=notes)


def _items(count: int) -> list[str | None]:
    """Name the volumes of a file; a single one needs no name."""
    return [f"volume/{number}" for number in range(count)] if count > 1 else [None]


def _volume_number(series: Series, header: Header) -> int:
    items = _items(_volume_count(header))
    if series.item not in items:
        reason = "has changed since it was listed"
        raise ReadError("nifti-header", reason, where=series.path, fix="read it again")
    return items.index(series.item)


def _hashed(file: BinaryIO, digest: "hashlib._Hash") -> Iterator[bytes]:
    while chunk := file.read(RAW_BYTES):
        digest.update(chunk)
        yield chunk


def _inflated_head(first: bytes) -> bytes:
    """Return the first bytes of the content; fewer where a gzip stream breaks off."""
    if not first.startswith(GZIP_MAGIC):
        return first[:NIFTI2_BYTES]
    try:
        return zlib.decompressobj(GZIP_WBITS).decompress(first, NIFTI2_BYTES)
    except zlib.error:
        return b""


def _inflate(raw: Iterable[bytes], most_members: int, path: Path) -> Iterator[bytes]:
    """Yield what the members of a gzip stream hold, in pieces; zlib compares the CRC of each at its end."""
    member, left = zlib.decompressobj(GZIP_WBITS), most_members
    try:
        for chunk in raw:
            while chunk := chunk.lstrip(b"\0") if member.eof else chunk:  # zeros may pad a finished stream
                if member.eof:
                    member, left = zlib.decompressobj(GZIP_WBITS), left - 1
                if not left:
                    raise _overlong(f"is a gzip stream of more than {most_members} members", path)
                yield member.decompress(chunk, PIECE_BYTES)
                chunk = member.unused_data if member.eof else member.unconsumed_tail
    except zlib.error as error:
        reason = "is a corrupt gzip stream"
        raise ReadError("nifti-damaged", reason, where=path, fix="copy it again from its source") from error
    if not member.eof:
        raise _truncated("is a gzip stream that breaks off", path)


def _keep_volume(pieces: Iterable[bytes], header: Header, number: int, path: Path) -> tuple[bytearray, int]:
    """Keep the bytes of one volume and read the rest, for its checksum alone.

    Returns them with the number of bytes behind the last volume. Reads no more than the header announces.
    """
    size = _volume_bytes(header)
    start = int(header["vox_offset"]) + number * size
    kept, announced, position = bytearray(size), _announced_bytes(header), 0
    for piece in pieces:
        begin, end = max(start, position), min(start + size, position + len(piece))
        if begin < end:
            kept[begin - start : end - start] = piece[begin - position : end - position]
        position += len(piece)
        if position > announced + TRAILING_BYTES:
            raise _overlong("holds far more bytes than its header announces", path)
    if position < announced:
        raise _truncated(f"has {position} of {announced} bytes", path)
    return kept, position - announced


def _overlong(reason: str, path: Path) -> ReadError:
    return ReadError("nifti-too-large", reason, where=path, fix="write it again")


def _truncated(reason: str, path: Path) -> ReadError:
    return ReadError("nifti-truncated", reason, where=path, fix="copy it again from its source")


def _checked_header(first: bytes, file_bytes: int, path: Path) -> Header:
    """Return the header of a file, from its first bytes and its length, if the file can be read exactly."""
    header = parse_header(_inflated_head(first), path)
    check_header(header, path)
    _check_length(header, file_bytes, path, packed=first.startswith(GZIP_MAGIC))
    return header


def _version(head: bytes) -> int | None:
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if NIFTI1_BYTES in sizes:
        return MAGICS.get(head[NIFTI1_MAGIC : NIFTI1_MAGIC + 4])
    if NIFTI2_BYTES in sizes:
        return MAGICS.get(head[NIFTI2_MAGIC : NIFTI2_MAGIC + 4])
    return None


def parse_header(head: bytes, path: Path) -> Header:
    """Parse a header from the first bytes of the content. Raises ReadError nifti-header, nifti-damaged."""
    number = _version(head)
    if number is None:
        raise ReadError("nifti-damaged", "does not begin with NIfTI", where=path, fix="copy it again")
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


def check_header(header: Header, path: Path) -> None:
    """Refuse what would not be read exactly, before any pixel is decompressed."""
    if bytes(header["magic"])[:2] == b"ni":
        fix = "save it as one .nii file"
        raise ReadError("nifti-pair", "has its pixels in another file", where=path, fix=fix)
    _check_shape(header, path)
    _check_type(header, path)
    least = NIFTI2_BYTES + 4 if isinstance(header, Nifti2Header) else NIFTI1_BYTES + 4
    offset = float(header["vox_offset"])
    if not least <= offset <= MOST_OFFSET or offset != int(offset):
        reason = f"says that its pixels begin at byte {offset:.0f}"
        raise ReadError("nifti-header", reason, where=path, fix="write it again")
    spatial_affine(header, path)


def _check_shape(header: Header, path: Path) -> None:
    axes, shape = int(header["dim"][0]), _shape(header)
    if not 2 <= axes <= 7 or min(shape) < 1:
        raise ReadError("nifti-header", "has no valid dimensions", where=path, fix="write it again")
    voxels, volumes = math.prod(shape[:3]), _volume_count(header)
    if voxels > MOST_VOXELS or volumes > MOST_VOLUMES:
        reason = f"has {volumes} x {voxels} voxels, more than {MOST_VOLUMES} x {MOST_VOXELS}"
        raise ReadError("nifti-too-large", reason, where=path, fix="split or shrink it")
    components = volumes > 1 and int(header["intent_code"]) in COMPONENT_INTENTS
    if math.prod(shape[4:]) > 1 or components:
        reason = f"has {' x '.join(map(str, shape))} values: several in a voxel"
        raise ReadError("nifti-dimensions", reason, where=path, fix="save one value a voxel")


def _check_type(header: Header, path: Path) -> None:
    dtype = header.get_data_dtype()
    if dtype.str[1:] not in READ_TYPES:
        reason = "has complex, colour or extended values"
        raise ReadError("nifti-type", reason, where=path, fix="save it with one real number per voxel")
    if int(header["bitpix"]) != dtype.itemsize * 8:
        reason = f"says {int(header['bitpix'])} bits a voxel, and its data type has {dtype.itemsize * 8}"
        raise ReadError("nifti-header", reason, where=path, fix="write it again")
    if math.isinf(float(header["scl_slope"])):
        raise ReadError("nifti-header", "is scaled by infinity", where=path, fix="correct its scl_slope")


def _check_length(header: Header, file_bytes: int, path: Path, packed: bool) -> None:
    """Compare the bytes that a header announces with those that the file can hold."""
    announced = _announced_bytes(header)
    if announced > MOST_BYTES:
        reason = f"announces {announced} bytes, more than {MOST_BYTES}"
        raise ReadError("nifti-too-large", reason, where=path, fix="split or shrink it")
    if file_bytes > announced * MOST_GROWTH + TRAILING_BYTES:
        raise _overlong("holds far more bytes than its header announces", path)
    if announced > file_bytes * (DEFLATE_RATIO if packed else 1):
        raise _truncated(f"has {file_bytes} bytes, too few for the {announced} that it announces", path)
    if packed and announced > max(BOMB_BYTES, BOMB_RATIO * file_bytes):
        reason = f"announces {announced} bytes in {file_bytes} of gzip"
        raise ReadError("nifti-too-large", reason, where=path, fix="if it is not a bomb, save it as .nii")


def _shape(header: Header) -> tuple[int, ...]:
    return tuple(int(extent) for extent in header["dim"][1 : int(header["dim"][0]) + 1])


def _volume_shape(header: Header) -> tuple[int, int, int]:
    i, j, k = (*_shape(header), 1)[:3]
    return i, j, k


def _volume_count(header: Header) -> int:
    return (*_shape(header), 1, 1)[3]


def _volume_bytes(header: Header) -> int:
    return math.prod(_volume_shape(header)) * header.get_data_dtype().itemsize


def _most_members(header: Header) -> int:
    return MOST_MEMBERS + _announced_bytes(header) // MEMBER_BYTES


def _announced_bytes(header: Header) -> int:
    return int(header["vox_offset"]) + _volume_count(header) * _volume_bytes(header)


def spatial_affine(header: Header, path: Path) -> NDArray[np.float64]:
    """Return the affine (4, 4) in RAS+ mm: the sform where it has a code, else the qform.

    The order is that of nifti1.h, methods 3 and 2. Its method 1, sizes without a place, is refused; so are
    two forms that disagree, though the standard lets them name two spaces: nobody says which one is meant.
    Raises ReadError nifti-affine, nifti-header.
    """
    with np.errstate(all="ignore"):  # what overflows is not finite, and refused
        found = [affine for affine in (_sform(header), _qform(header, path)) if affine is not None]
        if not found:
            reason = "has neither sform nor qform: where it lies is unknown"
            raise ReadError("nifti-affine", reason, where=path, fix="set its sform")
        scale = UNITS_MM.get(int(header["xyzt_units"]) & 7)
        if scale is None:
            reason = "has an unknown unit of length"
            raise ReadError("nifti-header", reason, where=path, fix="write it in millimetres")
        scaled = [np.diag([scale, scale, scale, 1.0]) @ affine for affine in found]
        for affine in scaled:
            _check_regular(affine, path)
        apart = _corner_distance(scaled[0], scaled[-1], _volume_shape(header))
    if not apart <= CONFLICT_MM:
        reason = f"sform and qform put a corner {apart:.1f} mm apart"
        raise ReadError("nifti-affine", reason, where=path, fix="correct one, or set its code to 0")
    return scaled[0]


def _sform(header: Header) -> NDArray[np.float64] | None:
    return np.asarray(header.get_sform(), np.float64) if int(header["sform_code"]) > 0 else None


def _qform(header: Header, path: Path) -> NDArray[np.float64] | None:
    if int(header["qform_code"]) <= 0:
        return None
    header = header.copy()
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # qfac: nifti1.h, "we take qfac=1"
    try:
        return np.asarray(header.get_qform(), np.float64)
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


def _voxels(header: Header, stored: bytearray, source: str) -> NDArray[np.float32]:
    """Return scaled values (i, j, k). Slice by slice, so that no float64 volume is ever in memory."""
    shape = _volume_shape(header)
    volume = np.frombuffer(stored, header.get_data_dtype()).reshape(shape, order="F")
    values = np.empty(shape, np.float32)
    slope, inter = header.get_slope_inter()
    scaled = slope is not None and (slope, inter) != (1.0, 0.0)
    with np.errstate(all="ignore"):  # what overflows is not finite, and refused
        for k in range(shape[2]):
            values[..., k] = volume[..., k] * np.float64(slope) + inter if scaled else volume[..., k]
    if not np.isfinite(values).all():
        reason = "has NaN, infinite or immense values"
        raise ReadError("nifti-not-finite", reason, where=source, fix="fill or mask them")
    return values
