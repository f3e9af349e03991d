"""Stream the series of a scan through an ensemble into a journal: one row is all that stays of a study.

Series without a row -> batches -> processes that read, prepare and predict -> rows, in order. Each process
has one thread: images side by side use all cores, one image on several cores does not.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from medtl.core.files import write_json
from medtl.core.journal import Journal, JournalEntry, journal_damaged
from medtl.core.parallel import work_in_order
from medtl.core.progress import SILENT, StoppedError, Watcher, never, stopped
from medtl.data.naming import check_names, sample_key, source_name
from medtl.errors import CheckpointError, ReadError, TrainingError
from medtl.imaging.containers import read_bytes, status_of
from medtl.imaging.series import Scan, Series
from medtl.inference.ensemble import Ensemble, predict_batch
from medtl.inference.on_ray import Job, work_on_ray
from medtl.inference.onnx_graph import keep_graph
from medtl.inference.predictor import Precision, Prediction, batched, one_thread, refused_rows
from medtl.inference.tables import FORMATS

# So few studies start children only if they take longer than this.
FEW, ALONE_SECONDS = 16, 1.0

# Refusals that may not recur, though the file is the same.
PASSING_CODES = frozenset({"dicom-decoder", "file-missing", "file-unreadable"})

Engine = Literal["torch", "onnx"]


class Unit(NamedTuple):
    """A series under its name, and the stamp of its files before they are read."""

    source: str
    stamp: str
    series: Series


def list_units(scan: Scan, root: Path) -> Iterator[Unit]:
    """Yield the units of a scan, in order. Raises ReadError name-repeated."""
    check_names(scan.series, root)
    for series in scan.series:
        yield Unit(source_name(series, root), stamp_of(series), series)


def stamp_of(series: Series) -> str:
    """Return a key of the sizes and times of a series' files; "" if one is gone."""
    try:
        found = [status_of(path) for path in series.files]
    except OSError:
        return ""
    # A program that restores the modification time still changes st_ctime.
    facts = (f"{(status.st_size, status.st_mtime_ns, status.st_ctime_ns)}\n" for status in found)
    return hashlib.blake2b("".join(facts).encode(), digest_size=12).hexdigest()


def _score_batch(ensemble: Ensemble, root: Path, batch: Sequence[Unit]) -> list[JournalEntry]:
    """Read and score a batch, in this process or another."""
    scored = predict_batch(ensemble, [unit.series for unit in batch], root)
    return [
        JournalEntry(unit.stamp, one.content, asdict(one.prediction))
        for unit, one in zip(batch, scored, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class ScoreOutcome:
    """The result of scoring a folder. kept: rows that the journal had."""

    scan: Scan
    tables: tuple[Path, ...]
    scored: int
    refused: int
    kept: int

    @property
    def table(self) -> Path:
        """The first table."""
        return self.tables[0]

    @property
    def skipped(self) -> int:
        """How many files that are not images were skipped."""
        return self.scan.skipped


def choose_engine(ensemble: Ensemble, engine: Engine, precision: Precision, watcher: Watcher) -> Ensemble:
    """Return the ensemble with an engine, and PyTorch's with a precision.

    PyTorch runs what ONNX Runtime cannot, or not within the tolerance, and a note says so. Raises
    CheckpointError extra-missing, OutputError.
    """
    if engine == "torch":
        return ensemble.with_precision(precision)
    try:
        return ensemble.with_graphs([keep_graph(member)[0] for member in ensemble.members])
    except CheckpointError as error:
        if error.code not in ("export-unsupported", "export-differs"):
            raise
        watcher.note("engine", f"PyTorch, since {error}")
        return ensemble


@dataclass(frozen=True, eq=False)
class Scoring:
    """A folder that is scored into a journal.

    workers: processes, None for one a processor. cluster: they are those of a cluster.
    """

    ensemble: Ensemble
    folder: Path
    journal: Journal
    formats: Sequence[str] = ("csv",)
    workers: int | None = None
    cluster: Literal["ray"] | None = None
    watcher: Watcher = SILENT
    stop: Callable[[], bool] = never

    def show_rows(self, *, overwrite: bool) -> None:
        """Let the journal show the rows of the ensemble, those of medtl 0.1.0 included, or delete them."""
        self.journal.open_for(self.ensemble.facts, former=self.ensemble.facts_of_0_1_0)
        if overwrite:
            self.journal.forget()

    def score(self, scan: Scan, *, first: bool = True) -> int:
        """Score what has no row in the journal, and return how many rows it had.

        first: this is the first scan in this command, when refusals that may not recur are tried again.
        """
        units = self.unscored(scan, try_again=first)
        total = len(scan.series) + len(scan.refusals)
        before = total - len(units)
        self.watcher.progress("scoring", before, total)
        for done in self.stream(units):
            self.watcher.progress("scoring", before + done, total)
        self.journal.commit()
        return len(scan.series) - len(units)

    def unscored(self, scan: Scan, *, try_again: bool) -> list[Unit]:
        """Return the units without a valid row in the journal.

        A unit whose files have other times and the same bytes keeps its row. try_again: refusals that may not
        recur are not valid. Raises ReadError name-repeated.
        """
        return [unit for unit in list_units(scan, self.folder) if not self._has_row(unit, try_again)]

    def _has_row(self, unit: Unit, try_again: bool) -> bool:
        entry = self.journal.find(unit.source)
        if entry is None or (try_again and entry.row.get("code") in PASSING_CODES):
            return False
        if entry.stamp == unit.stamp != "":
            return True
        digest = hashlib.sha256()  # as reading a series computes it
        try:
            for path in unit.series.files:
                digest.update(read_bytes(path))
        except (OSError, ReadError):
            return False
        if entry.content != digest.hexdigest():
            return False
        self.journal.record(unit.source, entry._replace(stamp=unit.stamp))
        return True

    def stream(self, units: Sequence[Unit]) -> Iterator[int]:
        """Score units into the journal, and yield how many are done.

        A row is the same to the bit whatever else is scored before, beside or after it. Raises StoppedError
        after the current batch when `stop` returns True; TrainingError worker-lost, cluster-missing,
        cluster-differs.
        """
        batches = list(batched(units, self.ensemble.batch_size))
        task, workers = partial(_score_batch, self.ensemble, self.folder), self.workers
        if self.cluster == "ray":
            work = work_on_ray(Job(task, self.ensemble, self.folder, self.ensemble.facts), batches, workers)
        else:
            work = work_in_order(task, batches, workers, ALONE_SECONDS if len(units) <= FEW else 0.0)
        done = 0
        try:
            with one_thread(), closing(work) as scored:
                for batch, entries in zip(batches, scored, strict=True):
                    for unit, entry in zip(batch, entries, strict=True):
                        self.journal.record(unit.source, entry)
                    done += len(batch)
                    yield done
                    if done < len(units) and self.stop():
                        raise self.stopped()
        except TrainingError as error:
            if error.code == "worker-lost" and self.stop():  # the signal was for the whole group of processes
                raise self.stopped() from error
            raise

    def stopped(self) -> StoppedError:
        """Return the error of a stopped scoring."""
        return stopped("after saving all rows so far", self.journal.path.parent)

    def rows(self, scan: Scan) -> Iterator[Prediction]:
        """Yield the rows of a scan that there are, in order, refusals of the scan first.

        Raises CheckpointError scores-damaged.
        """
        yield from refused_rows(scan, self.folder)
        numbers = 0, len(self.ensemble.lead.task.classes)
        for series in scan.series:
            source = source_name(series, self.folder)
            entry = self.journal.find(source)
            if entry is None:
                continue
            try:
                row = Prediction.from_row(entry.row)
            except (TypeError, ValueError) as error:
                raise journal_damaged(self.journal.path) from error
            if len(row.probabilities) not in numbers:
                raise journal_damaged(self.journal.path)
            yield replace(row, sample_id=sample_key(source))

    def write(
        self, scan: Scan, kept: int, on_row: Callable[[Prediction], object] | None = None
    ) -> ScoreOutcome:
        """Write the tables from the journal, and scores.json, which says which models computed them and how.

        on_row: is called with each row in order, after the tables are written.
        """
        out, ensemble = self.journal.path.parent, self.ensemble
        how, classes = ensemble.forwards[0], ensemble.lead.task.classes
        tables = tuple(out / f"scores.{name}" for name in self.formats)
        for name, table in zip(self.formats, tables, strict=True):
            FORMATS[name](table, classes, self.rows(scan))
        facts = {
            "folder": str(self.folder.resolve()),
            "model_sha256": ensemble.members[0].sha256,
            "skipped_files": scan.skipped,
            "left_out": dict(scan.left_out),
            "thresholds": ensemble.lead.header.thresholds,
            "models": [member.sha256 for member in ensemble.members],
            "mirrored": [forward.flips for forward in ensemble.forwards],
            "precision": how.precision,
            "engine": "onnx" if how.graph else "torch",
        }
        write_json(out / "scores.json", facts)
        counts: Counter[str] = Counter()
        for row in self.rows(scan):
            counts[row.status] += 1
            if on_row is not None:
                on_row(row)
        return ScoreOutcome(scan, tables, counts["scored"], counts["refused"], kept)
