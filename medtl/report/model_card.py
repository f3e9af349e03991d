"""A run folder -> its model card: data, network, metrics and limits, as a page or as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtl.errors import CheckpointError
from medtl.report.findings import ModelCard, StageRow, read_bounds
from medtl.report.formatting import interval_text, metric_name
from medtl.training.checkpoint import Checkpoint
from medtl.training.run_folder import RunFolder

LIMITS = (
    "The model knows only the classes it was trained on, and assigns one of them to any image.",
    "The validation samples were also used to choose the checkpoint and the thresholds, so their metrics are "
    "slightly optimistic.",
    "Performance may be worse on images from other scanners, sites or populations.",
    "A saliency map shows what influenced the score, not where disease is.",
)
CITATION = (
    "With any result of this model, state the medtl version, the recipe (config.yaml), the source and "
    "licence of the weights, and the split (splits.csv)."
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
    seconds, history = metrics.get("seconds", {}), _history(folder)
    return ModelCard(
        title=f"{header.backbone}: {' vs '.join(header.classes)}",
        kind=header.task_kind,
        classes=header.classes,
        sections=_sections(checkpoint),
        metrics=read_bounds(validation),
        stages=[_stage_row(stage, seconds, history) for stage in metrics.get("stages", ())],
        history=history,
        limits=LIMITS,
        citation=CITATION,
        groups=tuple(checkpoint.classifier.backbone.groups),
        thresholds=_thresholds(checkpoint),
        coverage=None if header.conformal is None else header.conformal.promised,
    )


def _thresholds(checkpoint: Checkpoint) -> dict[str, float]:
    """Return the decision threshold of each class; in binary only of the last class."""
    cuts = checkpoint.header.thresholds or ()
    if checkpoint.header.task_kind == "multiclass":
        return {}
    return dict(zip(checkpoint.header.classes[-len(cuts) :], cuts)) if cuts else {}


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
            **{f"threshold for {name}": f"{cut:.3f}" for name, cut in _thresholds(checkpoint).items()},
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


def card_text(card: ModelCard, use: str, preparation: list[str]) -> str:
    """Return the card as Markdown: use, task, metrics with intervals, origin, preprocessing, limits."""
    return "\n".join(_lines(card, use, preparation)) + "\n"


def _lines(card: ModelCard, use: str, preparation: list[str]) -> Iterator[str]:
    yield f"# {plain(card.title)}"
    yield f"\n**{use}**\n"
    yield f"A {card.kind} classifier of {', '.join(map(plain, card.classes))}, trained with medtl.\n"
    yield "## Metrics on the validation split\n"
    if card.metrics:
        yield from _table(
            {metric_name(key).name: interval_text(bounds) for key, bounds in card.metrics.items()}
        )
    else:
        yield "None recorded."
    for title, rows in card.sections.items():
        yield f"\n## {plain(title)}\n"
        yield from _table(rows)
    yield "\n## Preprocessing\n"
    yield from (f"{number}. {plain(step)}" for number, step in enumerate(preparation, start=1))
    yield "\n## Limits\n"
    yield from (f"- {plain(limit)}" for limit in card.limits)
    yield f"\n## How to cite\n\n{plain(card.citation)}"


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    yield "| | |"
    yield "| --- | --- |"
    yield from (f"| {plain(name)} | {plain(text)} |" for name, text in rows.items())


def plain(text: str) -> str:
    """Escape a text for Markdown and HTML, on one line."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*[]|#" else letter for letter in escaped)
