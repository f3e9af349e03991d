"""Read NIfTI: one file becomes one volume, in the axis order of the file, or as many as its time axis has.

A single slice, with two dimensions or a third of extent 1, stays a volume of one slice, so that its affine
still says where it lies. A file of several volumes holds the items "volume/0", "volume/1", ...; each is read
on its own, from a stream that is always read to its end, where the checksum is. What is inflated for one of
them is cached for the others.
"""

import gzip
import hashlib
import math
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from medtl.core.files import replacing
from medtl.errors import ReadError
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.nifti_header import NIFTI2_BYTES, Layout, nifti_version, read_layout
from medtl.imaging.series import EXACT, Kind, Reading, Scan, Series, scan_each

NAME, TITLE = "nifti", "NIfTI"
KIND: Kind = "volume"
SUFFIXES: tuple[str, ...] = (".nii", ".nii.gz")

# Bytes of a gzip file's volumes that are cached between reads; larger files are inflated for each volume.
MOST_CACHED_BYTES = 2**28
GZIP_MAGIC = b"\x1f\x8b"
GZIP_WBITS = 31  # tells zlib to expect gzip's header and trailer, and to check both (RFC 1952)

# Bytes of all volumes of a file; of a large gzip file each volume costs inflating them all.
MOST_BYTES = 2**33

# What may follow the pixels.
TRAILING_BYTES = 2**20

# Members of a gzip stream: some, and one for each MEMBER_BYTES. Blocked gzip puts 64 KiB into each.
MOST_MEMBERS, MEMBER_BYTES = 64, 2**14

# A stream that announces more than BOMB_BYTES out of less than a BOMB_RATIO-th of them is not inflated.
BOMB_BYTES, BOMB_RATIO = 2**28, 100

# How much is read, and inflated, at a time.
RAW_BYTES, PIECE_BYTES = 2**14, 2**20


@dataclass(frozen=True, eq=False)
class Content:
    """Bytes of the volumes of a file from number `first` on; trailing: how many bytes follow its last one."""

    volumes: bytearray
    first: int
    trailing: int
    sha256: str


def recognises(path: Path, head: bytes) -> bool:
    """Look for NIfTI's magic, in the file or in the gzip stream that it holds."""
    if head.startswith(GZIP_MAGIC):
        with path.open("rb") as file:
            head = inflated_head(file.read(RAW_BYTES))
    return nifti_version(head) is not None


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """List each volume of each file as a series; refuse by the header what would not be read exactly."""
    return scan_each(_list_volumes, files, workers)


def read(series: Series) -> Image:
    """Read one volume. Its sha256 is that of the whole file.

    Raises ReadError nifti-header, -pair, -damaged, -truncated, -too-large, -dimensions, -type, -affine,
    -not-finite.
    """
    import nibabel

    layout, number, content = _read_content(series)
    facts = ImageFacts(
        source=series.source,
        format=NAME,
        decoder=f"nibabel {nibabel.__version__}",
        sha256=content.sha256,
        bits=layout.dtype.itemsize * 8,
        notes=(*series.notes, *([f"{content.trailing} bytes follow its pixels"] if content.trailing else [])),
    )
    spacing_mm = tuple(float(length) for length in np.linalg.norm(layout.affine[:3, :3], axis=0))
    offset = (number - content.first) * layout.volume_bytes
    voxels = _voxels(layout, content.volumes, offset, series.source)
    return Image(voxels[None], layout.affine, spacing_mm, facts)


def _list_volumes(path: Path) -> list[Series]:
    with path.open("rb") as file:
        layout = _checked_layout(file.read(RAW_BYTES), os.fstat(file.fileno()).st_size, path)
    notes = (f"one of {layout.count} volumes of its file",) if layout.count > 1 else ()
    return [Series(path, (path,), NAME, item=item, notes=notes) for item in _items(layout.count)]


def _items(count: int) -> list[str | None]:
    """Name the volumes of a file; a single one needs no name."""
    return [f"volume/{number}" for number in range(count)] if count > 1 else [None]


def _checked_layout(start: bytes, file_bytes: int, path: Path) -> Layout:
    """Return the layout of a file, from its first bytes, if the file can hold what its header announces."""
    layout, packed = read_layout(inflated_head(start), path), start.startswith(GZIP_MAGIC)
    if layout.end > MOST_BYTES:
        reason = f"announces {layout.end} bytes, more than {MOST_BYTES}"
        raise ReadError("nifti-too-large", reason, where=path, fix="split or shrink it")
    if layout.end > file_bytes and not packed:
        raise _truncated(f"has {file_bytes} bytes, too few for the {layout.end} that it announces", path)
    if packed and layout.end > max(BOMB_BYTES, BOMB_RATIO * file_bytes):
        reason = f"announces {layout.end} bytes in {file_bytes} of gzip"
        raise ReadError("nifti-too-large", reason, where=path, fix="if it is not a bomb, save it as .nii")
    return layout


def _read_content(series: Series) -> tuple[Layout, int, Content]:
    """Return the layout of a file, the number of the volume that a series is, and bytes among which it is."""
    path = series.files[0]
    with path.open("rb") as file:
        start, status = file.read(RAW_BYTES), os.fstat(file.fileno())
        layout = _checked_layout(start, status.st_size, path)
        if series.item not in _items(layout.count):
            reason = "has changed since it was listed"
            raise ReadError("nifti-header", reason, where=path, fix="read it again")
        number = _items(layout.count).index(series.item)
        several = start.startswith(GZIP_MAGIC) and layout.count > 1
        if not several or layout.count * layout.volume_bytes > MOST_CACHED_BYTES:
            return layout, number, _read_volumes(file, start, layout, range(number, number + 1), path)
        identity = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        return layout, number, _read_all(file, start, layout, identity, last=number == layout.count - 1)


# The last gzip file of several volumes, so that reading one does not inflate all the others again.
Identity = tuple[Path, int, int, int]
_lock = threading.Lock()
_last: tuple[Identity, Content] | None = None


def _read_all(file: BinaryIO, start: bytes, layout: Layout, identity: Identity, *, last: bool) -> Content:
    """Read all volumes of a gzip file, once for all of them; its last one ends that."""
    global _last
    with _lock:
        if _last is None or _last[0] != identity:
            _last = None
            _last = identity, _read_volumes(file, start, layout, range(layout.count), identity[0])
        content = _last[1]
        _last = None if last else _last
    return content


def _read_volumes(file: BinaryIO, start: bytes, layout: Layout, numbers: range, path: Path) -> Content:
    """Read a file to its end, behind the bytes that were read as its start, and keep some of its volumes."""
    digest = hashlib.sha256()
    raw = _hashed(file, start, digest)
    pieces = inflate(raw, layout, path) if start.startswith(GZIP_MAGIC) else raw
    kept, trailing = keep_bytes(pieces, layout, numbers, path)
    return Content(kept, numbers[0], trailing, digest.hexdigest())


def _hashed(file: BinaryIO, chunk: bytes, digest: "hashlib._Hash") -> Iterator[bytes]:
    while chunk:
        digest.update(chunk)
        yield chunk
        chunk = file.read(RAW_BYTES)


def _voxels(layout: Layout, volumes: bytearray, offset: int, source: str) -> NDArray[np.float32]:
    """Return scaled values (i, j, k). Slice by slice, so that no float64 volume is ever in memory."""
    stored = np.frombuffer(volumes, layout.dtype, math.prod(layout.shape), offset)
    volume = stored.reshape(layout.shape, order="F")
    values = np.empty(layout.shape, np.float32)
    slope, inter = layout.scaling or (1.0, 0.0)
    with np.errstate(all="ignore"):  # what overflows is not finite, and refused
        for k in range(layout.shape[2]):
            values[..., k] = volume[..., k] * np.float64(slope) + inter if layout.scaling else volume[..., k]
    if not np.isfinite(values).all():
        reason = "has NaN, infinite or immense values"
        raise ReadError("nifti-not-finite", reason, where=source, fix="fill or mask them")
    return values


def write_volume(path: Path, values: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
    """Write values, with the axes of an Image, and its affine (RAS+ mm) as .nii.gz, atomically.

    The same content gives the same bytes. Raises OutputError output-unwritable.
    """
    import nibabel

    content = nibabel.Nifti1Image(np.asarray(values, dtype=np.float32), affine).to_bytes()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0))


def inflated_head(first: bytes) -> bytes:
    """Return the first bytes of the content; fewer where a gzip stream is cut short."""
    if not first.startswith(GZIP_MAGIC):
        return first[:NIFTI2_BYTES]
    try:
        return zlib.decompressobj(GZIP_WBITS).decompress(first, NIFTI2_BYTES)
    except zlib.error:
        return b""


def inflate(raw: Iterable[bytes], layout: Layout, path: Path) -> Iterator[bytes]:
    """Yield what the members of a gzip stream hold, in pieces; zlib compares the CRC of each at its end."""
    most_members = MOST_MEMBERS + layout.end // MEMBER_BYTES
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
        raise _truncated("is an incomplete gzip stream", path)


def keep_bytes(pieces: Iterable[bytes], layout: Layout, numbers: range, path: Path) -> tuple[bytearray, int]:
    """Return the bytes of some volumes, which follow one another, and how many bytes follow the last of all.

    The rest is read for its checksum alone; no more is read than the header announces.
    """
    start = layout.start + numbers[0] * layout.volume_bytes
    kept, position = bytearray(len(numbers) * layout.volume_bytes), 0
    for piece in pieces:
        begin, end = max(start, position), min(start + len(kept), position + len(piece))
        if begin < end:
            kept[begin - start : end - start] = piece[begin - position : end - position]
        position += len(piece)
        if position > layout.end + TRAILING_BYTES:
            raise _overlong("holds far more bytes than its header announces", path)
    if position < layout.end:
        raise _truncated(f"has {position} of {layout.end} bytes", path)
    return kept, position - layout.end


def _overlong(reason: str, path: Path) -> ReadError:
    return ReadError("nifti-too-large", reason, where=path, fix="write it again")


def _truncated(reason: str, path: Path) -> ReadError:
    return ReadError("nifti-truncated", reason, where=path, fix="copy it again from its source")
