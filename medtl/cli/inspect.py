"""medtl inspect: what is in a folder, and what is wrong with it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from medtl.workflows.inspect import InspectOutcome, Problem

PATH = click.Path(path_type=Path)
# Of each code, so that a rare fault is not lost behind a common one.
PROBLEMS_SHOWN = 20
# Wider, a line of text is hard to follow.
WIDEST = 140


@click.command()
@click.argument("folder", type=PATH)
@click.option("--html", type=PATH, metavar="DIR", help="Write DIR/contact_sheet.html: a page of thumbnails.")
@click.option("--headers-only", is_flag=True, help="Read no pixels: fast, but finds fewer problems.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.pass_context
def inspect(ctx: click.Context, folder: Path, html: Path | None, headers_only: bool, as_json: bool) -> None:
    """Say what is in FOLDER and what is wrong with it; no patient data is shown.

    Every pixel is read, since only so is every fault found. That takes a while in a big folder: with
    --headers-only it is counted by its headers alone, without values and without the faults that pixels have.
    Exit code 3 says that something was refused.
    """
    import json
    from dataclasses import asdict

    from medtl.cli.terminal import TerminalWatcher
    from medtl.workflows.inspect import inspect_folder

    if html is not None and headers_only:
        raise click.UsageError("--html shows pixels, which --headers-only does not read: give one of them")
    with TerminalWatcher(f"medtl inspect · {folder}") as watcher:
        outcome = inspect_folder(folder, watcher, headers_only=headers_only, html=html)
    if as_json:
        click.echo(json.dumps(asdict(outcome), indent=2, allow_nan=False, default=str))
    else:
        print_inspection(outcome)
    ctx.exit(3 if outcome.refused else 0)


def print_inspection(outcome: "InspectOutcome") -> None:
    """Print the outcome as plain tables on stdout."""
    from rich.console import Console

    from medtl.workflows.inspect import describe_group, group_name

    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(console.width, WIDEST)
    console.print(_groups_table(outcome))
    for group in outcome.groups:
        _print_facts(console, group_name(group), describe_group(group))
    _print_counts(console, "Noted while reading", outcome.notes)
    _print_counts(console, "Skipped", outcome.skipped)
    _print_problems(console, f"Odd, but read: {len(outcome.odd):,}", outcome.odd)
    _print_counts(console, "Refused, by code", outcome.refused_codes)
    _print_problems(console, f"Refused: {len(outcome.refused):,}", outcome.refused)
    if not outcome.pixels_read:
        click.echo("\nNo pixels were read: without --headers-only more faults may be found.")
    if outcome.page is not None:
        click.echo(f"\ncontact sheet: {outcome.page}")


def _groups_table(outcome: "InspectOutcome") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from medtl.workflows.inspect import group_name, patients_text

    table = Table(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("What", "All")
    table.add_column("Count", f"{outcome.count:,}", justify="right")
    table.add_column("Studies", _count(outcome.studies), justify="right")
    table.add_column("Series", _count(outcome.series), justify="right")
    table.add_column("Patients", patients_text(outcome.patients, outcome.unidentified), justify="right")
    for group in outcome.groups:
        counts = (f"{group.count:,}", _count(group.studies), _count(group.series))
        table.add_row(group_name(group), *counts, patients_text(group.patients, group.unidentified))
    return table


def _print_facts(console: "Console", title: str, facts: Mapping[str, str]) -> None:
    from rich.table import Table

    if not facts:
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in facts.items():
        grid.add_row(f"  {name}", text)
    console.print(f"\n{title}", style="bold")
    console.print(grid)


def _print_counts(console: "Console", title: str, counts: Mapping[str, int]) -> None:
    from rich.table import Table

    if not counts:
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True, min_width=7)
    grid.add_column(overflow="fold")
    for name, count in counts.items():
        grid.add_row(f"{count:,}", name)
    console.print(f"\n{title}", style="bold")
    console.print(grid)


def _print_problems(console: "Console", title: str, problems: "Sequence[Problem]") -> None:
    """Print a line for each problem: on a terminal folded under its code where it is too long."""
    from rich.padding import Padding

    from medtl.errors import printable

    if not problems:
        return
    console.print(f"\n{title}", style="bold")
    shown = list(_first_of_each_code(problems))
    for problem in shown:
        text = printable(": ".join(filter(None, (problem.source, problem.reason, problem.fix))))
        line = f"  [{problem.code}] {text}"
        if console.is_terminal and len(line) > console.width:
            console.print(f"  [{problem.code}]")
            console.print(Padding(text, (0, 0, 0, 4)))
        else:
            click.echo(line)
    if len(problems) > len(shown):
        console.print(f"  and {len(problems) - len(shown):,} more: --json names all")


def _first_of_each_code(problems: "Sequence[Problem]") -> "Iterator[Problem]":
    seen: Counter[str] = Counter()
    for problem in problems:
        seen[problem.code] += 1
        if seen[problem.code] <= PROBLEMS_SHOWN:
            yield problem


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"
