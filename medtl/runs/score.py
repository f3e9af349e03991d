"""Score a folder of studies into tables, and go on where that was broken off."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medtl.errors import MedtlError
from medtl.imaging.series import Scan, scan
from medtl.imaging.storage import read_json, write_json
from medtl.learning.watching import Watcher, never
from medtl.prediction.engine import EngineChoice, try_engine
from medtl.prediction.ensemble import Ensemble, make_ensemble
from medtl.prediction.journal import Journal, key_of, open_journal
from medtl.prediction.precision import PrecisionChoice, try_precision
from medtl.prediction.score_files import FORMATS, check_formats
from medtl.prediction.scoring import Prediction
from medtl.prediction.streaming import batch_size, rows_of, stream, unscored
from medtl.runs.common import load_finished

# Is told each row once, in order, after the tables are written.
Tell = Callable[[Prediction], object]


def tell_nobody(row: Prediction) -> None:
    """Let a row be."""


# What a trial of engines or of precisions may have chosen.
CHOICES = ("torch", "onnx", "fp32", "bf16")


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


def score_run(
    run: Path,
    folder: Path,
    out: Path,
    watcher: Watcher,
    options: ScoreOptions = ScoreOptions(),
    stop: Callable[[], bool] = never,
    tell: Tell = tell_nobody,
) -> ScoreOutcome:
    """Score every series and image of a folder into tables in OUT, refusals included, one row each.

    The journal is held until all is told: nobody else gets hold of it before.

    Raises StoppedError after the current batch when `stop` says so; TrainingError run-locked where another
    process scores into OUT.
    """
    check_formats(options.formats)
    ensemble = load_ensemble(run, options)
    folder = folder.absolute() if options.cluster else folder
    found = scan(folder)
    with open_journal(out) as journal:
        _note_other_rows(out, ensemble, folder, watcher)
        ensemble = choose_engine(ensemble, journal, options, watcher)
        ensemble = open_judge(ensemble, journal, found, options)
        kept = score_into(journal, ensemble, found, folder, options, watcher, stop)
        return write_outcome(journal, ensemble, found, folder, options, kept, tell)


def _note_other_rows(out: Path, ensemble: Ensemble, folder: Path, watcher: Watcher) -> None:
    """Say so where the tables in `out` are of another model or folder: they will show this one's rows."""
    try:
        before = read_json(out / "scores.json")
        models, place = before["models"], before["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    changed = {
        "model": models != [member.sha256 for member in ensemble.members],
        "folder": place != str(folder.resolve()),
    }
    others = " and ".join(f"another {name}" for name, differs in changed.items() if differs)
    if others:
        watcher.note("note", f"tables in {out} were those of {others}: they will show this one's rows")


def load_ensemble(run: Path, options: ScoreOptions) -> Ensemble:
    """Load the runs that judge. Raises CheckpointError, also where they cannot judge together."""
    runs = (run, *options.others)
    checkpoints = [load_finished(one, any_modality=options.any_modality) for one in runs]
    return make_ensemble(checkpoints, flips=options.flips)


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
    journal.open_for(judge.facts, len(judge.lead.task.classes))
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
        FORMATS[name](table, classes, rows_of(found, folder, journal))
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
