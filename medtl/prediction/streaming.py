"""Stream the series of a scan through an ensemble into a journal: nothing is held of a study but its row.

Series that the journal lacks -> batches -> processes that read, prepare and judge -> rows, in order. Each
process has one thread: images side by side keep all cores busy, one image on several cores does not.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

from medtl.errors import TrainingError
from medtl.imaging.image import Image
from medtl.imaging.in_children import work_in_order
from medtl.imaging.naming import check_names, sample_key, source_name
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.imaging.series import Scan, Series, read_series
from medtl.learning.watching import StoppedError, never
from medtl.prediction.ensemble import Ensemble, judge_batch
from medtl.prediction.journal import Entry, Journal
from medtl.prediction.on_ray import Job, work_on_ray
from medtl.prediction.scoring import Prediction, one_thread, refused_rows

# Images of a batch, and the values that it may have: larger ones were no faster on any processor tried, and
# a process that has just begun a batch is one for which the others wait at the end.
LARGEST_BATCH = 4
BATCH_VALUES = 400_000
# So few studies start children only if they take longer than this.
FEW, ALONE_SECONDS = 16, 1.0
# Refusals that another try may take back, though the file is the same.
PASSING_CODES = frozenset({"dicom-decoder", "file-missing", "file-unreadable"})


class Unit(NamedTuple):
    """A series under its name, and the stamp of its files before they are read."""

    source: str
    stamp: str
    series: Series


def stream(
    ensemble: Ensemble,
    units: Sequence[Unit],
    root: Path,
    journal: Journal,
    workers: int | None = None,
    stop: Callable[[], bool] = never,
    *,
    on_ray: bool = False,
) -> Iterator[int]:
    """Score units into the journal, and yield how many are done.

    on_ray: workers of a Ray cluster judge, which see the units at the same, absolute paths.

    A row is the same to the bit whatever else is scored, before, beside or after it. Raises StoppedError
    after the current batch when `stop` says so; TrainingError worker-lost, cluster-missing, cluster-differs.
    """
    size = batch_size(ensemble)
    batches = [units[start : start + size] for start in range(0, len(units), size)]
    task = partial(_judge, ensemble, root, size)
    if on_ray:
        work = work_on_ray(Job(task, ensemble, root, ensemble.facts), batches, workers)
    else:
        work = work_in_order(task, batches, workers, ALONE_SECONDS if len(units) <= FEW else 0.0)
    done = 0
    try:
        with one_thread(), closing(work) as judged:
            for batch, entries in zip(batches, judged, strict=True):
                for unit, entry in zip(batch, entries, strict=True):
                    journal.record(unit.source, entry)
                done += len(batch)
                yield done
                if done < len(units) and stop():
                    raise stopped(journal)
    except TrainingError as error:
        if error.code == "worker-lost" and stop():  # the signal was for the whole group of processes
            raise stopped(journal) from error
        raise


def batch_size(ensemble: Ensemble) -> int:
    """Return how many images go through the networks together: prepared images have all one shape."""
    values = max(_values(member.preprocessing) for member in ensemble.members)
    return max(1, min(LARGEST_BATCH, BATCH_VALUES // values))


def list_units(scan: Scan, root: Path) -> Iterator[Unit]:
    """Yield the units of a scan, in order. Raises ReadError name-repeated."""
    check_names(scan.series, root)
    for series in scan.series:
        yield Unit(source_name(series, root), stamp_of(series), series)


def unscored(scan: Scan, root: Path, journal: Journal, *, try_again: bool) -> list[Unit]:
    """Return the units of which the journal has no row that holds.

    A unit whose files have other times and the same bytes keeps its row. try_again: refusals that another
    try may take back do not hold. Raises ReadError name-repeated.
    """
    return [unit for unit in list_units(scan, root) if not _holds(journal, unit, try_again)]


def rows_of(scan: Scan, root: Path, journal: Journal) -> Iterator[Prediction]:
    """Yield the row of all that a scan found, in order, refusals of the scan first; only what is scored."""
    yield from refused_rows(scan, root)
    for series in scan.series:
        source = source_name(series, root)
        entry = journal.find(source)
        if entry is not None:
            yield replace(entry.prediction, sample_id=sample_key(source))


def stamp_of(series: Series) -> str:
    """Return a key of the sizes and times of a series' files; "" where one is gone."""
    digest = hashlib.blake2b(digest_size=12)
    for path in series.files:
        try:
            status = path.stat()
        except OSError:
            return ""
        # A program that sets the time of change back still changes st_ctime.
        facts = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        digest.update(f"{facts}\n".encode())
    return digest.hexdigest()


def _holds(journal: Journal, unit: Unit, try_again: bool) -> bool:
    entry = journal.find(unit.source)
    if entry is None or (try_again and entry.prediction.code in PASSING_CODES):
        return False
    if entry.stamp == unit.stamp != "":
        return True
    if not entry.content or entry.content != _content(unit.series):
        return False
    journal.record(unit.source, entry._replace(stamp=unit.stamp))
    return True


def _content(series: Series) -> str:
    """Return the SHA-256 that reading a series finds, from its files alone; "" where one is gone."""
    digest = hashlib.sha256()
    try:
        for path in series.files:
            digest.update(path.read_bytes())
    except OSError:
        return ""
    return digest.hexdigest()


def _judge(ensemble: Ensemble, root: Path, size: int, batch: Sequence[Unit]) -> list[Entry]:
    """Read and judge a batch, in whatever process this is."""
    contents: dict[Series, str] = {}

    def read(series: Series) -> Image:
        image = read_series(series)
        contents[series] = image.facts.sha256
        return image

    rows = judge_batch(ensemble, [unit.series for unit in batch], root, size, read)
    return [
        Entry(unit.stamp, contents.get(unit.series, "") if row.status == "scored" else "", row)
        for unit, row in zip(batch, rows, strict=True)
    ]


def stopped(journal: Journal) -> StoppedError:
    """Return the error that says that scoring was stopped, and how it goes on."""
    reason, fix = "stopped, all rows so far are kept", "the same command goes on"
    return StoppedError("interrupted", reason, where=journal.path.parent, fix=fix)


def _values(config: PreprocessingConfig) -> int:
    return config.channels * prod(config.size)
