"""The prepared dataset: samples decoded and resampled once, then memory-mapped by whoever trains.

It lies in a folder named by its content: the preprocessing and the identity of each source file. Pixels are
uint16 steps of [0, 1]: half the size of float32, and an error below 1e-5. It is built in a folder beside its
place, sample after sample, with a line in a journal for each, and renamed when it is whole; whoever is
interrupted goes on there.
"""

import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl import __version__
from medtl.errors import ReadError
from medtl.imaging.locations import medtl_home
from medtl.imaging.manifest import Sample
from medtl.imaging.preparing import STEPS, Outcome, Pixels, prepare_in_order, prepare_one
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.imaging.quality import Oddity
from medtl.imaging.storage import make_folder, read_json, unwritable, write_json

log = logging.getLogger(__name__)

FORMAT_VERSION = 3
HEADER, PIXELS, JOURNAL, LOCK = "prepared.json", "pixels.u16", "journal.jsonl", ".lock"

Progress = Callable[[int, int], None]
Refusals = tuple[tuple[str, ReadError], ...]


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """Prepared pixels of samples, memory-mapped: uint16 (N, C, *size), row by row the sample_ids.

    refusals are the samples that could not be read or prepared, as (sample_id, error); oddities are those
    that were and are odd all the same, as (sample_id, oddity).
    """

    folder: Path
    pixels: NDArray[np.uint16]
    sample_ids: tuple[str, ...]
    content_hashes: tuple[str, ...]
    refusals: Refusals
    oddities: tuple[tuple[str, Oddity], ...] = ()

    def rows_of(self, samples: Iterable[Sample]) -> NDArray[np.int64]:
        """Return the row of each sample."""
        row = {sample_id: index for index, sample_id in enumerate(self.sample_ids)}
        return np.array([row[sample.sample_id] for sample in samples], dtype=np.int64)

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return float32 images (n, C, *size) in [0, 1]; rows that follow each other cost the least."""
        stored = np.asarray(self.pixels)[_slice_or_rows(np.asarray(rows, dtype=np.int64))]
        return torch.from_numpy(np.divide(stored, np.float32(STEPS), dtype=np.float32))


def oddity_notes(dataset: PreparedDataset) -> tuple[str, ...]:
    """Return a line for each kind of oddity: how many images have it."""
    counts: dict[Oddity, int] = defaultdict(int)
    for _, oddity in dataset.oddities:
        counts[oddity] += 1
    return tuple(
        f"{count} image{'s' * (count > 1)} of {len(dataset.sample_ids)}: {oddity.reason} ({oddity.code})"
        for oddity, count in counts.items()
    )


def prepare_samples(
    samples: Sequence[Sample],
    config: PreprocessingConfig,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
) -> PreparedDataset:
    """Decode and prepare samples, or open what an earlier call with the same files and settings left.

    A call that was interrupted, by whatever, is continued; a call that runs elsewhere is waited for. A sample
    that cannot be read is refused and the rest go on. workers: 1 stays in this process, more are so many
    child processes; by default children come in once the job has proved long. None of this changes a bit of
    the result. Raises OutputError output-unwritable, as on a full disk; TrainingError worker-lost.
    """
    folder = medtl_home() / "prepared" / _content_key(samples, config)
    staging = folder.with_name(f".preparing-{folder.name}")
    while True:
        seen = _inode(folder / HEADER)
        refusals = _confirm_refusals(folder, samples, config)
        if refusals is not None:
            return _open(folder, refusals)
        with _held(staging) as held:
            if held and _inode(folder / HEADER) == seen:  # otherwise another process was faster
                # Perhaps it is whole already, and was broken off before it was renamed.
                refusals = _confirm_refusals(staging, samples, config)
                if refusals is None:
                    refusals = _fill(staging, samples, config, progress, workers)
                _publish(staging, folder)
                return _open(folder, refusals)


def _slice_or_rows(rows: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return rows that follow each other as a slice, which numpy reads in place."""
    follow = len(rows) > 0 and bool(rows[0] >= 0) and bool((np.diff(rows) == 1).all())
    return slice(int(rows[0]), int(rows[-1]) + 1) if follow else rows


def _content_key(samples: Sequence[Sample], config: PreprocessingConfig) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {__version__} {config.model_dump_json()}".encode())
    for sample in samples:
        digest.update(json.dumps([sample.sample_id, sample.series.item, _file_facts(sample)]).encode())
    return digest.hexdigest()[:24]


def _file_facts(sample: Sample) -> list[tuple[str, int, int]]:
    """Identify files as make does: by path, size and time of change. A file that is gone is refused later.

    An edit that keeps the size and sets the time back is not noticed: to notice it, every file would have
    to be read whole each time.
    """
    facts = []
    for path in sample.series.files:
        try:
            status = path.stat()
        except OSError:
            facts.append((str(path), -1, -1))
        else:
            facts.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
    return facts


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _confirm_refusals(
    folder: Path, samples: Sequence[Sample], config: PreprocessingConfig
) -> Refusals | None:
    """Read again what an earlier call refused; None where there is no whole dataset that still holds.

    So a file that was out of reach for a moment is not left out for ever, and no error text is kept.
    """
    header = _read_whole_header(folder)
    if header is None:
        return None
    refused = set(header["refused"])
    again = [(s.sample_id, prepare_one(s.series, config)) for s in samples if s.sample_id in refused]
    confirmed = tuple((sample_id, found) for sample_id, found in again if isinstance(found, ReadError))
    return confirmed if len(confirmed) == len(refused) else None


def _read_whole_header(folder: Path) -> dict[str, Any] | None:
    """Return the header of a dataset whose pixels are all there, None otherwise."""
    try:
        header = read_json(folder / HEADER)
        size = (folder / PIXELS).stat().st_size
    except (OSError, ValueError):
        return None
    expected = 2 * len(header["sample_ids"]) * math.prod(header["shape"])
    return header if size == expected else None


def _open(folder: Path, refusals: Refusals) -> PreparedDataset:
    """Memory-map a prepared dataset."""
    header = read_json(folder / HEADER)
    shape = (len(header["sample_ids"]), *header["shape"])
    pixels = np.memmap(folder / PIXELS, dtype=np.uint16, mode="r", shape=shape) if shape[0] else None
    return PreparedDataset(
        folder,
        np.empty(shape, np.uint16) if pixels is None else pixels,
        tuple(header["sample_ids"]),
        tuple(header["content_hashes"]),
        refusals,
        tuple((sample_id, Oddity(*oddity)) for sample_id, oddity in header["oddities"]),
    )


@contextmanager
def _held(staging: Path) -> Iterator[bool]:
    """Hold a staging folder, made where it is absent, for this process; wait while another one holds it.

    Yields False where the folder went to its place meanwhile. The lock is a file inside: it goes along, and
    none is left lying about. Raises OutputError output-unwritable for any fault of the disk inside.
    """
    descriptor = None
    try:
        make_folder(staging.parent)
        staging.mkdir(mode=0o700, exist_ok=True)  # pixels of patients
        descriptor = _open_lock(staging)
        yield descriptor is not None and _is_lock_of(descriptor, staging)
    except OSError as error:
        raise unwritable(staging.parent, error) from error
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_lock(staging: Path) -> int | None:
    """Return a descriptor of the lock, None where the folder has gone since it was made."""
    try:
        return os.open(staging / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except FileNotFoundError:
        return None


def _is_lock_of(descriptor: int, staging: Path) -> bool:
    """Take the lock, and say whether it still is the one of the folder."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another process prepares the same samples: waiting for it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_ino == _inode(staging / LOCK)


class Entry(NamedTuple):
    """A line of the journal: a sample, and the hash and oddity of its pixels, or neither: it was refused."""

    sample_id: str
    content_hash: str | None
    oddity: Oddity | None = None

    def line(self) -> bytes:
        """Return the entry as it is written."""
        return json.dumps([self.sample_id, self.content_hash, self.oddity]).encode() + b"\n"


def _fill(
    staging: Path,
    samples: Sequence[Sample],
    config: PreprocessingConfig,
    progress: Progress | None,
    workers: int | None,
) -> Refusals:
    """Prepare what the journal of a staging folder lacks, and write the header."""
    entries, refusals = _resume(staging, samples, config)
    left = samples[len(entries) :]
    with (
        (staging / PIXELS).open("ab") as pixels,
        (staging / JOURNAL).open("ab") as journal,
        closing(prepare_in_order([sample.series for sample in left], config, workers)) as outcomes,
    ):
        for sample, outcome in zip(left, outcomes, strict=True):
            if isinstance(outcome, ReadError):
                refusals.append((sample.sample_id, outcome))
            entries.append(_append(sample.sample_id, outcome, pixels, journal))
            if progress:
                progress(len(entries), len(samples))
        os.fsync(pixels.fileno())
    write_json(staging / HEADER, _header(config, entries))
    return tuple(refusals)


def _append(sample_id: str, outcome: Outcome, pixels: BinaryIO, journal: BinaryIO) -> Entry:
    """Write pixels, then their line: what the journal tells of is there."""
    entry = Entry(sample_id, None)
    if isinstance(outcome, Pixels):
        content = outcome.values.tobytes()
        pixels.write(content)
        pixels.flush()
        entry = Entry(sample_id, _hash(content), outcome.oddity)
    journal.write(entry.line())
    journal.flush()
    return entry


def _resume(
    staging: Path, samples: Sequence[Sample], config: PreprocessingConfig
) -> tuple[list[Entry], list[tuple[str, ReadError]]]:
    """Cut pixels and journal to what holds of them, and return that.

    An entry holds where its pixels have its hash, or where its sample is refused again. A machine that lost
    power may have kept a line and not its pixels, so the journal is not taken at its word.
    """
    entries: list[Entry] = []
    refusals: list[tuple[str, ReadError]] = []
    bytes_each = 2 * config.channels * math.prod(config.size)
    _tidy(staging)
    with (staging / PIXELS).open("ab+") as pixels:
        pixels.seek(0)
        for entry, sample in zip(_read_journal(staging / JOURNAL), samples, strict=False):
            if entry.sample_id != sample.sample_id:
                break
            if entry.content_hash is None:
                outcome = prepare_one(sample.series, config)
                if not isinstance(outcome, ReadError):
                    break
                refusals.append((sample.sample_id, outcome))
            elif entry.content_hash != _hash(pixels.read(bytes_each)):
                break
            entries.append(entry)
        pixels.truncate(bytes_each * (len(entries) - len(refusals)))
    with (staging / JOURNAL).open("ab") as journal:
        journal.truncate(sum(len(entry.line()) for entry in entries))
    return entries, refusals


def _tidy(staging: Path) -> None:
    """Remove a header that no longer holds, and half-written ones."""
    for path in staging.iterdir():
        if path.name not in (PIXELS, JOURNAL, LOCK):
            path.unlink()


def _read_journal(path: Path) -> Iterator[Entry]:
    """Yield the entries up to the first line that is torn."""
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        try:
            sample_id, content_hash, oddity = json.loads(line)
            entry = Entry(sample_id, content_hash, Oddity(*oddity) if oddity else None)
        except (ValueError, TypeError):
            return
        if entry.line() != line:
            return
        yield entry


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _header(config: PreprocessingConfig, entries: Sequence[Entry]) -> dict[str, Any]:
    kept = [entry for entry in entries if entry.content_hash is not None]
    return {
        "version": FORMAT_VERSION,
        "preprocessing": config.model_dump(mode="json"),
        "shape": [config.channels, *config.size],
        "sample_ids": [entry.sample_id for entry in kept],
        "content_hashes": [entry.content_hash for entry in kept],
        "oddities": [[entry.sample_id, entry.oddity] for entry in kept if entry.oddity],
        "refused": [entry.sample_id for entry in entries if entry.content_hash is None],
    }


def _publish(staging: Path, folder: Path) -> None:
    """Rename a whole dataset to its place."""
    (staging / JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # what is there is not whole, or no longer true
    staging.replace(folder)
