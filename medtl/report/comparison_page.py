"""Turn a comparison, as JSON holds it, into a page: the ladder of runs, and what transfer is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtl.core.files import write_text
from medtl.report.charts import curve_chart, ladder_chart
from medtl.report.findings import Bounds, read_bounds
from medtl.report.formatting import UNDEFINED, is_defined, p_text, signed_text
from medtl.report.html import render_page

SCHEDULES = {
    "scratch": "from scratch",
    "linear-probe": "head on frozen features",
    "head-then-all": "head, then everything",
    "gradual": "gradual",
    "full": "everything at once",
}
METHODS = (
    ("AUROC of a run", "DeLong's interval, by patients where they repeat."),
    (
        "Difference of AUROC",
        "Paired DeLong: both runs judged the same patients, so their difference is known better than either.",
    ),
    ("Other differences", "Percentiles of the differences within the same resamples of patients."),
    (
        "p-values",
        "Two-sided, adjusted after Holm for the number of runs, for each metric on its own. Whoever looks "
        "for the best of several metrics looks more often than that.",
    ),
    (
        "What is not in them",
        "The luck of a training run: runs with other seeds show it, an interval does not.",
    ),
)


@dataclass(frozen=True)
class RunRow:
    """One run as a table shows it: a metric, its difference from the reference, and p as adjusted."""

    name: str
    about: str
    bounds: Bounds
    difference: Bounds | None
    p_holm: float | None


def write_comparison_page(out: Path, comparison: Mapping[str, Any]) -> Path:
    """Write comparison.html below `out`.

    comparison: reference, counts {what: number}, confidence, notes, runs [{name, recipe, metrics {name:
    {value, low, high}}, differences {name: {value, low, high, p, p_holm}}}], curves [{name, points}], worth,
    scratch_has_more, adjusted_for. None is undefined. Raises OutputError output-unwritable.
    """
    runs = comparison["runs"]
    tables = {name: [_row(run, name) for run in runs] for name in runs[0]["metrics"]}
    page = render_page(
        "comparison.html",
        reference=comparison["reference"],
        classes=comparison["task"]["classes"],
        counts=comparison["counts"],
        confidence=comparison["confidence"],
        adjusted_for=comparison["adjusted_for"],
        notes=comparison["notes"],
        ladder=ladder_chart(
            [(row.name, row.about, row.bounds) for row in tables["auroc"]], comparison["reference"]
        ),
        curves=curve_chart({_line_name(one["name"]): one["points"] for one in comparison["curves"]}),
        sentence=worth_sentence(comparison),
        tables=tables,
        points=[(_line_name(one["name"]), one["points"]) for one in comparison["curves"]],
        methods=METHODS,
    )
    write_text(out / "comparison.html", page)
    return out / "comparison.html"


def worth_sentence(comparison: Mapping[str, Any]) -> str:
    """Say what transfer is worth in labels, as far as the data show it; nothing where no curve could."""
    worth = comparison["worth"]
    if worth is None:
        if not comparison["scratch_has_more"]:
            return ""
        why = "none beats scratch with more of them, or scratch with fewer does so too"
        return f"These runs do not show that transfer saves labels: {why}."
    low, high = (f"{worth['difference'][side]:.3f}" for side in ("low", "high"))
    reached = worth["reached"]
    end = (
        f"scratch comes to as much with {reached:.0f}" if reached else "no run from scratch comes to as much"
    )
    name = _line_name(worth["name"])
    return (
        f"{name[0].upper()}{name[1:]} with {worth['labels']:.0f} labels reaches what scratch needs more than "
        f"{worth['beaten']:.0f} for: AUROC {worth['value']:.3f} against {worth['beaten_value']:.3f}, "
        f"difference {low} to {high} {_seeds_text(worth['seeds'])}; {end}."
    )


def _seeds_text(seeds: Sequence[int]) -> str:
    if min(seeds) == 1:
        return "(of one seed, and another may say otherwise)"
    return f"(means of {' and '.join(map(str, sorted(set(seeds))))} seeds)"


def difference_words(found: Mapping[str, float | None] | None) -> str:
    """Say a difference from the reference: ", difference +0.030 (+0.010 to +0.050), adjusted p 0.004"."""
    if found is None:
        return ", the reference"
    value, low, high, p = (found[key] for key in ("value", "low", "high", "p_holm"))
    if value is None:
        return f", difference {UNDEFINED}"
    reach = (
        f"{signed_text(low)} to {signed_text(high)}"
        if is_defined(low) and is_defined(high)
        else f"interval {UNDEFINED}"
    )
    return f", difference {signed_text(value)} ({reach}), adjusted p {p_text(p)}"


def _row(run: Mapping[str, Any], metric: str) -> RunRow:
    found = run["differences"].get(metric)
    difference = (found["value"], found["low"], found["high"]) if found else None
    bounds = read_bounds(run["metrics"])[metric]
    return RunRow(run["name"], _about(run["recipe"]), bounds, difference, found["p_holm"] if found else None)


def _about(recipe: Mapping[str, Any]) -> str:
    """Say how a run was made: "gradual, 50 labels, seed 1"; nothing where it is not known."""
    if not recipe:
        return ""
    return f"{_line_name(recipe['schedule'])}, {recipe['labels']:,} labels, seed {recipe['seed']}"


def _line_name(name: str) -> str:
    """Say a schedule, and its backbone where it is named, in words."""
    schedule, comma, backbone = str(name).partition(", ")
    return SCHEDULES.get(schedule, schedule) + comma + backbone
