"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]
PATH = click.Path(path_type=Path)
MODALITIES = click.Choice(["xray", "mri"])

methods = click.option(
    "--method",
    "methods",
    multiple=True,
    help="Saliency method; repeatable. Default: grad-cam, or integrated-gradients for transformers.",
)
any_modality = click.option("--any-modality", is_flag=True, help="Accept images of any modality.")
labels = click.option("--labels", type=PATH, help="Label table. Default: labels.csv in the folder.")
data = click.option(
    "--data", type=PATH, help="Folder of studies, or a MedMNIST .npz. Default: the phantoms of sample_data."
)


def as_json(what: str = "one JSON document") -> Command:
    """Return the option --json; what: what it prints."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} on stdout.")


def recipe(command: Command) -> Command:
    """Add --modality, --config and --set: where a recipe comes from."""
    for option in (
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Setting, e.g. schedule=full."
        ),
        click.option("--config", type=PATH, help="Recipe (YAML). Default: the modality's, in configs/."),
        click.option("--modality", type=MODALITIES, help="Start from the recipe of this modality."),
    ):
        command = option(command)
    return command


def check_recipe(modality: str | None, config: Path | None) -> None:
    """Raise UsageError where nothing says which recipe to use."""
    if modality is None and config is None:
        raise click.UsageError("give --modality xray or mri, or a recipe with --config")
