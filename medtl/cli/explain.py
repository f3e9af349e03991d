"""medtl explain: heatmaps of what raised a score, and checks of whether to believe them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medtl.cli import options
from medtl.cli.options import PATH

if TYPE_CHECKING:
    from medtl.explain.audit import MethodAudit
    from medtl.workflows.explain import ExplainOutcome

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
MARKS = {"passed": "+", "failed": "-", "undecided": "?"}
SHORT_NAMES = {"randomisation": "random", "stability": "stable"}


@click.command()
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the maps and tables.")
@options.methods
@click.option("--audit", "audited", is_flag=True, help="Check the maps; without --method, of all methods.")
@click.option("--masks", type=FOLDER, help="Folder of masks, named as the images are.")
@click.option("--audit-images", type=click.IntRange(1), default=20, help="How many images to audit on.")
@options.any_modality
@options.as_json()
def explain(run: Path, folder: Path, out: Path, as_json: bool, **settings: Any) -> int:
    """Show what raised RUN's scores in the studies of FOLDER.

    --audit checks whether to believe it. A map is a NIfTI file on the grid of a volume, an .npz file for an
    image, and a picture.
    """
    from medtl.cli.terminal import TerminalWatcher, print_json, print_refusals

    if settings["masks"] is not None and not settings["audited"]:
        raise click.UsageError("--masks needs --audit")
    with TerminalWatcher(f"medtl explain · {folder}") as watcher:
        from medtl.workflows.explain import explain_folder

        outcome = explain_folder(run, folder, out, watcher=watcher, **settings)
    code = print_refusals(outcome.refused, f": see {outcome.table}")
    if as_json:
        print_json(_to_json(outcome))
    else:
        _print_outcome(outcome)
    return code


def _print_outcome(outcome: "ExplainOutcome") -> None:
    """Print how many maps there are, and the audit as a table and in words, on stdout."""
    maps = sum(bool(row.map) for row in outcome.rows)
    click.echo(f"{maps} maps, {len(outcome.refused)} studies refused: {outcome.table}")
    if not outcome.audits:
        return
    click.echo()
    for line in audit_table(outcome.audits):
        click.echo(line)
    for line in (*(row.words for row in outcome.audits), *outcome.notes):
        click.echo(click.wrap_text(line, width=80, subsequent_indent="    "))
    click.echo(f"with intervals: {outcome.table.parent / 'audit.csv'}")


def audit_table(audits: "Sequence[MethodAudit]") -> list[str]:
    """Return the table of methods and checks, at most 80 characters wide."""
    names = [check.name for check in max((row.checks for row in audits), key=len)]
    titles = (SHORT_NAMES.get(name, name[:8]) for name in names)
    lines = [f"{'':<20} " + " ".join(f"{title:>8}" for title in titles)]
    for row in audits:
        cells = dict.fromkeys(names, "")
        for check in row.checks:
            value = check.value.value
            number = "undef." if value != value else f"{value:.2f}"
            cells[check.name] = f"{number} {MARKS[check.verdict]}"
        lines.append(f"{row.method:<20} " + " ".join(f"{cell:>8}" for cell in cells.values()))
    return [*lines, "+ passed, - failed, ? undecided; a check passes if its whole interval does", ""]


def _to_json(outcome: "ExplainOutcome") -> dict[str, Any]:
    """Return plain data without NaN."""
    from medtl.explain.audit import to_json

    fields = map(asdict, outcome.rows)
    rows = [{**row.pop("prediction"), **row} for row in fields]
    return {"rows": rows, "audit": to_json(outcome.audits), "notes": list(outcome.notes)}
