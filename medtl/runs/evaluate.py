"""Judge a run on labelled samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medtl.config import load_config
from medtl.errors import LabelError, ReadError
from medtl.imaging.manifest import Sample, Task, TaskConfig, load_manifest, targets
from medtl.imaging.prepared import PreparedDataset, oddity_notes, prepare_samples
from medtl.imaging.splits import read_splits
from medtl.imaging.storage import write_json
from medtl.learning.checkpoint import (
    Checkpoint,
)
from medtl.learning.fit import Watcher
from medtl.learning.run_folder import RunFolder
from medtl.prediction.evaluation import Evaluation, evaluate, to_json
from medtl.prediction.scoring import predict
from medtl.reporting.evaluation_page import write_evaluation_page
from medtl.reporting.model_card import model_card
from medtl.runs.common import all_refusals, load_finished, tell

EvaluationPart = Literal["unseen", "train", "val", "test", "all"]


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
    any_modality: bool = False,
) -> EvaluateOutcome:
    """Evaluate a run on labelled samples: metrics with intervals as JSON, predictions as CSV, and a page.

    part: `unseen` leaves out what the run was trained on; `train`, `val` and `test` are the parts of the
    run's own split, `all` is every sample. The thresholds are those chosen on validation data.
    """
    checkpoint = load_finished(run, any_modality=any_modality)
    task = checkpoint.task
    manifest = load_manifest(data, labels, _task_config(run, task))
    prepared = prepare_samples(
        manifest.samples,
        checkpoint.preprocessing,
        progress=lambda done, total: watcher.progress("reading", done, total),
    )
    kept, notes = _select_part(manifest.samples, prepared, run, part)
    tell(watcher, manifest.notes, notes, oddity_notes(prepared))
    probabilities = _predict_rows(checkpoint, prepared, prepared.rows_of(kept), watcher)
    truth, patients = targets(task, kept), [sample.patient_id for sample in kept]
    evaluation = evaluate(probabilities, truth, task, patients, checkpoint.header.thresholds or ())
    content = {"run": run.name, "part": part, "model_sha256": checkpoint.sha256, **to_json(evaluation)}
    write_json(out / "metrics.json", content)
    page = write_evaluation_page(out, content, model_card(run, checkpoint))
    return EvaluateOutcome(evaluation, page, all_refusals(manifest, prepared))


def _task_config(run: Path, task: Task) -> TaskConfig:
    """Return how the run read its label table, with the classes that it came to know."""
    recipe = RunFolder(run).config
    config = load_config(None, recipe).task if recipe.is_file() else TaskConfig()
    return config.model_copy(update={"kind": task.kind, "classes": task.classes})


def _select_part(
    samples: Sequence[Sample], prepared: PreparedDataset, run: Path, part: EvaluationPart
) -> tuple[list[Sample], list[str]]:
    """Return the samples to evaluate on, and a line for each thing the user should know of the choice.

    Samples are recognised by their pixels, so that a training image is known under any name, and by their id.
    """
    folder = RunFolder(run)
    pixels, splits = folder.read_json(folder.pixels), read_splits(folder.splits)
    named = {sample_id: row.split for sample_id, row in splits.items()}
    part_of = {
        sample_id: pixels.get(content) or named.get(sample_id)
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
