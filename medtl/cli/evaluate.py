"""medtl evaluate: judge a run on labelled studies."""

from pathlib import Path

import click

from medtl.errors import ConfigError

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
@click.option(
    "--threshold",
    metavar="RULE",
    help="Choose thresholds on the run's validation data anew: youden, sensitivity=0.95, specificity=0.9, or "
    "cost=10:1 (a missed case to a false alarm). Default: those of the run.",
)
@click.option(
    "--prevalence",
    "prevalences",
    multiple=True,
    metavar="[CLASS=]SHARE",
    help="Give PPV and NPV for where this share has the class, too.",
)
@click.option(
    "--subgroup",
    "columns",
    multiple=True,
    metavar="COLUMN",
    help="Form subgroups by this column of the label table, or by sex, age or scanner of DICOM. "
    "Default: by all of them.",
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
    threshold: str | None,
    prevalences: tuple[str, ...],
    columns: tuple[str, ...],
    any_modality: bool,
    as_json: bool,
) -> None:
    """Evaluate RUN: metrics with 95% intervals by patient, calibration, net benefit and subgroups.

    Writes metrics.json, metrics.csv, subgroups.csv, predictions.csv and evaluation.html.
    """
    from medtl.cli.terminal import TerminalWatcher, print_evaluation, print_refusals, say
    from medtl.evaluation.thresholds import parse_rule
    from medtl.workflows.evaluate import EvaluateOptions, evaluate_run

    options = EvaluateOptions(
        part,  # type: ignore[arg-type]
        parse_rule(threshold) if threshold else None,
        dict(map(_read_prevalence, prevalences)),
        columns or None,
    )
    with TerminalWatcher(f"medtl evaluate · {run}") as watcher:
        outcome = evaluate_run(
            run,
            data,
            labels,
            out,
            watcher,
            any_modality=any_modality,
            options=options,
        )
    if as_json:
        click.echo((out / "metrics.json").read_text(encoding="utf-8"), nl=False)
    else:
        print_evaluation(outcome.evaluation, "\nEvaluation")
        click.echo()
        say(f"page: {outcome.page}")
    print_refusals(outcome.refusals)
    ctx.exit(3 if outcome.refusals else 0)


def _read_prevalence(text: str) -> tuple[str, float]:
    """Read CLASS=SHARE, or SHARE alone for the positive class. Raises ConfigError config-value."""
    name, _, share = text.rpartition("=")
    try:
        return name, float(share)
    except ValueError as error:
        fix = "write 0.05, or CLASS=0.05"
        raise ConfigError("config-value", "is no share", where=f"--prevalence {text}", fix=fix) from error
