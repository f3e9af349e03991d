"""Read a run folder into the card that says what to know of the model before believing it."""

from pathlib import Path
from typing import Any

from medtl.errors import CheckpointError
from medtl.learning.checkpoint import Checkpoint
from medtl.learning.run_folder import RunFolder
from medtl.reporting.findings import ModelCard, StageRow, read_bounds

LIMITS = (
    "The model knows the classes it was trained on and nothing else: it will name one of them for any image.",
    "The validation samples also chose the checkpoint and its threshold, so their numbers flatter a little.",
    "Images from other scanners, sites or populations than the training data's may be judged worse.",
    "A saliency map shows what influenced the score. It does not show where disease is.",
)
CITATION = (
    "Report medtl's version, the recipe (config.yaml), the weights' source and licence, and the split "
    "(splits.csv) together with any number from this model."
)


def model_card(run: Path, checkpoint: Checkpoint) -> ModelCard:
    """Return the card of a run from its checkpoint, metrics.json and history.csv.

    Raises CheckpointError checkpoint-damaged.
    """
    try:
        return _read_card(run, checkpoint)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason, fix = "the run's metrics.json or history.csv is damaged", "restore it"
        raise CheckpointError("checkpoint-damaged", reason, where=run, fix=fix) from error


def _read_card(run: Path, checkpoint: Checkpoint) -> ModelCard:
    folder, header = RunFolder(run), checkpoint.header
    metrics = folder.read_json(folder.metrics)
    validation = metrics.get("split", {}).get("val", {})
    seconds = metrics.get("seconds", {})
    return ModelCard(
        title=f"{' against '.join(header.classes)} by {header.backbone}",
        kind=header.task_kind,
        classes=header.classes,
        sections=_sections(checkpoint),
        metrics=read_bounds(validation),
        stages=[_stage_row(stage, seconds) for stage in metrics.get("stages", ())],
        history=_history(folder),
        limits=LIMITS,
        citation=CITATION,
    )


def _sections(checkpoint: Checkpoint) -> dict[str, dict[str, str]]:
    header, known = checkpoint.header, dict(checkpoint.header.provenance)
    weights = header.weights or {"source": "none: trained from random weights"}
    size = " x ".join(map(str, header.preprocessing.size))
    return {
        "Task": {"kind": header.task_kind, "classes": ", ".join(header.classes)},
        "Data": {key: known.pop(key) for key in ("modality", "samples", "patients") if key in known},
        "Network": {
            "backbone": header.backbone,
            "weights": weights["source"],
            **{key: weights[key] for key in ("licence", "sha256") if key in weights},
            "model SHA-256": checkpoint.sha256,
        },
        "Images": {"size": size, "intensity": header.preprocessing.intensity},
        "Made with": known,
    }


def _stage_row(stage: dict[str, Any], seconds: dict[str, float]) -> StageRow:
    trainable = "head" if stage["groups"] == 0 else f"head and top {stage['groups']} groups"
    return StageRow(
        stage["name"], trainable, stage["epochs"], float(seconds.get(stage["name"], 0.0)), stage["cached"]
    )


def _history(folder: RunFolder) -> list[dict[str, object]]:
    numbers = ("train_loss", "val_loss", "val_auroc")
    return [
        {
            "epoch": place,
            "stage": row["stage"],
            **{key: float(row[key]) if row[key] else None for key in numbers},
        }
        for place, row in enumerate(folder.read_history(), start=1)
    ]
