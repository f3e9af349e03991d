"""Train: labelled studies + recipe -> a run folder.

Of several processes one leads: it reads the data, writes the run and reports. The others follow.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from medtl.config import Modality, RunConfig, load_config, sample_data, to_yaml
from medtl.core import __version__
from medtl.core.files import PathLike, write_json, write_text
from medtl.core.ids import derive_seed
from medtl.core.progress import SILENT, Watcher, never, note_all
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
from medtl.training.distributed import ProcessGroup, joined_group
from medtl.training.feature_cache.cache import Views
from medtl.training.feature_cache.plan import CachePlan
from medtl.training.run_folder import VERSIONED, RunFolder
from medtl.training.schedule import resolve_schedule
from medtl.training.trainer import Fit, FitData
from medtl.workflows.finish_training import Screens, always, finish_fit
from medtl.workflows.run import Run


@dataclass(frozen=True)
class TrainOutcome:
    """What a training run produced. seconds: by part of the work."""

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


def train(
    modality: Modality | None = None,
    *,
    data: PathLike | None = None,
    labels: PathLike | None = None,
    out: PathLike | None = None,
    config: RunConfig | PathLike | None = None,
    overrides: Sequence[str] = (),
    label_budget: int | None = None,
    seed: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    resume: bool = False,
    watcher: Watcher = SILENT,
    stop: Callable[[], bool] = never,
) -> Run:
    """Transfer a pretrained network to a labelled folder, in stages of unfreezing, and return the run.

    data: a folder of studies, a prepared dataset or a MedMNIST .npz; by default the phantoms of sample_data.
    labels: by default labels.csv in the folder. out: the run folder, by default runs/MODALITY. config: a
    recipe; by default that of the modality. overrides: such as `schedule=full` or `fit.batch_size=8`.
    label_budget: train on at most this many labelled samples. resume: continue the run in `out`, to the same
    model. stop: asked after each step; when it returns True, everything is saved and StoppedError raised.

    Under torchrun every process calls this; one of them leads, and all return the run. Raises MedtlError.

    >>> import medtl
    >>> fast = ["schedule=linear-probe", "schedule.head_epochs=1", "preprocessing.size=[64,64]"]
    >>> run = medtl.train("xray", out="runs/xray", overrides=fast)
    >>> run.task.classes
    ('normal', 'opacity')
    """
    named = {"device": device, "label_budget": label_budget, "seed": seed}
    settings = [f"fit.{key}={value}" for key, value in named.items() if value is not None]
    table = Path(labels) if labels else None
    with joined_group() as process_group:
        recipe = load_config(modality, config, (*overrides, *settings))
        source = sample_data(recipe.modality) if data is None else Path(data)
        folder = Path(out) if out else Path("runs") / recipe.modality
        if not process_group.leads:
            follow_run(source, table, folder, recipe, process_group, resume=resume, stop=stop)
            return Run(folder)
        if data is None:
            watcher.note("data", f"no data folder is given: training on the phantoms of {source}")
        outcome = train_run(
            source, table, folder, recipe, watcher, resume=resume, stop=stop, process_group=process_group
        )
    return Run(folder, outcome.refusals)


def train_run(
    data: Path,
    labels: Path | None,
    out: Path,
    config: RunConfig,
    watcher: Watcher,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = never,
    process_group: ProcessGroup | None = None,
) -> TrainOutcome:
    """Write a run: checkpoints, history, splits and metrics with intervals.

    process_group: of several processes that train together, the leading one calls this, and the others
    follow_run. Raises MedtlError; a run that was there before stays loadable.
    """
    run, started, process_group = RunFolder(out), time.perf_counter(), process_group or ProcessGroup()
    with run.locked():
        _check_resumable(run, config, resume)
        if resume and run.config.is_file() and not run.last.is_dir():
            note_all(watcher, ["no checkpoint to resume from: training starts from the beginning"])
        opened = open_data(data, labels, config, watcher)
        process_group.barrier()  # what is prepared can be read
        clock = {"total": started, **opened.seconds}
        outcome = _train(run, opened, config, watcher, resume, stop, clock, process_group)
        process_group.barrier()  # the run is whole
    return outcome


def follow_run(
    data: Path,
    labels: Path | None,
    out: Path,
    config: RunConfig,
    process_group: ProcessGroup,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = never,
) -> None:
    """Take part in the training that another process leads by train_run with the same arguments.

    Reads what that process has prepared, and writes only activations of the frozen prefix.
    """
    run, watcher = RunFolder(out), SILENT
    process_group.barrier()
    opened = open_data(data, labels, config, watcher)
    fit = _make_fit(run, config, opened, watcher, process_group)
    process_group.barrier()
    fit.run(resume=resume, stop=stop)
    process_group.barrier()


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
    """Train as train_run does, on data that are already open; screens: whether to fit the OOD check."""
    run, started = RunFolder(out), time.perf_counter()
    with run.locked():
        _check_resumable(run, config, resume)
        return _train(run, opened, config, watcher, resume, stop, {"total": started}, ProcessGroup(), screens)


def open_data(data: Path, labels: Path | None, config: RunConfig, watcher: Watcher) -> OpenedData:
    """Read, prepare and split a labelled folder. Raises MedtlError."""
    clock: dict[str, float] = {}
    manifest = load_manifest(data, labels, config.task)
    # An impossible split is refused before hours of reading.
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
    process_group: ProcessGroup,
    screens: Screens = always,
) -> TrainOutcome:
    """Fit and evaluate. clock: when the run began, as "total", and the seconds that its data took."""
    fit = _make_fit(run, config, opened, watcher, process_group)
    _record_start(run, config, opened.samples, opened.prepared, resume, process_group.size)
    process_group.barrier()  # the recipe and the split are written
    fit.run(resume=resume, stop=stop)
    clock = {**clock, "total": time.perf_counter() - clock["total"], **fit.seconds}
    recipe = {  # what distinguishes this run from others on the same data
        "backbone": config.backbone.name,
        "schedule": config.schedule.name if config.schedule.stages is None else "own stages",
        "seed": config.fit.seed,
        "label_budget": config.fit.label_budget,
        "labels": len(fit.data.train),
        "labels_available": _count_parts(opened.samples)["train"],
    }
    evaluation = finish_fit(run, fit, opened.samples, recipe, clock, stop, watcher, screens)
    return TrainOutcome(run, evaluation, opened.refusals, tuple(fit.plans), clock)


def _describe_samples(samples: Sequence[Sample], task: Task, config: SplitConfig) -> str:
    """Describe how many samples there are of each part, of how many patients, and the classes."""
    parts = [f"{count} {part}" for part, count in _count_parts(samples).items() if count]
    patients = len({sample.patient_id for sample in samples})
    positive = f", positive is {task.classes[-1]}" if task.kind == "binary" else ""
    fold = f" ({_describe_fold(config)})" if config.folds else ""
    counts = f"{len(samples)} samples of {patients} patients: {', '.join(parts)}{fold}"
    return f"{counts}; {', '.join(task.classes)}{positive}"


def _describe_fold(config: SplitConfig) -> str:
    repeat = f", repeat {config.repeat}" if config.repeat else ""
    return f"val is fold {config.fold} of 0 to {(config.folds or 0) - 1}{repeat}"


def _count_parts(samples: Sequence[Sample]) -> dict[str, int]:
    return {part: sum(s.split == part for s in samples) for part in ("train", "val", "test")}


def _check_resumable(run: RunFolder, config: RunConfig, resume: bool) -> None:
    started = (run.last / "checkpoint.json").is_file()
    if started and not resume:
        fix = "add --resume to continue it, or choose another --out"
        raise TrainingError("run-exists", "already contains a run", where=run.root, fix=fix)
    if not resume or not (started or run.config.is_file()) or run.read(run.config) == to_yaml(config):
        return
    difference = ""
    try:
        before = _without_means(load_config(config=run.config))
    except ConfigError:  # it is damaged
        pass
    else:
        if before == _without_means(config):
            return
        difference = _first_difference(before, _without_means(config))
    reason = f"the recipe differs from the run's config.yaml{difference}"
    raise TrainingError("run-changed", reason, where=run.root, fix=f"use --config {run.config}")


def _first_difference(before: RunConfig, now: RunConfig) -> str:
    """Return which key of a recipe has changed, for the end of a sentence."""
    old = before.model_dump(mode="json")
    for section, values in now.model_dump(mode="json").items():
        for key in values if isinstance(values, dict) else ():
            if old[section][key] != values[key]:
                return f": {section}.{key} was {old[section][key]}, is {values[key]}"
    return ""


def _without_means(config: RunConfig) -> RunConfig:
    """Return a recipe without the settings that change no result."""
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
    """Explain why a split that was possible for all samples no longer is."""
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
    process_group: ProcessGroup,
) -> Fit:
    task, prepared, available = opened.task, opened.prepared, opened.samples
    samples = draw_labels(available, task, config.fit.label_budget, config.fit.seed)
    drawn, labelled = _count_parts(samples)["train"], _count_parts(available)["train"]
    if drawn < labelled:
        note_all(watcher, [f"training on {drawn} of {labelled} training samples (whole patients)"])
    torch.manual_seed(derive_seed(config.fit.seed, "backbone"))  # of an untrained one
    weights = None if config.schedule.name == "scratch" else config.backbone.weights
    backbone = BACKBONES[config.backbone.name](weights=weights, in_channels=config.preprocessing.channels)
    torch.manual_seed(derive_seed(config.fit.seed, "head"))  # independent of the backbone's draws
    classifier = Classifier(backbone, task, config.fit.dropout)
    header = CheckpointHeader(
        **describe_classifier(classifier, config.fit.dropout),
        preprocessing=config.preprocessing,
        augmentation=config.augmentation,
        schedule=resolve_schedule(config.schedule, len(backbone.groups)),
        provenance=_provenance(config, samples, prepared),
    )

    def views_and_targets(part: str) -> tuple[Views, NDArray[Any]]:
        chosen = [sample for sample in samples if sample.split == part]
        augmentation = Augmentation(config.augmentation, config.preprocessing.size)
        key = f"{config.fit.seed} {config.augmentation.model_dump_json()}"
        views = Views(prepared, prepared.rows_of(chosen), augmentation, config.fit.seed, key)
        return views, targets(task, chosen)

    data = FitData(*views_and_targets("train"), *views_and_targets("val"))
    return Fit(classifier, data, header, config.fit, run, watcher, process_group)


def _provenance(config: RunConfig, samples: Sequence[Sample], prepared: PreparedDataset) -> dict[str, str]:
    counts = _count_parts(samples)
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
    """Write the recipe and the split; a resumed run must have the same split as before."""
    if resume and run.pixels.is_file():
        before = {sample_id: (row.split, row.target) for sample_id, row in read_splits(run.splits).items()}
        now = {sample.sample_id: (sample.split, sample.target) for sample in samples}
        same_pixels = run.read_json(run.pixels) == _parts_by_pixels(samples, prepared)
        if before != now or not same_pixels:
            reason = "the samples, labels, split or pixels have changed since the run was started"
            fix = "restore the data, or start a new run"
            raise TrainingError("run-changed", reason, where=run.root, fix=fix)
    else:
        write_text(run.config, to_yaml(config))
        write_splits(run.splits, samples)
        write_json(run.pixels, _parts_by_pixels(samples, prepared))
    run.log("resumed" if resume else "started", samples=len(samples), processes=processes)


def _parts_by_pixels(samples: Sequence[Sample], prepared: PreparedDataset) -> dict[str, str | None]:
    """Return the part of each image by its pixels; `train` wins where the same pixels are in several."""
    contents = dict(zip(prepared.sample_ids, prepared.content_hashes, strict=True))
    ordered = sorted(samples, key=lambda sample: sample.split == "train")  # later ones overwrite
    return {contents[sample.sample_id]: sample.split for sample in ordered}
