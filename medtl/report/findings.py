"""What a page is told: plain arrays, numbers and strings, free of patient identifiers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtl.errors import OutputError

if TYPE_CHECKING:  # pages need no reader of images
    from medtl.data.task import TaskKind

Names = str | tuple[str, ...]
Verdict = Literal["passed", "failed", "undecided", "unchecked"]
Bounds = tuple[float | None, float | None, float | None]  # value, low, high; None or NaN is undefined


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """What raised the score of the target class, by one method: heatmap in [0, 1] on the image's grid."""

    method: str
    heatmap: NDArray[np.float32]


@dataclass(frozen=True)
class MapCheck:
    """What is known of the maps of a method, in words: a headline, a sentence for each check, what on.

    verdict: whether the checks were passed; `undecided` where too few images say too little.
    """

    verdict: Verdict
    headline: str
    sentences: tuple[str, ...] = ()
    basis: str = ""


@dataclass(frozen=True, eq=False)
class StudyFinding:
    """What the model says of one study, and what it looked at.

    image: float32 (H, W) or (D, H, W); window: the values of it that are black and white. maps: of
    target_class, the first is shown first; empty where none was made. spacing_mm: of the grid of `image`,
    along its axes; None if unknown. oriented: the axes of a volume run to the head, the back and the left of
    the patient. probabilities: by class, in class order. predicted and label: one class, or a tuple of
    classes for a multilabel task; label is None where it is not known. prediction_set: the answers that
    cannot be excluded, with a "?" those that may be; None where nothing was promised. ood: the verdict of
    the out-of-distribution check, "" where there is none. warning: what is odd about the
    image. facts and notes are shown as they are: nothing in them may identify a patient. identifiers do, and
    are shown with a warning. order: smaller comes first in the list; equal ones go worst first.
    """

    sample_id: str
    image: NDArray[np.float32]
    window: tuple[float, float]
    maps: tuple[SaliencyMap, ...]
    spacing_mm: tuple[float, ...] | None
    target_class: str
    probabilities: Mapping[str, float]
    predicted: Names
    label: Names | None = None
    prediction_set: tuple[str, ...] | None = None
    ood: str = ""
    warning: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    identifiers: Mapping[str, str] = field(default_factory=dict)
    oriented: bool = False
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
    """One stage of training: which layer groups moved, for how long, from cached features or not.

    thawed: how many layer groups were trained besides the head. why: what the cache saved, or why there was
    none.
    """

    name: str
    trainable: str
    epochs: int
    seconds: float
    cached: bool
    thawed: int = 0
    why: str = ""


@dataclass(frozen=True)
class ModelCard:
    """What a reader must know of the model before believing it.

    sections: title -> label -> text, in order. metrics: of the validation split, (value, low, high).
    history: a row per epoch with epoch, stage, train_loss, val_loss, val_auroc, as far as they are known.
    limits: plain sentences. promised: the share of new patients whose truth the prediction sets hold. groups:
    the names of the layer groups, from the image to the head. thresholds: by class, where one decides.
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
    promised: float | None = None
    groups: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)


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
    image, (low, high) = finding.image, finding.window
    if image.ndim not in (2, 3) or image.size == 0:
        return f"the image has shape {image.shape}, not (H, W) or (D, H, W)"
    if not np.isfinite(image).all():
        return "the image has values that are not numbers"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return "the window is none"
    for found in finding.maps:
        if found.heatmap.shape != image.shape:
            return f"the heatmap has shape {found.heatmap.shape}, the image {image.shape}"
        if not _within_unit(found.heatmap):
            return "the heatmap has values outside [0, 1], or that are not numbers"
    return ""


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
    if finding.maps:
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
