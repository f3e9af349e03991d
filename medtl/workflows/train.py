"""Train: labelled studies + recipe -> a run folder.

Of several processes one leads: it reads the data, writes the run and reports. The others follow.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

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
from medtl.training.run_folder import VERSIONED, RunFolder
from medtl.training.schedule import resolve_schedule
from medtl.training.trainer import Fit, FitData
from medtl.workflows.finish_training import FitsOod, finish_fit
from medtl.workflows.run import Run


@dataclass(frozen=True, eq=False)
class TrainJob:
    """One run to train: where, by which recipe, who watches and stops it, and the processes that share it.

    resume: continue what is there. stop: asked after each step. fits_ood: None gives every run the check.
    """

    run: RunFolder
    config: RunConfig
    watcher: Watcher = SILENT
    resume: bool = False
    stop: Callable[[], bool] = never
    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    fits_ood: FitsOod | None = None


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
        watcher = watcher if process_group.leads else SILENT
        job = TrainJob(RunFolder(folder), recipe, watcher, resume, stop, process_group)
        if not process_group.leads:
            _follow_run(job, source, table)
            return Run(folder)
        if data is None:
            watcher.note("data", f"no data folder is given: training on the phantoms of {source}")
        _, refusals = train_run(job, source, table)
    return Run(folder, refusals)


def train_run(
    job: TrainJob, data: Path | OpenedData, labels: Path | None = None
) -> tuple[Evaluation, tuple[ReadError, ...]]:
    """Write a run: checkpoints, history, splits and metrics with intervals. data: a folder, or data opened.

    Returns the evaluation on validation data, and the inputs that were refused. Of several processes that
    train together the leading one calls this. Raises MedtlError; a run that was there before stays loadable.
    """
    started, run, group = time.perf_counter(), job.run, job.process_group
    with run.locked():
        _check_resumable(job)
        opened = data if isinstance(data, OpenedData) else open_data(data, labels, job.config, job.watcher)
        group.barrier()  # what is prepared can be read
        fit = _make_fit(job, opened)
        _record_start(job, opened)
        group.barrier()  # the recipe and the split are written
        fit.run(resume=job.resume, stop=job.stop)
        reading = {} if opened is data else opened.seconds
        seconds = {"total": time.perf_counter() - started, **reading, **fit.seconds}
        recipe = _describe_recipe(job.config, fit, opened)
        evaluation = finish_fit(fit, opened.samples, recipe, seconds, job.fits_ood)
        group.barrier()  # the run is whole
    return evaluation, opened.refusals


def _follow_run(job: TrainJob, data: Path, labels: Path | None) -> None:
    """Take part in the training that another process leads by train_run.

    Reads what that process has prepared, and writes only activations of the frozen prefix.
    """
    group = job.process_group
    group.barrier()
    fit = _make_fit(job, open_data(data, labels, job.config, job.watcher))
    group.barrier()
    fit.run(resume=job.resume, stop=job.stop)
    group.barrier()


def open_data(data: Path, labels: Path | None, config: RunConfig, watcher: Watcher) -> OpenedData:
    """Read, prepare and split a labelled folder. Raises MedtlError."""
    manifest = load_manifest(data, labels, config.task, config.preprocessing.reading, watcher)
    # An impossible split is refused before hours of reading.
    split_samples(manifest.samples, manifest.task, config.split)
    note_all(watcher, manifest.notes)
    started = time.perf_counter()
    prepared, readable = _prepare(manifest.samples, config, watcher)
    read = time.perf_counter()
    samples = _split(readable, prepared, manifest.task, config.split, watcher)
    seconds = {"reading": read - started, "comparing": time.perf_counter() - read}
    note_all(watcher, warning_notes(prepared), [_describe_samples(samples, manifest.task, config.split)])
    return OpenedData(manifest.task, prepared, samples, all_refusals(manifest, prepared), seconds)


def _describe_recipe(config: RunConfig, fit: Fit, opened: OpenedData) -> dict[str, Any]:
    """Return what distinguishes a run from others on the same data."""
    return {
        "backbone": config.backbone.name,
        "schedule": config.schedule.name if config.schedule.stages is None else "own stages",
        "seed": config.fit.seed,
        "label_budget": config.fit.label_budget,
        "labels": len(fit.data.train),
        "labels_available": _count_parts(opened.samples)["train"],
    }


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


def _check_resumable(job: TrainJob) -> None:
    """Raise TrainingError where the folder has a run that is not to be resumed, or one of another recipe."""
    run = job.run
    started = (run.last / "checkpoint.json").is_file()
    if started and not job.resume:
        fix = "add --resume to continue it, or choose another --out"
        raise TrainingError("run-exists", "already contains a run", where=run.root, fix=fix)
    if not job.resume or not (started or run.config.is_file()):
        return
    for change in _changes(run.config, job.config)[:1]:
        reason = f"the recipe differs from the run's config.yaml{change}"
        raise TrainingError("run-changed", reason, where=run.root, fix=f"use --config {run.config}")
    if not run.last.is_dir():
        note_all(job.watcher, ["no checkpoint to resume from: training starts from the beginning"])


def _changes(before: Path, config: RunConfig) -> list[str]:
    """Return how a recipe differs from a stored one, for the end of a sentence."""
    try:
        old, new = _settings(load_config(config=before)), _settings(config)
    except ConfigError:  # it is damaged
        return [""]
    # What is not asked of the readers is left out of a stored recipe.
    pairs = {key: (old.get(key, False), new.get(key, False)) for key in {**old, **new}}
    return [f": {key} was {before}, is {now}" for key, (before, now) in pairs.items() if before != now]


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return a recipe by dotted keys, without those that change no result."""
    sections = config.model_dump(mode="json", exclude={"fit": {"workers", "save_minutes"}})
    modality = {"modality": sections.pop("modality")}
    return modality | {
        f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()
    }


def _prepare(
    samples: Sequence[Sample], config: RunConfig, watcher: Watcher
) -> tuple[PreparedDataset, tuple[Sample, ...]]:
    """Return the prepared dataset and the samples that are in it, row by row."""
    prepared = prepare_samples(
        samples, config.preprocessing, progress=lambda done, total: watcher.progress("reading", done, total)
    )
    if not prepared.sample_ids:
        reason = f"none of {len(samples)} samples can be read"
        raise LabelError("split-empty", reason, fix=str(prepared.refusals[0][1]))
    named = {sample.sample_id: sample for sample in samples}
    return prepared, tuple(named[sample_id] for sample_id in prepared.sample_ids)


def _split(
    samples: Sequence[Sample], prepared: PreparedDataset, task: Task, config: SplitConfig, watcher: Watcher
) -> tuple[Sample, ...]:
    """Return the samples, the rows of `prepared`, with their part, and near-duplicates joined as asked."""
    links = NO_LINKS
    if config.near_duplicates != "ignore":
        links = find_near_duplicates(prepared, progress=lambda n, of: watcher.progress("comparing", n, of))
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


def _make_fit(job: TrainJob, opened: OpenedData) -> Fit:
    config, prepared = job.config, opened.prepared
    samples = draw_labels(opened.samples, opened.task, config.fit.label_budget, config.fit.seed)
    drawn, labelled = _count_parts(samples)["train"], _count_parts(opened.samples)["train"]
    if drawn < labelled:
        note_all(job.watcher, [f"training on {drawn} of {labelled} training samples (whole patients)"])
    classifier = _make_classifier(config, opened.task)
    header = CheckpointHeader(
        **describe_classifier(classifier, config.fit.dropout),
        preprocessing=config.preprocessing,
        augmentation=config.augmentation,
        schedule=resolve_schedule(config.schedule, len(classifier.backbone.groups)),
        provenance=_provenance(config, samples, prepared),
    )
    parts = [[sample for sample in samples if sample.split == part] for part in ("train", "val")]
    train, val = (_views(config, prepared, part) for part in parts)
    data = FitData(train, targets(opened.task, parts[0]), val, targets(opened.task, parts[1]))
    return Fit(classifier, data, header, config.fit, job.run, job.watcher, job.process_group)


def _views(config: RunConfig, prepared: PreparedDataset, samples: Sequence[Sample]) -> Views:
    augmentation = Augmentation(config.augmentation, config.preprocessing.size)
    key = f"{config.fit.seed} {config.augmentation.model_dump_json()}"
    return Views(prepared, prepared.rows_of(samples), augmentation, config.fit.seed, key)


def _make_classifier(config: RunConfig, task: Task) -> Classifier:
    torch.manual_seed(derive_seed(config.fit.seed, "backbone"))  # of an untrained one
    weights = None if config.schedule.name == "scratch" else config.backbone.weights
    backbone = BACKBONES[config.backbone.name](weights=weights, in_channels=config.preprocessing.channels)
    torch.manual_seed(derive_seed(config.fit.seed, "head"))  # independent of the backbone's draws
    return Classifier(backbone, task, config.fit.dropout)


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


def _record_start(job: TrainJob, opened: OpenedData) -> None:
    """Write the recipe and the split; a resumed run must have the same split as before."""
    run, samples = job.run, opened.samples
    parts_by_pixels = _parts_by_pixels(samples, opened.prepared)
    if job.resume and run.pixels.is_file():
        before = {sample_id: (row.split, row.target) for sample_id, row in read_splits(run.splits).items()}
        now = {sample.sample_id: (sample.split, sample.target) for sample in samples}
        if before != now or run.read_json(run.pixels) != parts_by_pixels:
            reason = "the samples, labels, split or pixels have changed since the run was started"
            fix = "restore the data, or start a new run"
            raise TrainingError("run-changed", reason, where=run.root, fix=fix)
    else:
        write_text(run.config, to_yaml(job.config))
        write_splits(run.splits, samples)
        write_json(run.pixels, parts_by_pixels)
    event = "resumed" if job.resume else "started"
    run.log(event, samples=len(samples), processes=job.process_group.size)


def _parts_by_pixels(samples: Sequence[Sample], prepared: PreparedDataset) -> dict[str, str | None]:
    """Return the part of each image by its pixels; `train` wins where the same pixels are in several."""
    rows = zip(samples, prepared.content_hashes, strict=True)
    ordered = sorted(rows, key=lambda row: row[0].split == "train")  # later ones overwrite
    return {content: sample.split for sample, content in ordered}
