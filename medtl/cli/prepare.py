"""medtl prepare: decode a labelled folder once, into a dataset to keep, move and train from."""

from pathlib import Path
from typing import Any

import click

from medtl.cli import options
from medtl.cli.options import PATH


@click.command()
@click.argument("folder", type=PATH)
@options.recipe
@options.labels
@click.option("--out", type=PATH, required=True, metavar="DATASET", help="Folder of the dataset.")
@options.as_json()
def prepare(folder: Path, modality: Any, config: Path | None, as_json: bool, **settings: Any) -> int:
    """Decode a labelled FOLDER once, into a DATASET to train from.

    \b
    medtl prepare FOLDER --labels labels.csv --modality xray --out DATASET
    medtl train --modality xray --data DATASET --out RUN

    DATASET has the pixels and labels that train and evaluate need. It contains no paths, and patients are
    salted hashes; the attributes of the table are included. Run again, only what has changed is decoded. Exit
    code 3: some inputs were refused.
    """
    from medtl.cli.terminal import TerminalWatcher, print_json, print_refusals
    from medtl.errors import printable

    options.check_recipe(modality, config)
    with TerminalWatcher(f"medtl prepare · {folder}") as watcher:
        from medtl.workflows import prepare as workflow

        outcome = workflow.prepare(folder, modality=modality, config=config, watcher=watcher, **settings)
    if as_json:
        document = {name: value for name, value in vars(outcome).items() if name != "refusals"}
        document["refused"] = len(outcome.refusals)
        print_json(document)
    else:
        counts = ", ".join(f"{printable(name)} {count:,}" for name, count in outcome.counts.items())
        size = " x ".join(map(str, outcome.shape))
        click.echo(
            f"{outcome.samples:,} samples of {outcome.patients:,} patients ({counts}), {size}, "
            f"{outcome.bytes / 1e6:,.1f} MB; "
            + (f"{outcome.decoded:,} decoded" if outcome.decoded else "nothing has changed")
            + f"\ndataset: {outcome.folder}"
        )
    return print_refusals(outcome.refusals)
