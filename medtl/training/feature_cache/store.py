"""Activations on disk: stores that are whole or absent, found by their content, evicted where room is short.

batches -> activations.f32, with a line in a journal for each -> features.json -> the folder is published

A store is a folder named by what its numbers depend on, and holds one view of some samples at one step: a
file of float32, and a header with its shape and the checksum of each batch. Each process that reads it holds
a lock in it, so that nobody evicts it meanwhile.
"""

import errno
import logging
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.core.files import read_json, unwritable, write_json
from medtl.core.staging import (
    STAGING,
    Lock,
    StagingFolder,
    journal_line,
    remove_folder,
    remove_lock,
    try_lock,
    wait_for_lock,
)
from medtl.errors import OutputError

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
HEADER, ACTIVATIONS = "features.json", "activations.f32"
IN_USE, ROOM = "in-use", ".room.lock"

# So much of the disk stays free, for checkpoints and whatever else runs.
RESERVED_BYTES = 1_000_000_000


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


@dataclass(frozen=True, eq=False)
class OpenStore:
    """The activations of one view, (N, *activation), memory-mapped, and the lock that keeps them there."""

    activations: NDArray[np.float32]
    lock: Lock


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
    if not (folder / HEADER).is_file():
        return None
    locks = (try_lock(folder / f"{IN_USE}-{number}.lock") for number in count())
    lock = next(lock for lock in locks if lock)  # each reader has one of its own
    activations = _map_whole(folder, spec, check)
    if activations is None:
        log.warning("features %s are damaged: they are computed again", spec.name)
        lock.release()
        return None
    with suppress(OSError):  # it may have been evicted since; what is mapped stays readable
        os.utime(folder / HEADER)
    return OpenStore(activations, lock)


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


def staging_folder(root: Path, spec: StoreSpec) -> StagingFolder:
    """Return where a store is computed, once it is claimed."""
    return StagingFolder(root / spec.name, spec.name)


class StoreWriter:
    """A store while it is computed. Several processes may write batches, each once, in any order."""

    def __init__(self, root: Path, spec: StoreSpec, rank: int) -> None:
        self.spec = spec
        staging = staging_folder(root, spec)
        self.done = frozenset(_checksums(staging, parts=False))
        with ExitStack() as files:
            self._activations = files.enter_context((staging.path / ACTIVATIONS).open("r+b", buffering=0))
            self._journal = files.enter_context(staging.journal(rank))
            self._files = files.pop_all()

    def write(self, batch: int, activation: Tensor) -> None:
        """Write the activations of a batch, and then its line: wherever the line is, they are there."""
        content = _bytes_of(activation.numpy())
        self._activations.seek(self.spec.span(batch).start)
        written = 0
        while written < len(content):
            written += self._activations.write(content[written:])
        self._journal.write(journal_line([batch, zlib.crc32(content)]))

    def close(self) -> None:
        """Flush what this process wrote to the disk, and close it."""
        with self._files:
            os.fsync(self._activations.fileno())


def begin(root: Path, spec: StoreSpec) -> None:
    """Ready the staging folder of a claimed store: its journal has the batches that hold."""
    staging = staging_folder(root, spec)
    content = np.memmap(staging.path / ACTIVATIONS, dtype=np.float32, mode="r", shape=spec.shape)
    staging.begin(holding(content, spec, _checksums(staging)).items(), keep=ACTIVATIONS)


def publish(root: Path, spec: StoreSpec) -> None:
    """Move a computed store to its place. Raises OutputError cache-full where batches are missing."""
    staging = staging_folder(root, spec)
    checksums = _checksums(staging)
    if len(checksums) < spec.batches:
        raise cache_full(root, "a process that shares the pass could not write its part")
    crc32 = [checksums[batch] for batch in range(spec.batches)]
    write_json(staging.path / HEADER, {"format": FORMAT_VERSION, "shape": list(spec.shape), "crc32": crc32})
    staging.publish()


def make_room(root: Path, specs: Sequence[StoreSpec], budget_bytes: float) -> None:
    """Allocate the files of claimed stores, and evict others where the budget or the disk asks for it.

    What killed passes left goes first, then the stores that were used the longest ago; none that a living
    process holds. Raises OutputError cache-full, and then nothing was evicted.
    """
    with wait_for_lock(root / ROOM):
        for spec in specs:
            remove_folder(root / spec.name)  # it is damaged
        _evict(root, specs, budget_bytes)
        for spec in specs:
            _allocate(staging_folder(root, spec).path / ACTIVATIONS, spec.nbytes)


@contextmanager
def cache_errors(root: Path) -> Iterator[None]:
    """Turn a fault of the disk into one line: there is no room, or it cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cache_full(root, error.strerror or "the disk is full") from error
        raise unwritable(root, error) from error


def cache_full(root: Path, reason: str) -> OutputError:
    """Return the error of a run that cannot cache; training may continue without."""
    return OutputError("cache-full", reason, where=root, fix="free the disk or raise fit.cache_gb")


@dataclass(frozen=True)
class _Folder:
    path: Path
    nbytes: int
    used: float

    @property
    def is_staging(self) -> bool:
        return self.path.name.startswith(STAGING)

    @property
    def lock_path(self) -> Path:
        """The lock of the store and of its staging folder."""
        return StagingFolder(self.path.with_name(self.path.name.removeprefix(STAGING)), "").lock_path

    def claim(self) -> Lock | None:
        """Lock a folder that may be evicted; None where a process reads or computes it."""
        readers = [try_lock(path) for path in self.path.glob(f"{IN_USE}-*.lock")]
        # They are let go at once, as Windows renames no folder with an open file. A reader that comes now
        # keeps what it has mapped: on Windows the folder stays, elsewhere its space is freed afterwards.
        for lock in filter(None, readers):
            lock.release()
        return try_lock(self.lock_path) if all(readers) else None


def _folders(root: Path) -> list[_Folder]:
    """Return what lies in the cache, in the order in which it is evicted."""
    folders = []
    for path in filter(Path.is_dir, root.iterdir()):
        found = {}
        for name in (ACTIVATIONS, HEADER):
            with suppress(OSError):  # absent, or removed by another process meanwhile
                found[name] = (path / name).stat()
        size = found[ACTIVATIONS].st_size if ACTIVATIONS in found else 0
        used = max((status.st_mtime for status in found.values()), default=0.0)
        folders.append(_Folder(path, size, used))
    return sorted(folders, key=lambda folder: (not folder.is_staging, folder.used, folder.path.name))


def _evict(root: Path, specs: Sequence[StoreSpec], budget_bytes: float) -> None:
    own = {staging_folder(root, spec).path for spec in specs}
    folders = _folders(root)
    allocated = sum(folder.nbytes for folder in folders if folder.path in own)
    needed = sum(spec.nbytes for spec in specs) - allocated
    over_budget = sum(folder.nbytes for folder in folders) + needed - budget_bytes
    over_disk = needed + RESERVED_BYTES - shutil.disk_usage(root).free
    excess = max(over_budget, over_disk)
    chosen: list[tuple[_Folder, Lock]] = []
    for folder in folders:
        if excess > 0 and folder.path not in own and (lock := folder.claim()):
            chosen.append((folder, lock))
            excess -= folder.nbytes
    if excess > 0:
        for _, lock in chosen:
            lock.release()
        what = "the disk has no room" if over_disk >= over_budget else "fit.cache_gb has no room"
        raise cache_full(root, f"{what} for {needed / 1e6:.0f} MB of activations")
    for folder, lock in chosen:
        _remove(folder, lock)


def _remove(folder: _Folder, lock: Lock) -> None:
    log.info("evicting features %s", folder.path.name)
    with lock, suppress(PermissionError):  # Windows: a reader has come after all
        remove_folder(folder.path)
        remove_lock(folder.lock_path)


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


def _checksums(staging: StagingFolder, *, parts: bool = True) -> dict[int, int]:
    """Return the checksum of each batch that is done; parts: by other processes too."""
    return dict(staging.entries(parts=parts))
