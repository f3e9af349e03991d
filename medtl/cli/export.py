"""medtl export: the model in a format that runs without medtl."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medtl.cli.options import PATH

if TYPE_CHECKING:
    from medtl.workflows.run import ExportFormat


@click.command()
@click.argument("run", type=PATH)
@click.option("--to", type=click.Choice(["onnx", "torch", "monai-bundle"]), required=True, help="Format.")
@click.option("--out", type=PATH, required=True, help="Folder for the model and its description.")
def export(run: Path, to: "ExportFormat", out: Path) -> None:
    """Write RUN's model as ONNX, torch.export or MONAI bundle.

    The model takes prepared images and returns logits and calibrated probabilities. Its task, thresholds,
    calibration, preprocessing, licences and model card are written beside it.
    """
    from medtl.cli.terminal import TerminalWatcher

    with TerminalWatcher(f"medtl export · {run}"):
        from medtl.workflows import run as workflow

        exported = workflow.export(run, out, to)
    click.echo(f"{exported.size / 1e6:.1f} MB: {exported.model}")
