"""PATH -> the bytes of a file, also of one in a zip archive: "study.zip/IM1.dcm" is a path like any other.

Nothing is ever unpacked to a disk. A member is inflated as far as it is read, and no further than the archive
announces; at its end its size and CRC are compared.
"""

import errno
import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from medtl.errors import ReadError

ZIP_MAGIC, ZIP_ENDS = b"PK\x03\x04", (b"PK\x05\x06", b"PK\x06\x07")
GZIP_MAGIC, GZIP_WBITS = b"\x1f\x8b", 31
ENCRYPTED = 0x1  # a flag of a member
# What zipfile raises on archives that are damaged.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError)

# Bytes of a list of members: of some 100,000 of them.
MOST_LIST_BYTES = 2**23
END_BYTES = 2**16 + 42  # of what is behind that list: its end in two forms, and a comment
# What inflates to more than the first, and to so many times its size, is no image. Of one file, and of all.
LARGE_BYTES, MOST_GROWTH = 2**27, 50
LARGE_ARCHIVE_BYTES, MOST_ARCHIVE_GROWTH = 2**33, 100
RAW_BYTES, PIECE_BYTES = 2**14, 2**20

# What holds no images though it is a zip archive, by a name inside.
OTHER_ZIPS = {
    "[Content_Types].xml": "an Office document",
    "mimetype": "an OpenDocument or EPUB file",
    "META-INF/MANIFEST.MF": "a Java archive",
}
DRIVE = re.compile("[A-Za-z]:")
MOST_SHOWN = 40  # letters of a member's name
# Ways to pack that are not read, by their number in a zip archive.
METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz", 98: "ppmd"}
COPY, UNPACK = "copy it again from its source", "unpack it, and name the folder"


class Member(NamedTuple):
    """Where a member begins in its archive, its bytes there and inflated, its CRC, and what it is."""

    start: int
    packed: int
    size: int
    crc: int
    deflated: bool
    link: bool


def holds(archive: Path, names: Sequence[str]) -> bool:
    """Say whether a file is a zip archive that holds a member of one of these names."""
    try:
        with archive.open("rb") as file:
            listed = _raw_list(file)
        if not any(name.encode() in listed for name in names):  # which takes no time
            return False
        return not {one.filename for one in _list(archive)}.isdisjoint(names)
    except (ReadError, OSError, *DAMAGE):
        return False


def other_kind(archive: Path) -> str:
    """Say what a zip archive is that is a document or a program, "" for others. Raises ReadError as below."""
    names = _directory(archive, *_identity(archive)).keys()
    if any(name.endswith("/data.pkl") for name in names):
        return "a PyTorch file"
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy arrays"
    return next((kind for name, kind in OTHER_ZIPS.items() if name in names), "")


def list_members(archive: Path) -> tuple[list[Path], int]:
    """Return the paths of the files in a zip archive that are not hidden, and how many links it has.

    Raises ReadError archive-damaged; archive-packed where it is encrypted, or packed in a way that is not
    read; archive-too-large.
    """
    shown = {n: one for n, one in _directory(archive, *_identity(archive)).items() if not _is_hidden(n)}
    files = [archive / name for name, one in shown.items() if not one.link]
    return files, len(shown) - len(files)


def open_file(path: Path) -> BinaryIO:
    """Open a file, or a member of a zip archive. Raises OSError as Path.open does; ReadError as above."""
    try:
        return path.open("rb")
    except (NotADirectoryError, FileNotFoundError):
        archive = _archive_of(path)
        if archive is None:
            raise
    size, time_ns = _identity(archive)
    member = _directory(archive, size, time_ns).get(path.relative_to(archive).as_posix())
    if member is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return MemberFile(path, archive, member, time_ns)  # type: ignore[return-value]


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file or member. Raises as open_file does."""
    with open_file(path) as file:
        return file.read()


def size_and_time(file: BinaryIO) -> tuple[int, int]:
    """Return the bytes of an open file, and when it or its archive was changed, in nanoseconds."""
    if isinstance(file, MemberFile):
        return file.member.size, file.time_ns
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def status_of(path: Path) -> os.stat_result:
    """Return the status of a file, for a member that of its archive. Raises OSError as Path.stat does."""
    try:
        return path.stat()
    except (NotADirectoryError, FileNotFoundError):
        archive = _archive_of(path)
        if archive is None:
            raise
        return archive.stat()


def exists(path: Path) -> bool:
    """Say whether a path is of a file or folder, also inside a zip archive."""
    if path.exists():
        return True
    archive = _archive_of(path)
    if archive is None:
        return False
    name = path.relative_to(archive).as_posix()
    try:
        names = _directory(archive, *_identity(archive)).keys()
    except ReadError:
        return False
    return name in names or any(other.startswith(f"{name}/") for other in names)


def gunzipped_head(head: bytes) -> bytes:
    """Return the first bytes of what a gzip stream holds, from its own first bytes; other bytes as such."""
    if not head.startswith(GZIP_MAGIC):
        return head
    try:
        return zlib.decompressobj(GZIP_WBITS).decompress(head, RAW_BYTES)
    except zlib.error:
        return b""


def gunzip(data: bytes, path: Path) -> bytes:
    """Return what a gzip stream holds. Raises ReadError archive-damaged, archive-too-large."""
    most, size, pieces = max(LARGE_BYTES, MOST_GROWTH * len(data)), 0, []
    try:
        while data := data.lstrip(b"\0"):  # zeros may pad a finished stream
            inflater = zlib.decompressobj(GZIP_WBITS)
            while not inflater.eof:
                piece = inflater.decompress(data, PIECE_BYTES)
                data = inflater.unconsumed_tail
                size += len(piece)
                if size > most:
                    raise _too_large(path, f"inflates to more than {most} bytes")
                if not (piece or data or inflater.eof):
                    raise EOFError
                pieces.append(piece)
            data = inflater.unused_data
    except (zlib.error, EOFError) as error:
        reason = "is a corrupt or incomplete gzip stream"
        raise ReadError("archive-damaged", reason, where=path, fix=COPY) from error
    return b"".join(pieces)


class MemberFile(io.BufferedIOBase):
    """A member as a file that can be read and sought; it is inflated as far as it was read."""

    def __init__(self, path: Path, archive: Path, member: Member, time_ns: int) -> None:
        self.member, self.time_ns = member, time_ns
        self._pieces = _inflate(path, archive, member)
        self._content, self._at = bytearray(), 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, or all that are left."""
        end = self.member.size if size is None or size < 0 else min(self._at + size, self.member.size)
        # To its very end, where the CRC is compared.
        whole = end == self.member.size
        for piece in self._pieces if whole or end > len(self._content) else ():
            self._content += piece
            if not whole and len(self._content) >= end:
                break
        data = bytes(memoryview(self._content)[self._at : end])
        self._at = max(self._at, end)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a place, without inflating what is before it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.member.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the archive, too."""
        self._pieces.close()
        super().close()


def _inflate(path: Path, archive: Path, member: Member) -> Generator[bytes, None, None]:
    """Yield the bytes of a member in pieces. Raises ReadError archive-damaged."""
    size = crc = 0
    with archive.open("rb") as file:
        file.seek(max(0, member.start))
        head = file.read(30)  # its own header, before a name and an extra field
        file.seek(sum(struct.unpack("<2H", head[26:30])) if len(head) == 30 else 0, os.SEEK_CUR)
        raw = _raw(file, member.packed)
        for piece in _inflated(raw) if member.deflated else raw:
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            if size > member.size:
                break
            yield piece
    if not head.startswith(ZIP_MAGIC) or (size, crc) != (member.size, member.crc):
        reason = "is damaged: its archive names another size or checksum"
        raise ReadError("archive-damaged", reason, where=path, fix="copy the archive again from its source")


def _raw(file: BinaryIO, left: int) -> Iterator[bytes]:
    while left and (data := file.read(min(left, RAW_BYTES))):
        left -= len(data)
        yield data


def _inflated(raw: Iterator[bytes]) -> Iterator[bytes]:
    """Inflate; what is damaged ends early, and its size and checksum are wrong."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for data in raw:
            while data and not inflater.eof:
                yield inflater.decompress(data, PIECE_BYTES)
                data = inflater.unconsumed_tail
    except zlib.error:
        return


def _archive_of(path: Path) -> Path | None:
    return next((parent for parent in path.parents if parent.is_file()), None)


def _identity(archive: Path) -> tuple[int, int]:
    status = archive.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)
def _directory(archive: Path, size: int, time_ns: int) -> dict[str, Member]:
    """Return the members of an archive by name, checked; cached until it changes."""
    found = [one for one in _list(archive) if _name(one) and not one.filename.endswith("/")]
    _check_members(archive, found, size)
    return {_name(one): _member(one) for one in found}


def _list(archive: Path) -> list[zipfile.ZipInfo]:
    try:
        with archive.open("rb") as file:
            if len(_raw_list(file)) > MOST_LIST_BYTES + END_BYTES:
                raise _too_large(archive, f"lists its members in more than {MOST_LIST_BYTES} bytes")
            with zipfile.ZipFile(file) as opened:
                return opened.infolist()
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the first byte
            raise
        reason = "is a corrupt or incomplete zip archive"
        raise ReadError("archive-damaged", reason, where=archive, fix=COPY) from error


def _raw_list(file: BinaryIO) -> bytes:
    """Return the list of members of a zip archive and what is behind it, or the end of a list too long."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END_BYTES))
    tail = file.read()
    at = tail.rfind(ZIP_ENDS[0])
    if at < 0:
        raise zipfile.BadZipFile
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    if tail[max(0, at - 20) : at].startswith(ZIP_ENDS[1]):  # zip64 has its own
        file.seek(min(size, int.from_bytes(tail[at - 12 : at - 4], "little")))
        length = int.from_bytes(file.read(48)[40:48], "little")
    file.seek(max(0, size - len(tail) - min(length, MOST_LIST_BYTES + 1)))
    return file.read()


def _check_members(archive: Path, found: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Refuse an archive that would not be read exactly, or that is made to do harm."""
    names = Counter(map(_name, found))
    for one in found:
        name = _name(one)
        if one.flag_bits & ENCRYPTED:
            raise _packed(archive, "is encrypted", name)
        if one.filename.startswith(("/", "\\")) or ".." in name.split("/") or DRIVE.match(name):
            raise _packed(archive, "has a member whose path leads out of it", name)
        if names[name] > 1:
            raise _packed(archive, "has several members of one name", name)
        if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = METHODS.get(one.compress_type, "an unknown method")
            raise _packed(archive, f"is packed with {method}", name)
        if one.file_size > max(LARGE_BYTES, MOST_GROWTH * one.compress_size):
            raise _too_large(archive, f"has a member of {one.file_size} bytes in {one.compress_size}")
    if sum(one.compress_size for one in found) > size:
        raise _packed(archive, "has members that overlap")
    total = sum(one.file_size for one in found)
    if total > max(LARGE_ARCHIVE_BYTES, MOST_ARCHIVE_GROWTH * size):
        raise _too_large(archive, f"announces {total} bytes in {size}")


def _packed(archive: Path, reason: str, name: str = "") -> ReadError:
    example = f" ({name.rsplit('/', 1)[-1][-MOST_SHOWN:]})" if name else ""
    return ReadError("archive-packed", f"{reason}{example}", where=archive, fix=UNPACK)


def _too_large(path: Path, reason: str) -> ReadError:
    return ReadError("archive-too-large", reason, where=path, fix="if it is no bomb, unpack it")


def _member(one: zipfile.ZipInfo) -> Member:
    deflated = one.compress_type == zipfile.ZIP_DEFLATED
    link = stat.S_ISLNK(one.external_attr >> 16)
    return Member(one.header_offset, one.compress_size, one.file_size, one.CRC, deflated, link)


def _name(one: zipfile.ZipInfo) -> str:
    """Return the name of a member as its path has it; some programs write backslashes."""
    return "/".join(part for part in one.filename.replace("\\", "/").split("/") if part not in ("", "."))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
