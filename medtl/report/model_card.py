"""Read a run folder into the card that says what to know of the model before believing it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtl.errors import CheckpointError
from medtl.report.findings import ModelCard, StageRow, read_bounds
from medtl.report.formatting import interval_text, metric_name
from medtl.training.checkpoint import Checkpoint
from medtl.training.run_folder import RunFolder

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
    seconds, history = metrics.get("seconds", {}), _history(folder)
    return ModelCard(
        title=f"{' against '.join(header.classes)} by {header.backbone}",
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
        promised=None if header.conformal is None else header.conformal.promised,
    )


def _thresholds(checkpoint: Checkpoint) -> dict[str, float]:
    """Return the threshold of each class that one decides on: in binary of the last class alone."""
    cuts = checkpoint.header.thresholds or ()
    if checkpoint.header.task_kind == "multiclass":
        return {}
    return dict(zip(checkpoint.header.classes[-len(cuts) :], cuts)) if cuts else {}


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
        "Answers": _answers(checkpoint),
        "Made with": known,
    }


def _answers(checkpoint: Checkpoint) -> dict[str, str]:
    """Return how probabilities become answers: calibration, thresholds, prediction sets."""
    header = checkpoint.header
    method = "none: as the network gives them" if header.calibration is None else header.calibration.method
    cuts = {f"threshold for {name}": f"{cut:.3f}" for name, cut in _thresholds(checkpoint).items()}
    promised = (
        {} if header.conformal is None else {"prediction sets": f"{header.conformal.promised:.0%} promised"}
    )
    return {"calibration": method, **cuts, **promised}


def _stage_row(
    stage: dict[str, Any], seconds: dict[str, float], history: Sequence[dict[str, object]]
) -> StageRow:
    name, thawed = stage["name"], stage["groups"]
    trainable = "head" if thawed == 0 else f"head and top {thawed} groups"
    ran = sum(row["stage"] == name for row in history)  # fewer than planned where it stopped early
    time = float(seconds.get(name, 0.0))
    return StageRow(name, trainable, ran, time, stage["cached"], thawed, stage.get("why", ""))


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
    """Return the card as Markdown: use, task, numbers with intervals, origin, preparation, limits."""
    return "\n".join(_lines(card, use, preparation)) + "\n"


def _lines(card: ModelCard, use: str, preparation: list[str]) -> Iterator[str]:
    yield f"# {plain(card.title)}"
    yield f"\n**{use}**\n"
    yield f"A {card.kind} classifier of {', '.join(map(plain, card.classes))}, trained with medtl.\n"
    yield "## Numbers on the validation split\n"
    if card.metrics:
        yield from _table(
            {metric_name(key).name: interval_text(bounds) for key, bounds in card.metrics.items()}
        )
    else:
        yield "None are kept."
    for title, rows in card.sections.items():
        yield f"\n## {plain(title)}\n"
        yield from _table(rows)
    yield "\n## How an image is prepared\n"
    yield from (f"{number}. {plain(step)}" for number, step in enumerate(preparation, start=1))
    yield "\n## Limits\n"
    yield from (f"- {plain(limit)}" for limit in card.limits)
    yield f"\n## To cite\n\n{plain(card.citation)}"


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    yield "| | |"
    yield "| --- | --- |"
    yield from (f"| {plain(name)} | {plain(text)} |" for name, text in rows.items())


def plain(text: str) -> str:
    """Return text that Markdown and HTML show as it is, on one line."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*[]|#" else letter for letter in escaped)
