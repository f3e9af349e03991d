"""Turn an evaluation, as JSON holds it, into a page: metrics with intervals, curves, sets, subgroups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.report.charts import decision_chart, reliability_chart, roc_chart
from medtl.report.findings import Bounds, ModelCard, read_bounds
from medtl.report.formatting import interval_text, is_defined
from medtl.report.html import render_page, write_page
from medtl.report.site import key_metrics, write_model_page

SHADES = 10
GROUP_METRICS = ("auroc", "sensitivity", "specificity", "ppv", "npv", "ece")
# How each interval comes about: what a table of metrics must say of itself.
METHODS = (
    ("AUROC", "DeLong's, symmetric in the logit; by patients after Obuchowski 1997 where they repeat."),
    (
        "AUROC of exactly 1",
        "All pairs were ranked right, and no spread can be seen. The lower bound is the exact binomial one "
        "(Clopper and Pearson 1934) for pairs in which each patient appears once: a worse model would have "
        "ranked all of them right in fewer than 1 of 40 such data sets.",
    ),
    (
        "Sensitivity, specificity, PPV, NPV, accuracy",
        "Wilson's, with the number of samples divided by the design effect where patients repeat.",
    ),
    (
        "Calibration error",
        "Noise alone makes it positive. The interval, a bootstrap's, takes off what noise adds, so that the "
        "value lies near its upper end or at it; the lower bound is 0 where calibration may be perfect.",
    ),
    ("Calibration slope and intercept", "Logistic recalibration with errors by patient."),
    ("All others, and averages over classes", "Percentiles over resampled patients; undefined if all agree."),
)


@dataclass(frozen=True)
class GroupRow:
    """One subgroup as the page shows it: bounds in the order of the columns, and why there are none."""

    name: str
    samples: int
    patients: int
    bounds: tuple[Bounds, ...]
    reason: str
    worst: bool


@dataclass(frozen=True)
class GroupTable:
    """The subgroups of one attribute, and its gap in words."""

    attribute: str
    rows: tuple[GroupRow, ...]
    gap: str


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix: its count, its share of the row (None in an empty row), its shade."""

    count: float
    share: float | None
    shade: int
    right: bool


def write_evaluation_page(out: Path, evaluation: Mapping[str, Any], card: ModelCard) -> Path:
    """Write evaluation.html and model.html below `out`, and return the former.

    evaluation: as judged_parts takes it. Raises OutputError output-unwritable.
    """
    page = render_page("evaluation.html", card=card, **judged_parts(evaluation, card))
    write_model_page(out, card, back=("evaluation.html", "Evaluation"))
    return write_page(out / "evaluation.html", page)


def judged_parts(evaluation: Mapping[str, Any], card: ModelCard) -> dict[str, Any]:
    """Return what judged.html shows of an evaluation.

    evaluation: for each metric its name -> {value, low, high}, and, where there is something to show,
    per_class {class: {name: {value, low, high}}}, confusion (rows: truth, columns: prediction), roc {class:
    {fpr, tpr}}, reliability [{mean_probability, observed, count}], classes, counts {what: number},
    confidence, part, class_counts {class: number}, thresholds (one per class, or in binary of the last
    class), threshold_rule, prevalence {class: share}, decision {class: {thresholds, model, low, high,
    treat_all}}, conformal {promised, coverage, by_class, sizes}, calibration (a line), subgroups [{attribute,
    worst, gap, groups [{name, samples, patients, metrics, reason}]}], notes. None or NaN is undefined.
    """
    metrics = read_bounds(evaluation)
    classes = tuple(evaluation.get("classes") or card.classes)
    confidence = evaluation.get("confidence") or 0.95
    return {
        "metrics": metrics,
        "key_metrics": key_metrics(metrics),
        "per_class": {name: read_bounds(rows) for name, rows in (evaluation.get("per_class") or {}).items()},
        "classes": classes,
        "confusion": confusion_cells(evaluation.get("confusion") or ()),
        "counts": evaluation.get("counts") or {},
        "about": _about(evaluation, classes),
        "methods": METHODS,
        "calibration": calibration_words(metrics, evaluation.get("calibration") or ""),
        "decision": decision_chart(evaluation.get("decision") or {}),
        "several": len(evaluation.get("decision") or {}) > 1,
        "conformal": _conformal(evaluation.get("conformal"), confidence),
        "subgroups": [_group_table(entry, confidence) for entry in evaluation.get("subgroups") or ()],
        "group_metrics": GROUP_METRICS,
        "confidence": confidence,
        "notes": evaluation.get("notes") or (),
        "roc": roc_chart(evaluation.get("roc") or {}),
        "bins": evaluation.get("reliability") or (),
        "reliability": reliability_chart(evaluation.get("reliability") or ()),
    }


def confusion_cells(matrix: Sequence[Sequence[float]]) -> list[list[Cell]]:
    """Return the cells of a confusion matrix (rows: truth) with the share that each has of its row."""
    return [_confusion_row(row, truth) for truth, row in enumerate(matrix)]


def _about(evaluation: Mapping[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """Return what the metrics rest on: the part of the data, how common each class is, where it is cut."""
    thresholds, rule = evaluation.get("thresholds") or (), evaluation.get("threshold_rule")
    judged = classes[len(classes) - len(thresholds) :]
    return {
        **({"Part": str(evaluation["part"])} if evaluation.get("part") else {}),
        **{
            f"Labelled {name}": f"{count:,}" for name, count in (evaluation.get("class_counts") or {}).items()
        },
        **{f"Threshold for {name}": f"{cut:.3f}" for name, cut in zip(judged, thresholds, strict=True)},
        **({"Thresholds chosen by": _rule_words(evaluation["threshold_rule"])} if rule else {}),
        **{
            f"Stated prevalence of {name}": f"{share:.1%}"
            for name, share in (evaluation.get("prevalence") or {}).items()
        },
    }


def calibration_words(metrics: Mapping[str, Bounds], line: str) -> list[str]:
    """Say what calibration slope and intercept mean, with what was done about it; nothing if undefined."""
    sentences = [f"{line[0].upper()}{line[1:]}."] if line else []
    slope, shift = metrics.get("calibration_slope"), metrics.get("calibration_intercept")
    if slope and is_defined(slope[0]):
        sentences.append(_side("slope", slope, 1.0, ("too sure of itself", "not sure enough")))
    if shift and is_defined(shift[0]):
        sentences.append(_side("intercept", shift, 0.0, ("too high", "too low")))
    return sentences


def _side(name: str, bounds: Bounds, right: float, faults: tuple[str, str]) -> str:
    """Say on which side of what is right the interval lies: below it is the first fault."""
    subject = "The model is" if name == "slope" else "On average the probabilities are"
    reach = f"calibration {name} {interval_text(bounds)}, where {right:g} is right"
    low, high = bounds[1:]
    if low is None or high is None:
        return f"How far the probabilities are off is not known: {reach}."
    if low <= right <= high:
        return f"{subject} not shown to be {' or '.join(faults)}: {reach}."
    return f"{subject} {faults[0] if high < right else faults[1]}: {reach}."


def _rule_words(rule: str) -> str:
    name, _, value = rule.partition("=")
    kept = {
        "youden": "Youden's index (largest sensitivity + specificity)",
        "cost": f"least cost, a missed case to a false alarm {value}",
    }
    return kept.get(name, f"a {name} of {value}") + ", on validation data"


def _conformal(found: Mapping[str, Any] | None, confidence: float) -> dict[str, Any] | None:
    """Return what the page says of prediction sets: the promise, what was kept, by class, and the sizes."""
    if not found:
        return None
    bounds = read_bounds({"coverage": found["coverage"]})["coverage"]
    total = sum(found["sizes"].values()) or 1
    return {
        "promised": f"{found['promised']:.0%}",
        "coverage": interval_text(bounds, confidence),
        "by_class": read_bounds(found["by_class"]),
        "sizes": {str(size): f"{count} ({count / total:.0%})" for size, count in found["sizes"].items()},
    }


def _group_table(entry: Mapping[str, Any], confidence: float) -> GroupTable:
    gap = read_bounds({"gap": entry["gap"]})["gap"]
    certain = is_defined(gap[1]) and gap[1] is not None and gap[1] > 0
    rows = tuple(_group_row(group, entry["worst"] if certain else "") for group in entry["groups"])
    if not entry["worst"] or not is_defined(gap[0]):
        return GroupTable(entry["attribute"], rows, "Fewer than two groups have an AUROC: no gap is defined.")
    verdict = "" if certain else " These data do not show that it is worse than the others."
    words = (
        f"Worst by AUROC: {entry['worst']}, below all others together by {interval_text(gap, confidence)}."
    )
    return GroupTable(entry["attribute"], rows, words + verdict)


def _group_row(group: Mapping[str, Any], worst: str) -> GroupRow:
    found = read_bounds(group["metrics"])
    bounds = tuple(found.get(name, (None, None, None)) for name in GROUP_METRICS)
    size = group["samples"], group["patients"]
    return GroupRow(group["name"], *size, bounds, group["reason"], group["name"] == worst)


def _confusion_row(row: Sequence[float], truth: int) -> list[Cell]:
    total = sum(row)
    shares = [count / total if total else None for count in row]
    return [
        Cell(count, share, round(SHADES * (share or 0.0)), column == truth)
        for column, (count, share) in enumerate(zip(row, shares, strict=True))
    ]
