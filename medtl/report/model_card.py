"""A run folder -> its model card: data, network, metrics and limits, as a page or as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtl.errors import CheckpointError
from medtl.report.findings import ModelCard, StageRow, read_bounds
from medtl.report.formatting import interval_text, metric_name
from medtl.training.checkpoint import Checkpoint
from medtl.training.run_folder import RunFolder

HISTORY = ("train_loss", "val_loss", "val_auroc")


def model_card(run: Path, checkpoint: Checkpoint) -> ModelCard:
    """Return the card of a run from its checkpoint, metrics.json and history.csv.

    Raises CheckpointError checkpoint-damaged.
    """
    try:
        return _read_card(RunFolder(run), checkpoint)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason, fix = "the run's metrics.json or history.csv is damaged", "restore it"
        raise CheckpointError("checkpoint-damaged", reason, where=run, fix=fix) from error


def _read_card(folder: RunFolder, checkpoint: Checkpoint) -> ModelCard:
    header, metrics = checkpoint.header, folder.read_json(folder.metrics)
    validation, seconds = metrics.get("split", {}).get("val", {}), metrics.get("seconds", {})
    history = [
        {"stage": row["stage"], **{key: float(row[key]) if row[key] else None for key in HISTORY}}
        for row in folder.read_history()
    ]
    return ModelCard(
        title=f"{header.backbone}: {' vs '.join(header.classes)}",
        kind=header.task_kind,
        classes=header.classes,
        sections=_sections(checkpoint),
        metrics=read_bounds(validation),
        stages=[_stage_row(stage, seconds, history) for stage in metrics.get("stages", ())],
        history=history,
        groups=tuple(checkpoint.classifier.backbone.groups),
        thresholds=checkpoint.thresholds,
        coverage=None if header.conformal is None else header.conformal.promised,
    )


def _sections(checkpoint: Checkpoint) -> dict[str, dict[str, str]]:
    header, known = checkpoint.header, dict(checkpoint.header.provenance)
    weights = header.weights or {"source": "none, trained from scratch"}
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
        "Decisions": {
            "calibration": "none" if header.calibration is None else header.calibration.method,
            **{f"threshold for {name}": f"{cut:.3f}" for name, cut in checkpoint.thresholds.items()},
            **({"prediction sets": f"{header.conformal.promised:.0%} coverage"} if header.conformal else {}),
        },
        "Provenance": known,
    }


def _stage_row(
    stage: dict[str, Any], seconds: dict[str, float], history: Sequence[dict[str, object]]
) -> StageRow:
    name, unfrozen = stage["name"], stage["groups"]
    trainable = "head" if unfrozen == 0 else f"head and top {unfrozen} groups"
    ran = sum(row["stage"] == name for row in history)  # fewer than planned after early stopping
    time = float(seconds.get(name, 0.0))
    return StageRow(name, trainable, ran, time, stage["cached"], unfrozen, stage.get("why", ""))


def card_text(card: ModelCard, use: str, preparation: list[str]) -> str:
    """Return the card as Markdown: use, task, metrics with intervals, origin, preprocessing, limits."""
    metrics = {metric_name(key).name: interval_text(bounds) for key, bounds in card.metrics.items()}
    parts = [
        f"# {plain(card.title)}\n\n**{use}**",
        f"A {card.kind} classifier of {', '.join(map(plain, card.classes))}, trained with medtl.",
        f"## Metrics on the validation split\n\n{_table(metrics) if metrics else 'None recorded.'}",
        *(f"## {plain(title)}\n\n{_table(rows)}" for title, rows in card.sections.items()),
        "## Preprocessing",
        "\n".join(f"{number}. {plain(step)}" for number, step in enumerate(preparation, start=1)),
        "## Limits",
        "\n".join(f"- {plain(limit)}" for limit in card.limits),
        f"## How to cite\n\n{plain(card.citation)}\n",
    ]
    return "\n\n".join(parts)


def _table(rows: Mapping[str, str]) -> str:
    lines = (f"| {plain(name)} | {plain(text)} |" for name, text in rows.items())
    return "\n".join(("| | |", "| --- | --- |", *lines))


def plain(text: str) -> str:
    """Escape a text for Markdown and HTML, on one line."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*[]|#" else letter for letter in escaped)
