"""Read NIfTI: one file becomes one volume, in the axis order of the file, or as many as its time axis has.

A single slice, with two dimensions or a third of extent 1, stays a volume of one slice: only so does its
affine keep saying where it lies. A file of several volumes holds the items "volume/0", "volume/1", ...; each
is read on its own, from a stream that is always followed to its end, where the checksum is. What is inflated
for one of them is kept for the others.
"""

import hashlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.formats.nifti_affine import spatial_affine
from medtl.imaging.formats.nifti_header import (
    Header,
    check_header,
    is_nifti,
    parse_header,
    volume_bytes,
    volume_count,
    volume_shape,
)
from medtl.imaging.formats.nifti_stream import (
    GZIP_MAGIC,
    RAW_BYTES,
    check_length,
    inflate,
    inflated_head,
    keep_bytes,
)
from medtl.imaging.headers import read_headers
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.series import Scan, Series

NAME = "nifti"

# Bytes of all volumes of a gzip file that are kept from one to the next; larger files are inflated for each.
MOST_KEPT_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Content:
    """Bytes of one volume or all, from byte `start` of the volumes on; trailing: how many follow the last."""

    header: Header
    volumes: bytearray
    start: int
    trailing: int
    sha256: str


def recognises(path: Path, head: bytes) -> bool:
    """Look for NIfTI's magic, in the file or in the gzip stream that it holds."""
    if not head.startswith(GZIP_MAGIC):
        return is_nifti(head)
    with path.open("rb") as file:
        return is_nifti(inflated_head(file.read(RAW_BYTES)))


def scan(files: Sequence[Path], workers: int | None = None) -> Scan:
    """List each volume of each file as a series; refuse by the header what would not be read exactly."""
    found, refusals = read_headers(_list_volumes, files, workers)
    return Scan(tuple(chain.from_iterable(found)), tuple(refusals))


def read(series: Series) -> Image:
    """Read one volume. Its sha256 is that of the whole file.

    Raises ReadError nifti-header, -pair, -damaged, -truncated, -too-large, -dimensions, -type, -affine,
    -not-finite.
    """
    path = series.files[0]
    source = f"{path}#{series.item}" if series.item else str(path)
    content = _kept_content(series, path) or _read_content(series, path)
    header, number = content.header, _volume_number(series, content.header)
    affine = spatial_affine(header, volume_shape(header), path)
    facts = ImageFacts(
        source=source,
        format=NAME,
        decoder=f"nibabel {nibabel.__version__}",
        sha256=content.sha256,
        bits=header.get_data_dtype().itemsize * 8,
        notes=(*series.notes, *([f"{content.trailing} bytes follow its pixels"] if content.trailing else [])),
    )
    spacing_mm = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    voxels = _voxels(header, content.volumes, number * volume_bytes(header) - content.start, source)
    return Image(voxels[None], affine, spacing_mm, facts)


def _list_volumes(path: Path) -> list[Series]:
    with path.open("rb") as file:
        header = _checked_header(file.read(RAW_BYTES), os.fstat(file.fileno()).st_size, path)
    count = volume_count(header)
    notes = (f"one of {count} volumes of its file",) if count > 1 else ()
    return [Series(path, (path,), NAME, item=item, notes=notes) for item in _items(count)]


def _items(count: int) -> list[str | None]:
    """Name the volumes of a file; a single one needs no name."""
    return [f"volume/{number}" for number in range(count)] if count > 1 else [None]


def _volume_number(series: Series, header: Header) -> int:
    items = _items(volume_count(header))
    if series.item not in items:
        reason = "has changed since it was listed"
        raise ReadError("nifti-header", reason, where=series.path, fix="read it again")
    return items.index(series.item)


def _checked_header(first: bytes, file_bytes: int, path: Path) -> Header:
    """Return the header of a file, from its first bytes and its length, if the file can be read exactly."""
    header = parse_header(inflated_head(first), path)
    check_header(header, path)
    check_length(header, file_bytes, path, packed=first.startswith(GZIP_MAGIC))
    return header


def _read_content(series: Series, path: Path, *, whole: bool = False) -> Content:
    """Read a file to its end and keep the volume of a series, or all of them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        raw = _hashed(file, digest)
        first = next(raw, b"")
        header = _checked_header(first, os.fstat(file.fileno()).st_size, path)
        size, count = volume_bytes(header), volume_count(header)
        start, size = (0, size * count) if whole else (_volume_number(series, header) * size, size)
        stream = chain([first], raw)
        pieces = inflate(stream, header, path) if first.startswith(GZIP_MAGIC) else stream
        kept, trailing = keep_bytes(pieces, header, int(header["vox_offset"]) + start, size, path)
    return Content(header, kept, start, trailing, digest.hexdigest())


def _hashed(file: BinaryIO, digest: "hashlib._Hash") -> Iterator[bytes]:
    while chunk := file.read(RAW_BYTES):
        digest.update(chunk)
        yield chunk


# The last gzip file of several volumes, so that each of them does not inflate all the others again.
_lock = threading.Lock()
_last: tuple[tuple[Path, int, int, int], Content] | None = None


def _kept_content(series: Series, path: Path) -> Content | None:
    """Return all volumes of a gzip file that holds several; None for other files, and for too large ones."""
    global _last
    if series.item is None:
        return None
    with path.open("rb") as file:
        first, status = file.read(RAW_BYTES), os.fstat(file.fileno())
    header = _checked_header(first, status.st_size, path)
    count = volume_count(header)
    if not first.startswith(GZIP_MAGIC) or count * volume_bytes(header) > MOST_KEPT_BYTES:
        return None
    identity = (path, status.st_ino, status.st_size, status.st_mtime_ns)
    with _lock:  # who comes second waits, and has it at once
        if _last is None or _last[0] != identity:
            _last = None
            _last = identity, _read_content(series, path, whole=True)
        content = _last[1]
        if series.item == _items(count)[-1]:
            _last = None
    return content


def _voxels(header: Header, volumes: bytearray, offset: int, source: str) -> NDArray[np.float32]:
    """Return scaled values (i, j, k). Slice by slice, so that no float64 volume is ever in memory."""
    shape = volume_shape(header)
    stored = np.frombuffer(volumes, header.get_data_dtype(), math.prod(shape), offset)
    volume = stored.reshape(shape, order="F")
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
