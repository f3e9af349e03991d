"""A comparison as plain data -> a page: every run's AUROC, differences, and what transfer is worth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtl.report.charts import curve_chart, ladder_chart
from medtl.report.findings import as_bounds, is_defined, read_bounds
from medtl.report.formatting import UNDEFINED, p_text, signed_text
from medtl.report.html import write_page

SCHEDULES = {
    "scratch": "from scratch",
    "linear-probe": "linear probe",
    "head-then-all": "head, then all layers",
    "gradual": "gradual unfreezing",
    "full": "full fine-tuning",
}


def write_comparison_page(out: Path, comparison: Mapping[str, Any]) -> Path:
    """Write comparison.html below `out`.

    comparison: reference, counts {what: number}, confidence, notes, runs [{name, recipe, metrics {name:
    {value, low, high}}, differences {name: {value, low, high, p, p_holm}}}], curves [{name, points}], worth,
    scratch_has_more, adjusted_for. None is undefined. Raises OutputError output-unwritable.
    """
    runs = comparison["runs"]
    tables = {name: [_row(run, name) for run in runs] for name in runs[0]["metrics"]}
    points = {_line_name(curve["name"]): curve["points"] for curve in comparison["curves"]}
    return write_page(
        out / "comparison.html",
        comparison=comparison,
        ladder=ladder_chart(tables["auroc"], comparison["reference"]),
        curves=curve_chart(points),
        sentence=worth_sentence(comparison),
        tables=tables,
        points=points,
    )


def worth_sentence(comparison: Mapping[str, Any]) -> str:
    """Return what transfer is worth in labels, if the data show it; "" if no curve could show it."""
    worth = comparison["worth"]
    if worth is None:
        if not comparison["scratch_has_more"]:
            return ""
        return (
            "These runs do not show that transfer saves labels: no transferred run beats one trained from "
            "scratch with more labels, or training from scratch with fewer labels does so too."
        )
    low, high = (f"{worth['difference'][side]:.3f}" for side in ("low", "high"))
    reached, seeds = worth["reached"], sorted(set(worth["seeds"]))
    basis = (
        "a single seed; others may differ"
        if seeds[0] == 1
        else f"means over {' and '.join(map(str, seeds))} seeds"
    )
    end = f"needed {reached:.0f} labels for this" if reached else "never reached this"
    name = _line_name(worth["name"])
    return (
        f"{name[0].upper()}{name[1:]} with {worth['labels']:.0f} labels beats training from scratch with "
        f"{worth['beaten']:.0f}: AUROC {worth['value']:.3f} versus {worth['beaten_value']:.3f}, "
        f"difference {low} to {high} ({basis}). Training from scratch {end}."
    )


def difference_words(difference: Mapping[str, float | None] | None) -> str:
    """Return a difference in words: ", difference +0.030 (+0.010 to +0.050), adjusted p 0.004"."""
    if difference is None:
        return ", the reference"
    value, low, high, p = (difference[key] for key in ("value", "low", "high", "p_holm"))
    if value is None:
        return f", difference {UNDEFINED}"
    defined = is_defined(low) and is_defined(high)
    interval = f"{signed_text(low)} to {signed_text(high)}" if defined else f"interval {UNDEFINED}"
    return f", difference {signed_text(value)} ({interval}), adjusted p {p_text(p)}"


def _row(run: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return a row of a table: a run's metric, its difference from the reference, and the adjusted p."""
    recipe, difference = run["recipe"], run["differences"].get(metric)
    about = ""
    if recipe:
        about = f"{_line_name(recipe['schedule'])}, {recipe['labels']:,} labels, seed {recipe['seed']}"
    return {
        "name": run["name"],
        "about": about,
        "bounds": read_bounds(run["metrics"])[metric],
        "difference": as_bounds(difference) if difference else None,
        "p_holm": difference and difference["p_holm"],
    }


def _line_name(name: str) -> str:
    """Return a schedule, and its backbone if it is given, in words."""
    schedule, comma, backbone = str(name).partition(", ")
    return SCHEDULES.get(schedule, schedule) + comma + backbone
