"""Search for a better recipe with Optuna: each trial is a run like any other.

recipe + space -> OUT/study.db, a run for each trial in OUT/trials/NNNN -> OUT/trials.csv, OUT/best.yaml

Several processes may work on one search. Each trial is held by a lock that vanishes with its process, so that
another process resumes a killed trial where it was; nothing depends on clocks.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from medtl.config import Modality, RunConfig, load_config, sample_data, to_yaml
from medtl.core.files import PathLike, make_folder, read_json, write_text
from medtl.core.progress import SILENT, StoppedError, Watcher, never
from medtl.core.staging import Lock
from medtl.data.splits import read_splits
from medtl.errors import ConfigError, ReadError, TrainingError
from medtl.evaluation.evaluate import Evaluation
from medtl.evaluation.intervals import Interval
from medtl.training.feature_cache.plan import CachePlan
from medtl.training.run_folder import RunFolder
from medtl.training.schedule import Stage
from medtl.workflows.evaluate import evaluate as evaluate_run
from medtl.workflows.finish_training import Screens
from medtl.workflows.search_space import Space, apply_values, load_space
from medtl.workflows.study import (
    StudyFolder,
    TrialRow,
    TuneOptions,
    changed_study,
    check_metric,
    database_errors,
    describe_row,
    look_up,
    make_sampler,
    opened_study,
    rank_rows,
    record_study,
    write_table,
)
from medtl.workflows.train import OpenedData, TrainOutcome, open_data, train_prepared

try:
    import optuna
    from optuna.trial import FrozenTrial, Trial, TrialState
except ModuleNotFoundError as missing:
    raise ConfigError(
        "extra-missing", f"needs {missing.name}", where="medtl tune", fix="pip install 'medtl[hpo]'"
    ) from missing

# Errors caused by a trial's own values: the search learns from them and continues.
FAULTS_OF_A_TRIAL = frozenset({"loss-not-finite", "out-of-memory", "config-value"})
# Fewer finished trials say little about what mattered.
FEWEST_FOR_IMPORTANCE = 20
NO_TEST_PART = "there is no test part to evaluate on: search with --set split.test=0.2"
OPTIMISTIC = (
    "the winner was chosen by its validation score, which is therefore too optimistic: "
    "evaluate it on a test part (--evaluate) or with nested folds"
)


@dataclass(frozen=True)
class TuneOutcome:
    """The result of a search. rows: all trials; best: the finished ones, best first.

    importances: key -> its share of the metric's variance, empty where there are too few trials. cost: median
    seconds of this session's trials: "trial", and "epochs" of it spent in training. test: the best trial on
    the test part, if requested. notes: what the user should know, line by line.
    """

    root: Path
    metric: str
    rows: tuple[TrialRow, ...]
    best: tuple[TrialRow, ...]
    importances: Mapping[str, float]
    cost: Mapping[str, float]
    trials_here: int
    seconds: float
    test: Evaluation | None
    refusals: tuple[ReadError, ...]
    notes: tuple[str, ...]


class PrunedError(Exception):
    """A trial is worse than others were: raised through its run to end it."""


def tune(
    modality: Modality | None = None,
    *,
    out: PathLike,
    data: PathLike | None = None,
    labels: PathLike | None = None,
    config: RunConfig | PathLike | None = None,
    overrides: Sequence[str] = (),
    trials: int = 20,
    minutes: float | None = None,
    seed: int = 0,
    space: PathLike | None = None,
    metric: str = "auroc",
    keep: int = 3,
    evaluate: bool = False,
    watcher: Watcher = SILENT,
    stop: Callable[[], bool] = never,
) -> TuneOutcome:
    """Search for a better recipe: each trial is a run. Called again, the search resumes, to `trials` in all.

    modality, data, labels, config, overrides and stop: as for train. minutes: start no trial after this long.
    seed: of the search; that of a run is fit.seed. space: YAML such as `schedule.unfreeze: [2, 4]`; by
    default what suits the schedule. keep: how many of the best trials keep their checkpoints. evaluate:
    evaluate the best trial on the test part. Raises StoppedError; ConfigError config-unknown, config-value;
    TrainingError study-changed, study-empty; CheckpointError study-damaged; and what train raises.

    >>> import medtl
    >>> outcome = medtl.tune("xray", out="search", trials=2)
    >>> [row.state for row in outcome.rows]
    ['complete', 'complete']
    """
    started = time.perf_counter()
    recipe = load_config(modality, config, overrides)
    if data is None:
        data = sample_data(recipe.modality)
        watcher.note("data", f"no data folder is given: searching on the phantoms of {data}")
    source, table = Path(data), Path(labels) if labels else None
    check_metric(metric)
    options = TuneOptions(trials, minutes, seed, metric, keep, evaluate)
    dimensions = load_space(Path(space) if space else None, recipe)
    folder = StudyFolder(make_folder(Path(out)))
    with folder.locked():
        record_study(folder, recipe, dimensions, options)
    with database_errors(folder), opened_study(folder, recipe, dimensions, options) as study:
        search = Search(folder, study, dimensions, recipe, options, watcher, Trainer(source, table, stop))
        search.run()
        rows = search.rows()
        importances = _importances(rows, study)
    best = rank_rows(rows, options.sign)
    if not best:
        faults = [row.fault for row in rows if row.fault]
        reason, fix = f"none of {len(rows)} trials finished", "wait for the other process, or search again"
        raise TrainingError("study-empty", reason, where=folder.root, fix=faults[0] if faults else fix)
    test, notes = None, [OPTIMISTIC]
    if evaluate and not _has_test_part(folder.run(best[0].number)):
        notes.append(NO_TEST_PART)
    elif evaluate:
        test, reused = _test(folder, best[0], source, table, StoppingWatcher(watcher, stop, folder.root))
        notes += reused
    return TuneOutcome(
        root=folder.root,
        metric=metric,
        rows=rows,
        best=best,
        importances=importances,
        cost=search.cost(),
        trials_here=len(search.seconds),
        seconds=time.perf_counter() - started,
        test=test,
        refusals=search.trainer.refusals,
        notes=tuple(notes),
    )


@dataclass
class Trainer:
    """Trains a trial's recipe on the data of the search."""

    data: Path
    labels: Path | None
    stop: Callable[[], bool]
    refusals: tuple[ReadError, ...] = ()
    opened: OpenedData | None = None

    def __call__(self, out: Path, config: RunConfig, watcher: Watcher, screens: Screens) -> TrainOutcome:
        """Train, or resume where an earlier process stopped."""
        self.opened = self.opened or open_data(self.data, self.labels, config, watcher)
        outcome = train_prepared(
            self.opened, out, config, watcher, resume=True, stop=self.stop, screens=screens
        )
        self.refusals = outcome.refusals
        return outcome


@dataclass(frozen=True, eq=False)
class Claim:
    """A trial that this process works on, while it holds `lock`."""

    trial: Trial
    values: dict[str, Any]
    lock: Lock


@dataclass(eq=False)
class Search:
    """One process at work on a search: takes trials, trains them, and reports their scores to Optuna."""

    folder: StudyFolder
    study: "optuna.Study"
    space: Space
    config: RunConfig
    options: TuneOptions
    watcher: Watcher
    trainer: Trainer
    seconds: list[float] = field(default_factory=list)
    trained_seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Work until the trials are all taken or the time is up."""
        started, limit = time.monotonic(), 60 * (self.options.minutes or math.inf)
        while time.monotonic() - started < limit:
            claim = self._claim()
            if claim is None:
                break
            with claim.lock:
                self._run_trial(claim)
            if self.trainer.stop():
                raise stopped_search(f"after trial {claim.trial.number}", self.folder.root)
        with self.folder.locked():
            rows = self.rows()
            write_table(self.folder.table, rows, self.options.metric, self._keys)
            for best in rank_rows(rows, self.options.sign)[:1]:
                self._write_best(best)

    def rows(self) -> tuple[TrialRow, ...]:
        """Return all trials that were started."""
        trials = self.study.get_trials(deepcopy=False)
        return tuple(self._row(trial) for trial in trials if trial.state != TrialState.WAITING)

    def cost(self) -> dict[str, float]:
        """Return the median seconds of a trial in this session."""
        seconds = {"trial": self.seconds, "epochs": self.trained_seconds}
        return {name: round(median(values), 2) for name, values in seconds.items() if values}

    @cached_property
    def _keys(self) -> list[str]:
        return [dimension.key for dimension in self.space]

    @cached_property
    def _own_values(self) -> dict[str, Any]:
        plain = self.config.model_dump(mode="json")
        return {key: look_up(plain, key) for key in self._keys}

    def _claim(self) -> Claim | None:
        """Take a trial that its process abandoned, or a new one; None where all are taken."""
        with self.folder.locked():
            begun = [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
            for trial in begun:
                lock = self.folder.hold_trial(trial.number) if trial.state == TrialState.RUNNING else None
                if lock:
                    self.study.sampler = make_sampler(self.options.seed, trial.number)
                    return self._with_values(Trial(self.study, trial._trial_id), lock)
            if len(begun) >= self.options.trials:
                return None
            self.study.sampler = make_sampler(self.options.seed, len(begun))
            fresh = self.study.ask()
            lock = self.folder.hold_trial(fresh.number)
            if lock is None:
                raise changed_study(self.folder, f"new trial {fresh.number} is already locked")
            return self._with_values(fresh, lock)

    def _with_values(self, trial: Trial, lock: Lock) -> Claim:
        return Claim(trial, {dimension.key: dimension.suggest(trial) for dimension in self.space}, lock)

    def _run_trial(self, claim: Claim) -> None:
        started, number = time.perf_counter(), claim.trial.number
        run, fault, score = self.folder.run(number), "", None
        try:
            config = apply_values(self.config, claim.values, f"trial {number}")
            score = self._train(claim.trial, run, config)
            if math.isnan(score.value):
                fault = f"{self.options.metric} is undefined on the validation part"
        except PrunedError:
            run.log("pruned", epochs=_epochs(run))
        except (TrainingError, ConfigError) as error:
            if error.code not in FAULTS_OF_A_TRIAL:
                raise
            fault = str(error)
        self.seconds.append(time.perf_counter() - started)
        self.trained_seconds.append(sum(float(row["seconds"]) for row in _history(run)))
        self._finish(claim.trial, run, score, fault)

    def _train(self, trial: Trial, run: RunFolder, config: RunConfig) -> Interval:
        title = f"trial {trial.number + 1}/{max(self.options.trials, trial.number + 1)}"
        begin = self._check_data
        watcher = TrialWatcher(self.watcher, trial, run, title, begin, first=not self.seconds)
        try:
            outcome = self.trainer(run.root, config, watcher, self._may_be_kept)
        except StoppedError as error:  # which names the run, not the search
            place = error.reason.removeprefix("stopped ")
            raise stopped_search(f"in trial {trial.number}, {place}", self.folder.root) from error
        return outcome.evaluation.metrics[self.options.metric]

    def _may_be_kept(self, evaluation: Evaluation) -> bool:
        """Return whether a trial with this evaluation is among the best so far: others keep no checkpoint."""
        sign, value = self.options.sign, evaluation.metrics[self.options.metric].value
        better = [row for row in self.rows() if row.score and sign * row.score.value > sign * value]
        return len(better) < self.options.keep

    def _check_data(self, run: RunFolder) -> None:
        """Raise TrainingError study-changed where the data are not those that the search started with."""
        digest = hashlib.sha256(run.splits.read_bytes() + run.pixels.read_bytes()).hexdigest()
        known = self.folder.data
        with self.folder.locked():
            if not known.is_file():
                if self.options.evaluate and not _has_test_part(run):
                    self.watcher.note("note", NO_TEST_PART)
                write_text(known, digest + "\n")
            if known.read_text(encoding="utf-8", errors="replace").strip() != digest:
                shutil.rmtree(run.root)  # nothing is trained yet
                raise changed_study(self.folder, "samples, labels, split or pixels have changed")

    def _finish(self, trial: Trial, run: RunFolder, score: Interval | None, fault: str) -> None:
        """Report to Optuna, remove checkpoints that are not kept, and update the tables."""
        facts = {"seconds": round(self.seconds[-1], 3), "epochs": _epochs(run), "fault": fault}
        facts |= {"low": score.low, "high": score.high} if score and not math.isnan(score.low) else {}
        with self.folder.locked():
            trial.set_user_attr("facts", facts)  # in one transaction
            done = score is not None and not fault
            # The sampler takes a pruned trial without a value for the worst.
            state = TrialState.COMPLETE if done else TrialState.PRUNED
            self.study.tell(trial, score.value if score and done else None, state)
            rows = self.rows()
            self._keep_the_best(rows)
            row = next(row for row in rows if row.number == trial.number)
            if row in rank_rows(rows, self.options.sign)[:1]:
                self._write_best(row)
            write_table(self.folder.table, rows, self.options.metric, self._keys)
            self.folder.release_trial(trial.number)
        self.watcher.note(f"trial {row.number}", describe_row(row, self.options.metric))

    def _keep_the_best(self, rows: Sequence[TrialRow]) -> None:
        """Remove the checkpoints of trials that are over and not among the best."""
        kept = {row.number for row in rank_rows(rows, self.options.sign)[: self.options.keep]}
        for row in rows:
            if row.state != "running" and row.number not in kept:
                shutil.rmtree(self.folder.run(row.number).root / "checkpoints", ignore_errors=True)

    def _write_best(self, row: TrialRow) -> None:
        """Write the winner's recipe, whose first comment is the command to run."""
        value = row.score.value if row.score else math.nan
        head = (
            f"# medtl train --config best.yaml --data FOLDER --labels labels.csv --out RUN\n"
            f"# Trial {row.number} of a search. Its validation {self.options.metric} of {value:.3f} is "
            f"too optimistic: the trial was chosen by it.\n"
        )
        recipe = apply_values(self.config, row.values, f"trial {row.number}")
        write_text(self.folder.best, head + to_yaml(recipe))

    def _row(self, trial: FrozenTrial) -> TrialRow:
        facts = trial.user_attrs.get("facts", {})
        values = {d.key: d.restored(trial.params[d.key]) for d in self.space if d.key in trial.params}
        complete = trial.state == TrialState.COMPLETE
        bounds = facts.get("low", math.nan), facts.get("high", math.nan)
        return TrialRow(
            number=trial.number,
            state="failed" if facts.get("fault") else trial.state.name.lower(),
            score=Interval(float(trial.value or 0.0), *bounds) if complete else None,
            epochs=facts.get("epochs", 0),
            seconds=facts.get("seconds", math.nan),
            values=values,
            recipe=values == self._own_values,
            fault=facts.get("fault", ""),
        )


@dataclass(eq=False)
class TrialWatcher(Watcher):
    """Passes on the progress of a trial, reports its epochs to Optuna, and prunes it.

    first: it is the session's first trial, whose notes describe the data; the others would only repeat them.
    """

    front: Watcher
    trial: Trial
    run: RunFolder
    title: str
    begin: Callable[[RunFolder], None]
    first: bool
    now: Stage | None = None

    def note(self, label: str, text: str) -> None:
        """Pass on a note of the first trial."""
        if self.first:
            self.front.note(label, text)

    def stage(self, number: int, of: int, stage: Stage, plan: CachePlan) -> None:
        """Check the data before anything is trained."""
        self.first, self.now = False, stage
        self.begin(self.run)

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar."""
        self.front.progress(f"{self.title}: {what}", done, total)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Report an epoch by its place in the run's history; raise PrunedError where the trial is hopeless.

        An epoch of the head over cached features costs less than reporting it.
        """
        free = self.now is not None and self.now.groups == 0 and row["cached"]
        if free or row["val_auroc"] is None:
            return
        self.trial.report(row["val_auroc"], _epochs(self.run) - 1)
        if self.trial.should_prune():
            raise PrunedError


@dataclass(frozen=True)
class StoppingWatcher(Watcher):
    """Passes on the progress of the best trial's evaluation, and stops it on request."""

    front: Watcher
    stop: Callable[[], bool]
    root: Path

    def note(self, label: str, text: str) -> None:
        """Pass a note on."""
        self.front.note(label, text)

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar; raise StoppedError where a stop was requested."""
        self.front.progress(what, done, total)
        if self.stop():
            raise stopped_search("while the best trial was evaluated", self.root)


def stopped_search(when: str, root: Path) -> StoppedError:
    """Return the error that says where a search was stopped."""
    fix = "run the same command again to resume"
    return StoppedError("interrupted", f"stopped {when}", where=root, fix=fix)


def _history(run: RunFolder) -> list[dict[str, Any]]:
    return run.read_history() if run.history.is_file() else []


def _epochs(run: RunFolder) -> int:
    return len(_history(run))


def _importances(rows: Sequence[TrialRow], study: "optuna.Study") -> dict[str, float]:
    """Return each key's share of the metric's variance, by PED-ANOVA (Watanabe 2023)."""
    values = [row.score.value for row in rows if row.score]
    if len(values) < FEWEST_FOR_IMPORTANCE or max(values) == min(values):
        return {}
    return optuna.importance.get_param_importances(study)


def _has_test_part(run: RunFolder) -> bool:
    return any(row.split == "test" for row in read_splits(run.splits).values())


def _test(
    folder: StudyFolder, best: TrialRow, data: Path, labels: Path | None, watcher: Watcher
) -> tuple[Evaluation, list[str]]:
    """Evaluate the best trial on the test part; return a note if that was already used for another trial."""
    run = folder.run(best.number).root
    try:
        before = str(read_json(folder.test / "metrics.json")["run"])
    except (OSError, ValueError, KeyError, TypeError):
        before = run.name
    outcome = evaluate_run(run, data, labels, out=folder.test, part="test", watcher=watcher)
    reused = f"the test part has already been used to evaluate trial {before}: it is no longer unseen"
    return outcome.evaluation, [] if before == run.name else [reused]
