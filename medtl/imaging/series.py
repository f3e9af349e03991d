"""Series: the units that are read, labelled and scored, as the headers of their files describe them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from medtl.core.parallel import work_in_order
from medtl.core.progress import Watcher
from medtl.errors import ReadError

# Enough for the magic numbers of every format and the first elements of a DICOM file without preamble.
HEAD_BYTES = 1024

# Series.format of DICOM, whose series have planes.
DICOM = "dicom"

# Modalities whose instances are slices of a volume; of all others each instance is an image of its own.
SLICED_MODALITIES = frozenset({"CT", "MR", "PT"})

# Files per task: reading a header takes a fraction of a millisecond, about as long as sending a task.
CHUNK_FILES = 64

# Child processes start after this time: forking a large parent takes a tenth of a second.
ALONE_SECONDS = 0.5

Kind = Literal["image", "volume", "item"]

# The keys of patient, study and series; one without a UID is known by its folder.
SeriesId = tuple[str, str, str]
Header = TypeVar("Header")


@dataclass(frozen=True)
class Reading:
    """What a recipe asks of the readers beyond exact reading; each is an option of PreprocessingConfig."""

    resample_uneven: bool = False
    fill_nan: bool = False
    volumes_as_channels: bool = False
    invert_by_lut_shape: bool = False


EXACT = Reading()


@dataclass(frozen=True)
class Series:
    """One unit to read: a DICOM series or projection, one file of another format, or one item of an archive.

    files are in slice order for a DICOM volume. path names the unit to the user: the folder of a DICOM series
    that has the folder to itself, otherwise its first file. item names one of several in a file ("train/17"
    of an archive, "volume/1" of a 4D file), None otherwise. planes holds an Instance for each slice of a
    DICOM series, in order. Keys are salted hashes, empty where unknown. notes are what the scan repaired or
    left out, one phrase each; they reach ImageFacts.notes. reading is how the scan was asked to read it.
    company names what only accompanies other images, such as a screen save: it is left out, and counted by
    this name, unless the user named its file.
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
    reading: Reading = EXACT
    company: str = ""

    @property
    def identity(self) -> SeriesId:
        """Which series of slices this is, or is a part of."""
        return self.patient_key, self.study_key, self.series_key or str(self.files[0].parent)

    @property
    def source(self) -> str:
        """The path, with the item behind it where it has one: "archive.npz#train/17"."""
        return f"{self.path}#{self.item}" if self.item else str(self.path)


@dataclass(frozen=True)
class Scan:
    """What a folder holds: series to read, refusals, and how many files were skipped, by reason.

    owners: the series that a refused file or series is, by the refusal's `where`; for the reader alone.
    """

    series: tuple[Series, ...]
    refusals: tuple[ReadError, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, SeriesId] = field(default_factory=dict, repr=False, compare=False)

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


def _ignore(count: int) -> None:
    pass


_report: ContextVar[Callable[[int], None]] = ContextVar("_report", default=_ignore)


@contextmanager
def watching(watcher: Watcher, what: str, total: int) -> Iterator[None]:
    """Show the watcher how many of the files read_headers has read in this block."""
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        watcher.progress(what, done, total)

    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def scan_each(
    list_series: Callable[[Path], list[Series]], files: Sequence[Path], workers: int | None
) -> Scan:
    """List the series of a format in which each file stands alone; arguments as for read_headers."""
    found, refusals = read_headers(list_series, files, workers)
    return Scan(tuple(chain.from_iterable(found)), tuple(refusals))


def read_headers(
    read_one: Callable[[Path], Header], files: Sequence[Path], workers: int | None
) -> tuple[list[Header], list[ReadError]]:
    """Return read_one(file) of each file, in order, and the refusals of the others.

    read_one is a function of a module. workers: as in work_in_order. Raises TrainingError worker-lost.
    """
    chunks = [files[start : start + CHUNK_FILES] for start in range(0, len(files), CHUNK_FILES)]
    workers = 1 if len(chunks) < 2 else workers
    headers: list[Header] = []
    refusals: list[ReadError] = []
    for results in work_in_order(partial(_read_chunk, read_one), chunks, workers, ALONE_SECONDS):
        for result in results:
            refusals.append(result) if isinstance(result, ReadError) else headers.append(result)
        _report.get()(len(results))
    return headers, refusals


def _read_chunk(read_one: Callable[[Path], Header], files: Sequence[Path]) -> list[Header | ReadError]:
    results: list[Header | ReadError] = []
    for path in files:
        try:
            results.append(read_one(path))
        except ReadError as error:
            results.append(error)
        except OSError as error:
            results.append(unreadable(path, error))
    return results
