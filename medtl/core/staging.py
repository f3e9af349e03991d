"""Work that takes long, staged: lock -> staging folder -> items, a line of a journal for each -> publish.

A process that is killed leaves its staging folder behind, and the next one resumes there; of two processes
that want the same place, one waits. Locks lie beside the folders that they guard: Windows renames no folder
in which a file is open.
"""

import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medtl.core.files import flush

log = logging.getLogger(__name__)
STAGING, REMOVED = ".preparing-", ".removed-"
JOURNAL = "journal"


class Lock(ExitStack):
    """A lock held by this process until it is released, this object is gone, or the process ends."""

    release = ExitStack.close


def try_lock(path: Path) -> Lock | None:
    """Lock a file, made where it is absent; None where it is held already. Raises OSError."""
    try:
        return _lock(path, blocking=False)
    except Timeout:
        return None


def wait_for_lock(path: Path) -> Lock:
    """Lock a file, made where it is absent, as soon as nobody else holds it. Raises OSError."""
    lock = try_lock(path)
    if lock is None:
        log.info("another process holds %s: waiting for it", path.name)
        lock = _lock(path, blocking=True)
    return lock


def _lock(path: Path, *, blocking: bool) -> Lock:
    held = FileLock(path, mode=0o600, thread_local=False)
    held.acquire(blocking=blocking)
    lock = Lock()
    lock.callback(held.release)
    return lock


def remove_lock(path: Path) -> None:
    """Remove the file of a lock that is held; a process that waits for it makes a new one."""
    with suppress(OSError):  # Windows removes no file that is open; there filelock does so at the release
        path.unlink()


@dataclass(frozen=True)
class StagingFolder:
    """Where the content of a place is computed. key: names that content; other journals count as none."""

    place: Path
    key: str

    @property
    def path(self) -> Path:
        """The folder, beside its place."""
        return self.place.with_name(f"{STAGING}{self.place.name}")

    @property
    def lock_path(self) -> Path:
        """The lock of the place and of its staging folder."""
        return self.path.with_name(f"{self.path.name}.lock")

    def claim(self) -> Lock:
        """Hold the folder; wait while another process does, which may fill the place meanwhile."""
        lock = wait_for_lock(self.lock_path)
        lock.callback(remove_lock, self.lock_path)  # before it is released
        self.path.mkdir(mode=0o700, exist_ok=True)  # pixels of patients
        return lock

    def entries(self, *, parts: bool = True) -> list[list[Any]]:
        """Return the journal's entries as far as its lines are whole; parts: with those of all processes."""
        header, *entries = list(_read_lines(self.path / f"{JOURNAL}.jsonl")) or [[]]
        if header != [self.key]:
            return []
        for path in sorted(self.path.glob(f"{JOURNAL}-*.jsonl")) if parts else ():
            entries.extend(_read_lines(path))
        return entries

    def begin(self, entries: Iterable[Sequence[Any]], *, keep: str) -> None:
        """Begin or resume with these entries alone, and remove all else but the file `keep`.

        A machine that lost power may have kept a line and not its content: resuming checks that, so
        nothing need be flushed to the disk before the end.
        """
        fresh = self.path / "journal.new"
        fresh.write_bytes(b"".join(map(journal_line, ([self.key], *entries))))
        for path in self.path.iterdir():
            if path.name not in (keep, fresh.name, f"{JOURNAL}.jsonl"):
                path.unlink()
        fresh.replace(self.path / f"{JOURNAL}.jsonl")

    def journal(self, part: int | None = None) -> FileIO:
        """Open the journal for more lines; part: the number of one of several processes that do so."""
        name = JOURNAL if part is None else f"{JOURNAL}-{part}"
        return (self.path / f"{name}.jsonl").open("ab", buffering=0)

    def publish(self) -> None:
        """Move the folder, which is whole, to its place, and remove what was there."""
        for path in self.path.glob(f"{JOURNAL}*"):
            path.unlink()
        remove_folder(self.place)
        self.path.replace(self.place)
        flush(self.place.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, so that nobody finds half of it; Windows refuses where it is used."""
    away = folder.with_name(f"{REMOVED}{folder.name}")
    shutil.rmtree(away, ignore_errors=True)
    if away.exists():  # a file of it is still in use
        away = away.with_name(f"{away.name}-{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):
        folder.replace(away)
        shutil.rmtree(away, ignore_errors=True)


def journal_line(entry: Sequence[Any]) -> bytes:
    """Return the line of an item, to be written once its content is."""
    return json.dumps(entry).encode() + b"\n"


def _read_lines(path: Path) -> Iterator[list[Any]]:
    """Yield entries up to the first line that is torn."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            return
        if not isinstance(entry, list) or not line.endswith(b"\n"):
            return
        yield entry
