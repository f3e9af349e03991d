"""An evaluation as plain data -> a page: metrics with intervals, curves, prediction sets, subgroups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.report.charts import decision_chart, reliability_chart, roc_chart
from medtl.report.findings import Bounds, ModelCard, as_bounds, is_defined, read_bounds
from medtl.report.formatting import interval_text
from medtl.report.html import render_page, write_page
from medtl.report.site import key_metrics, write_model_page

SHADES = 10
GROUP_METRICS = ("auroc", "sensitivity", "specificity", "ppv", "npv", "ece")


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix: count, share of its row (None if the row is empty), and shade."""

    count: float
    share: float | None
    shade: int
    correct: bool


def write_evaluation_page(out: Path, evaluation: Mapping[str, Any], card: ModelCard) -> Path:
    """Write evaluation.html and model.html below `out`, and return the former.

    evaluation: as for evaluation_parts. Raises OutputError output-unwritable.
    """
    page = render_page("evaluation.html", card=card, **evaluation_parts(evaluation, card))
    write_model_page(out, card, back=("evaluation.html", "Evaluation"))
    return write_page(out / "evaluation.html", page)


def evaluation_parts(evaluation: Mapping[str, Any], card: ModelCard) -> dict[str, Any]:
    """Return what metrics.html shows of an evaluation.

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
    """Return the cells of a confusion matrix (rows: truth), with their share of the row."""
    cells = []
    for truth, row in enumerate(matrix):
        total = sum(row)
        shares = [count / total if total else None for count in row]
        cells.append(
            [
                Cell(count, share, round(SHADES * (share or 0.0)), column == truth)
                for column, (count, share) in enumerate(zip(row, shares, strict=True))
            ]
        )
    return cells


def _about(evaluation: Mapping[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """Return the basis of the metrics: the part of the data, the class counts, the thresholds."""
    thresholds, rule = evaluation.get("thresholds") or (), evaluation.get("threshold_rule")
    decided = classes[len(classes) - len(thresholds) :]
    return {
        **({"Part": str(evaluation["part"])} if evaluation.get("part") else {}),
        **{
            f"Labelled {name}": f"{count:,}" for name, count in (evaluation.get("class_counts") or {}).items()
        },
        **{f"Threshold for {name}": f"{cut:.3f}" for name, cut in zip(decided, thresholds, strict=True)},
        **({"Thresholds chosen by": _rule_words(rule)} if rule else {}),
        **{
            f"Stated prevalence of {name}": f"{share:.1%}"
            for name, share in (evaluation.get("prevalence") or {}).items()
        },
    }


def calibration_words(metrics: Mapping[str, Bounds], line: str) -> list[str]:
    """Return sentences on how the probabilities were calibrated, and on slope and intercept if defined."""
    sentences = [f"{line[0].upper()}{line[1:]}."] if line else []
    slope, shift = metrics.get("calibration_slope"), metrics.get("calibration_intercept")
    if slope and is_defined(slope[0]):
        sentences.append(_side("slope", slope, 1.0, ("overconfident", "underconfident")))
    if shift and is_defined(shift[0]):
        sentences.append(_side("intercept", shift, 0.0, ("too high", "too low")))
    return sentences


def _side(name: str, bounds: Bounds, ideal: float, faults: tuple[str, str]) -> str:
    """Return on which side of the ideal value the interval lies: below it is the first fault."""
    subject = "the model is" if name == "slope" else "the probabilities are, on average,"
    numbers = f"calibration {name} {interval_text(bounds)}; {ideal:g} is ideal"
    low, high = bounds[1:]
    if low is None or high is None:
        return f"It is unknown whether {subject} {' or '.join(faults)}: {numbers}."
    if low <= ideal <= high:
        return f"There is no evidence that {subject} {' or '.join(faults)}: {numbers}."
    return f"{subject[0].upper()}{subject[1:]} {faults[0] if high < ideal else faults[1]}: {numbers}."


def _rule_words(rule: str) -> str:
    name, _, value = rule.partition("=")
    rules = {
        "youden": "Youden's index (maximum of sensitivity + specificity)",
        "cost": f"lowest cost (missed case : false alarm = {value})",
    }
    return rules.get(name, f"{name} of {value}") + ", on validation data"


def _conformal(sets: Mapping[str, Any] | None, confidence: float) -> dict[str, Any] | None:
    """Return what the page shows of prediction sets: target and actual coverage, by class, and sizes."""
    if not sets:
        return None
    total = sum(sets["sizes"].values()) or 1
    return {
        "target": f"{sets['promised']:.0%}",
        "coverage": interval_text(as_bounds(sets["coverage"]), confidence),
        "by_class": read_bounds(sets["by_class"]),
        "sizes": {str(size): f"{count} ({count / total:.0%})" for size, count in sets["sizes"].items()},
    }


def _group_table(subgroups: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """Return the subgroups of one attribute with bounds by column, and the gap between them in words."""
    gap, worst = as_bounds(subgroups["gap"]), subgroups["worst"]
    certain = is_defined(gap[1]) and gap[1] > 0
    words = "The gap is undefined: fewer than two groups have an AUROC."
    if worst and is_defined(gap[0]):
        words = f"Lowest AUROC: {worst}, {interval_text(gap, confidence)} below all others combined."
        if not certain:
            words += " These data do not show that it is worse than the others."
    rows = []
    for group in subgroups["groups"]:
        metrics = read_bounds(group["metrics"])
        bounds = [metrics.get(name, (None, None, None)) for name in GROUP_METRICS]
        rows.append({**group, "bounds": bounds, "worst": certain and group["name"] == worst})
    return {"attribute": subgroups["attribute"], "rows": rows, "gap": words}
