"""medtl train: transfer a pretrained network to a labelled folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medtl.core.stopping import StopSignal

if TYPE_CHECKING:
    from medtl.training.distributed import World
    from medtl.workflows.train import TrainOutcome

EXISTING = click.Path(path_type=Path)


@click.command()
@click.option("--modality", type=click.Choice(["xray", "mri"]), help="Which recipe to start from.")
@click.option("--data", type=EXISTING, help="Folder of studies, or a MedMNIST .npz. Default: sample_data.")
@click.option("--labels", type=EXISTING, help="Label table. Default: labels.csv in the folder.")
@click.option("--out", type=EXISTING, help="Run folder. Default: runs/MODALITY.")
@click.option(
    "--config", "recipe", type=EXISTING, help="Recipe (YAML). Default: configs/xray.yaml or mri-volume.yaml."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. schedule=scratch."
)
@click.option(
    "--label-budget",
    type=click.IntRange(min=1),
    metavar="N",
    help="Learn from N labelled training samples at most: whole patients, classes in proportion.",
)
@click.option("--seed", type=int, metavar="S", help="Seed of all that is drawn, but for the split.")
@click.option("--resume", is_flag=True, help="Go on with the run that --out holds.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json on stdout.")
@click.pass_context
def train(
    ctx: click.Context,
    modality: str | None,
    data: Path | None,
    labels: Path | None,
    out: Path | None,
    recipe: Path | None,
    overrides: tuple[str, ...],
    label_budget: int | None,
    seed: int | None,
    resume: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Train a classifier by transfer, in stages of unfreezing.

    Ctrl-C and SIGTERM end it after the current step with all that was done saved; a second one ends it at
    once. --resume then goes on to the same model, to the bit on a processor.

    Started by torchrun, its processes share each step of one run.

    \b
    medtl train --modality xray --data FOLDER --labels labels.csv --out RUN
    torchrun --nproc-per-node 2 -m medtl train --modality xray --data FOLDER --out RUN
    """
    from medtl.cli.terminal import say
    from medtl.core.progress import StoppedError
    from medtl.errors import AlreadyReportedError
    from medtl.training.distributed import joined_world

    named = {"device": device, "label_budget": label_budget, "seed": seed}
    overrides = (*overrides, *(f"fit.{key}={value}" for key, value in named.items() if value is not None))
    recipe_of_run = modality, recipe, overrides
    stop = StopSignal()
    try:
        with stop, joined_world() as world:
            stop.of_many = not world.alone
            outcome = _train(recipe_of_run, data, labels, out, resume, stop, world)
    except AlreadyReportedError:
        ctx.exit(stop.exit_code if stop.received else 1)
    except StoppedError as error:
        say(f"medtl: {error}", err=True)
        ctx.exit(stop.exit_code)
    except KeyboardInterrupt:
        fix = "what was saved is kept: go on with the same command and --resume"
        where = f"{out}: " if out else ""
        say(f"medtl: [interrupted] {where}stopped by the user; {fix}", err=True)
        ctx.exit(stop.exit_code)
    if outcome is not None:
        _show(outcome, as_json)
        ctx.exit(3 if outcome.refusals else 0)


def _train(
    recipe: tuple[str | None, Path | None, tuple[str, ...]],
    data: Path | None,
    labels: Path | None,
    out: Path | None,
    resume: bool,
    stop: StopSignal,
    world: "World",
) -> "TrainOutcome | None":
    """Train, or take part where another process leads: that one alone has an outcome."""
    from medtl.cli.terminal import TerminalWatcher
    from medtl.config import load_config, sample_data
    from medtl.workflows.train import follow_run, train_run

    if recipe[:2] == (None, None):
        raise click.UsageError("give --modality xray or mri, or a recipe with --config")
    config = load_config(*recipe)
    out, source = out or Path("runs") / config.modality, data or sample_data(config.modality)
    if not world.leads:
        follow_run(source, labels, out, config, world, resume=resume, stop=stop)
        return None
    with TerminalWatcher(f"medtl train · {config.modality}") as watcher:
        if data is None:
            watcher.note("data", f"no --data was named: training on the phantoms of {source}")
        return train_run(source, labels, out, config, watcher, resume=resume, stop=stop, world=world)


def _show(outcome: "TrainOutcome", as_json: bool) -> None:
    from medtl.cli.terminal import print_evaluation, print_refusals, say

    if as_json:
        click.echo(outcome.run.metrics.read_text(encoding="utf-8"), nl=False)
    else:
        print_evaluation(outcome.evaluation, "\nValidation")
        kept = "checkpoints/best, metrics.json, history.csv, splits.csv, config.yaml"
        click.echo()
        say(f"run kept in {outcome.run.root}: {kept}")
        judged = "on patients that chose nothing (--part test where the split has one)"
        say(f"next: medtl evaluate {outcome.run.root} {judged}; medtl report shows how it was trained")
    print_refusals(outcome.refusals)
