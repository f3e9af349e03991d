"""medtl export: the model in a format that runs without medtl."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
FORMATS = ("onnx", "torch", "monai-bundle")


@click.command()
@click.argument("run", type=PATH)
@click.option("--to", type=click.Choice(FORMATS), required=True, help="What to write.")
@click.option("--out", type=PATH, required=True, help="Folder for the model and what travels with it.")
def export(run: Path, to: str, out: Path) -> None:
    """Write RUN's best model as ONNX, as a torch.export archive, or as a MONAI bundle.

    It takes prepared images and gives logits and calibrated probabilities. Task, thresholds, calibration,
    preprocessing, licences and a model card travel with it.
    """
    from medtl.cli.terminal import TerminalWatcher
    from medtl.workflows.export import export_run

    with TerminalWatcher(f"medtl export · {run}"):
        outcome = export_run(run, out, to)  # type: ignore[arg-type]
    click.echo(f"{outcome.size / 1e6:.1f} MB: {outcome.model}")
