"""The prepared dataset: samples decoded and resampled once, then memory-mapped for training.

samples -> pixels.u16, with a line in a journal for each -> prepared.json -> the folder is published

The folder is named by its content: the preprocessing and the identity of each source file. Pixels are uint16
steps of [0, 1]: half the size of float32, and an error below 1e-5.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import monai.transforms  # noqa: F401  now, since each forked child would import it again
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.core import __version__
from medtl.core.files import medtl_home, read_json, write_json, writing
from medtl.core.parallel import work_in_order
from medtl.core.staging import StagingFolder, journal_line, remove_folder
from medtl.data.dataset_file import DATASET_FILE, check_preprocessing, dataset_of, read_record
from medtl.data.task import Manifest, Sample
from medtl.errors import LabelError, OutputError, ReadError
from medtl.imaging.containers import status_of
from medtl.imaging.image import ImageWarning, find_warning
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.reader import read_series

FORMAT_VERSION = 4
HEADER, PIXELS = "prepared.json", "pixels.u16"

# What the folder of a dataset may hold; .lock and the journal are from medtl 0.1.0. A folder that holds
# anything else is no place for one.
OWN_FILES = frozenset({HEADER, PIXELS, DATASET_FILE, "journal.jsonl", ".lock"})
Progress = Callable[[int, int], None]
Refusals = tuple[tuple[str, ReadError], ...]

# Prepared pixels are stored as so many steps of [0, 1].
STEPS = 65535

# A job that takes less time starts no child processes.
ALONE_SECONDS = 2.0


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """Prepared pixels of samples, memory-mapped: uint16 (N, C, *size), row by row the sample_ids.

    refusals: the samples that could not be read or prepared, as (sample_id, error). warnings: what is
    suspicious about those that could, as (sample_id, warning). key: names the pixels.
    """

    folder: Path
    pixels: NDArray[np.uint16]
    sample_ids: tuple[str, ...]
    content_hashes: tuple[str, ...]
    refusals: Refusals
    warnings: tuple[tuple[str, ImageWarning], ...] = ()
    key: str = ""

    def rows_of(self, samples: Iterable[Sample]) -> NDArray[np.int64]:
        """Return the row of each sample."""
        row = {sample_id: index for index, sample_id in enumerate(self.sample_ids)}
        return np.array([row[sample.sample_id] for sample in samples], dtype=np.int64)

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return float32 images (n, C, *size) in [0, 1]; rows that follow each other cost the least."""
        stored = np.asarray(self.pixels)[_slice_or_rows(np.asarray(rows, dtype=np.int64))]
        return torch.from_numpy(np.divide(stored, np.float32(STEPS), dtype=np.float32))


def warning_notes(dataset: PreparedDataset) -> tuple[str, ...]:
    """Return a line for each kind of warning: how many images have it."""
    counts = Counter(warning for _, warning in dataset.warnings)
    return tuple(
        f"{count} image{'s' * (count > 1)} of {len(dataset.sample_ids)}: {warning.reason} ({warning.code})"
        for warning, count in counts.items()
    )


def prepare_samples(
    samples: Sequence[Sample],
    config: PreprocessingConfig,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> PreparedDataset:
    """Decode and prepare samples, or open what an earlier call with the same files and settings left.

    folder: where the dataset goes, for the user to keep; an earlier dataset there is replaced. By default it
    goes to medtl's home. Samples of such a dataset (load_manifest) are opened where they lie.

    A call that was interrupted, however, is resumed; a call that runs elsewhere is waited for. A sample that
    cannot be read is refused and the others are prepared. Child processes help once the job has proved long.
    None of this changes a bit of the result. Raises OutputError output-unwritable, as on a full disk or where
    `folder` holds anything else; LabelError split-empty, where nothing could be read for it; TrainingError
    worker-lost; ReadError dataset-damaged; ConfigError dataset-recipe.
    """
    source = dataset_of(samples)
    if source is not None:
        return open_dataset(source, samples, config)
    if folder is not None:
        _check_place(folder)
    job = Job(samples, config)
    place = (folder or medtl_home() / "prepared" / job.key).absolute()
    refusals = job.confirm_refusals(place)
    if refusals is not None:
        return _open(place, refusals)
    staging = StagingFolder(place, job.key)
    with writing(place.parent), staging.claim():
        refusals = job.confirm_refusals(place)
        if refusals is not None:  # another process was faster
            remove_folder(staging.path)
            return _open(place, refusals)
        # Perhaps it is whole already, and a process was killed before it could publish it.
        refusals = job.confirm_refusals(staging.path)
        if refusals is None:
            refusals = job.fill(staging, progress)
        if folder is not None and len(refusals) == len(samples):
            remove_folder(staging.path)  # an empty dataset might replace a good one
            reason = f"none of {len(refusals)} samples can be read"
            raise LabelError("split-empty", reason, fix=str(refusals[0][1]))
        staging.publish()
        return _open(place, refusals)


def open_dataset(folder: Path, samples: Sequence[Sample], config: PreprocessingConfig) -> PreparedDataset:
    """Open the rows of samples of a dataset that a user keeps, in its order.

    Raises ReadError dataset-damaged; ConfigError dataset-recipe where it was prepared with other settings.
    """
    record = read_record(folder)
    check_preprocessing(folder, record, config)
    header = _read_whole_header(folder, record.key)
    if header is None:
        reason = "has pixels that are incomplete or altered, or not those of its dataset.json"
        raise ReadError("dataset-damaged", reason, where=folder, fix="copy or prepare it again")
    requested = {sample.sample_id for sample in samples}
    refusals = [(one.sample_id, one.to_error()) for one in record.refusals if one.sample_id]
    whole = _open(folder, tuple(pair for pair in refusals if pair[0] in requested))
    rows = [row for row, name in enumerate(whole.sample_ids) if name in requested]
    return replace(
        whole,
        pixels=whole.pixels[_slice_or_rows(np.array(rows, dtype=np.int64))],
        sample_ids=tuple(whole.sample_ids[row] for row in rows),
        content_hashes=tuple(whole.content_hashes[row] for row in rows),
        warnings=tuple(pair for pair in whole.warnings if pair[0] in requested),
    )


def _check_place(folder: Path) -> None:
    """Refuse a folder that holds what medtl did not write: it would be lost."""
    with writing(folder):
        strange = sorted({path.name for path in folder.iterdir()} - OWN_FILES) if folder.exists() else []
    if strange:
        reason = f"holds {strange[0]}, which is no part of a prepared dataset"
        raise OutputError("output-unwritable", reason, where=folder, fix="choose another --out")


def _slice_or_rows(rows: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return rows that follow each other as a slice, which numpy reads in place."""
    follow = len(rows) > 0 and bool(rows[0] >= 0) and bool((np.diff(rows) == 1).all())
    return slice(int(rows[0]), int(rows[-1]) + 1) if follow else rows


def _read_whole_header(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the header of a dataset whose pixels are those of `key`, whole and unchanged, None otherwise.

    Each pixel is read and hashed, at 1 to 2 GB a second: a disk or a copy may have changed some.
    """
    try:
        header = read_json(folder / HEADER)
        if header.get("key") != key:
            return None
        _warnings(header), set(header["refused"])
        bytes_each, hashes = 2 * math.prod(header["shape"]), header["content_hashes"]
        expected = bytes_each * len(header["sample_ids"])
        if len(hashes) != len(header["sample_ids"]) or (folder / PIXELS).stat().st_size != expected:
            return None
        with (folder / PIXELS).open("rb") as pixels:
            return header if all(_hash(pixels.read(bytes_each)) == known for known in hashes) else None
    except (OSError, AttributeError, KeyError, TypeError, ValueError):  # or no header of medtl's
        return None


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
        _warnings(header),
        header["key"],
    )


def _warnings(header: dict[str, Any]) -> tuple[tuple[str, ImageWarning], ...]:
    pairs = header["warnings"] if "warnings" in header else header["oddities"]  # as medtl 0.1.0 called them
    return tuple((sample_id, ImageWarning(*warning)) for sample_id, warning in pairs)


class SampleEntry(NamedTuple):
    """An entry of the journal: a sample, the hash of its pixels (none: it was refused), and a warning."""

    sample_id: str
    content_hash: str | None
    warning: ImageWarning | None = None


class Outcome(NamedTuple):
    """The result for a sample: its entry, and its pixels, uint16 (C, *size), as bytes, or why it has none."""

    entry: SampleEntry
    content: bytes
    refusal: ReadError | None = None


def prepare_one(sample: Sample, config: PreprocessingConfig) -> Outcome:
    """Read one sample and bring it to the grid."""
    try:
        image = read_series(sample.series)
        pixels = prepare_image(image, config).pixels
    except ReadError as error:
        return Outcome(SampleEntry(sample.sample_id, None), b"", error)
    content = np.round(pixels * STEPS).astype(np.uint16).tobytes()
    return Outcome(SampleEntry(sample.sample_id, _hash(content), find_warning(image)), content)


@dataclass(frozen=True)
class Job:
    """Samples to prepare by some settings."""

    samples: Sequence[Sample]
    config: PreprocessingConfig

    @cached_property
    def key(self) -> str:
        """What names the pixels: the preprocessing and the identity of each source file.

        Files are identified as make does: by path, size and time of change. An edit that keeps the size and
        sets the time back is not noticed: to notice it, every file would have to be read whole each time.
        """
        settings = self.config.model_dump_json()
        digest = hashlib.sha256(f"{FORMAT_VERSION} {__version__} {settings}".encode())
        for sample in self.samples:
            facts = []
            for path in sample.series.files:
                try:
                    status = status_of(path)
                    facts.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
                except OSError:  # it is refused later
                    facts.append((str(path), -1, -1))
            digest.update(json.dumps([sample.sample_id, sample.series.item, facts]).encode())
        return digest.hexdigest()[:24]

    def confirm_refusals(self, folder: Path) -> Refusals | None:
        """Read again what an earlier job refused; None where there is no whole dataset that still holds.

        So a file that was out of reach for a moment is not left out for ever, and no error text is kept.
        """
        header = _read_whole_header(folder, self.key)
        if header is None:
            return None
        refused = set(header["refused"])
        again = [prepare_one(sample, self.config) for sample in self.samples if sample.sample_id in refused]
        confirmed = tuple((one.entry.sample_id, one.refusal) for one in again if one.refusal)
        return confirmed if len(confirmed) == len(refused) else None

    def fill(self, staging: StagingFolder, progress: Progress | None) -> Refusals:
        """Prepare the samples that the journal lacks, and write the header."""
        entries, refusals = self._resume(staging)
        task, left = partial(prepare_one, config=self.config), self.samples[len(entries) :]
        work = work_in_order(task, left, None, ALONE_SECONDS)
        with (staging.path / PIXELS).open("ab") as pixels, staging.journal() as journal, closing(work):
            for outcome in work:
                if outcome.refusal:
                    refusals.append((outcome.entry.sample_id, outcome.refusal))
                pixels.write(outcome.content)
                pixels.flush()
                journal.write(journal_line(outcome.entry))  # after its pixels: where it is, they are
                entries.append(outcome.entry)
                if progress:
                    progress(len(entries), len(self.samples))
            os.fsync(pixels.fileno())
        self._write_header(staging, entries)
        return tuple(refusals)

    def _resume(self, staging: StagingFolder) -> tuple[list[SampleEntry], list[tuple[str, ReadError]]]:
        """Cut pixels and journal to the entries that hold, and return those and their refusals.

        An entry holds where its pixels have its hash, or where its sample is refused again.
        """
        entries: list[SampleEntry] = []
        refusals: list[tuple[str, ReadError]] = []
        bytes_each = 2 * self.config.channels * math.prod(self.config.size)
        with (staging.path / PIXELS).open("ab+") as pixels:
            pixels.seek(0)
            for stored, sample in zip(staging.entries(), self.samples, strict=False):
                if len(stored) != 3 or stored[0] != sample.sample_id:
                    break
                entry = SampleEntry(*stored)
                if entry.content_hash is None:
                    refusal = prepare_one(sample, self.config).refusal
                    if refusal is None:
                        break
                    refusals.append((entry.sample_id, refusal))
                elif entry.content_hash != _hash(pixels.read(bytes_each)):
                    break
                entries.append(entry)
            pixels.truncate(bytes_each * (len(entries) - len(refusals)))
        staging.begin(entries, keep=PIXELS)
        return entries, refusals

    def _write_header(self, staging: StagingFolder, entries: Sequence[SampleEntry]) -> None:
        kept = [entry for entry in entries if entry.content_hash is not None]
        header = {
            "version": FORMAT_VERSION,
            "key": staging.key,
            "preprocessing": self.config.model_dump(mode="json"),
            "shape": [self.config.channels, *self.config.size],
            "sample_ids": [entry.sample_id for entry in kept],
            "content_hashes": [entry.content_hash for entry in kept],
            "warnings": [[entry.sample_id, entry.warning] for entry in kept if entry.warning],
            "refused": [entry.sample_id for entry in entries if entry.content_hash is None],
        }
        write_json(staging.path / HEADER, header)


def _hash(pixels: bytes) -> str:
    return hashlib.sha256(pixels).hexdigest()[:24]


def all_refusals(manifest: Manifest, prepared: PreparedDataset) -> tuple[ReadError, ...]:
    """Return what the table's scan and what preparing refused."""
    return (*manifest.refusals, *(error for _, error in prepared.refusals))
