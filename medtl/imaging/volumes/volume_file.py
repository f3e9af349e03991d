"""HEADER + BYTES -> IMAGES: volumes that follow one another in a file, plain or gzip, in its axis order.

A single slice, with two dimensions or a third of extent 1, stays a volume of one slice, so that its affine
still says where it lies. A file of several volumes holds the items "volume/0", "volume/1", ...; each is read
on its own, from a stream that is always read to its end, where the checksum is. What is inflated for one of
them is cached for the others. Where the recipe asks for it, they are the channels of one image instead.
"""

import hashlib
import math
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.image import Image, ImageFacts, fill_nan, rounding_notes
from medtl.imaging.series import Reading, Series

# Voxels in one image, 1 GiB as float32. Checked by the header, before pixels are decompressed.
MOST_VOXELS = 2**28

# Bytes of a gzip file's volumes that are cached between reads; larger files are inflated for each volume.
MOST_CACHED_BYTES = 2**28
GZIP_MAGIC = b"\x1f\x8b"
# Tell zlib to expect the header and the checksum of gzip (RFC 1952), or those of gzip or zlib (RFC 1950).
GZIP_WBITS, ANY_WBITS = 31, 47

# Bytes of all volumes of a file; of a large gzip file each volume costs inflating them all.
MOST_BYTES = 2**33

# What may follow the pixels.
TRAILING_BYTES = 2**20

# Members of a gzip stream: some, and one for each MEMBER_BYTES. Blocked gzip puts 64 KiB into each.
MOST_MEMBERS, MEMBER_BYTES = 64, 2**14

# A stream that announces more than BOMB_BYTES out of less than a BOMB_RATIO-th of them is not inflated.
BOMB_BYTES, BOMB_RATIO = 2**28, 100

# How much is read, and inflated, at a time; how much of a file its header is at most.
RAW_BYTES, PIECE_BYTES = 2**14, 2**20
HEADER_BYTES = 540

# Of colours red, green and blue are kept, alpha is not.
COLOURS = 3


@dataclass(frozen=True, eq=False)
class Layout:
    """What a header says about its volumes: they follow one another from byte `start`, first axis fastest.

    scaling is (slope, intercept), None where stored values are meant as they are; affine is in RAS+ mm.
    components: the "volumes" are components of one volume's voxels. interleaved: values of a voxel that lie
    together, colours or others. flat: a projection, with columns and rows, whose affine holds sizes alone,
    NaN where they are unknown. packed_from: the byte of the file at which a compressed stream begins, in
    whose content `start` lies; None: a file is gzip as a whole, or not. family is how codes of refusals
    begin: "nifti" or "volume". trailer: the format has something to say behind its pixels.
    """

    shape: tuple[int, int, int]
    count: int
    dtype: np.dtype
    start: int
    scaling: tuple[float, float] | None
    affine: NDArray[np.float64]
    components: bool = False
    interleaved: int = 1
    colour: bool = False
    flat: bool = False
    packed_from: int | None = None
    notes: tuple[str, ...] = ()
    family: str = "nifti"
    trailer: bool = False

    @property
    def volume_bytes(self) -> int:
        """The bytes of one volume."""
        return math.prod(self.shape) * self.interleaved * self.dtype.itemsize

    @property
    def end(self) -> int:
        """How many bytes the content of the file has at least."""
        return self.start + self.count * self.volume_bytes

    @property
    def kept(self) -> int:
        """How many of the interleaved values are kept."""
        return COLOURS if self.colour else self.interleaved

    def items(self, reading: Reading) -> list[str | None]:
        """Name the images of a file; a single one needs no name."""
        several = self.count > 1 and not reading.volumes_as_channels
        return [f"volume/{number}" for number in range(self.count)] if several else [None]


# From the first bytes of a file, inflated, and its path. Raises ReadError.
ReadLayout = Callable[[bytes, Path], Layout]


@dataclass(frozen=True, eq=False)
class Content:
    """Bytes of the volumes of a file from number `first` on; trailing: how many bytes follow its last one."""

    volumes: bytearray
    first: int
    trailing: int
    sha256: str


def list_volumes(files: Sequence[Path], name: str, read_layout: ReadLayout, reading: Reading) -> list[Series]:
    """List the images in a file, or in a header and the file of its pixels. Raises ReadError."""
    header, data = files[0], files[-1]
    with data.open("rb") as file:
        start, size = file.read(RAW_BYTES), os.fstat(file.fileno()).st_size
    layout = read_layout(inflated_head(start if header == data else _start_of(header)), header)
    with _naming_header(header, data):
        _check(layout, start, size, data, reading)
    items = layout.items(reading)
    notes = (f"one of {layout.count} volumes of its file",) if len(items) > 1 else ()
    return [Series(header, tuple(files), name, item=item, notes=notes) for item in items]


def read_volume(series: Series, read_layout: ReadLayout, decoder: str) -> Image:
    """Read one image of a file. Its sha256 is that of the whole file, and of its header before it.

    Raises ReadError with the codes of the layout's family: -damaged, -truncated, -too-large, -dimensions,
    -header, -not-finite, and those of read_layout.
    """
    with _naming_header(series.files[0], series.files[-1]):
        layout, numbers, content = _read_content(series, read_layout)
    pixels, rounded = _voxels(layout, content, numbers)
    source, family = series.source, layout.family
    filled = fill_nan(pixels, allowed=series.reading.fill_nan, code=f"{family}-not-finite", source=source)
    unexpected = 0 if layout.trailer else content.trailing
    trailing = [f"{unexpected} bytes follow its pixels"] if unexpected else []
    facts = ImageFacts(
        source=source,
        format=series.format,
        decoder=decoder,
        sha256=content.sha256,
        photometric="RGB" if layout.colour else "",
        bits=layout.dtype.itemsize * 8,
        stacked=len(pixels) > 1 and not layout.colour,
        notes=(*series.notes, *layout.notes, *trailing, *rounded, *filled),
    )
    spacing_mm = tuple(float(length) for length in np.linalg.norm(layout.affine[:3, :3], axis=0))
    if layout.flat:
        stated = spacing_mm[1::-1] if np.isfinite(spacing_mm).all() else None
        return Image(np.ascontiguousarray(pixels[..., 0].swapaxes(1, 2)), None, stated, facts)
    return Image(pixels, layout.affine, spacing_mm, facts)


@contextmanager
def _naming_header(header: Path, data: Path) -> Iterator[None]:
    """Refuse a header, under whose name a volume is known, where the file of its pixels is refused."""
    try:
        yield
    except ReadError as error:
        if header == data or error.where != str(data):
            raise
        reason = f"has its pixels in {data.name}, which {error.reason}"
        raise ReadError(error.code, reason, where=header, fix=error.fix) from error


def pixels_beside(header: Path, family: str) -> Path:
    """Return the file of the pixels of a pair: beside its header, .hdr, and of its name, .img.

    Raises ReadError nifti-pair or volume-pair.
    """
    stem = stem_of(header)
    suffixes = (".IMG", ".IMG.GZ") if header.name.isupper() else (".img", ".img.gz")
    found = [path for path in (header.with_name(stem + suffix) for suffix in suffixes) if path.is_file()]
    if len(found) != 1:
        reason = f"has its pixels in {stem}.img, which {'is doubled by .img.gz' if found else 'is not here'}"
        raise ReadError(f"{family}-pair", reason, where=header, fix="put that one file beside it")
    return inside(found[0], header, family)


def stem_of(header: Path) -> str:
    """Return the name of a pair without .hdr or .hdr.gz."""
    return re.sub(r"\.hdr(\.gz)?$", "", header.name, flags=re.IGNORECASE)


def inside(data: Path, header: Path, family: str) -> Path:
    """Return a file of pixels unless it is a link that leads out of its folder, which is refused."""
    if data.is_symlink() and not data.resolve().is_relative_to(header.parent.resolve()):
        reason = f"has its pixels behind a link out of its folder, {data.name}"
        fix = "put the file itself there, as git annex unlock does"
        raise ReadError(f"{family}-pair", reason, where=header, fix=fix)
    return data


def inflated_start(path: Path) -> bytes:
    """Return the first bytes of the content of a file, of what it holds where it is gzip."""
    return inflated_head(_start_of(path))


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(RAW_BYTES)


def _check(layout: Layout, start: bytes, file_bytes: int, path: Path, reading: Reading) -> None:
    """Refuse a file that does not hold what its header announces, or would not be one image by itself."""
    packed = _is_packed(layout, start)
    channels = layout.interleaved * (layout.count if reading.volumes_as_channels or layout.components else 1)
    if channels > 1 and not reading.volumes_as_channels:
        fix = "save one value per voxel, or set preprocessing.volumes_as_channels=true"
        kind, what = ("type", "colours") if layout.colour else ("dimensions", "values")
        reason = f"has {channels} {what} in a voxel"
        raise ReadError(f"{layout.family}-{kind}", reason, where=path, fix=fix)
    if channels * math.prod(layout.shape) > MOST_VOXELS:
        raise too_large(f"has {channels} x {math.prod(layout.shape)} values", layout.family, path)
    if layout.end > MOST_BYTES:
        raise too_large(f"announces {layout.end} bytes, more than {MOST_BYTES}", layout.family, path)
    if layout.end > file_bytes and not packed:
        reason = f"has {file_bytes} bytes, too few for the {layout.end} that it announces"
        raise _truncated(reason, layout, path)
    if packed and layout.end > max(BOMB_BYTES, BOMB_RATIO * file_bytes):
        reason = f"announces {layout.end} bytes in {file_bytes} of gzip"
        raise too_large(reason, layout.family, path, "if it is not a bomb, save it uncompressed")


def _read_content(series: Series, read_layout: ReadLayout) -> tuple[Layout, range, Content]:
    """Return the layout of a file, the numbers of the volumes that a series is, and bytes that hold them."""
    header, path, reading = series.files[0], series.files[-1], series.reading
    with path.open("rb") as file:
        start, status = file.read(RAW_BYTES), os.fstat(file.fileno())
        layout = read_layout(inflated_head(start if header == path else _start_of(header)), header)
        _check(layout, start, status.st_size, path, reading)
        items = layout.items(reading)
        if series.item not in items:
            reason = "has changed since it was listed"
            raise ReadError(f"{layout.family}-header", reason, where=path, fix="read it again")
        number = items.index(series.item)
        numbers = range(number, number + 1) if len(items) > 1 else range(layout.count)
        several = _is_packed(layout, start) and len(items) > 1
        digest = hashlib.sha256(b"" if header == path else header.read_bytes())
        if not several or layout.count * layout.volume_bytes > MOST_CACHED_BYTES:
            return layout, numbers, _read_volumes(file, start, layout, numbers, path, digest)
        identity = (path, status.st_ino, status.st_size, status.st_mtime_ns, digest.hexdigest())
        return (
            layout,
            numbers,
            _read_all(file, start, layout, identity, digest, last=number + 1 == len(items)),
        )


# The last gzip file of several volumes, so that reading one does not inflate all the others again: its path,
# inode, size and time, and the digest of a header that is apart, as several may name one file.
Identity = tuple[Path, int, int, int, str]
_lock = threading.Lock()
_last: tuple[Identity, Content] | None = None


def _read_all(
    file: BinaryIO, start: bytes, layout: Layout, identity: Identity, digest: "hashlib._Hash", *, last: bool
) -> Content:
    """Read all volumes of a gzip file, once for all of them; its last one ends that."""
    global _last
    with _lock:
        if _last is None or _last[0] != identity:
            _last = None
            _last = (
                identity,
                _read_volumes(file, start, layout, range(layout.count), identity[0], digest),
            )
        content = _last[1]
        _last = None if last else _last
    return content


def _read_volumes(
    file: BinaryIO, start: bytes, layout: Layout, numbers: range, path: Path, digest: "hashlib._Hash"
) -> Content:
    """Read a file to its end, behind the bytes that were read as its start, and keep some of its volumes."""
    raw = _hashed(file, start, digest)
    pieces = raw
    if _is_packed(layout, start):
        pieces = inflate(_skip(raw, layout.packed_from or 0), layout, path)
    kept, trailing = keep_bytes(pieces, layout, numbers, path)
    return Content(kept, numbers[0], trailing, digest.hexdigest())


def _is_packed(layout: Layout, start: bytes) -> bool:
    return layout.packed_from is not None or start.startswith(GZIP_MAGIC)


def _skip(raw: Iterable[bytes], count: int) -> Iterator[bytes]:
    """Leave out the first bytes."""
    for chunk in raw:
        if count < len(chunk):
            yield chunk[count:]
        count = max(0, count - len(chunk))


def _hashed(file: BinaryIO, chunk: bytes, digest: "hashlib._Hash") -> Iterator[bytes]:
    while chunk:
        digest.update(chunk)
        yield chunk
        chunk = file.read(RAW_BYTES)


def _voxels(layout: Layout, content: Content, numbers: range) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Return scaled values (C, i, j, k), and a note where they were rounded.

    Slice by slice, so that no float64 volume is ever in memory.
    """
    kept = layout.kept
    pixels = np.empty((len(numbers) * kept, *layout.shape), np.float32)
    slope, inter = layout.scaling or (1.0, 0.0)
    notes: tuple[str, ...] = ()
    for place, number in enumerate(numbers):
        stored = np.frombuffer(
            content.volumes,
            layout.dtype,
            math.prod(layout.shape) * layout.interleaved,
            (number - content.first) * layout.volume_bytes,
        )
        volume = stored.reshape((layout.interleaved, *layout.shape), order="F")[:kept]
        into = pixels[place * kept : (place + 1) * kept]
        with np.errstate(all="ignore"):  # what overflows is not finite, and refused
            for k in range(layout.shape[2]):
                plane = volume[..., k]
                scaled = plane * np.float64(slope) + inter if layout.scaling else plane
                into[..., k] = scaled
                notes = notes or rounding_notes(scaled)
    return pixels, notes


def inflated_head(first: bytes) -> bytes:
    """Return the first bytes of the content; fewer where a gzip stream is cut short."""
    if not first.startswith(GZIP_MAGIC):
        return first[:HEADER_BYTES]
    try:
        return zlib.decompressobj(GZIP_WBITS).decompress(first, HEADER_BYTES)
    except zlib.error:
        return b""


def inflate(raw: Iterable[bytes], layout: Layout, path: Path) -> Iterator[bytes]:
    """Yield what the members of a gzip stream hold, in pieces; zlib compares the CRC of each at its end."""
    most_members = MOST_MEMBERS + layout.end // MEMBER_BYTES
    bits = GZIP_WBITS if layout.packed_from is None else ANY_WBITS
    member, left = zlib.decompressobj(bits), most_members
    try:
        for chunk in raw:
            while chunk := chunk.lstrip(b"\0") if member.eof else chunk:  # zeros may pad a finished stream
                if member.eof:
                    member, left = zlib.decompressobj(bits), left - 1
                if not left:
                    raise _overlong(f"is a gzip stream of more than {most_members} members", layout, path)
                yield member.decompress(chunk, PIECE_BYTES)
                chunk = member.unused_data if member.eof else member.unconsumed_tail
    except zlib.error as error:
        reason = "is a corrupt gzip stream" if bits == GZIP_WBITS else "is a corrupt compressed stream"
        fix = "copy it again from its source"
        raise ReadError(f"{layout.family}-damaged", reason, where=path, fix=fix) from error
    if not member.eof:
        raise _truncated("is an incomplete gzip stream", layout, path)


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
            raise _overlong("holds far more bytes than its header announces", layout, path)
    if position < layout.end:
        raise _truncated(f"has {position} of {layout.end} bytes", layout, path)
    return kept, position - layout.end


def too_large(reason: str, family: str, path: Path, fix: str = "split or shrink it") -> ReadError:
    """Return the refusal of a file that holds or announces too much."""
    return ReadError(f"{family}-too-large", reason, where=path, fix=fix)


def _overlong(reason: str, layout: Layout, path: Path) -> ReadError:
    return too_large(reason, layout.family, path, "write it again")


def _truncated(reason: str, layout: Layout, path: Path) -> ReadError:
    fix = "copy it again from its source"
    return ReadError(f"{layout.family}-truncated", reason, where=path, fix=fix)
