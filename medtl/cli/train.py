"""medtl train: transfer a pretrained network to a labelled folder."""

import os
from pathlib import Path
from typing import Any

import click

from medtl.cli import options
from medtl.cli.options import PATH
from medtl.core.progress import StopSignal


@click.command()
@options.recipe
@options.data
@options.labels
@click.option("--out", type=PATH, help="Run folder. Default: runs/MODALITY.")
@click.option(
    "--label-budget",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train on at most N labelled samples: whole patients, classes in proportion.",
)
@click.option("--seed", type=int, metavar="S", help="Random seed for everything except the data split.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.")
@options.as_json("metrics.json")
@click.pass_context
def train(
    ctx: click.Context, modality: Any, config: Path | None, out: Path | None, as_json: bool, **settings: Any
) -> None:
    """Train a classifier by transfer learning.

    The head is trained first, then layer groups are unfrozen in stages. Ctrl-C and SIGTERM stop training
    after the current step and save everything; a second one stops at once. --resume then continues to the
    same model, bit for bit on a CPU.

    Started by torchrun, its processes share each step of one run.

    \b
    medtl train --modality xray --data FOLDER --labels labels.csv --out RUN
    torchrun --nproc-per-node 2 -m medtl train --modality xray --data FOLDER --out RUN
    """
    from medtl.cli.terminal import TerminalWatcher, print_evaluation, print_refusals, say

    options.check_recipe(modality, config)
    several = os.environ.get("WORLD_SIZE", "1") != "1"  # processes of torchrun, of which the first reports
    leads = not several or os.environ.get("RANK", "0") == "0"
    title = f"medtl train · {modality or config}"
    with StopSignal() as stop, TerminalWatcher(title, silent=not leads) as watcher:
        stop.of_many = several
        from medtl.workflows import train as workflow

        run = workflow.train(modality, config=config, out=out, watcher=watcher, stop=stop, **settings)
    if not leads:
        return
    if as_json:
        click.echo((run.folder / "metrics.json").read_text(encoding="utf-8"), nl=False)
    else:
        print_evaluation(run.metrics["split"]["val"], "\nValidation")
        click.echo()
        say(f"run: {run.folder} (checkpoints/best, metrics.json, history.csv, splits.csv, config.yaml)")
        say(
            f"next: medtl evaluate {run.folder} on new patients (--part test if the split has a test part); "
            "medtl report shows how it was trained"
        )
    print_refusals(run.refusals)
    ctx.exit(3 if run.refusals else 0)
