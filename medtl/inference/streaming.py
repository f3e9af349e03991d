"""Stream the series of a scan through an ensemble into a journal: nothing is held of a study but its row.

Series that the journal lacks -> batches -> processes that read, prepare and judge -> rows, in order. Each
process has one thread: images side by side keep all cores busy, one image on several cores does not.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medtl.core.files import write_json
from medtl.core.journal import Entry, Journal, key_of
from medtl.core.parallel import work_in_order
from medtl.core.progress import StoppedError, Watcher, never
from medtl.data.naming import check_names, sample_key, source_name
from medtl.errors import MedtlError, TrainingError
from medtl.imaging.image import Image
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.imaging.reader import read_series
from medtl.imaging.series import Scan, Series
from medtl.inference.engines import EngineChoice, PrecisionChoice, try_engine, try_precision
from medtl.inference.ensemble import Ensemble, predict_batch
from medtl.inference.on_ray import Job, work_on_ray
from medtl.inference.predictor import Prediction, one_thread, refused_rows
from medtl.inference.tables import FORMATS

# Images of a batch, and the values that it may have: larger ones were no faster on any processor tried, and
# a process that has just begun a batch is one for which the others wait at the end.
LARGEST_BATCH = 4
BATCH_VALUES = 400_000

# So few studies start children only if they take longer than this.
FEW, ALONE_SECONDS = 16, 1.0

# Refusals that another try may take back, though the file is the same.
PASSING_CODES = frozenset({"dicom-decoder", "file-missing", "file-unreadable"})

# Is told each row once, in order, after the tables are written.
Tell = Callable[[Prediction], object]

# What a trial of engines or of precisions may have chosen.
CHOICES = ("torch", "onnx", "fp32", "bf16")


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


def rows_of(scan: Scan, root: Path, journal: Journal, classes: int | None = None) -> Iterator[Prediction]:
    """Yield the row of all that a scan found, in order, refusals of the scan first; only what is scored.

    classes: how many probabilities a scored row must have. Raises CheckpointError scores-damaged.
    """
    yield from refused_rows(scan, root)
    for series in scan.series:
        source = source_name(series, root)
        entry = journal.find(source)
        if entry is not None:
            yield replace(_prediction(journal, entry, classes), sample_id=sample_key(source))


def _prediction(journal: Journal, entry: Entry, classes: int | None) -> Prediction:
    try:
        row = Prediction.from_row(entry.row)
    except (TypeError, ValueError) as error:
        raise journal.damaged() from error
    if classes is not None and len(row.probabilities) not in (0, classes):
        raise journal.damaged()
    return row


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
    if entry is None or (try_again and entry.row.get("code") in PASSING_CODES):
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

    rows = predict_batch(ensemble, [unit.series for unit in batch], root, size, read)
    return [
        Entry(unit.stamp, contents.get(unit.series, "") if row.status == "scored" else "", asdict(row))
        for unit, row in zip(batch, rows, strict=True)
    ]


def stopped(journal: Journal) -> StoppedError:
    """Return the error that says that scoring was stopped, and how it goes on."""
    reason, fix = "stopped, all rows so far are kept", "the same command goes on"
    return StoppedError("interrupted", reason, where=journal.path.parent, fix=fix)


def _values(config: PreprocessingConfig) -> int:
    return config.channels * prod(config.size)


def tell_nobody(row: Prediction) -> None:
    """Let a row be."""


@dataclass(frozen=True)
class ScoreOptions:
    """How to score.

    others: runs that judge together with the first. flips: average over mirror images where training saw
    them. engine: auto takes ONNX Runtime where it agrees and is faster. anew: forget the rows that the
    journal has. workers: processes, None for one a processor. cluster: they are those of a cluster.
    """

    others: tuple[Path, ...] = ()
    any_modality: bool = False
    flips: bool = False
    precision: PrecisionChoice = "fp32"
    engine: EngineChoice = "torch"
    formats: tuple[str, ...] = ("csv",)
    anew: bool = False
    workers: int | None = None
    cluster: Literal["ray"] | None = None


@dataclass(frozen=True, eq=False)
class ScoreOutcome:
    """What a folder's scoring came to. kept: rows that the journal had; skipped: files that are no images."""

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
        """How many files were skipped."""
        return self.scan.skipped


def choose_engine(ensemble: Ensemble, journal: Journal, options: ScoreOptions, watcher: Watcher) -> Ensemble:
    """Return the ensemble with the engine that was asked for; what auto finds is found once a journal.

    PyTorch computes what ONNX Runtime cannot, or not within the tolerance, and a note says so. Raises
    CheckpointError extra-missing, OutputError.
    """
    if options.engine == "torch":
        return ensemble
    key = engine_key(ensemble)
    known = {} if options.anew else _recall_trial(journal, key)
    measured = known if known.get("seconds_torch") else None
    if options.engine == "auto" and measured and measured["chosen"] == "torch":
        return ensemble
    try:
        timed = options.engine == "auto" and not measured
        trial, graphs = try_engine(ensemble, batch_size(ensemble), timed=timed)
    except MedtlError as error:
        if options.engine == "onnx" and error.code not in ("export-unsupported", "export-differs"):
            raise
        watcher.note("engine", f"PyTorch, since {error}")
        return ensemble
    found = measured or trial.to_json()
    journal.remember(key, found)
    return ensemble.with_graphs(graphs) if "onnx" in (options.engine, found["chosen"]) else ensemble


def engine_key(ensemble: Ensemble) -> str:
    """Return the name under which a journal remembers what a trial of engines found."""
    return f"engine {key_of(ensemble.with_graphs([None] * len(ensemble.members)).facts)}"


def _recall_trial(journal: Journal, key: str) -> dict[str, Any]:
    """Return what a trial found, empty where there was none or the journal has something else."""
    found = journal.recall(key)
    return found if isinstance(found, dict) and found.get("chosen") in CHOICES else {}


def open_judge(
    ensemble: Ensemble, journal: Journal, found: Scan, options: ScoreOptions, *, first: bool = True
) -> Ensemble:
    """Let the journal show the rows of this ensemble in its precision, and return it in that.

    A precision that was chosen on a first batch is chosen once for a journal. first: this is the first time
    in this command, when rows may be forgotten.
    """
    anew = options.anew and first
    precision = options.precision
    if ensemble.forwards[0].graph:
        precision = "fp32"
    if precision == "auto":
        key = f"precision {key_of(ensemble.facts)}"
        trial = _recall_trial(journal, key)
        if anew or not trial.get("images"):  # one without images says nothing of the next
            trial = try_precision(ensemble, found.series[: batch_size(ensemble)]).to_json()
            journal.remember(key, trial)
        precision = trial["chosen"]
    judge = ensemble.with_precision(precision)
    journal.open_for(judge.facts)
    if anew:
        journal.forget()
    return judge


def score_into(
    journal: Journal,
    ensemble: Ensemble,
    found: Scan,
    folder: Path,
    options: ScoreOptions,
    watcher: Watcher,
    stop: Callable[[], bool],
    *,
    first: bool = True,
) -> int:
    """Score what the journal lacks, and return how many rows it had.

    first: this is the first time in this command, when refusals that may pass are tried again.
    """
    units = unscored(found, folder, journal, try_again=first)
    total = len(found.series) + len(found.refusals)
    kept = len(found.series) - len(units)
    before = total - len(units)
    watcher.progress("scoring", before, total)
    on_ray = options.cluster == "ray"
    for done in stream(ensemble, units, folder, journal, options.workers, stop, on_ray=on_ray):
        watcher.progress("scoring", before + done, total)
    journal.commit()
    return kept


def write_outcome(
    journal: Journal,
    ensemble: Ensemble,
    found: Scan,
    folder: Path,
    options: ScoreOptions,
    kept: int,
    tell: Tell = tell_nobody,
) -> ScoreOutcome:
    """Write the tables from the journal, and the record of what was scored by whom."""
    out, classes = journal.path.parent, ensemble.lead.task.classes
    tables = tuple(out / f"scores.{name}" for name in options.formats)
    for name, table in zip(options.formats, tables, strict=True):
        FORMATS[name](table, classes, rows_of(found, folder, journal, len(classes)))
    facts = {
        "folder": str(folder.resolve()),
        "model_sha256": ensemble.members[0].sha256,
        "skipped_files": found.skipped,
        "left_out": dict(found.left_out),
        "thresholds": ensemble.lead.header.thresholds,
        **_how(ensemble, journal),
    }
    write_json(out / "scores.json", facts)
    counts: Counter[str] = Counter()
    for row in rows_of(found, folder, journal):
        counts[row.status] += 1
        tell(row)
    return ScoreOutcome(found, tables, counts["scored"], counts["refused"], kept)


def _how(ensemble: Ensemble, journal: Journal) -> dict[str, Any]:
    """Return what else a reader of scores may ask: which models, and how they computed."""
    precision = ensemble.forwards[0].precision
    plain = ensemble.with_precision("fp32")
    return {
        "models": [member.sha256 for member in ensemble.members],
        "mirrored": [forward.flips for forward in ensemble.forwards],
        "precision": precision,
        "precision_trial": journal.recall(f"precision {key_of(plain.facts)}"),
        "engine": "onnx" if ensemble.forwards[0].graph else "torch",
        "engine_trial": journal.recall(engine_key(plain)),
    }
