"""medtl prepare: decode a labelled folder once, into a dataset that can be kept, moved and trained from."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medtl.workflows.prepare import PrepareOutcome

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("folder", type=PATH)
@click.option("--labels", type=PATH, help="Label table. Default: labels.csv in the folder.")
@click.option("--modality", type=click.Choice(["xray", "mri"]), help="Which recipe to start from.")
@click.option("--out", type=PATH, required=True, metavar="DATASET", help="Folder of the dataset.")
@click.option(
    "--config", "recipe", type=PATH, help="Recipe (YAML). Default: configs/xray.yaml or mri-volume.yaml."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of preprocessing or task."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.pass_context
def prepare(
    ctx: click.Context,
    folder: Path,
    labels: Path | None,
    modality: str | None,
    out: Path,
    recipe: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Prepare FOLDER into DATASET: pixels and labels, with which train and evaluate need no source.

    \b
    medtl prepare FOLDER --labels labels.csv --modality xray --out DATASET
    medtl train --modality xray --data DATASET --out RUN

    Patients are salted hashes in it, and no path is kept; attributes of the table are. Run again, it costs
    the scan of the headers where nothing has changed. Exit code 3 says that something was refused.
    """
    import json

    from medtl.cli.terminal import TerminalWatcher, print_refusals
    from medtl.config import load_config
    from medtl.workflows.prepare import prepare_run

    if modality is None and recipe is None:
        raise click.UsageError("give --modality xray or mri, or a recipe with --config")
    config = load_config(modality, recipe, overrides)
    with TerminalWatcher(f"medtl prepare · {folder}") as watcher:
        outcome = prepare_run(folder, labels, out, config, watcher)
    if as_json:
        click.echo(json.dumps(_document(outcome), indent=2))
    else:
        click.echo(_describe(outcome))
    print_refusals(outcome.refusals)
    ctx.exit(3 if outcome.refusals else 0)


def _document(outcome: "PrepareOutcome") -> dict[str, object]:
    return {
        "folder": str(outcome.folder),
        "task": {"kind": outcome.task.kind, "classes": list(outcome.task.classes)},
        "samples": outcome.samples,
        "patients": outcome.patients,
        "counts": dict(outcome.counts),
        "shape": list(outcome.shape),
        "decoded": outcome.decoded,
        "bytes": outcome.bytes,
        "refused": len(outcome.refusals),
    }


def _describe(outcome: "PrepareOutcome") -> str:
    from medtl.errors import printable

    counts = ", ".join(f"{printable(name)} {count:,}" for name, count in outcome.counts.items())
    size = " x ".join(map(str, outcome.shape))
    made = f"{outcome.decoded:,} decoded" if outcome.decoded else "nothing had changed"
    return (
        f"{outcome.samples:,} samples of {outcome.patients:,} patients ({counts}), {size}, "
        f"{outcome.bytes / 1e6:,.1f} MB; {made}\ndataset kept in {outcome.folder}"
    )
