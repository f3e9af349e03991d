"""Train on a labelled folder and leave a run.

Of several processes one leads: it reads the data, writes the run and tells of it. The others follow.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from medtl import __version__
from medtl.config import RunConfig, load_config, to_yaml
from medtl.core.files import write_json, write_text
from medtl.core.progress import Unwatched, Watcher, never, note_all
from medtl.core.seeds import derive_seed
from medtl.data.manifest import load_manifest, targets
from medtl.data.near_duplicates import NO_LINKS, describe_near_duplicates, find_near_duplicates, join_patients
from medtl.data.prepared import PreparedDataset, all_refusals, prepare_samples, warning_notes
from medtl.data.splits import (
    SplitConfig,
    check_no_leak,
    draw_labels,
    read_splits,
    split_samples,
    write_splits,
)
from medtl.data.task import Sample, Task
from medtl.errors import ConfigError, LabelError, ReadError, SplitError, TrainingError
from medtl.evaluation.evaluate import Evaluation
from medtl.imaging.augmentation import Augmentation
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.training.checkpoint import CheckpointHeader, describe_classifier
from medtl.training.distributed import World
from medtl.training.feature_cache.cache import Views
from medtl.training.feature_cache.plan import CachePlan
from medtl.training.run_folder import VERSIONED, RunFolder
from medtl.training.schedule import resolve_schedule
from medtl.training.trainer import Fit, FitData
from medtl.workflows.finish_training import Screens, always, judge_fit

# What the process that leads tells the others it has done.
PREPARED, RECORDED, FINISHED = "prepared", "recorded", "finished"


@dataclass(frozen=True)
class TrainOutcome:
    """What a training run came to."""

    run: RunFolder
    evaluation: Evaluation
    refusals: tuple[ReadError, ...]
    plans: tuple[CachePlan, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class OpenedData:
    """Labelled samples, prepared and split, for any number of runs over them.

    Such runs may differ in all but task, split and preprocessing. seconds: of "reading" and "comparing".
    """

    task: Task
    prepared: PreparedDataset
    samples: tuple[Sample, ...]
    refusals: tuple[ReadError, ...]
    seconds: Mapping[str, float]


def train_run(
    data: Path,
    labels: Path | None,
    out: Path,
    config: RunConfig,
    watcher: Watcher,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = never,
    world: World | None = None,
) -> TrainOutcome:
    """Train on a labelled folder and leave a run: checkpoints, history, splits and metrics with intervals.

    stop is asked from the first stage on, after each step: once it says so, what was done is saved and
    StoppedError raised. world: of several processes that train together, the one that leads calls this, and
    the others follow_run. Raises MedtlError in one of its kinds; a run that was there before stays loadable
    in any case.
    """
    run, started, world = RunFolder(out), time.perf_counter(), world or World()
    with run.locked():
        _check_resumable(run, config, resume)
        if resume and run.config.is_file() and not run.last.is_dir():
            note_all(watcher, ["there is no checkpoint here to go on from: training begins at the start"])
        opened = open_data(data, labels, config, watcher)
        world.announce(PREPARED)
        clock = {"total": started, **opened.seconds}
        outcome = _train(run, opened, config, watcher, resume, stop, clock, world)
        world.announce(FINISHED)
    return outcome


def follow_run(
    data: Path,
    labels: Path | None,
    out: Path,
    config: RunConfig,
    world: World,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = never,
) -> None:
    """Take this process's part in what another one does by train_run with the same arguments.

    What that one has prepared and kept is read; nothing is written but activations of the frozen prefix.
    """
    run, watcher = RunFolder(out), Unwatched()
    world.await_leader(PREPARED)
    opened = open_data(data, labels, config, watcher)
    fit = _make_fit(run, config, opened, watcher, world)
    world.await_leader(RECORDED)
    fit.run(resume=resume, stop=stop)
    world.await_leader(FINISHED)


def train_prepared(
    opened: OpenedData,
    out: Path,
    config: RunConfig,
    watcher: Watcher,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = never,
    screens: Screens = always,
) -> TrainOutcome:
    """Train as train_run does, on data that are open already; screens: whether the run learns to screen."""
    run, started = RunFolder(out), time.perf_counter()
    with run.locked():
        _check_resumable(run, config, resume)
        return _train(run, opened, config, watcher, resume, stop, {"total": started}, World(), screens)


def open_data(data: Path, labels: Path | None, config: RunConfig, watcher: Watcher) -> OpenedData:
    """Read, prepare and split a labelled folder. Raises MedtlError in one of its kinds."""
    clock: dict[str, float] = {}
    manifest = load_manifest(data, labels, config.task)
    # What reading cannot mend is refused before hours of it.
    split_samples(manifest.samples, manifest.task, config.split)
    note_all(watcher, manifest.notes)
    prepared, readable = _prepare(manifest.samples, config, watcher, clock)
    samples = _split(readable, prepared, manifest.task, config.split, watcher, clock)
    note_all(watcher, warning_notes(prepared), [_describe_samples(samples, manifest.task, config.split)])
    return OpenedData(manifest.task, prepared, samples, all_refusals(manifest, prepared), clock)


def _train(
    run: RunFolder,
    opened: OpenedData,
    config: RunConfig,
    watcher: Watcher,
    resume: bool,
    stop: Callable[[], bool],
    clock: Mapping[str, float],
    world: World,
    screens: Screens = always,
) -> TrainOutcome:
    """Fit and judge; clock says when the run began, as "total", and what its data took."""
    fit = _make_fit(run, config, opened, watcher, world)
    _record_start(run, config, opened.samples, opened.prepared, resume, world.size)
    world.announce(RECORDED)
    fit.run(resume=resume, stop=stop)
    clock = {**clock, "total": time.perf_counter() - clock["total"], **fit.seconds}
    recipe = _recipe(config, len(fit.data.train), opened.samples)
    evaluation = judge_fit(run, fit, opened.samples, recipe, clock, stop, watcher, screens)
    return TrainOutcome(run, evaluation, opened.refusals, tuple(fit.plans), clock)


def _describe_samples(samples: Sequence[Sample], task: Task, config: SplitConfig) -> str:
    """Say how many samples of each class and part there are, and of how many patients."""
    parts = [f"{sum(s.split == part for s in samples)} {part}" for part in ("train", "val", "test")]
    patients = len({sample.patient_id for sample in samples})
    shown = [part for part in parts if not part.startswith("0 ")]
    positive = f", positive is {task.classes[-1]}" if task.kind == "binary" else ""
    fold = f" ({_describe_fold(config)})" if config.folds else ""
    counts = f"{len(samples)} samples of {patients} patients: {', '.join(shown)}{fold}"
    return f"{counts}; {', '.join(task.classes)}{positive}"


def _describe_budget(taught: Sequence[Sample], samples: Sequence[Sample]) -> list[str]:
    drawn, available = _count_train(taught), _count_train(samples)
    if drawn == available:
        return []
    return [f"learning from {drawn} of {available} training samples, of whole patients; the rest lie idle"]


def _count_train(samples: Sequence[Sample]) -> int:
    return sum(sample.split == "train" for sample in samples)


def _recipe(config: RunConfig, taught: int, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what tells this run from others on the same data; taught: samples that it learned from."""
    return {
        "backbone": config.backbone.name,
        "schedule": config.schedule.name if config.schedule.stages is None else "own stages",
        "seed": config.fit.seed,
        "label_budget": config.fit.label_budget,
        "labels": taught,
        "labels_available": _count_train(samples),
    }


def _describe_fold(config: SplitConfig) -> str:
    repeat = f", repeat {config.repeat}" if config.repeat else ""
    return f"val is fold {config.fold} of 0 to {(config.folds or 0) - 1}{repeat}"


def _check_resumable(run: RunFolder, config: RunConfig, resume: bool) -> None:
    started = (run.last / "checkpoint.json").is_file()
    if started and not resume:
        fix = "add --resume to go on with it, or choose another --out"
        raise TrainingError("run-exists", "holds a run already", where=run.root, fix=fix)
    if resume and (started or run.config.is_file()) and not _is_same(run, config):
        reason = f"the recipe differs from the run's config.yaml{_first_difference(run, config)}"
        raise TrainingError("run-changed", reason, where=run.root, fix=f"use --config {run.config}")


def _is_same(run: RunFolder, config: RunConfig) -> bool:
    """Return whether a recipe is the run's, but for what changes no result."""
    kept = run.read(run.config)
    if kept == to_yaml(config):
        return True
    try:
        return _without_means(load_config(None, run.config)) == _without_means(config)
    except ConfigError:  # it was damaged, or is an older medtl's
        return False


def _first_difference(run: RunFolder, config: RunConfig) -> str:
    """Say which key of a recipe is not as the run has it; "" where the run's cannot be read."""
    try:
        kept = _without_means(load_config(None, run.config)).model_dump(mode="json")
    except ConfigError:
        return ""
    now = _without_means(config).model_dump(mode="json")
    for section, values in now.items():
        keys = values if isinstance(values, dict) else ()
        for key in keys:
            if kept[section][key] != values[key]:
                return f": {section}.{key} was {kept[section][key]}, is {values[key]}"
    return ""


def _without_means(config: RunConfig) -> RunConfig:
    means = {"workers": 0, "save_minutes": None}
    return config.model_copy(update={"fit": config.fit.model_copy(update=means)})


def _prepare(
    samples: Sequence[Sample], config: RunConfig, watcher: Watcher, clock: dict[str, float]
) -> tuple[PreparedDataset, tuple[Sample, ...]]:
    """Return the prepared dataset and the samples that are in it, row by row."""
    started = time.perf_counter()
    prepared = prepare_samples(
        samples, config.preprocessing, progress=lambda done, total: watcher.progress("reading", done, total)
    )
    clock["reading"] = time.perf_counter() - started
    if not prepared.sample_ids:
        reason = f"none of {len(samples)} samples can be read"
        raise LabelError("split-empty", reason, fix=str(prepared.refusals[0][1]))
    named = {sample.sample_id: sample for sample in samples}
    return prepared, tuple(named[sample_id] for sample_id in prepared.sample_ids)


def _split(
    samples: Sequence[Sample],
    prepared: PreparedDataset,
    task: Task,
    config: SplitConfig,
    watcher: Watcher,
    clock: dict[str, float],
) -> tuple[Sample, ...]:
    """Return the samples, the rows of `prepared`, with their part, and near-duplicates joined as asked."""
    started = time.perf_counter()
    links = NO_LINKS
    if config.near_duplicates != "ignore":
        links = find_near_duplicates(prepared, progress=lambda n, of: watcher.progress("comparing", n, of))
    clock["comparing"] = time.perf_counter() - started
    joined = join_patients(samples, links, config.near_duplicates)
    try:
        split = split_samples(joined, task, config)
    except SplitError as error:
        raise _explain(error, joined != tuple(samples), prepared) from error
    check_no_leak(split)
    for label, text in describe_near_duplicates(samples, split, links, prepared.content_hashes):
        watcher.note(label, text)
    return split


def _explain(error: SplitError, joined: bool, prepared: PreparedDataset) -> SplitError:
    """Say what has changed since the split of all samples was found possible."""
    if joined:
        reason = f"{error.reason}, where near-duplicates count as one patient"
        return SplitError(error.code, reason, fix="add patients, or set split.near_duplicates=warn")
    if prepared.refusals:
        reason = f"{error.reason}, as {len(prepared.refusals)} inputs cannot be read"
        return SplitError(error.code, reason, fix=str(prepared.refusals[0][1]))
    return error


def _make_fit(
    run: RunFolder,
    config: RunConfig,
    opened: OpenedData,
    watcher: Watcher,
    world: World,
) -> Fit:
    task, prepared, available = opened.task, opened.prepared, opened.samples
    samples = draw_labels(available, task, config.fit.label_budget, config.fit.seed)
    note_all(watcher, _describe_budget(samples, available))
    torch.manual_seed(derive_seed(config.fit.seed, "backbone"))  # of an untrained one
    weights = None if config.schedule.name == "scratch" else config.backbone.weights
    backbone = BACKBONES[config.backbone.name](weights=weights, in_channels=config.preprocessing.channels)
    torch.manual_seed(derive_seed(config.fit.seed, "head"))  # whatever was drawn to build the backbone
    classifier = Classifier(backbone, task, config.fit.dropout)
    header = CheckpointHeader(
        **describe_classifier(classifier, config.fit.dropout),
        preprocessing=config.preprocessing,
        augmentation=config.augmentation,
        schedule=resolve_schedule(config.schedule, len(backbone.groups)),
        provenance=_provenance(config, samples, prepared),
    )
    data = FitData(
        *_views_and_targets("train", config, task, samples, prepared),
        *_views_and_targets("val", config, task, samples, prepared),
    )
    return Fit(classifier, data, header, config.fit, run, watcher, world)


def _views_and_targets(
    part: str, config: RunConfig, task: Task, samples: Sequence[Sample], prepared: PreparedDataset
) -> tuple[Views, NDArray]:
    chosen = [sample for sample in samples if sample.split == part]
    augmentation = Augmentation(config.augmentation, config.preprocessing.size)
    key = f"{config.fit.seed} {config.augmentation.model_dump_json()}"
    return Views(prepared, prepared.rows_of(chosen), augmentation, config.fit.seed, key), targets(
        task, chosen
    )


def _provenance(config: RunConfig, samples: Sequence[Sample], prepared: PreparedDataset) -> dict[str, str]:
    counts = {part: sum(sample.split == part for sample in samples) for part in ("train", "val", "test")}
    patients = {part: len({s.patient_id for s in samples if s.split == part}) for part in counts}
    return {
        "modality": config.modality,
        "samples": ", ".join(f"{count} {part}" for part, count in counts.items() if count),
        "patients": ", ".join(f"{count} {part}" for part, count in patients.items() if count),
        "prepared dataset": prepared.folder.name,
        **({"split": _describe_fold(config.split)} if config.split.folds else {}),
        "schedule": config.schedule.name if config.schedule.stages is None else "stages of the recipe",
        "imbalance": str(config.fit.imbalance),
        **({"label budget": str(config.fit.label_budget)} if config.fit.label_budget else {}),
        "seed": str(config.fit.seed),
        "medtl": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONED},
    }


def _record_start(
    run: RunFolder,
    config: RunConfig,
    samples: Sequence[Sample],
    prepared: PreparedDataset,
    resume: bool,
    processes: int,
) -> None:
    """Write the recipe and the split; on resuming, the split must be the run's own."""
    if resume and run.pixels.is_file():
        before = {sample_id: (row.split, row.target) for sample_id, row in read_splits(run.splits).items()}
        now = {sample.sample_id: (sample.split, sample.target) for sample in samples}
        same_pixels = run.read_json(run.pixels) == _parts_by_pixels(samples, prepared)
        if before != now or not same_pixels:
            reason = "the samples, their labels, split or pixels are not those that the run began with"
            raise TrainingError(
                "run-changed", reason, where=run.root, fix="restore the data, or start a new run"
            )
    else:
        write_text(run.config, to_yaml(config))
        write_splits(run.splits, samples)
        write_json(run.pixels, _parts_by_pixels(samples, prepared))
    run.log("resumed" if resume else "started", samples=len(samples), processes=processes)


def _parts_by_pixels(samples: Sequence[Sample], prepared: PreparedDataset) -> dict[str, str | None]:
    """Return the part of each image by its pixels; training wins where the same pixels are in several."""
    contents = dict(zip(prepared.sample_ids, prepared.content_hashes, strict=True))
    ordered = sorted(samples, key=lambda sample: sample.split == "train")  # the last one stays
    return {contents[sample.sample_id]: sample.split for sample in ordered}
