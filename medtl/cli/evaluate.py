"""medtl evaluate: judge a run on labelled studies."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=PATH)
@click.option("--data", type=PATH, required=True, help="Folder of studies, or a MedMNIST .npz.")
@click.option("--labels", type=PATH, help="Label table. Default: labels.csv in the folder.")
@click.option("--out", type=PATH, required=True, help="Folder for metrics.json and the page.")
@click.option(
    "--part",
    type=click.Choice(["unseen", "train", "val", "test", "all"]),
    default="unseen",
    show_default=True,
    help="unseen: all but what the run was trained on; train, val, test: parts of the run's own split.",
)
@click.option("--any-modality", is_flag=True, help="Take images whose files name another modality, too.")
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json on stdout.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    run: Path,
    data: Path,
    labels: Path | None,
    out: Path,
    part: str,
    any_modality: bool,
    as_json: bool,
) -> None:
    """Evaluate RUN: metrics with 95% intervals by patient, confusion matrix, ROC and reliability."""
    from medtl.cli.terminal import TerminalWatcher, print_evaluation, print_refusals
    from medtl.runs.evaluate import evaluate_run

    with TerminalWatcher(f"medtl evaluate · {run}") as watcher:
        outcome = evaluate_run(
            run,
            data,
            labels,
            out,
            watcher,
            part=part,  # type: ignore[arg-type]
            any_modality=any_modality,
        )
    if as_json:
        click.echo((out / "metrics.json").read_text(encoding="utf-8"), nl=False)
    else:
        print_evaluation(outcome.evaluation, "\nEvaluation")
        click.echo(f"\npage: {outcome.page}")
    print_refusals(outcome.refusals)
    ctx.exit(3 if outcome.refusals else 0)
