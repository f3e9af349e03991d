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
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from medtl.config import Modality, RunConfig, load_config, sample_data
from medtl.core.files import PathLike, make_folder, read_json, write_text
from medtl.core.progress import SILENT, StoppedError, Watcher, never, stopped
from medtl.data.splits import read_splits
from medtl.errors import ConfigError, ReadError, TrainingError
from medtl.evaluation.evaluate import Evaluation
from medtl.evaluation.intervals import Interval
from medtl.training.feature_cache.plan import CachePlan
from medtl.training.run_folder import RunFolder
from medtl.training.schedule import Stage
from medtl.workflows.evaluate import evaluate as evaluate_run
from medtl.workflows.search import Search, TrialRow, check_metric
from medtl.workflows.search_space import apply_values, load_space
from medtl.workflows.train import OpenedData, TrainJob, open_data, train_run

if TYPE_CHECKING:
    import optuna

# Errors caused by a trial's own values: the search learns from them and continues.
FAULTS_OF_A_TRIAL = frozenset({"loss-not-finite", "out-of-memory", "config-value"})
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
    check_metric(metric)
    dimensions = load_space(Path(space) if space else None, recipe)
    search = Search(make_folder(Path(out)), recipe, dimensions, metric, seed)
    search.record()
    with search.opened():
        source, table = Path(data), Path(labels) if labels else None
        searcher = Searcher(search, source, table, trials, keep, evaluate, watcher, stop)
        searcher.run(60 * (minutes or math.inf))
        rows = search.rows()
        importances = search.importances()
    best = search.rank(rows)
    if not best:
        faults = [row.fault for row in rows if row.fault]
        reason, fix = f"none of {len(rows)} trials finished", "wait for the other process, or search again"
        raise TrainingError("study-empty", reason, where=search.root, fix=faults[0] if faults else fix)
    test, notes = searcher.test(best[0]) if evaluate else (None, [])
    seconds = {"trial": searcher.seconds, "epochs": searcher.trained_seconds}
    return TuneOutcome(
        root=search.root,
        metric=metric,
        rows=rows,
        best=best,
        importances=importances,
        cost={name: round(median(values), 2) for name, values in seconds.items() if values},
        trials_here=len(searcher.seconds),
        seconds=time.perf_counter() - started,
        test=test,
        refusals=searcher.opened.refusals if searcher.opened else (),
        notes=(OPTIMISTIC, *notes),
    )


@dataclass(eq=False)
class Searcher:
    """One process at work on a search: takes trials, trains them, and reports their scores to Optuna.

    trials, keep, evaluate: as for tune. seconds: of each trial of this session; trained_seconds: in epochs.
    """

    search: Search
    data: Path
    labels: Path | None
    trials: int
    keep: int
    evaluate: bool
    watcher: Watcher
    stop: Callable[[], bool]
    opened: OpenedData | None = None
    seconds: list[float] = field(default_factory=list)
    trained_seconds: list[float] = field(default_factory=list)

    def run(self, limit: float) -> None:
        """Work until the trials are all taken or the time is up."""
        search, started = self.search, time.monotonic()
        while time.monotonic() - started < limit and (claim := search.claim(self.trials)):
            trial, lock = claim
            with lock:
                self._run_trial(trial)
            if self.stop():
                raise stopped(f"after trial {trial.number}", search.root)
        with search.locked():
            search.write_results(search.rows())

    def _run_trial(self, trial: "optuna.Trial") -> None:
        started, run, fault, score = time.perf_counter(), self.search.run(trial.number), "", None
        try:
            config = apply_values(self.search.config, self.search.values(trial), f"trial {trial.number}")
            score = self._train(trial, run, config)
            if math.isnan(score.value):
                fault = f"{self.search.metric} is undefined on the validation part"
        except PrunedError:
            run.log("pruned", epochs=len(_history(run)))
        except (TrainingError, ConfigError) as error:
            if error.code not in FAULTS_OF_A_TRIAL:
                raise
            fault = str(error)
        self.seconds.append(time.perf_counter() - started)
        self.trained_seconds.append(sum(float(row["seconds"]) for row in _history(run)))
        self._finish(trial, score, fault)

    def _train(self, trial: "optuna.Trial", run: RunFolder, config: RunConfig) -> Interval:
        """Train, or resume where an earlier process stopped."""
        title = f"trial {trial.number + 1}/{max(self.trials, trial.number + 1)}"
        watcher = TrialWatcher(self.watcher, trial, run, title, first=not self.seconds)
        job = TrainJob(run, config, watcher, resume=True, stop=self.stop, fits_ood=self._may_be_kept)
        try:
            self.opened = self.opened or self._open_data(config, watcher)
            evaluation, _ = train_run(job, self.opened)
        except StoppedError as error:  # which names the run, not the search
            place = error.reason.removeprefix("stopped ")
            raise stopped(f"in trial {trial.number}, {place}", self.search.root) from error
        return evaluation.metrics[self.search.metric]

    def _may_be_kept(self, evaluation: Evaluation) -> bool:
        """Return whether a trial with this evaluation is among the best so far: others keep no checkpoint."""
        sign, value = self.search.sign, evaluation.metrics[self.search.metric].value
        rows = self.search.rows()
        return (
            sum(row.score is not None and sign * row.score.value > sign * value for row in rows) < self.keep
        )

    def _open_data(self, config: RunConfig, watcher: Watcher) -> OpenedData:
        """Read the data. Raises TrainingError study-changed where the search was started with others."""
        opened = open_data(self.data, self.labels, config, watcher)
        rows = [(one.sample_id, one.patient_id, one.split, one.target) for one in opened.samples]
        digest = hashlib.sha256(repr((rows, opened.prepared.content_hashes)).encode()).hexdigest()
        known = self.search.root / "data.sha256"
        with self.search.locked():
            if not known.is_file():
                write_text(known, digest + "\n")
            if known.read_text(encoding="utf-8", errors="replace").strip() != digest:
                raise self.search.changed("samples, labels, split or pixels have changed")
        if self.evaluate and not any(sample.split == "test" for sample in opened.samples):
            self.watcher.note("note", NO_TEST_PART)
        return opened

    def _finish(self, trial: "optuna.Trial", score: Interval | None, fault: str) -> None:
        """Report to Optuna, remove checkpoints that are not kept, and update the tables."""
        search, epochs = self.search, len(_history(self.search.run(trial.number)))
        facts = {"seconds": round(self.seconds[-1], 3), "epochs": epochs, "fault": fault}
        with search.locked():
            search.tell(trial, score, facts)
            rows = search.rows()
            kept = {row.number for row in search.rank(rows)[: self.keep]}
            for row in rows:
                if row.state != "running" and row.number not in kept:
                    shutil.rmtree(search.run(row.number).root / "checkpoints", ignore_errors=True)
            search.write_results(rows)
        finished = next(row for row in rows if row.number == trial.number)
        self.watcher.note(f"trial {trial.number}", finished.describe(search.metric))

    def test(self, best: TrialRow) -> tuple[Evaluation | None, list[str]]:
        """Evaluate the best trial on the test part; note if there is none, or another trial has used it."""
        run, out = self.search.run(best.number), self.search.root / "test"
        if "test" not in {row.split for row in read_splits(run.splits).values()}:
            return None, [NO_TEST_PART]
        try:
            before = str(read_json(out / "metrics.json")["run"])
        except (OSError, ValueError, KeyError, TypeError):
            before = run.root.name
        try:
            outcome = evaluate_run(
                run.root, self.data, self.labels, out=out, part="test", watcher=self.watcher, stop=self.stop
            )
        except StoppedError as error:
            raise stopped("while the best trial was evaluated", self.search.root) from error
        reused = f"the test part has already been used to evaluate trial {before}: it is no longer unseen"
        return outcome.evaluation, [] if before == run.root.name else [reused]


@dataclass(eq=False)
class TrialWatcher(Watcher):
    """Passes on the progress of a trial, reports its epochs to Optuna, and prunes it.

    first: it is the session's first trial, whose notes describe the data; the others would only repeat them.
    """

    front: Watcher
    trial: "optuna.Trial"
    run: RunFolder
    title: str
    first: bool
    now: Stage | None = None

    def note(self, label: str, text: str) -> None:
        """Pass on a note of the first trial."""
        if self.first:
            self.front.note(label, text)

    def stage(self, number: int, of: int, stage: Stage, plan: CachePlan) -> None:
        """Remember the stage; what is noted from now on is about this trial alone."""
        self.first, self.now = False, stage

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
        self.trial.report(row["val_auroc"], len(_history(self.run)) - 1)
        if self.trial.should_prune():
            raise PrunedError


def _history(run: RunFolder) -> list[dict[str, Any]]:
    return run.read_history() if run.history.is_file() else []
