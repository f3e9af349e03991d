"""A search: what is searched, what its trials leave, and that nothing is lost or done twice."""

import hashlib
import importlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml

from medtl.config import RunConfig, load_config
from medtl.core.staging import try_lock
from medtl.data.splits import read_splits
from medtl.errors import CheckpointError, ConfigError, TrainingError
from medtl.evaluation.intervals import Interval
from medtl.training.checkpoint import load_checkpoint
from medtl.training.run_folder import RunFolder
from medtl.workflows import finish_training
from medtl.workflows.search_space import Dimension, Range, count_groups, default_space, load_space, space_yaml
from medtl.workflows.train import TrainJob, train_run
from medtl.workflows.tune import TuneOutcome, tune
from tests.cli import jobs
from tests.waiting import PATIENCE, wait_until

HEAD = ("schedule=linear-probe", "schedule.head_epochs=2")
RATES = (
    "schedule.head_learning_rate: {low: 1e-3, high: 1e-1, log: true}\n"
    "schedule.weight_decay: [0.0, 0.01, 0.1]\n"
)
# Nothing is learned at the second rate.
GOOD_OR_IDLE = "schedule.learning_rate: [1e-2, 1e-12]\nschedule.weight_decay: {low: 0.0, high: 0.1}\n"


class Quiet:
    """A watcher that keeps notes and may raise when a bar moves."""

    def __init__(self, breaks_at: str = "") -> None:
        self.notes: list[tuple[str, str]] = []
        self.breaks_at = breaks_at

    def note(self, label: str, text: str) -> None:
        self.notes.append((label, text))

    def stage(self, number: int, of: int, stage: Any, plan: Any) -> None:
        raise AssertionError("stages of trials are not shown")

    def progress(self, what: str, done: int, total: int) -> None:
        if self.breaks_at and what.startswith(self.breaks_at):
            raise KeyboardInterrupt

    def epoch(self, row: Mapping[str, Any]) -> None:
        raise AssertionError("epochs of trials are not shown")


@pytest.fixture(autouse=True)
def tiny() -> Iterator[None]:
    """Register the tiny backbones."""
    with jobs.tiny_backbones_registered():
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PNGs of two classes."""
    return jobs.write_images(tmp_path_factory.mktemp("images") / "data")


def recipe(*overrides: str) -> RunConfig:
    """Return the tiny recipe."""
    return load_config("xray", None, (*jobs.SETTINGS, *overrides))


@pytest.fixture
def space_file(tmp_path: Path) -> Callable[[str], Path]:
    """Return a writer of space files."""

    def write(text: str) -> Path:
        path = tmp_path / f"space-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def search(images: Path, tmp_path: Path, space_file: Callable[[str], Path]) -> Callable[..., TuneOutcome]:
    """Return a search of the images: by default 4 head-level trials over RATES into tmp_path/study."""

    def run(
        out: str = "study",
        *overrides: str,
        space: str = RATES,
        watcher: Any = None,
        data: Path = images,
        **options: Any,
    ) -> TuneOutcome:
        return tune(
            data=data,
            out=tmp_path / out,
            config=recipe(*(overrides or HEAD)),
            space=space_file(space),
            watcher=watcher or Quiet(),
            **{"trials": 4, **options},
        )

    return run


@pytest.fixture(scope="module")
def unbroken(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TuneOutcome, Path]:
    """The default search, broken off by nothing, and where it lies."""
    root = tmp_path_factory.mktemp("unbroken")
    (root / "space.yaml").write_text(RATES)
    with pytest.MonkeyPatch.context() as patch, jobs.tiny_backbones_registered():
        patch.setenv("MEDTL_HOME", str(root / "home"))
        patch.setenv("MEDTL_SALT", "test")
        out, config, space = root / "study", recipe(*HEAD), root / "space.yaml"
        outcome = tune(data=images, out=out, config=config, trials=4, space=space, watcher=Quiet())
    return outcome, root / "study"


@pytest.fixture
def quick_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trial's run take no time: its metrics are a function of its rate, 1e-2 being the best."""

    def train(job: TrainJob, data: None) -> Any:
        value = 0.9 - 0.1 * abs(math.log10(job.config.schedule.learning_rate / 1e-2))
        scores = {"auroc": Interval(value, value - 0.1, value + 0.1), "brier": Interval(1 - value, 0.0, 1.0)}
        return SimpleNamespace(metrics=scores), ()

    monkeypatch.setattr("medtl.workflows.tune.train_run", train)
    opened = SimpleNamespace(samples=(), prepared=SimpleNamespace(content_hashes=()), refusals=())
    monkeypatch.setattr("medtl.workflows.tune.open_data", lambda *_: opened)


def facts(outcome: TuneOutcome) -> list[tuple[object, ...]]:
    """Return what a search came to, less what depends on the clock."""
    return [(row.number, row.state, row.score, row.epochs, row.values) for row in outcome.rows]


# The space


def suggested(dimension: Dimension, trial: optuna.Trial) -> Any:
    """Return the value that a trial gets."""
    dimension.suggest(trial)
    return dimension.restored(trial.params[dimension.key])


def test_a_space_is_read_as_ranges_and_choices(space_file: Callable[[str], Path]) -> None:
    text = (
        "schedule.learning_rate: {low: 1e-5, high: 1e-2, log: true}\n"
        "schedule.unfreeze: [1, 2, null]\n"
        "schedule.head_epochs: {low: 2, high: 6, step: 2}\n"
    )
    rate, unfreeze, epochs = load_space(space_file(text), recipe("schedule.unfrozen_epochs=2"))
    assert (rate.key, rate.values) == ("schedule.learning_rate", Range(low=1e-5, high=1e-2, log=True))
    assert unfreeze.values == (1, 2, None)
    assert epochs.whole and epochs.extremes == (2, 6) and not rate.whole


def test_suggested_values_lie_in_their_dimension(space_file: Callable[[str], Path]) -> None:
    text = (
        "schedule.learning_rate: {low: 1e-5, high: 1e-2, log: true}\nschedule.thaw: [1, 2, null]\n"
        "schedule.head_epochs: {low: 2, high: 6, step: 2}\n"
        "augmentation.gamma: {low: 0, high: 0.4, step: 0.2}\n"
    )
    space = load_space(space_file(text), recipe())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [{d.key: suggested(d, trial) for d in space} for trial in (study.ask() for _ in range(40))]
    assert {values["schedule.unfreeze"] for values in drawn} == {1, 2, None}
    assert {values["schedule.head_epochs"] for values in drawn} == {2, 4, 6}
    assert {values["augmentation.gamma"] for values in drawn} == {0.0, 0.2, 0.4}
    rates = [values["schedule.learning_rate"] for values in drawn]
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) > 20  # evenly in the logarithm: two thirds


def test_choices_may_be_lists(space_file: Callable[[str], Path]) -> None:
    one, other = (f"[{{name: {name}, groups: 0, epochs: 1, head_learning_rate: 1e-3}}]" for name in "ab")
    (stages_of,) = load_space(space_file(f"schedule.stages: [{one}, {other}]\n"), recipe())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    names = {suggested(stages_of, study.ask())[0]["name"] for _ in range(20)}
    assert names == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("schedule.learning_rat: [1e-3, 1e-2]", "config-unknown", "did you mean schedule.learning_rate?"),
        ("shedule.rate: [1e-3, 1e-2]", "config-unknown", "did you mean schedule?"),
        ("schedule.learning_rate.low: 1", "config-value", "schedule.learning_rate"),
        ("schedule: {rate: [1e-3, 1e-2]}", "config-value", "schedule is a section"),
        (
            "schedule.learning_rate: {low: 1e-2, high: 1e-3}",
            "config-value",
            "low 0.01 is not below high 0.001",
        ),
        ("schedule.learning_rate: {low: 1e-3, high: 1e-3}", "config-value", "not below"),
        ("schedule.learning_rate: {low: 0, high: 1e-3, log: true}", "config-value", "log needs low above 0"),
        ("schedule.learning_rate: {low: 1e-3, high: 1e-2, log: true, step: 1e-3}", "config-value", "no step"),
        ("schedule.learning_rate: {low: 1e-3, hihg: 1e-2}", "config-value", "schedule.learning_rate"),
        ("schedule.learning_rate: {low: 1e-3, high: .inf}", "config-value", "schedule.learning_rate.high"),
        ("schedule.learning_rate: {low: .nan, high: 1}", "config-value", "schedule.learning_rate.low"),
        ("schedule.learning_rate: {low: -1, high: 1e-2}", "config-value", "schedule.learning_rate"),
        ("schedule.learning_rate: 1e-3", "config-value", "write [value, value]"),
        ("schedule.learning_rate: []", "config-value", "two or more different values"),
        ("schedule.learning_rate: [1e-3]", "config-value", "two or more different values"),
        ("schedule.learning_rate: [1e-3, 1e-3]", "config-value", "two or more different values"),
        ("schedule.learning_rate: [1e-3, fast]", "config-value", "schedule.learning_rate"),
        ("schedule.learning_rate: [1e-3, '${oc.env:HOME}']", "config-value", "schedule.learning_rate"),
        ("schedule.unfreeze: {low: 1, high: 2.5}", "config-value", "whole numbers"),
        ("fit.imbalance: [none, nothing]", "config-value", "fit.imbalance"),
        ("backbone.name: [tiny, tinny]", "config-value", "did you mean tiny?"),
        ("split.val: [0.2, 0.3]", "config-value", "the same in all trials"),
        ("fit.seed: [0, 1]", "config-value", "the same in all trials"),
        ("modality: [xray, mri]", "config-value", "the same in all trials"),
        ("preprocessing.size: [[32, 32], [64, 64]]", "config-value", "the same in all trials"),
        ("schedule.learning_rate: [1e-3, 1e-2", "config-value", "is not YAML"),
        ("- schedule.learning_rate", "config-value", "mapping of keys"),
        ("", "config-value", "mapping of keys"),
        ("1: [2, 3]", "config-unknown", "no key 1"),
    ],
)
def test_a_space_that_is_wrong_is_refused(
    text: str, code: str, said: str, space_file: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_space(space_file(text), recipe("schedule=gradual"))
    assert caught.value.code == code
    assert said in str(caught.value)


def test_a_space_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config-missing"):
        load_space(tmp_path / "none.yaml", recipe())


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ("linear-probe", "schedule.learning_rate: [1e-3, 1e-2]"),
        ("linear-probe", "schedule.layer_decay: [0.5, 0.9]"),
        ("linear-probe", "augmentation.gamma: [0.0, 0.2]"),
        ("head-then-all", "schedule.unfreeze: [1, 2]"),
        ("full", "schedule.head_learning_rate: [1e-3, 1e-2]"),
        ("gradual", "schedule.unfreeze: [3, 4, 5]"),
    ],
)
def test_a_key_that_changes_nothing_is_refused(
    schedule: str, text: str, space_file: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError, match="has no effect"):
        load_space(space_file(text), recipe(f"schedule={schedule}"))


@pytest.mark.parametrize(
    "text",
    [
        "schedule.learning_rate: [1e-3, 1e-2]\nschedule.name: [linear-probe, full]",
        "augmentation.gamma: [0.0, 0.2]\nschedule.views: [1, 2]",
    ],
)
def test_a_key_that_matters_with_another_one_is_searched(
    text: str, space_file: Callable[[str], Path]
) -> None:
    assert len(load_space(space_file(text), recipe("schedule=linear-probe"))) == 2


@pytest.mark.parametrize("schedule", ["linear-probe", "head-then-all", "gradual", "full", "scratch"])
def test_the_default_space_is_one_that_can_be_given_and_holds_the_recipe(
    schedule: str, space_file: Callable[[str], Path]
) -> None:
    config = recipe(f"schedule={schedule}")
    space = default_space(config)
    assert load_space(space_file(space_yaml(space)), config) == space
    plain = config.model_dump(mode="json")
    for dimension in space:
        section, key = dimension.key.split(".")
        assert dimension.holds(plain[section][key]), dimension.key
    keys = {dimension.key for dimension in space}
    assert {"schedule.weight_decay", "fit.imbalance"} <= keys
    assert ("schedule.unfreeze" in keys) == (schedule == "gradual")
    assert ("schedule.learning_rate" in keys) == (schedule != "linear-probe")
    assert ("augmentation.gamma" in keys) == (schedule != "linear-probe")


def test_groups_are_counted_without_weights() -> None:
    assert count_groups("tiny") == 3


# The search


def test_a_search_leaves_runs_a_table_and_the_best_recipe(
    search: Callable[..., TuneOutcome], images: Path, tmp_path: Path
) -> None:
    watcher = Quiet()
    outcome = search(watcher=watcher)
    assert [(row.number, row.state) for row in outcome.rows] == [(n, "complete") for n in range(4)]
    rows = jobs.read_rows(tmp_path / "study/trials.csv")
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    for row in outcome.rows:
        assert row.score is not None and float(rows[row.number]["auroc"]) == row.score.value
        assert (
            float(rows[row.number]["schedule.head_learning_rate"])
            == row.values["schedule.head_learning_rate"]
        )
        run = RunFolder(tmp_path / f"study/trials/{row.number:04d}")
        kept = yaml.safe_load(run.config.read_text())
        assert kept["schedule"]["head_learning_rate"] == row.values["schedule.head_learning_rate"]
        assert json.loads(run.metrics.read_text())["split"]["val"]["auroc"]["value"] == row.score.value
    scores = [row.score.value for row in outcome.best if row.score]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    told = [label for label, _ in watcher.notes]
    assert [label for label in told if label.startswith("trial")] == [f"trial {n}" for n in range(4)]
    assert told.count("note") == len(
        {note for note in watcher.notes if note[0] == "note"}
    )  # the data's, once

    best = outcome.best[0].number
    again = load_config(None, tmp_path / "study/best.yaml")
    train_run(TrainJob(RunFolder(tmp_path / "again"), again, Recorder()), images)
    trial = tmp_path / f"study/trials/{best:04d}"
    assert load_checkpoint(tmp_path / "again").sha256 == load_checkpoint(trial).sha256


class Recorder(Quiet):
    """A watcher of a plain run."""

    def stage(self, number: int, of: int, stage: Any, plan: Any) -> None:
        pass

    def epoch(self, row: Mapping[str, Any]) -> None:
        pass


def test_the_first_trial_is_the_recipe_itself(search: Callable[..., TuneOutcome]) -> None:
    outcome = search(trials=2)
    assert [row.recipe for row in outcome.rows] == [True, False]
    assert outcome.rows[0].values == {"schedule.head_learning_rate": 3e-3, "schedule.weight_decay": 0.01}


def test_only_the_best_keep_their_checkpoints(search: Callable[..., TuneOutcome], tmp_path: Path) -> None:
    outcome = search(keep=2)
    kept = {int(path.parent.name) for path in tmp_path.glob("study/trials/*/checkpoints")}
    assert kept == {row.number for row in outcome.best[:2]}
    for number in range(4):
        run = RunFolder(tmp_path / f"study/trials/{number:04d}")
        assert run.config.is_file() and run.history.is_file() and run.metrics.is_file()
    assert not list(tmp_path.glob("study/trials/.*.lock"))


def test_only_trials_that_may_be_kept_learn_to_screen(
    search: Callable[..., TuneOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass over the training images is of use to who scores with a trial, which needs its checkpoint."""
    fitted: list[str] = []
    real = finish_training._fit_ood

    def fit(checkpoint: Any, fit: Any, *more: Any) -> Any:
        fitted.append(fit.run_folder.root.name)
        return real(checkpoint, fit, *more)

    monkeypatch.setattr(finish_training, "_fit_ood", fit)
    outcome = search(keep=1, trials=5)
    best = -math.inf
    expected = []
    for row in outcome.rows:
        assert row.score is not None
        if row.score.value >= best:
            expected.append(f"{row.number:04d}")
        best = max(best, row.score.value)
    assert fitted == expected and len(fitted) < 5, "otherwise the test says nothing"
    winner = load_checkpoint(tmp_path / f"study/trials/{outcome.best[0].number:04d}")
    assert winner.header.ood is not None and winner.ood


def test_more_trials_go_on_and_repeat_none(
    search: Callable[..., TuneOutcome], unbroken: tuple[TuneOutcome, Path], tmp_path: Path
) -> None:
    search(trials=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("study/trials/*/metrics.json")}
    grown = search(trials=4)
    assert len(before) == 2 and all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert grown.trials_here == 2
    assert facts(grown) == facts(unbroken[0])
    again = search(trials=4)
    assert again.trials_here == 0 and facts(again) == facts(grown)


def test_another_seed_searches_elsewhere(search: Callable[..., TuneOutcome]) -> None:
    one, other = search(trials=2), search("other", trials=2, seed=1)
    assert one.rows[0].values == other.rows[0].values
    assert one.rows[1].values != other.rows[1].values


@pytest.mark.parametrize("place", ["trial 3/4: head epoch 2", "trial 1/4: reading"])
def test_a_search_that_was_broken_off_comes_to_the_same(
    place: str, search: Callable[..., TuneOutcome], unbroken: tuple[TuneOutcome, Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(watcher=Quiet(breaks_at=place))
    resumed = search()
    assert facts(resumed) == facts(unbroken[0])
    for row in resumed.best[:3]:
        runs = [study / f"trials/{row.number:04d}" for study in (tmp_path / "study", unbroken[1])]
        assert load_checkpoint(runs[0]).sha256 == load_checkpoint(runs[1]).sha256
    if place.endswith("epoch 2"):  # the trial went on where it was
        assert '"event": "resumed"' in (tmp_path / "study/trials/0002/log.jsonl").read_text()


def test_a_search_that_models_earlier_trials_goes_on_as_if_unbroken(
    search: Callable[..., TuneOutcome], quick_training: None
) -> None:
    """From the eleventh trial on the sampler models what came before, which lies in the database alone."""
    space = (
        "schedule.learning_rate: {low: 1e-6, high: 1e-1, log: true}\nschedule.decay: {low: 0.5, high: 1.0}\n"
    )
    whole = search("whole", "schedule=full", space=space, trials=24)
    for trials in (4, 15, 24):
        parts = search("study", "schedule=full", space=space, trials=trials)
    assert facts(parts) == facts(whole)
    rates = [abs(math.log10(row.values["schedule.learning_rate"] / 1e-2)) for row in whole.rows]
    assert sum(rates[14:]) < sum(rates[:10])  # what was learned helps
    assert whole.importances["schedule.learning_rate"] > whole.importances["schedule.layer_decay"]


def run_search(data: Path, out: Path, config: RunConfig, space: Path, trials: int) -> None:
    """Search, as a process of its own does."""
    tune(data=data, out=out, config=config, trials=trials, space=space, watcher=Quiet())


def start_search(*arguments: Any) -> Any:
    """Fork a process that searches: torch is loaded already."""
    process = multiprocessing.get_context("fork").Process(target=run_search, args=arguments)
    process.start()
    return process


def test_two_processes_share_the_trials(
    images: Path, tmp_path: Path, space_file: Callable[[str], Path], search: Callable[..., TuneOutcome]
) -> None:
    config, space = recipe(*HEAD), space_file(RATES)
    processes = [start_search(images, tmp_path / "study", config, space, 7) for _ in range(2)]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    outcome = search(trials=7)
    assert outcome.trials_here == 0
    assert [(row.number, row.state) for row in outcome.rows] == [(n, "complete") for n in range(7)]
    assert len({json.dumps(row.values) for row in outcome.rows}) == 7
    starts = [
        (path.parent / "log.jsonl").read_text().count('"event": "resumed"')
        + (path.parent / "log.jsonl").read_text().count('"event": "started"')
        for path in tmp_path.glob("study/trials/*/metrics.json")
    ]
    assert starts == [1] * 7


def test_a_killed_trial_goes_on_in_another_process(
    images: Path, tmp_path: Path, space_file: Callable[[str], Path], search: Callable[..., TuneOutcome]
) -> None:
    long = ("schedule=linear-probe", "schedule.head_epochs=12")
    process = start_search(images, tmp_path / "study", recipe(*long), space_file(RATES), 2)
    history = tmp_path / "study/trials/0001/history.csv"
    wait_until(lambda: history.is_file() and len(history.read_text().splitlines()) >= 4, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    resumed = search("study", *long, trials=2)
    assert resumed.trials_here == 1  # the killed one
    assert '"event": "resumed"' in (tmp_path / "study/trials/0001/log.jsonl").read_text()
    assert facts(resumed) == facts(search("unbroken", *long, trials=2))


def test_a_trial_of_a_living_process_is_left_alone(
    search: Callable[..., TuneOutcome], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(watcher=Quiet(breaks_at="trial 2/4: head epoch 1"))
    held = try_lock(tmp_path / "study/trials/.0001.lock")
    assert held is not None
    with held:
        outcome = search()
    assert [row.state for row in outcome.rows] == ["complete", "running", "complete", "complete"]
    assert [row.state for row in search().rows] == ["complete"] * 4


def test_a_hopeless_trial_is_pruned_and_its_run_ends_clean(
    search: Callable[..., TuneOutcome], tmp_path: Path
) -> None:
    overrides = ("schedule=full", "schedule.unfrozen_epochs=4", "schedule.batch_norm=follow")
    outcome = search("study", *overrides, space=GOOD_OR_IDLE, trials=9)
    pruned = [row for row in outcome.rows if row.state == "pruned"]
    assert pruned and all(row.values["schedule.learning_rate"] == 1e-12 for row in pruned)
    assert outcome.best[0].values["schedule.learning_rate"] == 1e-2
    for row in pruned:
        assert row.score is None and 1 < row.epochs < 4
        run = RunFolder(tmp_path / f"study/trials/{row.number:04d}")
        assert len(run.read_history()) == row.epochs
        assert '"event": "pruned"' in (run.root / "log.jsonl").read_text()
        assert not run.metrics.exists() and not run.best.exists()
        with run.locked():
            pass


def test_a_metric_that_is_to_be_low_is_brought_down(
    search: Callable[..., TuneOutcome], quick_training: None
) -> None:
    outcome = search("study", "schedule=full", space=GOOD_OR_IDLE, trials=6, metric="brier")
    scores = [row.score.value for row in outcome.best if row.score]
    assert scores == sorted(scores) and scores[0] < scores[-1]
    assert outcome.best[0].values["schedule.learning_rate"] == 1e-2


def test_a_trial_that_diverges_is_a_lesson_and_the_search_goes_on(
    search: Callable[..., TuneOutcome],
) -> None:
    outcome = search(space="schedule.head_learning_rate: [1e-2, 1e30]", trials=6)
    states = {row.values["schedule.head_learning_rate"]: row.state for row in outcome.rows}
    assert states == {1e-2: "complete", 1e30: "failed"}
    faults = {row.fault for row in outcome.rows if row.state == "failed"}
    assert all("loss-not-finite" in fault for fault in faults)


def test_values_that_exclude_each_other_are_a_lesson(
    search: Callable[..., TuneOutcome], quick_training: None
) -> None:
    space = "schedule.steps: {low: 1, high: 3}\nschedule.unfrozen_epochs: {low: 1, high: 3}\n"
    gradual = ("schedule=gradual", "schedule.head_epochs=1", "schedule.steps=1", "schedule.unfrozen_epochs=3")
    outcome = search("study", *gradual, space=space, trials=12)
    for row in outcome.rows:
        fits = row.values["schedule.steps"] <= row.values["schedule.unfrozen_epochs"]
        assert (row.state != "failed") == fits
    assert any("fewer than steps" in row.fault for row in outcome.rows)


def test_a_search_of_which_nothing_came_is_told(search: Callable[..., TuneOutcome]) -> None:
    with pytest.raises(TrainingError) as caught:
        search(space="schedule.head_learning_rate: [1e29, 1e30]", trials=2)
    assert caught.value.code == "study-empty" and "loss-not-finite" in str(caught.value)


def test_no_trial_begins_after_its_time(search: Callable[..., TuneOutcome]) -> None:
    outcome = search(minutes=1e-6)
    assert len(outcome.rows) == 1
    assert len(search(minutes=10).rows) == 4


def test_a_metric_that_there_is_not_is_refused(search: Callable[..., TuneOutcome], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such metric: one of auroc, "):
        search(metric="aurok")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("what", ["recipe", "space", "metric", "seed", "data"])
def test_a_search_of_something_else_is_refused(
    what: str, search: Callable[..., TuneOutcome], images: Path, tmp_path: Path
) -> None:
    before = facts(search(trials=2))
    changed: dict[str, Any] = {
        "space": {"space": "schedule.head_learning_rate: [1e-3, 1e-2]"},
        "metric": {"metric": "accuracy"},
        "seed": {"seed": 1},
    }.get(what, {})
    if what == "data":
        changed = {"data": shutil.copytree(images, tmp_path / "other")}
        jobs.write_labels(changed["data"], jobs.read_rows(images / "labels.csv")[:-2])
    overrides = (*HEAD, "fit.dropout=0.1") if what == "recipe" else HEAD
    with pytest.raises(TrainingError) as caught:
        search("study", *overrides, trials=3, **changed)
    assert caught.value.code == "study-changed"
    after = search(trials=3)
    assert facts(after)[:2] == before and after.rows[2].state == "complete"


def test_a_damaged_database_is_told(search: Callable[..., TuneOutcome], tmp_path: Path) -> None:
    search(trials=1)
    (tmp_path / "study/study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(CheckpointError) as caught:
        search(trials=2)
    assert caught.value.code == "study-damaged"


def test_a_choice_may_be_written_as_another_kind_of_number(search: Callable[..., TuneOutcome]) -> None:
    outcome = search(space="schedule.l2_sp: [0, 1]", trials=2)  # 0.0 in the recipe
    assert {row.values["schedule.l2_sp"] for row in outcome.rows} <= {0, 1} and outcome.rows[0].recipe


def test_a_search_with_choices_that_are_stored_otherwise_is_refused(
    search: Callable[..., TuneOutcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = "schedule.weight_decay: [0.02, 0.01]"
    with monkeypatch.context() as patch:
        patch.setattr(Dimension, "stored", lambda _, value: value)
        patch.setattr(Dimension, "restored", lambda _, value: value)
        search(space=space, trials=1)
    with pytest.raises(TrainingError, match="started by another version"):
        search(space=space, trials=2)


@pytest.mark.parametrize("name", ["study.json", "space.yaml", "config.yaml", "data.sha256"])
def test_a_damaged_record_of_a_search_is_refused(
    name: str, search: Callable[..., TuneOutcome], tmp_path: Path
) -> None:
    search(trials=1)
    (tmp_path / "study" / name).write_bytes(b"\xff\xfe garbage")
    with pytest.raises(TrainingError) as caught:
        search(trials=2)
    assert caught.value.code == "study-changed"


def test_a_search_may_lie_anywhere(search: Callable[..., TuneOutcome], tmp_path: Path) -> None:
    search("odd {name} 100% ?#", trials=1)
    assert (tmp_path / "odd {name} 100% ?#/study.db").is_file()


def test_the_best_is_evaluated_on_the_test_part_where_asked(
    search: Callable[..., TuneOutcome], tmp_path: Path
) -> None:
    overrides = (*HEAD, "split.test=0.25")
    assert search("study", *overrides, trials=2).test is None
    outcome = search("study", *overrides, trials=2, evaluate=True)
    run = RunFolder(tmp_path / f"study/trials/{outcome.best[0].number:04d}")
    held_out = [row for row in read_splits(run.splits).values() if row.split == "test"]
    assert outcome.test is not None and outcome.test.samples == len(held_out) > 0
    metrics = tmp_path / "study/test/metrics.json"
    evaluated = json.loads(metrics.read_text())
    assert evaluated["part"] == "test" and evaluated["run"] == run.root.name
    metrics.write_text(json.dumps({**evaluated, "run": "0009"}))
    assert "evaluate trial 0009" in search("study", *overrides, trials=2, evaluate=True).notes[-1]


def test_a_test_part_that_there_is_not_is_told(search: Callable[..., TuneOutcome]) -> None:
    outcome = search(trials=1, evaluate=True)
    assert outcome.test is None and "no test part" in outcome.notes[-1]


def test_a_split_of_the_table_and_refusals_are_a_runs_own(
    search: Callable[..., TuneOutcome], tmp_path: Path
) -> None:
    data = jobs.write_images(tmp_path / "data", count=26)
    (data / "images/025.png").write_bytes(b"")
    outcome = search(trials=1, data=data)
    assert [error.code for error in outcome.refusals] == ["file-empty"]


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for module in ("search", "tune"):
        monkeypatch.delitem(sys.modules, f"medtl.workflows.{module}")
    with pytest.raises(ConfigError) as caught:
        importlib.import_module("medtl.workflows.tune")
    assert caught.value.code == "extra-missing" and "medtl[hpo]" in str(caught.value)
