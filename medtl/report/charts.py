"""Curves -> SVG data URIs, one in the colours of a light page and one in those of a dark page."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from medtl.report.findings import StageRow
from medtl.report.pictures import data_uri

PIXELS_PER_INCH = 96
FONT = "DejaVu Sans"  # matplotlib's own, for measuring; pages use the reader's
UNIT = (-0.02, 1.02)
RUNG_WIDTH = 34  # characters


@dataclass(frozen=True)
class Theme:
    """Colours of a chart. series: Okabe and Ito (2008), distinct in every kind of colour vision."""

    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]


LIGHT = Theme(
    "#1b2430", "#56616f", "#dde3ea", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
)
DARK = Theme(
    "#e6eaf0", "#a3aebc", "#37414e", ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00")
)
GUIDE: dict[str, Any] = {"color": LIGHT.muted, "linewidth": 1, "linestyle": (0, (1, 3))}  # dotted

# Lines differ in colour, dash and marker, so that no one has to rely on colour.
LINES = cycler(color=LIGHT.series * 2, linestyle=("-", "--", "-.", ":") * 3, marker=[*"os^DvP"] * 2)
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "legend.labelcolor"), LIGHT.ink),
    **dict.fromkeys(("xtick.color", "ytick.color"), LIGHT.muted),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), LIGHT.grid),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon", "text.parse_math"), False),
    "axes.grid": True,
    "axes.prop_cycle": LINES,
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.sans-serif": [FONT],
    "font.size": 10,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "medtl",
    "text.usetex": False,
}

styled = matplotlib.rc_context(STYLE)


@dataclass(frozen=True)
class Chart:
    """One chart as two SVG data URIs, with its size in px."""

    light: str
    dark: str
    width: int
    height: int


@styled
def history_chart(history: Sequence[Mapping[str, Any]], series: Mapping[str, str], axis: str) -> Chart | None:
    """Draw columns of the history (key -> name) over epochs, with the stages marked.

    Returns None if none of the columns holds a number.
    """
    columns = {name: _numbers([row.get(key) for row in history]) for key, name in series.items()}
    columns = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if not columns:
        return None
    axes = Figure(figsize=(5.0, 3.4)).subplots()
    style: dict[str, Any] = {} if len(history) <= 40 else {"marker": ""}
    epochs = np.arange(1, len(history) + 1)
    lines = {name: axes.plot(epochs, values, **style)[0] for name, values in columns.items()}
    _mark_stages(axes, [str(row.get("stage", "")) for row in history])
    axes.set(xlabel="epoch", ylabel=axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(axes, lines)
    return _chart(axes)


@styled
def freezing_chart(groups: Sequence[str], stages: Sequence[StageRow]) -> Chart | None:
    """Draw which layer groups were trained in which epoch, the head at the top; None if either is unknown.

    A group is trained (filled), frozen and read from the cache (dotted), or frozen and computed (empty).
    """
    if not groups or not stages:
        return None
    names = [*groups, "head"]
    axes = Figure(figsize=(10.6, 1.3 + 0.21 * len(names))).subplots()
    start = 0
    for stage in stages:
        frozen = len(groups) - stage.unfrozen
        style: dict[str, Any] = {"left": start, "height": 0.8, "linewidth": 0.8}
        hatch = "..." if stage.cached else None
        empty = {"facecolor": "none", "edgecolor": LIGHT.muted, "hatch": hatch, **style}
        filled = {"facecolor": LIGHT.series[0], "edgecolor": LIGHT.ink, **style}
        axes.barh(range(frozen), stage.epochs, **empty)
        axes.barh(range(frozen, len(names)), stage.epochs, **filled)
        axes.text(start, len(names) - 0.35, stage.name, color=LIGHT.muted, fontsize=9)
        start += stage.epochs
    axes.set(xlim=(0, start), ylim=(-0.6, len(names) + 0.3), xlabel="epoch")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(False)
    return _chart(axes)


@styled
def roc_chart(curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Chart | None:
    """Draw a ROC curve per class from {fpr, tpr}; None if no class has a defined curve."""
    defined = {name: (_numbers(curve["fpr"]), _numbers(curve["tpr"])) for name, curve in curves.items()}
    defined = {name: pair for name, pair in defined.items() if pair[0].size and np.isfinite(pair).all()}
    if not defined:
        return None
    axes = Figure(figsize=(4.4, 4.4)).subplots()
    axes.axline((0, 0), (1, 1), **GUIDE)
    lines = {name: axes.plot(fpr, tpr, marker="")[0] for name, (fpr, tpr) in defined.items()}
    axes.set(xlim=UNIT, ylim=UNIT, aspect="equal", xlabel="1 - specificity", ylabel="sensitivity")
    _legend(axes, lines)
    return _chart(axes)


@styled
def reliability_chart(bins: Sequence[Mapping[str, float | None]]) -> Chart | None:
    """Draw observed frequency over mean probability, with the count of each bin; None if all are empty."""
    filled = [row for row in bins if row.get("count")]
    if not filled:
        return None
    probability, observed, count = (
        _numbers([row[key] for row in filled]) for key in ("mean_probability", "observed", "count")
    )
    heights = {"height_ratios": (4, 1)}
    upper, lower = Figure(figsize=(4.4, 4.8)).subplots(2, 1, sharex=True, gridspec_kw=heights)
    upper.axline((0, 0), (1, 1), **GUIDE)
    upper.plot(probability, observed)
    upper.set(xlim=UNIT, ylim=UNIT, ylabel="observed frequency")
    lower.bar(probability, count, width=0.05)
    lower.set(xlabel="predicted probability", ylabel="studies")
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    return _chart(upper)


@styled
def decision_chart(curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Chart | None:
    """Draw net benefit over thresholds from {thresholds, model, low, high, treat_all}; None without a curve.

    One class: with its interval, and treating all. Several: a line for each, and treating none.
    """
    rows = {name: {key: _numbers(row) for key, row in curve.items()} for name, curve in curves.items()}
    if not rows:
        return None
    axes = Figure(figsize=(5.0, 3.8)).subplots()
    axes.axhline(0, **GUIDE)
    lines = {
        name: axes.plot(curve["thresholds"], curve["model"], marker="")[0] for name, curve in rows.items()
    }
    if len(rows) == 1:
        ((name, curve),) = rows.items()
        band = curve["thresholds"], curve["low"], curve["high"]
        axes.fill_between(*band, color=LIGHT.series[0], alpha=0.15, linewidth=0)
        (treat_all,) = axes.plot(curve["thresholds"], curve["treat_all"], marker="")
        lines = {"model": lines[name], "treat all": treat_all}
    top = max(float(np.nanmax([curve["model"], curve["treat_all"]])) for curve in rows.values())
    axes.set(xlim=UNIT, ylim=(-0.3 * top - 0.01, 1.15 * top + 0.01))
    axes.set(xlabel="threshold probability", ylabel="net benefit")
    _legend(axes, lines)
    return _chart(axes)


@styled
def ladder_chart(rungs: Sequence[Mapping[str, Any]], reference: str) -> Chart | None:
    """Draw a row per run {name, about, bounds}: a dot with its interval, the reference dotted.

    Returns None if no value is defined.
    """
    defined = [rung for rung in rungs if rung["bounds"][0] is not None]
    if not defined:
        return None
    axes = Figure(figsize=(6.4, 0.9 + 0.42 * len(defined))).subplots()
    for row, rung in enumerate(defined):
        value, low, high = _numbers(rung["bounds"])
        colour = LIGHT.series[1 if rung["name"] == reference else 0]
        axes.hlines(row, low, high, color=colour, linewidth=2.2, capstyle="round")
        axes.plot([value], [row], "o", color=colour, markersize=7)
        if rung["name"] == reference:
            axes.axvline(value, **GUIDE)
    axes.set_yticks(range(len(defined)), [_rung_text(rung["name"], rung["about"]) for rung in defined])
    axes.set(xlabel="AUROC", ylim=(len(defined) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelcolor=LIGHT.ink)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return _chart(axes)


@styled
def curve_chart(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart | None:
    """Draw points {labels, value, low, high} over labels, on a log scale: a line for each name."""
    if not curves:
        return None
    axes = Figure(figsize=(5.6, 3.8)).subplots()
    lines = {}
    for name, points in curves.items():
        labels, value, low, high = (
            _numbers([point[key] for point in points]) for key in ("labels", "value", "low", "high")
        )
        lines[name] = axes.errorbar(labels, value, [value - low, high - value], capsize=3)
    ticks = sorted({round(point["labels"]) for points in curves.values() for point in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training labels", ylabel="AUROC")
    _legend(axes, lines)
    return _chart(axes)


def _rung_text(name: str, about: str) -> str:
    """Return the label of a rung, shortened to the end of a long name."""
    short = name if len(name) <= RUNG_WIDTH else "…" + name[-(RUNG_WIDTH - 1) :]
    return f"{short}\n{about}" if about else short


def _chart(axes: Axes) -> Chart:
    """Write the figure of some axes in the colours of the light theme, and replace them for the dark one."""
    buffer = io.StringIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    light = buffer.getvalue().replace(f"'{FONT}', sans-serif", "system-ui, sans-serif")
    inks = [(theme.ink, theme.muted, theme.grid, *theme.series) for theme in (LIGHT, DARK)]
    dark = {old.lower(): new.lower() for old, new in zip(*inks, strict=True)}
    darkened = re.sub("|".join(dark), lambda match: dark[match[0].lower()], light, flags=re.IGNORECASE)
    width, height = (round(side * PIXELS_PER_INCH) for side in figure.get_size_inches())
    uris = [data_uri(svg.encode(), "image/svg+xml") for svg in (light, darkened)]
    return Chart(uris[0], uris[1], width, height)


def _mark_stages(axes: Axes, stages: Sequence[str]) -> None:
    starts = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    if len(starts) < 2:
        return
    above = axes.get_xaxis_transform()
    for start in starts:
        if start:
            axes.axvline(start + 0.5, color=LIGHT.muted, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(start + 0.62, 1.02, stages[start], transform=above, color=LIGHT.muted, fontsize=9)


def _legend(axes: Axes, lines: Mapping[str, Any]) -> None:
    if len(lines) > 1:
        axes.legend(list(lines.values()), list(lines))


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return an array, with nan for None."""
    return np.array(values, dtype=float)
