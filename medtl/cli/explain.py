"""medtl explain: heatmaps of what raised a score, and what such maps are worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from medtl.explain.audit import Check, MethodAudit
    from medtl.workflows.explain import ExplainOutcome

PATH = click.Path(path_type=Path)
MARKS = {"passed": "+", "failed": "-", "undecided": "?"}


@click.command()
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the maps and tables.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="Saliency method; may be repeated. Default: grad-cam, or integrated-gradients for transformers.",
)
@click.option("--audit", is_flag=True, help="Check the methods: by default every one that suits the network.")
@click.option(
    "--masks",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Masks, named as images are.",
)
@click.option(
    "--audit-images", type=click.IntRange(min=1), default=20, show_default=True, help="Images to check on."
)
@click.option("--any-modality", is_flag=True, help="Take images whose files name another modality, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.pass_context
def explain(
    ctx: click.Context,
    run: Path,
    folder: Path,
    out: Path,
    methods: tuple[str, ...],
    audit: bool,
    masks: Path | None,
    audit_images: int,
    any_modality: bool,
    as_json: bool,
) -> None:
    """Show what raised RUN's scores in the studies of FOLDER, and with --audit whether to believe it.

    A map comes as NIfTI on the grid of a volume, as .npz for an image, and as a picture.
    """
    import json

    from medtl.cli.terminal import TerminalWatcher, print_refused_row
    from medtl.workflows.explain import ExplainOptions, explain_run

    if masks is not None and not audit:
        raise click.UsageError("--masks is for --audit")
    options = ExplainOptions(methods, audit, masks, audit_images, any_modality)
    with TerminalWatcher(f"medtl explain · {folder}") as watcher:
        outcome = explain_run(run, folder, out, watcher, options)
    for row in outcome.refused:
        print_refused_row(row)
    if as_json:
        click.echo(json.dumps(to_json(outcome), indent=2, allow_nan=False))
    else:
        print_outcome(outcome)
    ctx.exit(3 if outcome.refused else 0)


def print_outcome(outcome: "ExplainOutcome") -> None:
    """Print how many maps there are, and the audit as a table and in words, on stdout."""
    maps = sum(bool(row.map) for row in outcome.rows)
    click.echo(f"{maps} maps, {len(outcome.refused)} studies refused: {outcome.table}")
    if not outcome.audits:
        return
    click.echo()
    for line in audit_table(outcome.audits):
        click.echo(line)
    for line in (*(row.words for row in outcome.audits), *outcome.notes):
        click.echo(_wrapped(line))
    click.echo(f"with intervals: {outcome.table.parent / 'audit.csv'}")


def audit_table(audits: "tuple[MethodAudit, ...]") -> list[str]:
    """Return the table of methods and checks, at most 80 characters wide."""
    names = [check.name for check in max((row.checks for row in audits), key=len)]
    lines = [f"{'':<20} " + " ".join(f"{_short(name):>8}" for name in names)]
    for row in audits:
        checks = {check.name: check for check in row.checks}
        cells = (_cell(checks[name]) if name in checks else "" for name in names)
        lines.append(f"{row.method:<20} " + " ".join(f"{cell:>8}" for cell in cells))
    return [*lines, "+ passed, - failed, ? undecided; a check passes if its whole interval does", ""]


def to_json(outcome: "ExplainOutcome") -> dict[str, Any]:
    """Return plain data without NaN."""
    from dataclasses import asdict

    from medtl.explain.audit import to_json as audit_json

    return {
        "rows": [{**asdict(row.prediction), **_map_json(row)} for row in outcome.rows],
        "audit": audit_json(outcome.audits),
        "notes": list(outcome.notes),
    }


def _map_json(row: Any) -> dict[str, Any]:
    names = ("target_class", "probability", "method", "map", "picture")
    return {name: getattr(row, name) for name in names}


def _short(name: str) -> str:
    return {"randomisation": "random", "stability": "stable"}.get(name, name[:8])


def _cell(check: "Check") -> str:
    value = check.value.value
    number = "undef." if value != value else f"{value:.2f}"
    return f"{number} {MARKS[check.verdict]}"


def _wrapped(line: str) -> str:
    return click.wrap_text(line, width=80, subsequent_indent="    ")
