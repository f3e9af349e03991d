"""What a page is told: plain arrays, numbers and strings, free of patient identifiers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import OutputError

if TYPE_CHECKING:  # pages need no reader of images
    from medtl.imaging.manifest import TaskKind

Names = str | tuple[str, ...]
Bounds = tuple[float | None, float | None, float | None]  # value, low, high; None or NaN is undefined


@dataclass(frozen=True, eq=False)
class StudyFinding:
    """What the model says of one study, and what it looked at.

    image: float32 in [0, 1], (H, W) or (D, H, W). heatmap: the same grid in [0, 1], for target_class by
    method; None where none was made. spacing_mm: of the grid of `image`, along its axes; None if unknown.
    probabilities: by class, in class order. predicted and label: one class, or a tuple of classes for a
    multilabel task; label is None where it is not known. facts are shown as they are: nothing in them may
    identify a patient. order: smaller comes first in the list; equal ones go by probability.
    """

    sample_id: str
    image: NDArray[np.float32]
    heatmap: NDArray[np.float32] | None
    spacing_mm: tuple[float, ...] | None
    target_class: str
    method: str
    probabilities: Mapping[str, float]
    predicted: Names
    label: Names | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    order: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """An input that was not judged. The texts are shown as they are: no path that names a patient."""

    sample_id: str
    code: str
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class StageRow:
    """One stage of training: which layer groups moved, for how long, from cached features or not."""

    name: str
    trainable: str
    epochs: int
    seconds: float
    cached: bool


@dataclass(frozen=True)
class ModelCard:
    """What a reader must know of the model before believing it.

    sections: title -> label -> text, in order. metrics: of the validation split, (value, low, high).
    history: a row per epoch with epoch, stage, train_loss, val_loss, val_auroc, as far as they are known.
    limits: plain sentences.
    """

    title: str
    kind: "TaskKind"
    classes: tuple[str, ...]
    sections: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, Bounds]
    stages: Sequence[StageRow] = ()
    history: Sequence[Mapping[str, object]] = ()
    limits: Sequence[str] = ()
    citation: str = ""


def as_names(value: Names) -> tuple[str, ...]:
    """Return one class, several, or none (an empty name names none) as a tuple."""
    return tuple(name for name in ((value,) if isinstance(value, str) else value) if name)


def check_finding(finding: StudyFinding, card: ModelCard) -> None:
    """Raise OutputError finding-invalid where a page would show something else than what was found."""
    problem = _array_problem(finding) or _spacing_problem(finding) or _probability_problem(finding, card)
    if problem:
        raise OutputError(
            "finding-invalid",
            problem,
            where=finding.sample_id,
            fix="score the study again, and report this if it stays",
        )


def _array_problem(finding: StudyFinding) -> str:
    image, heatmap = finding.image, finding.heatmap
    if image.ndim not in (2, 3) or image.size == 0:
        return f"the image has shape {image.shape}, not (H, W) or (D, H, W)"
    if not _within_unit(image):
        return "the image has values outside [0, 1], or that are not numbers"
    if heatmap is None:
        return ""
    if heatmap.shape != image.shape:
        return f"the heatmap has shape {heatmap.shape}, the image {image.shape}"
    return "" if _within_unit(heatmap) else "the heatmap has values outside [0, 1], or that are not numbers"


def _spacing_problem(finding: StudyFinding) -> str:
    spacing = finding.spacing_mm
    if spacing is None:
        return ""
    if len(spacing) != finding.image.ndim:
        return f"the spacing has {len(spacing)} values for {finding.image.ndim} axes"
    return "" if all(np.isfinite(step) and step > 0 for step in spacing) else "the spacing is not positive"


def _probability_problem(finding: StudyFinding, card: ModelCard) -> str:
    if tuple(finding.probabilities) != card.classes:
        return "the probabilities are not for the classes of the model"
    if not _within_unit(np.array(list(finding.probabilities.values()), dtype=float)):
        return "a probability lies outside [0, 1], or is not a number"
    known = set(card.classes)
    named = {*as_names(finding.predicted), *as_names(finding.label or ())}
    if finding.heatmap is not None:
        named.add(finding.target_class)
    return (
        "" if named <= known else "the prediction, label or map is for a class that the model does not know"
    )


def _within_unit(values: NDArray[np.floating]) -> bool:
    tolerance = 1e-4
    return bool(np.isfinite(values).all() and values.min() >= -tolerance and values.max() <= 1 + tolerance)


def read_bounds(entries: Mapping[str, Any]) -> dict[str, Bounds]:
    """Return those entries that are metrics, {value, low, high}, by name."""
    return {
        name: (_defined(entry["value"]), _defined(entry["low"]), _defined(entry["high"]))
        for name, entry in entries.items()
        if isinstance(entry, Mapping) and entry.keys() - {"undefined"} == {"value", "low", "high"}
    }


def _defined(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
