"""An evaluation as plain data -> a page: metrics with intervals, curves, prediction sets, subgroups."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtl.report.charts import decision_chart, reliability_chart, roc_chart
from medtl.report.findings import Bounds, ModelCard, as_bounds, read_bounds
from medtl.report.formatting import interval_text
from medtl.report.html import write_page
from medtl.report.site import key_metrics, write_model_page

SHADES = 10
GROUP_METRICS = ("auroc", "sensitivity", "specificity", "ppv", "npv", "ece")
# The ideal value, and what is wrong if it lies above the interval, or below.
SIDES = {
    "calibration_slope": (1.0, "the model is", "overconfident", "underconfident"),
    "calibration_intercept": (0.0, "the probabilities are, on average,", "too high", "too low"),
}


def write_evaluation_page(out: Path, evaluation: Mapping[str, Any], card: ModelCard) -> Path:
    """Write evaluation.html and model.html below `out`, and return the former.

    evaluation: as for evaluation_parts. Raises OutputError output-unwritable.
    """
    write_model_page(out, card, back=("evaluation.html", "Evaluation"))
    return write_page(out / "evaluation.html", card=card, **evaluation_parts(evaluation, card))


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


def confusion_cells(matrix: Sequence[Sequence[float]]) -> list[list[dict[str, Any]]]:
    """Return the cells of a confusion matrix (rows: truth).

    share: of the row, None if the row is empty; shade: 0 to SHADES.
    """
    return [
        [_cell(count, sum(row), column == truth) for column, count in enumerate(row)]
        for truth, row in enumerate(matrix)
    ]


def _cell(count: float, total: float, correct: bool) -> dict[str, Any]:
    share = count / total if total else None
    return {"count": count, "share": share, "shade": round(SHADES * (share or 0.0)), "correct": correct}


def _about(evaluation: Mapping[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """Return the basis of the metrics: the part of the data, the class counts, the thresholds."""
    thresholds, rule = evaluation.get("thresholds") or (), evaluation.get("threshold_rule")
    counts, shares = evaluation.get("class_counts") or {}, evaluation.get("prevalence") or {}
    decided = classes[len(classes) - len(thresholds) :]
    about = {
        "Part": evaluation.get("part"),
        **{f"Labelled {name}": f"{count:,}" for name, count in counts.items()},
        **{f"Threshold for {name}": f"{cut:.3f}" for name, cut in zip(decided, thresholds, strict=True)},
        "Thresholds chosen by": rule and _rule_words(rule),
        **{f"Stated prevalence of {name}": f"{share:.1%}" for name, share in shares.items()},
    }
    return {name: text for name, text in about.items() if text}


def calibration_words(metrics: Mapping[str, Bounds], line: str) -> list[str]:
    """Return sentences on how the probabilities were calibrated, and on slope and intercept if defined."""
    sentences = [f"{line[0].upper()}{line[1:]}."] if line else []
    defined = [key for key in SIDES if key in metrics and metrics[key][0] is not None]
    return [*sentences, *(_side(key, metrics[key]) for key in defined)]


def _side(key: str, bounds: Bounds) -> str:
    """Return on which side of the ideal value the interval lies."""
    ideal, subject, below, above = SIDES[key]
    _, low, high = bounds
    numbers = f"{key.replace('_', ' ')} {interval_text(bounds)}; {ideal:g} is ideal"
    if low is None or high is None:
        return f"It is unknown whether {subject} {below} or {above}: {numbers}."
    if low <= ideal <= high:
        return f"There is no evidence that {subject} {below} or {above}: {numbers}."
    return f"{subject[0].upper()}{subject[1:]} {below if high < ideal else above}: {numbers}."


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
    certain = gap[1] is not None and gap[1] > 0
    words = "The gap is undefined: fewer than two groups have an AUROC."
    if worst and gap[0] is not None:
        words = f"Lowest AUROC: {worst}, {interval_text(gap, confidence)} below all others combined."
        words += "" if certain else " These data do not show that it is worse than the others."
    rows = []
    for group in subgroups["groups"]:
        metrics = read_bounds(group["metrics"])
        bounds = [metrics.get(name, (None, None, None)) for name in GROUP_METRICS]
        rows.append({**group, "bounds": bounds, "worst": certain and group["name"] == worst})
    return {"attribute": subgroups["attribute"], "rows": rows, "gap": words}
