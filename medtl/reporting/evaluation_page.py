"""Turn an evaluation, as JSON holds it, into a page: metrics with intervals, confusion, ROC, reliability."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.imaging.storage import write_text
from medtl.reporting.charts import reliability_chart, roc_chart
from medtl.reporting.findings import ModelCard, read_bounds
from medtl.reporting.html import render_page
from medtl.reporting.report import key_metrics, write_model_page

SHADES = 10


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix: its count, its share of the row (None in an empty row), its shade."""

    count: float
    share: float | None
    shade: int
    right: bool


def write_evaluation_page(out: Path, evaluation: Mapping[str, Any], card: ModelCard) -> Path:
    """Write evaluation.html and model.html below `out`, and return the former.

    evaluation: for each metric its name -> {value, low, high}, and, where there is something to show,
    per_class {class: {name: {value, low, high}}}, confusion (rows: truth, columns: prediction), roc {class:
    {fpr, tpr}}, reliability [{mean_probability, observed, count}], classes, counts {what: number},
    confidence, part, class_counts {class: number}, thresholds (one per class, or in binary of the last
    class), notes. None or NaN is undefined. Raises OutputError output-unwritable.
    """
    metrics = read_bounds(evaluation)
    classes = tuple(evaluation.get("classes") or card.classes)
    page = render_page(
        "evaluation.html",
        card=card,
        metrics=metrics,
        key_metrics=key_metrics(metrics),
        per_class={name: read_bounds(rows) for name, rows in (evaluation.get("per_class") or {}).items()},
        classes=classes,
        confusion=confusion_cells(evaluation.get("confusion") or ()),
        counts=evaluation.get("counts") or {},
        about=_about(evaluation, classes),
        confidence=evaluation.get("confidence") or 0.95,
        notes=evaluation.get("notes") or (),
        roc=roc_chart(evaluation.get("roc") or {}),
        bins=evaluation.get("reliability") or (),
        reliability=reliability_chart(evaluation.get("reliability") or ()),
    )
    write_model_page(out, card, back=("evaluation.html", "Evaluation"))
    write_text(out / "evaluation.html", page)
    return out / "evaluation.html"


def confusion_cells(matrix: Sequence[Sequence[float]]) -> list[list[Cell]]:
    """Return the cells of a confusion matrix (rows: truth) with the share that each has of its row."""
    return [_confusion_row(row, truth) for truth, row in enumerate(matrix)]


def _about(evaluation: Mapping[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """Return what the metrics rest on: the part of the data, how common each class is, where it is cut."""
    thresholds = evaluation.get("thresholds") or ()
    judged = classes[len(classes) - len(thresholds) :]
    return {
        **({"Part": str(evaluation["part"])} if evaluation.get("part") else {}),
        **{
            f"Labelled {name}": f"{count:,}" for name, count in (evaluation.get("class_counts") or {}).items()
        },
        **{f"Threshold for {name}": f"{cut:.3f}" for name, cut in zip(judged, thresholds, strict=True)},
    }


def _confusion_row(row: Sequence[float], truth: int) -> list[Cell]:
    total = sum(row)
    shares = [count / total if total else None for count in row]
    return [
        Cell(count, share, round(SHADES * (share or 0.0)), column == truth)
        for column, (count, share) in enumerate(zip(row, shares, strict=True))
    ]
