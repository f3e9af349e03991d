"""A search on disk: its recipe and space, its database, and the locks by which processes share its trials."""

import json
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.config import RunConfig, to_yaml
from medtl.core.files import write_csv, write_text, writing
from medtl.core.ids import derive_seed
from medtl.core.staging import Lock, remove_lock, try_lock, wait_for_lock
from medtl.errors import CheckpointError, ConfigError, OutputError, TrainingError
from medtl.evaluation.evaluate import METRICS
from medtl.evaluation.intervals import Interval
from medtl.training.run_folder import RunFolder
from medtl.training.schedule import OLD_KEYS, resolve_schedule
from medtl.workflows.search_space import Space, count_groups, space_yaml

try:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError as missing:
    raise ConfigError(
        "extra-missing", f"needs {missing.name}", where="medtl tune", fix="pip install 'medtl[hpo]'"
    ) from missing
STUDY_NAME = "medtl"
LOWER_IS_BETTER = frozenset({"brier", "ece"})


@dataclass(frozen=True)
class TuneOptions:
    """How to search: `trials` in all, however often the search is resumed, or until `minutes` are over.

    seed is that of the search; a run's own is fit.seed. keep: how many trials, the best, keep their
    checkpoints. evaluate: evaluate the best on the test part.
    """

    trials: int = 20
    minutes: float | None = None
    seed: int = 0
    metric: str = "auroc"
    keep: int = 3
    evaluate: bool = False

    @property
    def sign(self) -> int:
        """1 where a high metric is good, -1 where a low one is."""
        return -1 if self.metric in LOWER_IS_BETTER else 1


@dataclass(frozen=True)
class StudyFolder:
    """Paths of a search's files below its root."""

    root: Path

    @property
    def database(self) -> Path:
        """Optuna's trials."""
        return self.root / "study.db"

    @property
    def config(self) -> Path:
        """The recipe that the search started with."""
        return self.root / "config.yaml"

    @property
    def space(self) -> Path:
        """What is searched, to copy and change for --space."""
        return self.root / "space.yaml"

    @property
    def facts(self) -> Path:
        """Metric and seed."""
        return self.root / "study.json"

    @property
    def data(self) -> Path:
        """The identity of the samples, their labels, parts and pixels."""
        return self.root / "data.sha256"

    @property
    def best(self) -> Path:
        """The recipe of the best trial."""
        return self.root / "best.yaml"

    @property
    def table(self) -> Path:
        """One row a trial."""
        return self.root / "trials.csv"

    @property
    def test(self) -> Path:
        """The best trial's evaluation on the test part."""
        return self.root / "test"

    def run(self, number: int) -> RunFolder:
        """Return a trial's run."""
        return RunFolder(self.root / "trials" / f"{number:04d}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the search for a moment; wait while another process holds it."""
        with writing(self.root):  # or a file system without locks
            lock = wait_for_lock(self.root / ".lock")
        with lock:
            yield

    def hold_trial(self, number: int) -> Lock | None:
        """Hold a trial until its lock is released or the process ends; None where another one has it."""
        with writing(self.root):
            return try_lock(self._trial_lock(number))

    def release_trial(self, number: int) -> None:
        """Remove the lock's file of a trial that is over."""
        remove_lock(self._trial_lock(number))

    def _trial_lock(self, number: int) -> Path:
        return self.root / "trials" / f".{number:04d}.lock"


def check_metric(metric: str) -> None:
    """Raise ConfigError config-value for what is no metric of an evaluation."""
    known = [name for name in METRICS if not name.endswith("_at_prevalence")]
    if metric not in known:
        fix = f"one of {', '.join(known)}"
        raise ConfigError("config-value", "no such metric", where=f"--metric {metric}", fix=fix)


def record_study(folder: StudyFolder, config: RunConfig, space: Space, options: TuneOptions) -> None:
    """Write recipe, space, metric and seed; a resumed search must have the same. Raises TrainingError."""
    files = filter(Path.is_file, (folder.space, folder.config))
    before = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    if any(re.search(rf"(?m)^(schedule\.|  ){key}:", before) for key in OLD_KEYS):
        reason, fix = "was started by medtl 0.1.0", "finish it with that version, or choose another --out"
        raise TrainingError("study-changed", reason, where=folder.root, fix=fix)
    facts = json.dumps({"metric": options.metric, "seed": options.seed}, indent=2) + "\n"
    parts = {
        "recipe": (folder.config, to_yaml(config)),
        "space": (folder.space, space_yaml(space)),
        "metric or seed": (folder.facts, facts),
    }
    for name, (path, text) in parts.items():
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise changed_study(folder, f"the {name} differs from its {path.name}")
    for path, text in parts.values():
        if not path.is_file():
            write_text(path, text)


def changed_study(folder: StudyFolder, reason: str) -> TrainingError:
    fix = "search with the same settings, or choose another --out"
    return TrainingError("study-changed", reason, where=folder.root, fix=fix)


@contextmanager
def opened_study(
    folder: StudyFolder, config: RunConfig, space: Space, options: TuneOptions
) -> Iterator["optuna.Study"]:
    """Open or start the search, and close its file."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with folder.locked():
        # The file is opened by `creator`: a path in the URL may hold no ?, { or }.
        storage = optuna.storages.RDBStorage(
            "sqlite:///study.db", engine_kwargs={"creator": lambda: _connect(folder.database)}
        )
        study = optuna.create_study(
            storage=storage,
            study_name=STUDY_NAME,
            direction="maximize" if options.sign > 0 else "minimize",
            pruner=_make_pruner(config, options),
            load_if_exists=True,
        )
        if not study.get_trials(deepcopy=False):  # the first one has the recipe's own values, where it can
            plain = config.model_dump(mode="json")
            own = [(dimension, look_up(plain, dimension.key)) for dimension in space]
            study.enqueue_trial({one.key: one.stored(value) for one, value in own if one.holds(value)})
    try:
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _connect(path: Path) -> sqlite3.Connection:
    """Connect so that a commit need not wait for the disk: even so, a killed process loses nothing."""
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _make_pruner(config: RunConfig, options: TuneOptions) -> "optuna.pruners.BasePruner":
    """Prune below the median of earlier trials, once the expensive stages have started.

    Epochs are compared by their AUROC, so a search for a low metric prunes nothing.
    """
    if options.sign < 0:
        return optuna.pruners.NopPruner()
    stages = resolve_schedule(config.schedule, count_groups(config.backbone.name))
    spared = stages[0].epochs if len(stages) > 1 else stages[0].epochs // 3
    return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=spared)


def make_sampler(seed: int, number: int) -> "optuna.samplers.BaseSampler":
    """Return a sampler that depends on the trial's number alone, so that a resumed search draws what it would
    have drawn without the stop."""
    return optuna.samplers.TPESampler(seed=derive_seed(seed, "trial", number) % 2**32)


def look_up(plain: Mapping[str, Any], key: str) -> Any:
    """Return the value under a key of several parts, as schedule.learning_rate."""
    value: Any = plain
    for part in key.split("."):
        value = value[part]
    return value


@contextmanager
def database_errors(folder: StudyFolder) -> Iterator[None]:
    """Turn a database that cannot be read or written into one line."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        if any(word in reason for word in ("full", "locked", "readonly", "unable to open", "disk I/O")):
            fix = "free the disk, or choose another --out"
            raise OutputError("output-unwritable", reason, where=folder.database, fix=fix) from error
        fix = "restore it, or choose another --out"
        raise CheckpointError("study-damaged", reason, where=folder.database, fix=fix) from error


@dataclass(frozen=True)
class TrialRow:
    """One trial: state is complete, pruned, failed (`fault` says why) or running.

    score: the metric with its interval on validation data, where complete. recipe: it is the recipe itself.
    seconds: of the last process that worked on it; epochs: how many are trained.
    """

    number: int
    state: str
    score: Interval | None
    epochs: int
    seconds: float
    values: Mapping[str, Any]
    recipe: bool = False
    fault: str = ""


def rank_rows(rows: Sequence[TrialRow], sign: int) -> tuple[TrialRow, ...]:
    """Return the finished trials, best first; of equal ones the earlier. sign: -1 where low is good."""
    done = [(-sign * row.score.value, row.number, row) for row in rows if row.score]
    return tuple(row for _, _, row in sorted(done, key=lambda entry: entry[:2]))


def describe_row(row: TrialRow, metric: str) -> str:
    """Describe a trial's result and values in one line."""
    if row.score:
        result = f"{metric} {row.score.value:.3f}"
    elif row.fault:
        result = f"failed: {row.fault}"
    else:
        result = f"pruned after {row.epochs} epochs"
    return f"{result}, {row.seconds:.1f} s; {describe_values(row)}"


def describe_values(row: TrialRow) -> str:
    """List a trial's values, each under the last part of its key."""
    texts = {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in row.values.items()}
    shown = [f"{key.rsplit('.', 1)[-1]} {text}" for key, text in texts.items()]
    return ("the recipe itself: " if row.recipe else "") + ", ".join(shown)


def write_table(path: Path, rows: Sequence[TrialRow], metric: str, keys: Sequence[str]) -> None:
    """Write one line a trial. keys: those of the values, a column each."""
    header = ("trial", "state", metric, "low", "high", "epochs", "seconds", *keys, "fault")
    lines: list[Sequence[str | float]] = [header]
    for row in rows:
        interval = (row.score.value, row.score.low, row.score.high) if row.score else (math.nan,) * 3
        values = [json.dumps(row.values[key]).strip('"') if key in row.values else "" for key in keys]
        lines.append([row.number, row.state, *interval, row.epochs, row.seconds, *values, row.fault])
    write_csv(path, lines)
