"""Turn curves into SVG data URIs, one in the colours of a light page and one in those of a dark page."""

import base64
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medtl.report.findings import Bounds, StageRow

POINTS_PER_INCH, PIXELS_PER_INCH = 72, 96
FONT = "DejaVu Sans"  # matplotlib's own, for measuring; pages use the reader's
DASHES = ("-", "--", "-.", ":")
UNIT = (-0.02, 1.02)
RUNG_WIDTH = 34  # characters
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Theme:
    """Colours of a chart. series: Okabe and Ito (2008), told apart by every kind of colour vision."""

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


@dataclass(frozen=True)
class Chart:
    """One chart as two SVG data URIs, with its size in px."""

    light: str
    dark: str
    width: int
    height: int


Plot = Callable[[Figure, Theme], None]


def history_chart(
    history: Sequence[Mapping[str, object]], series: Mapping[str, str], axis: str
) -> Chart | None:
    """Draw columns of the history (key -> name) over epochs, with the stages marked.

    Returns None where none of the columns holds a number.
    """
    columns = {name: _column(history, key) for key, name in series.items()}
    columns = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if not columns:
        return None

    def plot(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for index, values in enumerate(columns.values()):
            steps = np.arange(1, len(values) + 1)
            axes.plot(steps, values, label=str(index), **_line(theme, index, marked=len(values) <= 40))
        _mark_stages(axes, theme, [str(row.get("stage", "")) for row in history])
        axes.set(xlabel="epoch", ylabel=axis)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _legend(axes, theme, list(columns))

    return _draw(plot, (5.0, 3.4))


def freezing_chart(groups: Sequence[str], stages: Sequence[StageRow]) -> Chart | None:
    """Draw which layer groups moved in which epoch, the head at the top; None where neither is known.

    A group is trained (filled), frozen and read from the cache (dotted), or frozen and computed (empty).
    """
    if not groups or not stages:
        return None
    names = [*groups, "head"]

    def plot(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        start = 0
        for stage in stages:
            for row in range(len(names)):
                trained = row >= len(groups) - stage.thawed
                axes.barh(row, stage.epochs, left=start, **_cell(theme, trained, stage.cached))
            axes.text(start, len(names) - 0.35, _literal(stage.name), color=theme.muted, fontsize=9)
            start += stage.epochs
        axes.set(xlim=(0, start), ylim=(-0.6, len(names) + 0.3), xlabel="epoch")
        axes.set_yticks(range(len(names)), [_literal(name) for name in names], fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(False)

    return _draw(plot, (10.6, 1.3 + 0.21 * len(names)))


def roc_chart(curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Chart | None:
    """Draw a ROC curve per class from {fpr, tpr}; None where no class has a defined curve."""
    defined = {name: (_numbers(curve["fpr"]), _numbers(curve["tpr"])) for name, curve in curves.items()}
    defined = {name: pair for name, pair in defined.items() if pair[0].size and np.isfinite(pair).all()}
    if not defined:
        return None

    def plot(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, linestyle=(0, (1, 3)))
        for index, (fpr, tpr) in enumerate(defined.values()):
            axes.plot(fpr, tpr, label=str(index), **_line(theme, index))
        axes.set(xlim=UNIT, ylim=UNIT, aspect="equal", xlabel="1 - specificity", ylabel="sensitivity")
        _legend(axes, theme, list(defined))

    return _draw(plot, (4.4, 4.4))


def reliability_chart(bins: Sequence[Mapping[str, float | None]]) -> Chart | None:
    """Draw observed shares over mean probabilities, with the count of each bin; None without any count."""
    filled = [row for row in bins if row.get("count")]
    if not filled:
        return None
    probability, observed, count = (
        _numbers([row[key] for row in filled]) for key in ("mean_probability", "observed", "count")
    )

    def plot(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (4, 1)})
        upper.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, linestyle=(0, (1, 3)))
        upper.plot(probability, observed, **_line(theme, 0, marked=True))
        upper.set(xlim=UNIT, ylim=UNIT, ylabel="observed share")
        lower.bar(probability, count, width=0.05, color=theme.series[0])
        lower.set(xlabel="predicted probability", ylabel="studies")
        lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))

    return _draw(plot, (4.4, 4.8))


def decision_chart(curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Chart | None:
    """Draw net benefit over thresholds from {thresholds, model, low, high, treat_all}; None without a curve.

    One class: with its interval, and acting on all. Several: a line for each, and acting on none.
    """
    rows = {name: {key: _numbers(row) for key, row in curve.items()} for name, curve in curves.items()}
    if not rows:
        return None

    def plot(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=theme.muted, linewidth=1, linestyle=(0, (1, 3)))
        for index, curve in enumerate(rows.values()):
            axes.plot(curve["thresholds"], curve["model"], label=str(index), **_line(theme, index))
        names = list(rows)
        if len(rows) == 1:
            (curve,) = rows.values()
            band = curve["thresholds"], curve["low"], curve["high"]
            axes.fill_between(*band, color=theme.series[0], alpha=0.15, linewidth=0)
            axes.plot(curve["thresholds"], curve["treat_all"], label="1", **_line(theme, 1))
            names = ["the model", "acting on all"]
        top = max(float(np.nanmax([curve["model"], curve["treat_all"]])) for curve in rows.values())
        axes.set(xlim=UNIT, ylim=(-0.3 * top - 0.01, 1.15 * top + 0.01))
        axes.set(xlabel="probability at which one acts", ylabel="net benefit")
        _legend(axes, theme, names)

    return _draw(plot, (5.0, 3.8))


def ladder_chart(rungs: Sequence[tuple[str, str, Bounds]], reference: str) -> Chart | None:
    """Draw a row for each run (name, what it is, bounds): a dot with its interval, the reference's dotted.

    None where no value is defined.
    """
    defined = [rung for rung in rungs if rung[2][0] is not None]
    if not defined:
        return None

    def plot(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for row, (name, _, bounds) in enumerate(defined):
            value, *reach = _numbers(bounds)
            colour = theme.series[1 if name == reference else 0]
            axes.plot(reach, [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot([value], [row], "o", color=colour, markersize=7)
            if name == reference:
                axes.axvline(value, color=theme.muted, linewidth=1, linestyle=(0, (1, 3)))
        axes.set_yticks(range(len(defined)), [_rung_text(name, about) for name, about, _ in defined])
        axes.set(xlabel="AUROC", ylim=(len(defined) - 0.4, -0.6))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
        axes.xaxis.set_major_locator(MaxNLocator(6))

    return _draw(plot, (6.4, 0.9 + 0.42 * len(defined)))


def curve_chart(lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart | None:
    """Draw points {labels, value, low, high} over labels, on a log scale: a line for each name."""
    if not lines:
        return None

    def plot(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for index, points in enumerate(lines.values()):
            labels, value, low, high = (
                _numbers([point[key] for point in points]) for key in ("labels", "value", "low", "high")
            )
            style = _line(theme, index, marked=True)
            axes.plot(labels, value, label=str(index), **style)
            axes.errorbar(
                labels, value, [value - low, high - value], fmt="none", color=style["color"], capsize=3
            )
        ticks = sorted({round(point["labels"]) for points in lines.values() for point in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="labels learned from", ylabel="AUROC")
        _legend(axes, theme, list(lines))

    return _draw(plot, (5.6, 3.8))


def _rung_text(name: str, about: str) -> str:
    """Return what a run is called beside its rung, the end of a long name alone."""
    short = name if len(name) <= RUNG_WIDTH else "…" + name[-(RUNG_WIDTH - 1) :]
    return _literal(f"{short}\n{about}" if about else short)


def _draw(plot: Plot, size: tuple[float, float]) -> Chart:
    width, height = (round(side * PIXELS_PER_INCH) for side in size)
    light = _svg(plot, size, LIGHT)
    return Chart(_data_uri(light), _data_uri(_darken(light)), width, height)


def _darken(light: str) -> str:
    """Return a light drawing in the colours of the dark theme, which costs less than drawing it twice."""
    inks = [(theme.ink, theme.muted, theme.grid, *theme.series) for theme in (LIGHT, DARK)]
    dark = {old.lower(): new.lower() for old, new in zip(*inks, strict=True)}
    return re.sub("|".join(dark), lambda found: dark[found[0].lower()], light, flags=re.IGNORECASE)


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _svg(plot: Plot, size: tuple[float, float], theme: Theme) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(_settings(theme)):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure, theme)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace(f"'{FONT}', sans-serif", "system-ui, sans-serif")


def _settings(theme: Theme) -> dict[Any, Any]:
    inks = ("text.color", "axes.labelcolor")
    quiet = ("xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inks, theme.ink),
        **dict.fromkeys(quiet, theme.muted),
        "axes.edgecolor": theme.grid,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "none",
        "font.family": "sans-serif",
        "font.sans-serif": [FONT],
        "font.size": 10,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "svg.fonttype": "none",
        "svg.hashsalt": "medtl",
        "text.usetex": False,
    }


def _cell(theme: Theme, trained: bool, cached: bool) -> dict[str, Any]:
    """Style a group in a stage: told apart by fill and pattern, not by hue alone."""
    style: dict[str, Any] = {"height": 0.8, "linewidth": 0.8, "edgecolor": theme.muted}
    if trained:
        return style | {"color": theme.series[0], "edgecolor": theme.ink}
    return style | {"color": "none", "edgecolor": theme.muted, "hatch": "..." if cached else None}


def _line(theme: Theme, index: int, *, marked: bool = False) -> dict[str, Any]:
    style: dict[str, Any] = {
        "color": theme.series[index % len(theme.series)],
        "linestyle": DASHES[index % len(DASHES)],
        "linewidth": 1.8,
    }
    return style | ({"marker": MARKERS[index % len(MARKERS)], "markersize": 4.5} if marked else {})


def _mark_stages(axes: Axes, theme: Theme, stages: Sequence[str]) -> None:
    starts = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    if len(starts) < 2:
        return
    above = axes.get_xaxis_transform()
    for start in starts:
        if start:
            axes.axvline(start + 0.5, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(start + 0.62, 1.02, _literal(stages[start]), transform=above, color=theme.muted, fontsize=9)


def _legend(axes: Axes, theme: Theme, names: Sequence[str]) -> None:
    if len(names) < 2:
        return
    legend = axes.legend(frameon=False, labelcolor=theme.ink, fontsize=9, handlelength=2.6)
    # Named only now: matplotlib leaves out of a legend what starts with an underscore.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(_literal(name))


def _literal(text: str) -> str:
    """Keep matplotlib from reading a name as mathematics."""
    return text.replace("$", r"\$")


def _column(history: Sequence[Mapping[str, object]], key: str) -> np.ndarray:
    return _numbers([row.get(key) for row in history])


def _numbers(values: Sequence[object]) -> np.ndarray:
    return np.array([_number(value) for value in values], dtype=float)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float | np.number) else math.nan
