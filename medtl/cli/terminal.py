"""How a job looks on a terminal: a line for each stage, a bar while it runs; plain lines elsewhere."""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from medtl.core.progress import Watcher
from medtl.errors import ReadError, printable

if TYPE_CHECKING:
    from medtl.inference.predictor import Prediction
    from medtl.training.feature_cache.plan import CachePlan
    from medtl.training.schedule import Stage

REFUSALS_SHOWN = 10


class TerminalWatcher(Watcher):
    """Shows a job on stderr; progress bars only where stderr is a terminal. silent: shows nothing."""

    def __init__(self, title: str, *, silent: bool = False) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True, highlight=False, quiet=silent)
        self.bar = Progress(
            TextColumn("   "),
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=silent or not self.console.is_terminal,
        )
        self.title = title
        self.task: Any = None
        self.stage_epochs = 0

    def __enter__(self) -> Self:
        self.console.print(f"[bold]{_escape(self.title)}[/bold]", soft_wrap=True)
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def note(self, label: str, text: str) -> None:
        """Print one labelled line; on a terminal it is folded below the text, not the label."""
        from rich.table import Table

        self._clear()
        name = f"  [bold]{label:<9}[/bold]"
        if not self.console.is_terminal:
            self.console.print(f"{name} {_escape(text)}", soft_wrap=True)
            return
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_row(name, _escape(text))
        self.console.print(line)

    def stage(self, number: int, of: int, stage: "Stage", plan: "CachePlan") -> None:
        """Announce a stage and what happens to its frozen prefix."""
        prefix = "" if plan.step == 0 else "prefix cached: " if plan.cached else "prefix not cached: "
        self.stage_epochs = stage.epochs
        self.note(
            f"stage {number}/{of}", f"{stage.name}, {counted(stage.epochs, 'epoch')}; {prefix}{plan.reason}"
        )

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar; what was done when it appears does not count as speed."""
        if self.bar.disable:
            return
        if self.task is None or self.bar.tasks[0].description != what:
            self._clear()
            self.task = self.bar.add_task(what, total=total, completed=done, rate="")
        speed = self.bar.tasks[0].speed
        rate = f"{60 * speed:,.0f} a minute" if speed else ""
        self.bar.update(self.task, completed=done, total=total, rate=rate)

    def remove_bar(self) -> None:
        """Remove the bar, before lines that the watcher does not print."""
        self.bar.stop()

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print one epoch's line."""
        self._clear()
        score = "undefined" if row["val_auroc"] is None else f"{row['val_auroc']:.3f}"
        epoch = f"{row['epoch']}/{self.stage_epochs}"
        self.console.print(
            f"    epoch {epoch:>5}  loss {row['train_loss']:.3f}  validation loss {row['val_loss']:.3f}  "
            f"AUROC {score}  {row['seconds']:5.1f} s",
            soft_wrap=True,
        )

    def _clear(self) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None


def say(line: str, *, err: bool = False) -> None:
    """Print a line, folded with an indent on a terminal that is narrower. File names stay whole."""
    if (sys.stderr if err else sys.stdout).isatty():
        from rich.console import Console

        width = Console(stderr=err).width
        line = textwrap.fill(
            line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
    click.echo(line, err=err)


def counted(number: int, noun: str, several: str = "") -> str:
    """Write how many: "1 epoch", "2 epochs", "3 studies"."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def metric_text(
    value: float | None, low: float | None, high: float | None, why: str = "one class only"
) -> str:
    """Write a metric with its interval; None and NaN are undefined, and `why` says for what reason."""
    if value is None or value != value:
        return f"undefined ({why})"
    if low is None or high is None or low != low:
        return f"{value:.3f} (interval undefined)"
    return f"{value:.3f}  (95% interval {low:.3f} to {high:.3f})"


def why_undefined(name: str, auroc: float | None) -> str:
    """Say why a metric is undefined for predictions with this AUROC."""
    if auroc is None:
        return "one class only"
    if not name.startswith("calibration"):
        return "all answers are the same"
    separated = "the classes are perfectly separated"
    reasons = {0.0: separated, 0.5: "all probabilities are equal", 1.0: separated}
    return reasons.get(auroc, "no finite line fits")


def print_evaluation(content: Mapping[str, Any], title: str) -> None:
    """Print the metrics of an evaluation, as metrics.json has it, with their intervals on stdout."""
    from medtl.report.findings import read_bounds

    counts, metrics = content["counts"], read_bounds(content)
    metrics.pop("auroc_bootstrap", None)
    click.echo(f"{title}: {counts['samples']} samples of {counts['patients']} patients")
    for name, bounds in metrics.items():
        why = why_undefined(name, metrics["auroc"][0])
        click.echo(f"  {name.replace('_', ' '):<21} {metric_text(*bounds, why)}")
    if "ece" in metrics and metrics["ece"][1] is not None:
        say("  A small sample raises the ece; its interval corrects for that, and lies mostly below it.")


def print_refusals(refusals: Sequence[ReadError]) -> None:
    """Print one line for each refusal, up to REFUSALS_SHOWN."""
    for error in refusals[:REFUSALS_SHOWN]:
        say(f"refused: {error}", err=True)
    if len(refusals) > REFUSALS_SHOWN:
        click.echo(f"refused: and {len(refusals) - REFUSALS_SHOWN} more", err=True)


def print_refused_rows(rows: Sequence["Prediction"], table: Path) -> None:
    """Print the lines of refused rows, up to REFUSALS_SHOWN; the table has them all."""
    for row in rows[:REFUSALS_SHOWN]:
        print_refused_row(row)
    if len(rows) > REFUSALS_SHOWN:
        click.echo(f"refused: and {len(rows) - REFUSALS_SHOWN} more: see {table}", err=True)


def print_refused_row(row: "Prediction") -> None:
    """Print the line of a refused row."""
    parts = ": ".join(filter(None, (row.source, row.reason, row.fix)))
    say(f"refused: [{row.code}] {printable(parts)}", err=True)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))
