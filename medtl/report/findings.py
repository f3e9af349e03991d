"""What a page shows: plain arrays, numbers and strings, free of patient identifiers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtl.errors import OutputError

if TYPE_CHECKING:  # pages do not read images
    from medtl.data.task import TaskKind

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

MapVerdict = Literal["passed", "failed", "undecided", "unchecked"]
Bounds = tuple[float | None, float | None, float | None]  # value, low, high; None or NaN is undefined


@dataclass(frozen=True)
class MapCheck:
    """How reliable the maps of a method are, in words: a headline, a sentence per check, and the basis.

    verdict: whether the checks were passed; `undecided` if there were too few images.
    """

    verdict: MapVerdict
    headline: str
    sentences: tuple[str, ...] = ()
    basis: str = ""


@dataclass(frozen=True, eq=False)
class StudyFinding:
    """What the model predicts for one study, and what influenced it.

    image: float32 (H, W) or (D, H, W); window: its values that are black and white. maps: method -> heatmap
    in [0, 1] on the image's grid of what raised the score for target_class; the first is shown first.
    spacing_mm: of the grid of `image`, along its axes; None if unknown. oriented: the axes of a volume run to
    the head, the back and the left of the patient. probabilities: by class, in class order. predicted and
    label: one class, or for a multilabel task any number; label is None if unknown. prediction_set: its
    classes, uncertain findings with a "?"; None if the model has no prediction sets. ood: the verdict of the
    out-of-distribution check, "ok" if passed, "" if there was none. warning: what is unusual about the image.
    facts and notes must not identify a patient. identifiers do, and are shown with a warning.
    """

    sample_id: str
    image: NDArray[np.float32]
    window: tuple[float, float]
    maps: Mapping[str, NDArray[np.float32]]
    spacing_mm: tuple[float, ...] | None
    target_class: str
    probabilities: Mapping[str, float]
    predicted: tuple[str, ...]
    label: tuple[str, ...] | None = None
    prediction_set: tuple[str, ...] | None = None
    ood: str = ""
    warning: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    identifiers: Mapping[str, str] = field(default_factory=dict)
    oriented: bool = False


@dataclass(frozen=True)
class Refusal:
    """An input that was not scored. Its texts must not name a patient, not even in a path."""

    sample_id: str
    code: str
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class StageRow:
    """One stage of training: what was trained, for how long, from cached features or not.

    unfrozen: how many layer groups were trained besides the head. why: what the cache saved, or why none was
    used.
    """

    name: str
    trainable: str
    epochs: int
    seconds: float
    cached: bool
    unfrozen: int = 0
    why: str = ""


@dataclass(frozen=True)
class ModelCard:
    """What a reader must know about the model before trusting it.

    sections: title -> label -> text, in order. metrics: of the validation split, (value, low, high).
    history: a row per epoch with stage, train_loss, val_loss, val_auroc, as far as they are known.
    limits: plain sentences. coverage: share of new patients whose prediction set should contain the truth.
    groups: names of the layer groups, from the image to the head. thresholds: by class, if there are any.
    """

    title: str
    kind: "TaskKind"
    classes: tuple[str, ...]
    sections: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, Bounds]
    stages: Sequence[StageRow] = ()
    history: Sequence[Mapping[str, object]] = ()
    limits: Sequence[str] = LIMITS
    citation: str = CITATION
    coverage: float | None = None
    groups: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)


def check_finding(finding: StudyFinding, card: ModelCard) -> None:
    """Raise OutputError finding-invalid if a page could not show the finding correctly."""
    image, (low, high), spacing = finding.image, finding.window, finding.spacing_mm or ()
    heatmaps = finding.maps.values()
    shapes = {heatmap.shape for heatmap in heatmaps}
    named = {*finding.predicted, *(finding.label or ()), *([finding.target_class] if heatmaps else ())}
    sound = {
        f"the image has shape {image.shape}, not (H, W) or (D, H, W)": image.ndim in (2, 3) and image.size,
        "the image has values that are not finite": np.isfinite(image).all(),
        "the window is empty or not finite": -math.inf < low < high < math.inf,
        f"the heatmap has shape {next(iter(shapes), ())}, the image {image.shape}": shapes <= {image.shape},
        "the heatmap has values outside [0, 1], or not finite": all(map(_within_unit, heatmaps)),
        f"the spacing has {len(spacing)} values for {image.ndim} axes": len(spacing) in (0, image.ndim),
        "the spacing is not positive": all(0 < step < math.inf for step in spacing),
        "the probabilities do not match the classes of the model": (*finding.probabilities,) == card.classes,
        "a probability is outside [0, 1] or not finite": _within_unit([*finding.probabilities.values()]),
        "the prediction, label or map is for a class that the model does not have": named <= {*card.classes},
    }
    for problem, holds in sound.items():
        if not holds:
            fix = "score the study again; if that does not help, report a bug"
            raise OutputError("finding-invalid", problem, where=finding.sample_id, fix=fix)


def _within_unit(values: ArrayLike) -> bool:
    return bool((np.abs(np.asarray(values) - 0.5) <= 0.5 + 1e-4).all())


def read_bounds(entries: Mapping[str, Any]) -> dict[str, Bounds]:
    """Return those entries that are metrics, {value, low, high}, by name."""
    return {
        name: as_bounds(entry)
        for name, entry in entries.items()
        if isinstance(entry, Mapping) and entry.keys() - {"undefined"} == {"value", "low", "high"}
    }


def as_bounds(entry: Mapping[str, Any]) -> Bounds:
    """Return value, low and high of a metric, None for what is undefined."""
    value, low, high = (entry[key] if is_defined(entry[key]) else None for key in ("value", "low", "high"))
    return value, low, high


def is_defined(value: float | None) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    return value is not None and math.isfinite(value)
