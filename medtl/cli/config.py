"""medtl config: the recipe as it will be used."""

from pathlib import Path

import click


@click.group()
def config() -> None:
    """Show a recipe in full, or the schema of recipes."""


@config.command()
@click.option("--modality", type=click.Choice(["xray", "mri"]))
@click.option("--config", "recipe", type=click.Path(path_type=Path), help="Recipe (YAML).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key.")
def show(modality: str | None, recipe: Path | None, overrides: tuple[str, ...]) -> None:
    """Print the resolved recipe: every key, defaults and overrides included."""
    from medtl.config import load_config, to_yaml

    click.echo(to_yaml(load_config(modality, recipe, overrides)), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON schema of recipes."""
    import json

    from medtl.config import RunConfig

    click.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
