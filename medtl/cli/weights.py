"""medtl weights: which pretrained weights are on this machine, and how others come here."""

from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
SHOWN_BACKBONES = 3


@click.group()
def weights() -> None:
    """List, fetch, import and verify pretrained weights. Nothing is downloaded unless you say fetch."""


@weights.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
def list_weights(as_json: bool) -> None:
    """List the published weights files: licence, source, and whether and where they are here."""
    import json

    from medtl.models.weight_store import describe_weights

    rows = describe_weights()
    click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(map(_in_words, rows)))


@weights.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Download the weights NAME: a file, a backbone, or BACKBONE/WEIGHTS, as medtl weights list has it."""
    from medtl.models.weight_store import fetch_weights, find_stored

    known = find_stored(name).known
    click.echo(f"{known.file}, licence: {known.licence}", err=True)
    click.echo(fetch_weights(name))


@weights.command("import")
@click.argument("file", type=PATH)
@click.option("--as", "name", metavar="NAME", help="What FILE is: a file, a backbone, or BACKBONE/WEIGHTS.")
@click.option("--unsafe-module", is_flag=True, help="FILE is a whole pickled module: take its tensors alone.")
def import_file(file: Path, name: str | None, unsafe_module: bool) -> None:
    """Check the weights FILE and copy it to where medtl finds it by name; its SHA-256 is pinned.

    A whole pickled module is refused. With --unsafe-module its tensors are taken out, in a process of its
    own, and kept as safetensors; the code that it names is not run.
    """
    from medtl.models.weight_store import import_weights

    click.echo(import_weights(file, name, unsafe_module=unsafe_module))


@weights.command()
def verify() -> None:
    """Hash every weights file again; exit code 1 names what changed."""
    from medtl.errors import WeightsError
    from medtl.models.weight_store import verify_weights

    verdicts = verify_weights()
    for verdict in verdicts:
        unpinned = "" if verdict.pinned else ", but nothing says what it must be: import it to pin it"
        click.echo(f"{verdict.path.name}: {verdict.problem or 'whole'}{unpinned}")
    changed = [verdict.path.name for verdict in verdicts if verdict.problem]
    if changed:
        reason = f"not what came here: {', '.join(changed)}"
        raise WeightsError("weights-hash", reason, fix="fetch or import them anew")
    if not verdicts:
        click.echo("no weights files are here")


def _in_words(row: dict[str, Any]) -> str:
    size = f"{row['bytes'] / 1e6:,.0f} MB" if row["present"] else "absent"
    others = len(row["backbones"]) - SHOWN_BACKBONES
    users = ", ".join(row["backbones"][:SHOWN_BACKBONES]) + (f" and {others} more" if others > 0 else "")
    way = "can be fetched" if row["url"] else "in medtl[offline]" if row["package"] else "you bring it"
    head = f"{row['file']}  {size}: {row['path'] or way}"
    return f"{head}\n    {row['weights']} for {users}; {row['source']} ({row['licence']})"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list on stdout.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print docs/backbones.md on stdout.")
def backbones(as_json: bool, as_markdown: bool) -> None:
    """List the backbones: size, layer groups, input, weights, and whether those are on this machine."""
    import json

    from medtl.models.catalogue import backbones_page, describe_backbones

    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    if as_markdown:
        click.echo(backbones_page(), nl=False)
        return
    rows = describe_backbones()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        size = "x".join(map(str, row["input_size"]))
        click.echo(
            f"{row['name']:<28} {row['spatial_dims']}D  {row['parameters'] / 1e6:5.1f} M  "
            f"{len(row['layer_groups']):>2} groups  {size}"
        )
        for weights in row["weights"]:
            state = "here" if weights["present"] else "absent"
            click.echo(f"    {weights['name']:<14} {state:<7} {weights['file']} ({weights['licence']})")
