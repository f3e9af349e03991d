"""medtl inspect: what a folder contains, and what is wrong with it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medtl.cli import options
from medtl.cli.options import PATH

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from medtl.workflows.inspect import InputIssue, InspectOutcome

# Of each code, so that a rare problem is not hidden by a common one.
PROBLEMS_SHOWN = 20
# Wider, a line of text is hard to follow.
WIDEST = 140


@click.command()
@click.argument("folder", type=PATH)
@click.option("--html", type=PATH, metavar="DIR", help="Write DIR/contact_sheet.html: a page of thumbnails.")
@click.option("--headers-only", is_flag=True, help="Read no pixels: faster, but finds fewer problems.")
@options.as_json()
def inspect(folder: Path, html: Path | None, headers_only: bool, as_json: bool) -> int:
    """List what FOLDER contains and what is wrong with it.

    No patient data is shown. Every pixel is read, because some problems are found no other way. That takes a
    while in a big folder: --headers-only reads only the headers, and finds neither pixel values nor problems
    with them. Exit code 3: something was refused.
    """
    from medtl.cli.terminal import TerminalWatcher, print_json

    if html is not None and headers_only:
        raise click.UsageError("--html needs pixels, which --headers-only does not read: give one of them")
    with TerminalWatcher(f"medtl inspect · {folder}") as watcher:
        from medtl.workflows.inspect import inspect_folder

        outcome = inspect_folder(folder, headers_only=headers_only, html=html, watcher=watcher)
    if as_json:
        print_json(outcome)
    else:
        print_inspection(outcome)
    return 3 if outcome.refused else 0


def print_inspection(outcome: "InspectOutcome") -> None:
    """Print the outcome as plain tables on stdout."""
    from rich.console import Console

    from medtl.workflows.inspect import describe_group, group_name

    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(console.width, WIDEST)
    console.print(_groups_table(outcome))
    for group in outcome.groups:
        facts = [(f"  {name}", text) for name, text in describe_group(group).items()]
        _print_grid(console, group_name(group), facts)
    _print_counts(console, "Notes", outcome.notes)
    _print_counts(console, "Skipped", outcome.skipped)
    _print_problems(console, f"Warnings: {len(outcome.warnings):,}", outcome.warnings)
    _print_counts(console, "Refused, by code", outcome.refused_codes)
    _print_problems(console, f"Refused: {len(outcome.refused):,}", outcome.refused)
    if not outcome.pixels_read:
        click.echo("\nNo pixels were read: there may be more problems. Omit --headers-only to find them.")
    if outcome.page is not None:
        click.echo(f"\ncontact sheet: {outcome.page}")


def _groups_table(outcome: "InspectOutcome") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from medtl.workflows.inspect import group_name, patients_text

    table = Table(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("What", "All")
    table.add_column("Count", f"{sum(group.count for group in outcome.groups):,}", justify="right")
    table.add_column("Studies", _count(outcome.studies), justify="right")
    table.add_column("Series", _count(outcome.series), justify="right")
    table.add_column("Patients", patients_text(outcome.patients, outcome.unidentified), justify="right")
    for group in outcome.groups:
        counts = (f"{group.count:,}", _count(group.studies), _count(group.series))
        table.add_row(group_name(group), *counts, patients_text(group.patients, group.unidentified))
    return table


def _print_counts(console: "Console", title: str, counts: Mapping[str, int]) -> None:
    rows = [(f"{count:,}", name) for name, count in counts.items()]
    _print_grid(console, title, rows, justify="right", min_width=7)


def _print_grid(console: "Console", title: str, rows: Sequence[tuple[str, str]], **first_column: Any) -> None:
    """Print a title and two columns, if there are rows."""
    from rich.table import Table

    if not rows:
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, **first_column)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console.print(f"\n{title}", style="bold")
    console.print(grid)


def _print_problems(console: "Console", title: str, problems: "Sequence[InputIssue]") -> None:
    """Print a line for each problem; on a terminal a long one is folded under its code."""
    from medtl.cli.terminal import say
    from medtl.errors import printable

    if not problems:
        return
    console.print(f"\n{title}", style="bold")
    seen: Counter[str] = Counter()
    for problem in problems:
        seen[problem.code] += 1
        if seen[problem.code] > PROBLEMS_SHOWN:
            continue
        text = printable(": ".join(filter(None, (problem.source, problem.reason, problem.fix))))
        say(f"  [{problem.code}] {text}")
    rest = sum(max(0, count - PROBLEMS_SHOWN) for count in seen.values())
    if rest:
        console.print(f"  and {rest:,} more: --json lists all")


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"
