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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl import __version__
from medtl.core.files import make_folder, medtl_home, read_json, unwritable, write_json
from medtl.core.parallel import work_in_order
from medtl.data.dataset_file import DATASET_FILE, check_preprocessing, dataset_of, read_record
from medtl.data.task import Manifest, Sample
from medtl.errors import LabelError, OutputError, ReadError
from medtl.imaging.image import ImageWarning, find_warning
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.reader import read_series
from medtl.imaging.series import Series

log = logging.getLogger(__name__)
FORMAT_VERSION = 4
HEADER = "prepared.json"
PIXELS, JOURNAL, LOCK = "pixels.u16", "journal.jsonl", ".lock"

# What the folder of a dataset may hold. A folder that holds anything else is no place for one.
OWN_FILES = frozenset({HEADER, PIXELS, JOURNAL, LOCK, DATASET_FILE})
Progress = Callable[[int, int], None]
Refusals = tuple[tuple[str, ReadError], ...]

# Prepared pixels are kept as so many steps of [0, 1].
STEPS = 65535

# A job that is done sooner starts no children.
ALONE_SECONDS = 2.0


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
    oddities: tuple[tuple[str, ImageWarning], ...] = ()

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
    counts: dict[ImageWarning, int] = defaultdict(int)
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
    folder: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> PreparedDataset:
    """Decode and prepare samples, or open what an earlier call with the same files and settings left.

    folder: where the dataset goes, for the user to keep; what it was prepared from before is replaced. By
    default it goes to medtl's home. Samples of such a dataset (load_manifest) are opened where they lie.

    A call that was interrupted, by whatever, is continued; a call that runs elsewhere is waited for. A sample
    that cannot be read is refused and the rest go on. workers: 1 stays in this process, more are so many
    child processes; by default children come in once the job has proved long. None of this changes a bit of
    the result. Raises OutputError output-unwritable, as on a full disk, or where `folder` holds anything
    else; LabelError split-empty, where nothing could be read for it; TrainingError worker-lost; ReadError
    dataset-damaged; ConfigError dataset-recipe.
    """
    kept = dataset_of(samples)
    if kept is not None:
        return open_dataset(kept, samples, config)
    key = content_key(samples, config)
    at_users_place = folder is not None
    if folder is not None:
        _check_place(folder)
    folder = (folder or medtl_home() / "prepared" / key).absolute()
    staging = folder.with_name(f".preparing-{folder.name}")
    while True:
        seen = _inode(folder / HEADER)
        refusals = _confirm_refusals(folder, samples, config, key)
        if refusals is not None:
            return _open(folder, refusals)
        with _held(staging) as held:
            if held and _inode(folder / HEADER) == seen:  # otherwise another process was faster
                # Perhaps it is whole already, and was broken off before it was renamed.
                refusals = _confirm_refusals(staging, samples, config, key)
                if refusals is None:
                    refusals = _fill(staging, samples, config, key, progress, workers)
                if at_users_place and len(refusals) == len(samples):
                    shutil.rmtree(staging)
                    raise _nothing_readable(refusals)
                _publish(staging, folder)
                return _open(folder, refusals)


def open_dataset(folder: Path, samples: Sequence[Sample], config: PreprocessingConfig) -> PreparedDataset:
    """Open the rows of samples of a dataset that a user keeps, in its order.

    Raises ReadError dataset-damaged; ConfigError dataset-recipe where it was prepared with other settings.
    """
    record = read_record(folder)
    check_preprocessing(folder, record, config.model_dump(mode="json"))
    header = _read_whole_header(folder, record.key)
    if header is None:
        reason = "has pixels that are incomplete or altered, or not those of its dataset.json"
        raise ReadError("dataset-damaged", reason, where=folder, fix="copy or prepare it again")
    wanted = {sample.sample_id for sample in samples}
    refusals = ((one.sample_id, one.to_error()) for one in record.refusals if one.sample_id in wanted)
    whole = _open(folder, tuple((name, error) for name, error in refusals if name is not None))
    return whole if wanted >= set(whole.sample_ids) else _select(whole, wanted)


def _select(dataset: PreparedDataset, sample_ids: set[str]) -> PreparedDataset:
    """Return the rows of some samples."""
    rows = [row for row, name in enumerate(dataset.sample_ids) if name in sample_ids]
    return replace(
        dataset,
        pixels=dataset.pixels[_slice_or_rows(np.array(rows, dtype=np.int64))],
        sample_ids=tuple(dataset.sample_ids[row] for row in rows),
        content_hashes=tuple(dataset.content_hashes[row] for row in rows),
        oddities=tuple(pair for pair in dataset.oddities if pair[0] in sample_ids),
    )


def _nothing_readable(refusals: Refusals) -> LabelError:
    """Return the error in place of an empty dataset, which might replace a good one."""
    reason = f"none of {len(refusals)} samples can be read"
    return LabelError("split-empty", reason, fix=str(refusals[0][1]))


def _check_place(folder: Path) -> None:
    """Refuse a folder that holds what medtl did not write: it would be lost."""
    try:
        strange = sorted(path.name for path in folder.iterdir() if path.name not in OWN_FILES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unwritable(folder, error) from error
    if strange:
        reason = f"holds {strange[0]}, which is no part of a prepared dataset"
        raise OutputError("output-unwritable", reason, where=folder, fix="choose another --out")


def _slice_or_rows(rows: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return rows that follow each other as a slice, which numpy reads in place."""
    follow = len(rows) > 0 and bool(rows[0] >= 0) and bool((np.diff(rows) == 1).all())
    return slice(int(rows[0]), int(rows[-1]) + 1) if follow else rows


def content_key(samples: Sequence[Sample], config: PreprocessingConfig) -> str:
    """Return what names the pixels: the preprocessing and the identity of each source file."""
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
    folder: Path, samples: Sequence[Sample], config: PreprocessingConfig, key: str
) -> Refusals | None:
    """Read again what an earlier call refused; None where there is no whole dataset that still holds.

    So a file that was out of reach for a moment is not left out for ever, and no error text is kept.
    """
    header = _read_whole_header(folder, key)
    if header is None:
        return None
    refused = set(header["refused"])
    again = [(s.sample_id, prepare_one(s.series, config)) for s in samples if s.sample_id in refused]
    confirmed = tuple((sample_id, found) for sample_id, found in again if isinstance(found, ReadError))
    return confirmed if len(confirmed) == len(refused) else None


def _read_whole_header(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the header of a dataset whose pixels are those of `key`, whole and unchanged, None otherwise.

    Each pixel is read and hashed, at 1 to 2 GB a second: a disk or a copy may have changed some.
    """
    try:
        header = read_json(folder / HEADER)
        if header.get("key") != key:
            return None
        _oddities(header), set(header["refused"])
        return header if _has_its_pixels(folder / PIXELS, header) else None
    except (OSError, AttributeError, KeyError, TypeError, ValueError):  # or no header of medtl's
        return None


def _has_its_pixels(path: Path, header: dict[str, Any]) -> bool:
    bytes_each = 2 * math.prod(header["shape"])
    count = len(header["sample_ids"])
    if path.stat().st_size != bytes_each * count or len(header["content_hashes"]) != count:
        return False
    with path.open("rb") as pixels:
        return all(hash_pixels(pixels.read(bytes_each)) == known for known in header["content_hashes"])


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
        _oddities(header),
    )


def _oddities(header: dict[str, Any]) -> tuple[tuple[str, ImageWarning], ...]:
    return tuple((sample_id, ImageWarning(*oddity)) for sample_id, oddity in header["oddities"])


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


def _fill(
    staging: Path,
    samples: Sequence[Sample],
    config: PreprocessingConfig,
    key: str,
    progress: Progress | None,
    workers: int | None,
) -> Refusals:
    """Prepare what the journal of a staging folder lacks, and write the header."""
    entries, refusals = resume(staging, samples, config, key)
    left = samples[len(entries) :]
    with (
        (staging / PIXELS).open("ab") as pixels,
        (staging / JOURNAL).open("ab") as journal,
        closing(prepare_in_order([sample.series for sample in left], config, workers)) as outcomes,
    ):
        for sample, outcome in zip(left, outcomes, strict=True):
            if isinstance(outcome, ReadError):
                refusals.append((sample.sample_id, outcome))
            entries.append(append(sample.sample_id, outcome, pixels, journal))
            if progress:
                progress(len(entries), len(samples))
        os.fsync(pixels.fileno())
    write_json(staging / HEADER, _header(config, key, entries))
    return tuple(refusals)


class Entry(NamedTuple):
    """A line of the journal: a sample, and the hash and oddity of its pixels, or neither: it was refused."""

    sample_id: str
    content_hash: str | None
    oddity: ImageWarning | None = None

    def line(self) -> bytes:
        """Return the entry as it is written."""
        return json.dumps([self.sample_id, self.content_hash, self.oddity]).encode() + b"\n"


def _header(config: PreprocessingConfig, key: str, entries: Sequence[Entry]) -> dict[str, Any]:
    kept = [entry for entry in entries if entry.content_hash is not None]
    return {
        "version": FORMAT_VERSION,
        "key": key,
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


class Pixels(NamedTuple):
    """Prepared pixels of one image, uint16 (C, *size), and what is odd about the image."""

    values: NDArray[np.uint16]
    oddity: ImageWarning | None


Outcome = Pixels | ReadError


def append(sample_id: str, outcome: Outcome, pixels: BinaryIO, journal: BinaryIO) -> Entry:
    """Write pixels, then their line: what the journal tells of is there."""
    entry = Entry(sample_id, None)
    if isinstance(outcome, Pixels):
        content = outcome.values.tobytes()
        pixels.write(content)
        pixels.flush()
        entry = Entry(sample_id, hash_pixels(content), outcome.oddity)
    journal.write(entry.line())
    journal.flush()
    return entry


def resume(
    staging: Path, samples: Sequence[Sample], config: PreprocessingConfig, key: str
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
        for entry, sample in zip(_read_journal(staging / JOURNAL, key), samples, strict=False):
            if entry.sample_id != sample.sample_id:
                break
            if entry.content_hash is None:
                outcome = prepare_one(sample.series, config)
                if not isinstance(outcome, ReadError):
                    break
                refusals.append((sample.sample_id, outcome))
            elif entry.content_hash != hash_pixels(pixels.read(bytes_each)):
                break
            entries.append(entry)
        pixels.truncate(bytes_each * (len(entries) - len(refusals)))
    _cut_journal(staging / JOURNAL, key, entries)
    return entries, refusals


def _tidy(staging: Path) -> None:
    """Remove a header that no longer holds, and half-written ones."""
    for path in staging.iterdir():
        if path.name not in (PIXELS, JOURNAL, LOCK):
            path.unlink()


def _read_journal(path: Path, key: str) -> Iterator[Entry]:
    """Yield the entries up to the first line that is torn."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if lines[:1] != [_first_line(key)]:
        return
    for line in lines[1:]:
        try:
            sample_id, content_hash, oddity = json.loads(line)
            entry = Entry(sample_id, content_hash, ImageWarning(*oddity) if oddity else None)
        except (ValueError, TypeError):
            return
        if entry.line() != line:
            return
        yield entry


def _cut_journal(path: Path, key: str, entries: Sequence[Entry]) -> None:
    """Cut a journal to entries that it holds, or begin it."""
    if not entries:
        path.write_bytes(_first_line(key))
        return
    with path.open("ab") as journal:
        journal.truncate(len(_first_line(key)) + sum(len(entry.line()) for entry in entries))


def _first_line(key: str) -> bytes:
    return json.dumps({"key": key}).encode() + b"\n"


def hash_pixels(content: bytes) -> str:
    """Return what pixels are known by."""
    return hashlib.sha256(content).hexdigest()[:24]


def prepare_in_order(
    series: Sequence[Series], config: PreprocessingConfig, workers: int | None
) -> Generator[Outcome, None, None]:
    """Yield what becomes of each series, in order. Raises TrainingError worker-lost."""
    return work_in_order(partial(prepare_one, config=config), series, workers, ALONE_SECONDS)


def prepare_one(series: Series, config: PreprocessingConfig) -> Outcome:
    """Read one series and bring it to the grid."""
    try:
        image = read_series(series)
        pixels = prepare_image(image, config).pixels
    except ReadError as error:
        return error
    return Pixels(np.round(pixels * STEPS).astype(np.uint16), find_warning(image))


def all_refusals(manifest: Manifest, prepared: PreparedDataset) -> tuple[ReadError, ...]:
    """Return what the table's scan and what preparing refused."""
    return (*manifest.refusals, *(error for _, error in prepared.refusals))
