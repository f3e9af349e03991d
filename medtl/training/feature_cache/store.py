"""Activations on disk: stores that are whole or absent, found by their content, evicted where room is short.

A store is a folder named by what its numbers depend on, and holds one view of some samples at one step: a
file of float32, and a header with its shape and the checksum of each batch. Whoever reads it holds a shared
lock, so that nobody evicts it meanwhile; the lock of a process that was killed is gone with it. A store is
computed in a folder beside its place, under an exclusive lock, batch after batch with a line in a journal
for each, and renamed when it is whole. So whoever was killed goes on there, and of two processes that want
the same store one waits.
"""

import errno
import fcntl
import logging
import math
import os
import shutil
import time
import uuid
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.core.files import read_json, unwritable, write_json
from medtl.errors import OutputError

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
HEADER, ACTIVATIONS, JOURNAL = "features.json", "activations.f32", "journal"
IN_USE, COMPUTING, ROOM = "in-use.lock", "computing.lock", ".room.lock"
STAGING, EVICTED = ".computing-", ".evicted-"

# So much of the disk stays free, for checkpoints and whatever else runs.
RESERVED_BYTES = 1_000_000_000
# What a killed pass left is kept for a run that is resumed after a holiday.
LEFTOVER_SECONDS = 14 * 24 * 3600.0


@dataclass(frozen=True)
class StoreSpec:
    """A store to be: its name, its shape (N, *activation), and the size of the batches that fill it."""

    name: str
    shape: tuple[int, ...]
    batch_size: int

    @property
    def nbytes(self) -> int:
        """Size of the activations."""
        return 4 * math.prod(self.shape)

    @property
    def batches(self) -> int:
        """How many batches the pass has."""
        return -(-self.shape[0] // self.batch_size)

    def rows(self, batch: int) -> NDArray[np.int64]:
        """Return the samples of a batch."""
        return np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, self.shape[0]))

    def span(self, batch: int) -> slice:
        """Return where a batch lies in the file."""
        row, size = 4 * math.prod(self.shape[1:]), self.nbytes
        return slice(batch * self.batch_size * row, min((batch + 1) * self.batch_size * row, size))


class Lease:
    """A lock that is held until it is released, or this object or its process is gone."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
        self._close = weakref.finalize(self, os.close, self.descriptor)

    def take(self, kind: int) -> bool:
        """Lock as asked for, and say whether that is so and the file still in its place.

        kind: fcntl.LOCK_SH or LOCK_EX, with LOCK_NB not to wait.
        """
        try:
            fcntl.flock(self.descriptor, kind)
            return os.fstat(self.descriptor).st_ino == self.path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            return False

    def release(self) -> None:
        """Give the lock back."""
        self._close()


@dataclass(frozen=True, eq=False)
class OpenStore:
    """The activations of one view, (N, *activation), memory-mapped and held."""

    activations: NDArray[np.float32]
    lease: Lease


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Activations entering a step, view by view; as long as it lives, nobody evicts them."""

    views: tuple[OpenStore, ...]

    def read(self, indices: Sequence[int] | NDArray[np.int64], view: int) -> Tensor:
        """Return the activations of the samples at `indices` in one view: float32 (n, *activation)."""
        return torch.from_numpy(self.views[view % len(self.views)].activations[np.asarray(indices)])


def open_store(root: Path, spec: StoreSpec, *, check: bool = True) -> OpenStore | None:
    """Open a store that is whole, and mark it as used; None where there is none.

    check: read it once and compare its checksums, at the speed of reading. A store that is not what it was is
    none, and will be computed again.
    """
    folder = root / spec.name
    try:
        lease = Lease(folder / IN_USE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not lease.take(fcntl.LOCK_SH | fcntl.LOCK_NB):  # it is being evicted
        lease.release()
        return None
    activations = _map_whole(folder, spec, check)
    if activations is None:
        log.warning("features %s are damaged: they are computed again", spec.name)
        lease.release()
        return None
    os.utime(lease.descriptor)
    return OpenStore(activations, lease)


def _map_whole(folder: Path, spec: StoreSpec, check: bool) -> NDArray[np.float32] | None:
    try:
        header = read_json(folder / HEADER)
        whole = header["shape"] == list(spec.shape) and len(header["crc32"]) == spec.batches
        path = folder / ACTIVATIONS
        if not whole or path.stat().st_size != spec.nbytes:
            return None
        activations = np.memmap(path, dtype=np.float32, mode="r", shape=spec.shape).view(np.ndarray)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    checksums = dict(enumerate(header["crc32"]))
    return activations if not check or holding(activations, spec, checksums) == checksums else None


def holding(activations: NDArray[np.float32], spec: StoreSpec, checksums: dict[int, int]) -> dict[int, int]:
    """Return the checksums that hold, by batch."""
    content = _bytes_of(activations)
    return {
        batch: checksum
        for batch, checksum in checksums.items()
        if 0 <= batch < spec.batches and zlib.crc32(content[spec.span(batch)]) == checksum
    }


def _bytes_of(values: NDArray[np.float32]) -> memoryview:
    return memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # numpy's stubs lack it


def claim(root: Path, spec: StoreSpec) -> Lease:
    """Wait until this process alone may compute the store; perhaps another one has done so meanwhile."""
    folder = staging_folder(root, spec)
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            lease = Lease(folder / COMPUTING, create=True)
        except FileNotFoundError:  # it was evicted in this moment
            continue
        if lease.take(fcntl.LOCK_EX | fcntl.LOCK_NB):
            return lease
        log.info("another process computes the same features: waiting for it")
        if lease.take(fcntl.LOCK_EX):
            return lease
        lease.release()


def staging_folder(root: Path, spec: StoreSpec) -> Path:
    """Return where a store is computed."""
    return root / f"{STAGING}{spec.name}"


class Staging:
    """A store while it is computed. Several processes may write batches, each once, in any order."""

    def __init__(self, root: Path, spec: StoreSpec, rank: int) -> None:
        self.root = root
        self.spec = spec
        self.folder = staging_folder(root, spec)
        self.done = frozenset(_read_journal(self.folder / JOURNAL))
        self._descriptor = os.open(self.folder / ACTIVATIONS, os.O_RDWR)
        self._journal = (self.folder / f"{JOURNAL}-{rank}").open("a")

    def write(self, batch: int, activation: Tensor) -> None:
        """Write the activations of a batch, and then its line: what the journal tells of is there."""
        content = _bytes_of(activation.numpy())
        offset = self.spec.span(batch).start
        written = 0
        while written < len(content):
            written += os.pwrite(self._descriptor, content[written:], offset + written)
        self._journal.write(f"{batch} {zlib.crc32(content)}\n")
        self._journal.flush()

    def close(self) -> None:
        """Flush what this process wrote to the disk, and close it."""
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
            self._journal.close()


def begin(root: Path, spec: StoreSpec) -> None:
    """Ready the staging folder of a claimed store: one journal of the batches that hold.

    A machine that lost power may have kept a line and not its numbers, so the journal is not taken at its
    word, and nothing need be flushed to the disk before the end.
    """
    folder = staging_folder(root, spec)
    content = np.memmap(folder / ACTIVATIONS, dtype=np.float32, mode="r", shape=spec.shape)
    held = holding(content, spec, _read_journals(folder))
    for old in folder.glob(f"{JOURNAL}*"):
        old.unlink()
    (folder / JOURNAL).write_text("".join(f"{batch} {crc}\n" for batch, crc in held.items()))


def publish(root: Path, spec: StoreSpec) -> OpenStore | None:
    """Move a store that was computed to its place and open it; None where batches of it are missing."""
    folder, place = staging_folder(root, spec), root / spec.name
    journal = _read_journals(folder)
    if len(journal) != spec.batches:
        return None
    checksums = [journal[batch] for batch in range(spec.batches)]
    write_json(folder / HEADER, {"format": FORMAT_VERSION, "shape": list(spec.shape), "crc32": checksums})
    lease = Lease(folder / IN_USE, create=True)
    lease.take(fcntl.LOCK_SH | fcntl.LOCK_NB)  # before it can be found and evicted
    if place.exists():  # it is damaged
        remove(place)
    folder.replace(place)
    for done in (place / COMPUTING, *place.glob(f"{JOURNAL}*")):
        done.unlink()
    activations = _map_whole(place, spec, check=False)
    return OpenStore(activations, lease) if activations is not None else None


def remove(folder: Path) -> None:
    """Remove a store or a staging folder so that nobody finds half of it."""
    away = folder.with_name(f"{EVICTED}{uuid.uuid4().hex}")
    folder.replace(away)
    shutil.rmtree(away, ignore_errors=True)


def make_room(root: Path, specs: Sequence[StoreSpec], budget_bytes: float) -> None:
    """Allocate the files of claimed stores, and evict others where the budget or the disk asks for it.

    What killed passes left goes first, then the stores that were used the longest ago; none that a living
    process holds. Raises OutputError cache-full, and then nothing was evicted.
    """
    room = Lease(root / ROOM, create=True)
    try:
        room.take(fcntl.LOCK_EX)
        _sweep(root)
        _evict(root, specs, budget_bytes)
        for spec in specs:
            _allocate(staging_folder(root, spec) / ACTIVATIONS, spec.nbytes)
    finally:
        room.release()


@contextmanager
def telling(root: Path) -> Iterator[None]:
    """Turn a fault of the disk into one line: there is no room, or it cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cache_full(root, error.strerror or "the disk is full") from error
        raise unwritable(root, error) from error


def cache_full(root: Path, reason: str) -> OutputError:
    """Return the error of a run that cannot cache; training may go on without."""
    return OutputError("cache-full", reason, where=root, fix="free the disk or raise fit.cache_gb")


@dataclass(frozen=True)
class _Folder:
    path: Path
    nbytes: int
    used: float

    @property
    def is_staging(self) -> bool:
        return self.path.name.startswith(STAGING)

    def held_alone(self) -> Lease | None:
        """Lock the folder against everyone else, None where somebody holds it."""
        try:
            lease = Lease(self.path / (COMPUTING if self.is_staging else IN_USE), create=True)
        except OSError:
            return None
        if lease.take(fcntl.LOCK_EX | fcntl.LOCK_NB):
            return lease
        lease.release()
        return None


def _folders(root: Path) -> list[_Folder]:
    """Return what lies in the cache, in the order in which it is evicted."""
    found = [_describe(path) for path in root.iterdir() if path.is_dir()]
    return sorted(found, key=lambda folder: (not folder.is_staging, folder.used, folder.path.name))


def _describe(path: Path) -> _Folder:
    size, used = 0, 0.0
    for name in (ACTIVATIONS, IN_USE):
        try:
            status = (path / name).stat()
        except OSError:
            continue
        size += status.st_size
        used = max(used, status.st_mtime)
    return _Folder(path, size, used)


def _sweep(root: Path) -> None:
    """Remove what evictions and killed passes left long ago."""
    for orphan in root.glob(f"{EVICTED}*"):
        shutil.rmtree(orphan, ignore_errors=True)
    oldest = time.time() - LEFTOVER_SECONDS
    stale = (folder for folder in _folders(root) if folder.is_staging and folder.used < oldest)
    _remove_held((folder, lease) for folder in stale if (lease := folder.held_alone()))


def _evict(root: Path, specs: Sequence[StoreSpec], budget_bytes: float) -> None:
    own = {staging_folder(root, spec).name for spec in specs}
    folders = _folders(root)
    allocated = sum(folder.nbytes for folder in folders if folder.path.name in own)
    needed = sum(spec.nbytes for spec in specs) - allocated
    over_budget = sum(folder.nbytes for folder in folders) + needed - budget_bytes
    over_disk = needed + RESERVED_BYTES - shutil.disk_usage(root).free
    excess = max(over_budget, over_disk)
    chosen: list[tuple[_Folder, Lease]] = []
    for folder in folders:
        if excess > 0 and folder.path.name not in own and (lease := folder.held_alone()):
            chosen.append((folder, lease))
            excess -= folder.nbytes
    if excess > 0:
        for _, lease in chosen:
            lease.release()
        what = "the disk has no room" if over_disk >= over_budget else "fit.cache_gb has no room"
        raise cache_full(root, f"{what} for {needed / 1e6:.0f} MB of activations")
    _remove_held(chosen)


def _remove_held(held: Iterable[tuple[_Folder, Lease]]) -> None:
    for folder, lease in held:
        log.info("evicting features %s", folder.path.name)
        remove(folder.path)
        lease.release()


def _allocate(path: Path, nbytes: int) -> None:
    """Give a file its whole size, so that the disk cannot be full in the middle of a pass."""
    with path.open("ab") as file:
        if file.tell() == nbytes:
            return
        file.truncate(nbytes)
        try:
            os.posix_fallocate(file.fileno(), 0, nbytes)
        except AttributeError:  # macOS has none
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
                raise


def _read_journals(folder: Path) -> dict[int, int]:
    return dict(chain.from_iterable(_read_journal(p).items() for p in sorted(folder.glob(f"{JOURNAL}*"))))


def _read_journal(path: Path) -> dict[int, int]:
    """Return the checksum of each batch that is done; a torn last line is none."""
    try:
        lines = path.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    return dict(_read_lines(lines))


def _read_lines(lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    for line in lines:
        batch, _, crc = line.partition(" ")
        if line.endswith("\n") and batch.isdecimal() and crc.strip().isdecimal():
            yield int(batch), int(crc)
