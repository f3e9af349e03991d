"""Group files into series: the units that are read, labelled and scored.

Paths become files; the content of each file names its format; the formats turn files into Series by their
headers; a Series becomes one Image. What cannot be read exactly becomes a refusal on the way.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from medtl.core.parallel import work_in_order
from medtl.errors import ReadError

log = logging.getLogger(__name__)

# Enough for the magic numbers of every format and the first elements of a DICOM file without preamble.
HEAD_BYTES = 1024

# Modalities whose instances are slices of a volume; of all others each instance is an image of its own.
SLICED_MODALITIES = frozenset({"CT", "MR", "PT"})
Found = TypeVar("Found")

# Files of a task: a header takes a fraction of a millisecond, about as long as sending a task.
CHUNK_FILES = 64

# A folder that is read sooner starts no children: those of a large parent take a tenth of a second.
ALONE_SECONDS = 0.5


@dataclass(frozen=True)
class Series:
    """One unit to read: a DICOM series or projection, one file of another format, or one item of an archive.

    files are in slice order for a DICOM volume. path is what names the unit to the user: the folder of a
    DICOM series that has the folder to itself, otherwise its first file. item is the name of one item of a
    file that holds several ("train/17" of an archive, "volume/1" of a 4D file), None otherwise. planes are
    what a scan of DICOM found out of each slice, in order, for the reading to use. Keys are salted hashes,
    empty where unknown. notes are what the scan repaired or left out, one phrase each; they reach
    ImageFacts.notes.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    item: str | None = None
    planes: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    modality: str = ""
    patient_key: str = ""
    study_key: str = ""
    series_key: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What a folder holds: series to read, what was refused, and files that count for neither.

    left_out: why files were skipped -> how many.
    """

    series: tuple[Series, ...]
    refusals: tuple[ReadError, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def skipped(self) -> int:
        """How many files were skipped."""
        return sum(self.left_out.values())


def unreadable(path: Path, error: OSError) -> ReadError:
    """Return the refusal of a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return ReadError("file-missing", "does not exist any more", where=path, fix="check the path")
    reason = (error.strerror or type(error).__name__).lower()
    return ReadError("file-unreadable", f"cannot be read: {reason}", where=path, fix="check its permissions")


def read_headers(
    read_one: Callable[[Path], Found], files: Sequence[Path], workers: int | None
) -> tuple[list[Found], list[ReadError]]:
    """Return what read_one found in files, in their order, and the refusals of others.

    read_one is a function of a module. workers: as in work_in_order. Raises TrainingError worker-lost.
    """
    chunks = [files[start : start + CHUNK_FILES] for start in range(0, len(files), CHUNK_FILES)]
    workers = 1 if len(chunks) < 2 else workers
    results = chain.from_iterable(
        work_in_order(partial(_read_chunk, read_one), chunks, workers, ALONE_SECONDS)
    )
    found: list[Found] = []
    refusals: list[ReadError] = []
    for result in results:
        refusals.append(result) if isinstance(result, ReadError) else found.append(result)
    return found, refusals


def _read_chunk(read_one: Callable[[Path], Found], files: Sequence[Path]) -> list[Found | ReadError]:
    return [_read_or_refuse(read_one, path) for path in files]


def _read_or_refuse(read_one: Callable[[Path], Found], path: Path) -> Found | ReadError:
    try:
        return read_one(path)
    except ReadError as error:
        return error
    except OSError as error:
        return unreadable(path, error)
