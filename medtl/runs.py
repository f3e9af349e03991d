"""The jobs behind the commands: each composes the layers below and returns what its command prints."""

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medtl import __version__
from medtl.config import RunConfig, load_config, to_yaml
from medtl.errors import CheckpointError, LabelError, ReadError, TrainingError
from medtl.imaging.augmentation import Augmentation
from medtl.imaging.display import make_display
from medtl.imaging.image import Image
from medtl.imaging.manifest import Manifest, Sample, Task, TaskConfig, load_manifest, targets
from medtl.imaging.prepared import PreparedDataset, prepare_samples
from medtl.imaging.preprocessing import prepare_image
from medtl.imaging.series import Scan, read_series, scan
from medtl.imaging.splits import check_no_leak, read_splits, split_samples, write_splits
from medtl.imaging.storage import read_json, write_json, write_text
from medtl.learning.backbones import BACKBONES
from medtl.learning.checkpoint import (
    Checkpoint,
    CheckpointHeader,
    describe_classifier,
    load_checkpoint,
    model_tensors,
    save_checkpoint,
)
from medtl.learning.classifier import Classifier
from medtl.learning.features import CachePlan, Views
from medtl.learning.fit import Fit, FitData, Watcher
from medtl.learning.run_folder import RunFolder
from medtl.learning.stages import resolve_schedule
from medtl.prediction.evaluation import Evaluation, choose_thresholds, evaluate, to_json
from medtl.prediction.explanation import explain
from medtl.prediction.faithfulness import Localisation, localise
from medtl.prediction.scoring import Prediction, Scored, predict, score_series, write_scores
from medtl.reporting.evaluation_page import write_evaluation_page
from medtl.reporting.findings import Refusal, StudyFinding
from medtl.reporting.model_card import model_card
from medtl.reporting.report import WrittenReport, write_report

log = logging.getLogger(__name__)

EvaluationPart = Literal["unseen", "train", "val", "test", "all"]
# How pages name the saliency methods.
METHOD_NAMES = {"grad-cam": "Grad-CAM"}
VERSIONED = ("torch", "monai", "timm", "pydicom", "nibabel", "numpy")


def sample_data(modality: str) -> Path:
    """Return the phantoms of a modality: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    root = package if (package / "sample_data").is_dir() else package.parent
    return root / "sample_data" / modality


@dataclass(frozen=True)
class TrainOutcome:
    """What a training run came to."""

    run: RunFolder
    evaluation: Evaluation
    refusals: tuple[ReadError, ...]
    plans: tuple[CachePlan, ...]
    seconds: Mapping[str, float]


def train_run(
    data: Path, labels: Path | None, out: Path, config: RunConfig, watcher: Watcher, *, resume: bool = False
) -> TrainOutcome:
    """Train on a labelled folder and leave a run: checkpoints, history, splits and metrics with intervals.

    Raises MedtlError in one of its kinds; a run that was there before stays loadable in any case.
    """
    run = RunFolder(out)
    with run.locked():
        _check_resumable(run, config, resume)
        clock = {"total": -time.perf_counter()}
        manifest = load_manifest(data, labels, config.task)
        samples = split_samples(manifest.samples, manifest.task, config.split)
        check_no_leak(samples)
        _tell(watcher, manifest.notes, [_describe_samples(samples, manifest.task)])
        prepared, samples = _prepare(samples, config, watcher, clock)
        fit = _make_fit(run, config, manifest.task, samples, prepared, watcher)
        _record_start(run, config, samples, prepared, resume)
        fit.run(resume=resume)
        clock |= {"total": clock["total"] + time.perf_counter(), **fit.seconds}
        evaluation = _finish(run, fit, samples, clock)
    return TrainOutcome(run, evaluation, _refusals(manifest, prepared), tuple(fit.plans), clock)


def _refusals(manifest: Manifest, prepared: PreparedDataset) -> tuple[ReadError, ...]:
    return (*manifest.refusals, *(error for _, error in prepared.refusals))


def _tell(watcher: Watcher, *notes: Sequence[str]) -> None:
    for note in (note for group in notes for note in group):
        watcher.note("note", note)


def _describe_samples(samples: Sequence[Sample], task: Task) -> str:
    """Say how many samples of each class and part there are, and of how many patients."""
    parts = [f"{sum(s.split == part for s in samples)} {part}" for part in ("train", "val", "test")]
    patients = len({sample.patient_id for sample in samples})
    shown = [part for part in parts if not part.startswith("0 ")]
    positive = f", positive is {task.classes[-1]}" if task.kind == "binary" else ""
    counts = f"{len(samples)} samples of {patients} patients: {', '.join(shown)}"
    return f"{counts}; {', '.join(task.classes)}{positive}"


def _check_resumable(run: RunFolder, config: RunConfig, resume: bool) -> None:
    started = (run.last / "checkpoint.json").is_file()
    if started and not resume:
        fix = "add --resume to go on with it, or choose another --out"
        raise TrainingError("run-exists", "holds a run already", where=run.root, fix=fix)
    if resume and (started or run.config.is_file()) and run.read(run.config) != to_yaml(config):
        reason = "the recipe differs from the run's config.yaml"
        raise TrainingError("run-changed", reason, where=run.root, fix=f"use --config {run.config}")


def _prepare(
    samples: Sequence[Sample], config: RunConfig, watcher: Watcher, clock: dict[str, float]
) -> tuple[PreparedDataset, tuple[Sample, ...]]:
    """Return the prepared dataset and the samples that are in it."""
    started = time.perf_counter()
    prepared = prepare_samples(
        samples, config.preprocessing, progress=lambda done, total: watcher.progress("reading", done, total)
    )
    clock["reading"] = time.perf_counter() - started
    readable = set(prepared.sample_ids)
    kept = tuple(sample for sample in samples if sample.sample_id in readable)
    for part in ("train", "val"):
        if not any(sample.split == part for sample in kept):
            reason = f"no sample of the {part} part could be read"
            raise LabelError(
                "split-empty", reason, fix=str(prepared.refusals[0][1]) if prepared.refusals else ""
            )
    return prepared, kept


def _make_fit(
    run: RunFolder,
    config: RunConfig,
    task: Task,
    samples: Sequence[Sample],
    prepared: PreparedDataset,
    watcher: Watcher,
) -> Fit:
    torch.manual_seed(config.fit.seed)  # the head's initial weights
    weights = None if config.schedule.name == "scratch" else config.backbone.weights
    backbone = BACKBONES[config.backbone.name](weights=weights, in_channels=config.preprocessing.channels)
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
    return Fit(classifier, data, header, config.fit, run, watcher)


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
        "schedule": config.schedule.name if config.schedule.stages is None else "stages of the recipe",
        "imbalance": config.fit.imbalance,
        "seed": str(config.fit.seed),
        "medtl": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONED},
    }


def _record_start(
    run: RunFolder, config: RunConfig, samples: Sequence[Sample], prepared: PreparedDataset, resume: bool
) -> None:
    """Write the recipe and the split; on resuming, the split must be the run's own."""
    if resume and run.pixels.is_file():
        before = {sample_id: (row.split, row.target) for sample_id, row in read_splits(run.splits).items()}
        now = {sample.sample_id: (sample.split, sample.target) for sample in samples}
        same_pixels = json.loads(run.read(run.pixels)) == _parts_by_pixels(samples, prepared)
        if before != now or not same_pixels:
            reason = "the samples, their labels, split or pixels are not those that the run began with"
            raise TrainingError(
                "run-changed", reason, where=run.root, fix="restore the data, or start a new run"
            )
    else:
        write_text(run.config, to_yaml(config))
        write_splits(run.splits, samples)
        write_json(run.pixels, _parts_by_pixels(samples, prepared))
    run.log("resumed" if resume else "started", samples=len(samples))


def _parts_by_pixels(samples: Sequence[Sample], prepared: PreparedDataset) -> dict[str, str | None]:
    contents = dict(zip(prepared.sample_ids, prepared.content_hashes, strict=True))
    return {contents[sample.sample_id]: sample.split for sample in samples}


def _finish(run: RunFolder, fit: Fit, samples: Sequence[Sample], clock: Mapping[str, float]) -> Evaluation:
    """Judge the best checkpoint on validation data, keep its thresholds, write metrics.json."""
    checkpoint = load_checkpoint(run.root)
    task, truth = checkpoint.task, fit.data.val_targets
    probabilities = _predict_views(checkpoint, fit.data.val)
    thresholds = choose_thresholds(probabilities, truth, task)
    patients = [sample.patient_id for sample in samples if sample.split == "val"]
    evaluation = evaluate(probabilities, truth, task, patients, thresholds)
    header = checkpoint.header.model_copy(update={"thresholds": tuple(thresholds)})
    save_checkpoint(run.best, header, {"model": model_tensors(checkpoint.classifier)})
    write_json(run.metrics, _metrics(fit, evaluation, header, clock))
    run.log("finished", seconds=round(clock["total"], 1))
    return evaluation


def _predict_views(checkpoint: Checkpoint, views: Views, batch_size: int = 32) -> NDArray[np.float64]:
    starts = range(0, len(views), batch_size)
    batches = [np.arange(start, min(start + batch_size, len(views))) for start in starts]
    return np.concatenate([predict(checkpoint, views.read(batch, 0)) for batch in batches])


def _metrics(
    fit: Fit, evaluation: Evaluation, header: CheckpointHeader, clock: Mapping[str, float]
) -> dict[str, Any]:
    stages = [
        {**stage.model_dump(mode="json"), "cached": plan.cached, "why": plan.reason}
        for stage, plan in zip(fit.stages, fit.plans, strict=True)
    ]
    return {
        "task": {"kind": header.task_kind, "classes": list(header.classes)},
        "split": {"val": to_json(evaluation)},
        "thresholds": list(header.thresholds or ()),
        "stages": stages,
        "seconds": {name: round(value, 2) for name, value in clock.items()},
        "versions": {name: header.provenance[name] for name in ("medtl", "python", *VERSIONED)},
    }


@dataclass(frozen=True)
class EvaluateOutcome:
    """What an evaluation came to."""

    evaluation: Evaluation
    page: Path
    refusals: tuple[ReadError, ...]


def evaluate_run(
    run: Path,
    data: Path,
    labels: Path | None,
    out: Path,
    watcher: Watcher,
    *,
    part: EvaluationPart = "unseen",
) -> EvaluateOutcome:
    """Evaluate a run on labelled samples: metrics with intervals as JSON, predictions as CSV, and a page.

    part: `unseen` leaves out what the run was trained on; `train`, `val` and `test` are the parts of the
    run's own split, `all` is every sample. The thresholds are those chosen on validation data.
    """
    checkpoint = load_checkpoint(run)
    task = checkpoint.task
    manifest = load_manifest(data, labels, _task_config(run, task))
    prepared = prepare_samples(
        manifest.samples,
        checkpoint.preprocessing,
        progress=lambda done, total: watcher.progress("reading", done, total),
    )
    kept, notes = _select_part(manifest.samples, prepared, run, part)
    _tell(watcher, manifest.notes, notes)
    probabilities = _predict_rows(checkpoint, prepared, prepared.rows_of(kept), watcher)
    truth, patients = targets(task, kept), [sample.patient_id for sample in kept]
    thresholds = checkpoint.header.thresholds or choose_thresholds(probabilities, truth, task)
    evaluation = evaluate(probabilities, truth, task, patients, thresholds)
    content = {"run": run.name, "part": part, "model_sha256": checkpoint.sha256, **to_json(evaluation)}
    write_json(out / "metrics.json", content)
    page = write_evaluation_page(out, content, model_card(run, checkpoint))
    return EvaluateOutcome(evaluation, page, _refusals(manifest, prepared))


def _task_config(run: Path, task: Task) -> TaskConfig:
    """Return how the run read its label table, with the classes that it came to know."""
    recipe = RunFolder(run).config
    config = load_config(None, recipe).task if recipe.is_file() else TaskConfig()
    return config.model_copy(update={"kind": task.kind, "classes": task.classes})


def _select_part(
    samples: Sequence[Sample], prepared: PreparedDataset, run: Path, part: EvaluationPart
) -> tuple[list[Sample], list[str]]:
    """Return the samples to evaluate on, and a line for each thing the user should know of the choice.

    Samples are recognised by their pixels, so that a training image is known under any name.
    """
    folder = RunFolder(run)
    pixels = json.loads(folder.read(folder.pixels))
    part_of = {
        sample_id: pixels.get(content)
        for sample_id, content in zip(prepared.sample_ids, prepared.content_hashes, strict=True)
    }
    readable = [sample for sample in samples if sample.sample_id in part_of]
    chosen = [s for s in readable if part == "all" or _is_in(part_of[s.sample_id], part)]
    if not chosen:
        raise LabelError("split-empty", f"no sample is {part}", where=run, fix="choose another --part")
    notes = [f"{len(chosen)} of {len(readable)} samples evaluated ({part})"]
    for name, effect in (("train", "taught the model"), ("val", "chose the checkpoint and its threshold")):
        known = sum(part_of[sample.sample_id] == name for sample in chosen)
        if known and part != name:
            notes.append(f"{known} of them {effect}: the numbers flatter")
    return chosen, notes


def _is_in(known: str | None, part: EvaluationPart) -> bool:
    return known != "train" if part == "unseen" else known == part


def _predict_rows(
    checkpoint: Checkpoint,
    prepared: PreparedDataset,
    rows: NDArray[np.int64],
    watcher: Watcher,
    batch_size: int = 32,
) -> NDArray[np.float64]:
    batches = np.array_split(rows, -(-len(rows) // batch_size))
    found = []
    for number, batch in enumerate(batches, start=1):
        found.append(predict(checkpoint, prepared.read(batch)))
        watcher.progress("scoring", number, len(batches))
    return np.concatenate(found)


@dataclass(frozen=True)
class ScoreOutcome:
    """What a folder's scoring came to."""

    table: Path
    predictions: tuple[Prediction, ...]
    skipped: int


def score_run(run: Path, folder: Path, out: Path, watcher: Watcher) -> ScoreOutcome:
    """Score every series and image of a folder into OUT/scores.csv, refusals included, one row each."""
    checkpoint = load_checkpoint(run)
    found = scan(folder)
    predictions = []
    total = len(found.series) + len(found.refusals)
    for done, scored in enumerate(score_series(checkpoint, found, folder, keep_images=False), start=1):
        predictions.append(scored.prediction)
        watcher.progress("scoring", done, total)
    table = out / "scores.csv"
    write_scores(table, checkpoint.task.classes, predictions)
    facts = {
        "folder": str(folder.resolve()),
        "model_sha256": checkpoint.sha256,
        "skipped_files": found.skipped,
    }
    write_json(out / "scores.json", facts)
    return ScoreOutcome(table, tuple(predictions), found.skipped)


def report_run(
    run: Path, source: Path, out: Path, watcher: Watcher, *, method: str = "grad-cam"
) -> WrittenReport:
    """Write a page with a saliency map for each study of a folder (or of a scored OUT), and an index."""
    checkpoint = load_checkpoint(run)
    folder = _scored_folder(source)
    found = scan(folder)
    refusals: list[Refusal] = []
    findings = _findings(checkpoint, found, folder, refusals, method, watcher)
    return write_report(out, findings, refusals, model_card(run, checkpoint))


def _scored_folder(source: Path) -> Path:
    """Return the folder whose scores lie in `source`, or `source` itself where it is a folder of studies."""
    record = source / "scores.json"
    if not record.is_file():
        return source
    try:
        return Path(read_json(record)["folder"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            "scores-damaged", "is no record of medtl score", where=record, fix="score again"
        ) from error


def _findings(
    checkpoint: Checkpoint, found: Scan, folder: Path, refusals: list[Refusal], method: str, watcher: Watcher
) -> Iterator[StudyFinding]:
    """Yield a finding for each scored study; what is refused on the way is added to `refusals`."""
    total = len(found.series) + len(found.refusals)
    for done, scored in enumerate(score_series(checkpoint, found, folder, batch_size=1), start=1):
        row = scored.prediction
        if scored.image is None:
            refusals.append(Refusal(row.sample_id, row.code, row.reason, row.fix))
        else:
            yield _finding(checkpoint, scored, method)
        watcher.progress("explaining", done, total)


def _finding(checkpoint: Checkpoint, scored: Scored, method: str) -> StudyFinding:
    assert scored.image is not None and scored.prepared is not None
    row, image, task = scored.prediction, scored.image, checkpoint.task
    explanation = explain(checkpoint, image, scored.prepared, row.probabilities, method)
    display = make_display(image, explanation.heatmap)
    return StudyFinding(
        sample_id=row.sample_id,
        image=display.grey,
        heatmap=display.heatmap,
        spacing_mm=display.spacing_mm,
        target_class=explanation.target_class,
        method=METHOD_NAMES[method],
        probabilities=dict(zip(task.classes, row.probabilities, strict=True)),
        predicted=tuple(row.predicted.split("|")) if task.kind == "multilabel" else row.predicted,
        facts=_facts(image),
        notes=image.facts.notes,
    )


def _facts(image: Image) -> dict[str, str]:
    """Return what a page may show of an image: nothing that identifies a patient."""
    facts, matrix = image.facts, " x ".join(map(str, image.pixels.shape[1:]))
    spacing = (
        "" if image.spacing_mm is None else " x ".join(f"{step:.4g}" for step in image.spacing_mm) + " mm"
    )
    shown = {
        "format": facts.format,
        "modality": facts.modality,
        "body part": facts.body_part,
        "view": facts.view,
        "matrix": matrix,
        "spacing": spacing,
        "photometric": facts.photometric,
        "decoder": facts.decoder,
        "SHA-256": facts.sha256[:16],
    }
    return {name: text for name, text in shown.items() if text}


def localise_run(
    run: Path,
    samples: Sequence[Sample],
    mask_of: Callable[[Sample], NDArray | None],
    method: str = "grad-cam",
) -> list[Localisation]:
    """Compare heatmaps with masks on the same grids: one row for each sample that has a mask and a map."""
    checkpoint = load_checkpoint(run)
    rows = []
    for sample in samples:
        mask = mask_of(sample)
        if mask is None or not mask.any():
            continue
        image = read_series(sample.series)
        prepared = prepare_image(image, checkpoint.preprocessing)
        probabilities = predict(checkpoint, torch.from_numpy(prepared.pixels)[None])[0]
        heatmap = explain(checkpoint, image, prepared, tuple(probabilities), method).heatmap
        if heatmap.sum() > 0:
            rows.append(localise(heatmap, mask))
    return rows
