"""A search on disk: its recipe and space, its database, and the locks by which processes share its trials."""

import json
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from medtl.config import RunConfig, load_config, to_yaml
from medtl.core.files import write_csv, write_text, writing
from medtl.core.ids import derive_seed
from medtl.core.staging import Lock, remove_lock, try_lock, wait_for_lock
from medtl.errors import CheckpointError, ConfigError, OutputError, TrainingError
from medtl.evaluation.evaluate import METRICS
from medtl.evaluation.intervals import Interval
from medtl.training.run_folder import RunFolder
from medtl.training.schedule import OLD_KEYS, resolve_schedule
from medtl.workflows.search_space import Space, apply_values, count_groups, space_yaml

try:
    import optuna
    from optuna import Study, Trial
    from optuna.trial import BaseTrial, FrozenTrial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError as missing:
    raise ConfigError(
        "extra-missing", f"needs {missing.name}", where="medtl tune", fix="pip install 'medtl[hpo]'"
    ) from missing
# Fewer finished trials say little about what mattered.
FEWEST_FOR_IMPORTANCE = 20
# Of a trial that is not over.
NO_FACTS = {"epochs": 0, "seconds": math.nan, "fault": "", "low": math.nan, "high": math.nan}
LOWER_IS_BETTER = frozenset({"brier", "ece"})


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

    @property
    def bounds(self) -> tuple[float, float, float]:
        """The score, and its interval; NaN where it is undefined."""
        score = self.score
        return (score.value, score.low, score.high) if score else (math.nan,) * 3

    def describe(self, metric: str) -> str:
        """Describe the result and the values in one line."""
        if self.score:
            result = f"{metric} {self.score.value:.3f}"
        elif self.fault:
            result = f"failed: {self.fault}"
        else:
            result = f"pruned after {self.epochs} epochs"
        return f"{result}, {self.seconds:.1f} s; {self.describe_values()}"

    def describe_values(self) -> str:
        """List the values, each under the last part of its key."""
        texts = {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in self.values.items()}
        shown = [f"{key.rsplit('.', 1)[-1]} {text}" for key, text in texts.items()]
        return ("the recipe itself: " if self.recipe else "") + ", ".join(shown)


@dataclass(eq=False)
class Search:
    """A search and its folder: what never changes, however often it is resumed.

    seed is that of the search; a run's own is fit.seed. study: Optuna's trials, while it is opened.
    """

    root: Path
    config: RunConfig
    space: Space
    metric: str
    seed: int
    study: Study = field(init=False)

    @property
    def sign(self) -> int:
        """1 where a high metric is good, -1 where a low one is."""
        return -1 if self.metric in LOWER_IS_BETTER else 1

    @cached_property
    def own_values(self) -> dict[str, Any]:
        """The recipe's own values of the keys that are searched."""
        plain = self.config.model_dump(mode="json")
        return {dimension.key: reduce(getitem, dimension.key.split("."), plain) for dimension in self.space}

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

    def _is_own_recipe(self, path: Path) -> bool:
        """Say whether a stored recipe means the same; one of an earlier version lacks later options."""
        try:
            return load_config(config=path) == self.config
        except ConfigError:
            return False

    def record(self) -> None:
        """Write recipe, space, metric and seed; a resumed search must have the same. Raises TrainingError."""
        facts = json.dumps({"metric": self.metric, "seed": self.seed}, indent=2) + "\n"
        parts = {
            "recipe": (self.root / "config.yaml", to_yaml(self.config)),
            "space": (self.root / "space.yaml", space_yaml(self.space)),
            "metric or seed": (self.root / "study.json", facts),
        }
        with self.locked():
            before = {
                name: path.read_text(encoding="utf-8", errors="replace")
                for name, (path, _) in parts.items()
                if path.is_file()
            }
            if any(re.search(rf"(?m)^(schedule\.|  ){k}:", "\n".join(before.values())) for k in OLD_KEYS):
                reason = "was started by medtl 0.1.0"
                fix = "finish it with that version, or choose another --out"
                raise TrainingError("study-changed", reason, where=self.root, fix=fix)
            for name, (path, text) in parts.items():
                if before.get(name, text) != text and not (name == "recipe" and self._is_own_recipe(path)):
                    raise self.changed(f"the {name} differs from its {path.name}")
            for name in parts.keys() - before.keys():
                write_text(*parts[name])

    def changed(self, reason: str) -> TrainingError:
        """Return the error of a search that is not what it was."""
        fix = "search with the same settings, or choose another --out"
        return TrainingError("study-changed", reason, where=self.root, fix=fix)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open or start Optuna's database, and close its file. Raises OutputError, CheckpointError."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        path = self.root / "study.db"
        with _database_errors(path):
            with self.locked():
                # The file is opened by `creator`: a path in the URL may hold no ?, { or }.
                engine = {"creator": lambda: _connect(path)}
                storage = optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs=engine)
                self._start(storage)
            try:
                yield
            finally:
                storage.remove_session()
                storage.engine.dispose()

    def _start(self, storage: optuna.storages.RDBStorage) -> None:
        self.study = optuna.create_study(
            storage=storage,
            study_name="medtl",
            direction="maximize" if self.sign > 0 else "minimize",
            pruner=self._make_pruner(),
            load_if_exists=True,
        )
        if not self.study.trials:  # the first one has the recipe's own values, where it can
            own = self.own_values
            self.study.enqueue_trial({d.key: d.stored(own[d.key]) for d in self.space if d.holds(own[d.key])})

    def _make_pruner(self) -> optuna.pruners.BasePruner:
        """Prune below the median of earlier trials, once the expensive stages have started.

        Epochs are compared by their AUROC, so a search for a low metric prunes nothing.
        """
        if self.sign < 0:
            return optuna.pruners.NopPruner()
        stages = resolve_schedule(self.config.schedule, count_groups(self.config.backbone.name))
        spared = stages[0].epochs if len(stages) > 1 else stages[0].epochs // 3
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=spared)

    def claim(self, most: int) -> tuple[Trial, Lock] | None:
        """Take a trial that its process abandoned, or a new one; None where `most` are taken."""
        with self.locked():
            begun = self._begun()
            for abandoned in begun:
                lock = self._hold(abandoned.number) if abandoned.state == TrialState.RUNNING else None
                if lock:
                    self._seed(abandoned.number)
                    trial = Trial(self.study, abandoned._trial_id)
                    break
            else:
                if len(begun) >= most:
                    return None
                self._seed(len(begun))
                trial = self.study.ask()
                lock = self._hold(trial.number)
                if lock is None:
                    raise self.changed(f"new trial {trial.number} is already locked")
            try:
                for dimension in self.space:
                    dimension.suggest(trial)
            except ValueError as error:  # other choices are stored
                lock.close()
                raise self.changed("was started by another version of medtl") from error
            return trial, lock

    def _begun(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state != TrialState.WAITING]

    def _hold(self, number: int) -> Lock | None:
        """Hold a trial until its lock is released or the process ends; None where another one has it."""
        with writing(self.root):
            return try_lock(self._lock_of(number))

    def _lock_of(self, number: int) -> Path:
        return self.root / "trials" / f".{number:04d}.lock"

    def _seed(self, number: int) -> None:
        """Let the sampler depend on the trial's number alone: a resumed search draws what it would have drawn
        without the stop."""
        self.study.sampler = optuna.samplers.TPESampler(seed=derive_seed(self.seed, "trial", number) % 2**32)

    def tell(self, trial: Trial, score: Interval | None, facts: Mapping[str, Any]) -> None:
        """Report a trial that is over: pruned where it has no score, failed where the facts have a fault."""
        bounds = {"low": score.low, "high": score.high} if score else {}
        trial.set_user_attr("facts", {**facts, **bounds})  # in one transaction
        if score and not facts["fault"]:
            self.study.tell(trial, score.value)
        else:  # the sampler takes a pruned trial without a value for the worst
            self.study.tell(trial, state=TrialState.PRUNED)
        remove_lock(self._lock_of(trial.number))

    def values(self, trial: BaseTrial | FrozenTrial) -> dict[str, Any]:
        """Return a trial's values by key."""
        return {d.key: d.restored(trial.params[d.key]) for d in self.space if d.key in trial.params}

    def rows(self) -> tuple[TrialRow, ...]:
        """Return all trials that were started."""
        return tuple(map(self._row, self._begun()))

    def _row(self, trial: FrozenTrial) -> TrialRow:
        facts, values = NO_FACTS | trial.user_attrs.get("facts", {}), self.values(trial)
        bounds = facts.pop("low"), facts.pop("high")
        complete = trial.state == TrialState.COMPLETE
        return TrialRow(
            number=trial.number,
            state="failed" if facts["fault"] else trial.state.name.lower(),
            score=Interval(float(trial.value or 0.0), *bounds) if complete else None,
            values=values,
            recipe=values == self.own_values,
            **facts,
        )

    def rank(self, rows: Sequence[TrialRow]) -> tuple[TrialRow, ...]:
        """Return the finished trials, best first; of equal ones the earlier."""
        done = [row for row in rows if row.score]  # in the order of their numbers
        return tuple(sorted(done, key=lambda row: -self.sign * row.bounds[0]))

    def importances(self) -> dict[str, float]:
        """Return each key's share of the metric's variance, by PED-ANOVA (Watanabe 2023)."""
        values = [row.score.value for row in self.rows() if row.score]
        if len(values) < FEWEST_FOR_IMPORTANCE or max(values) == min(values):
            return {}
        return optuna.importance.get_param_importances(self.study)

    def write_results(self, rows: Sequence[TrialRow]) -> None:
        """Write trials.csv, one line a trial, and the winner's recipe, after the command that trains it."""
        keys = [dimension.key for dimension in self.space]
        header = ("trial", "state", self.metric, "low", "high", "epochs", "seconds", *keys, "fault")
        lines: list[Sequence[str | float]] = [header]
        for row in rows:
            values = [json.dumps(row.values[key]).strip('"') if key in row.values else "" for key in keys]
            lines.append([row.number, row.state, *row.bounds, row.epochs, row.seconds, *values, row.fault])
        write_csv(self.root / "trials.csv", lines)
        for best in self.rank(rows)[:1]:
            head = (
                "# medtl train --config best.yaml --data FOLDER --labels labels.csv --out RUN\n"
                f"# Trial {best.number} of a search. Its validation {self.metric} of {best.bounds[0]:.3f} "
                "is too optimistic: the trial was chosen by it.\n"
            )
            recipe = apply_values(self.config, best.values, f"trial {best.number}")
            write_text(self.root / "best.yaml", head + to_yaml(recipe))


def check_metric(metric: str) -> None:
    """Raise ConfigError config-value for what is no metric of an evaluation."""
    known = [name for name in METRICS if not name.endswith("_at_prevalence")]
    if metric not in known:
        fix = f"one of {', '.join(known)}"
        raise ConfigError("config-value", "no such metric", where=f"--metric {metric}", fix=fix)


def _connect(path: Path) -> sqlite3.Connection:
    """Connect so that a commit need not wait for the disk: even so, a killed process loses nothing."""
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


@contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    """Turn a database that cannot be read or written into one line."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        if any(word in reason for word in ("full", "locked", "readonly", "unable to open", "disk I/O")):
            fix = "free the disk, or choose another --out"
            raise OutputError("output-unwritable", reason, where=path, fix=fix) from error
        fix = "restore it, or choose another --out"
        raise CheckpointError("study-damaged", reason, where=path, fix=fix) from error
