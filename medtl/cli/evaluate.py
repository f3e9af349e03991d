"""medtl evaluate, medtl compare: a run on labelled studies, and several runs side by side."""

from pathlib import Path
from typing import Any

import click

from medtl.cli import options
from medtl.cli.options import PATH
from medtl.errors import ConfigError


@click.command()
@click.argument("run", type=PATH)
@click.option("--data", type=PATH, required=True, help="Folder of studies, or a MedMNIST .npz.")
@options.labels
@click.option("--out", type=PATH, required=True, help="Folder for metrics.json and the page.")
@click.option(
    "--part",
    type=click.Choice(["unseen", "train", "val", "test", "all"]),
    default="unseen",
    help="unseen: all that the run was not trained on; train, val, test: a part of the run's own split.",
)
@click.option(
    "--threshold",
    metavar="RULE",
    help="Choose new thresholds on the run's validation data: youden, sensitivity=0.95, specificity=0.9, or "
    "cost=10:1 (a missed case to a false alarm). Default: the run's own.",
)
@click.option(
    "--prevalence",
    multiple=True,
    metavar="[CLASS=]SHARE",
    help="Also give PPV and NPV for this prevalence of the class; repeatable.",
)
@click.option(
    "--subgroup",
    "subgroups",
    multiple=True,
    metavar="COLUMN",
    help="A column of the label table, or sex, age or scanner of DICOM; repeatable. Default: all of them.",
)
@options.any_modality
@options.as_json("metrics.json")
def evaluate(run: Path, out: Path, as_json: bool, **settings: Any) -> int:
    """Evaluate RUN on labelled studies.

    Computes metrics with 95% intervals by patient, calibration, net benefit and subgroups. Writes
    metrics.json, metrics.csv, subgroups.csv, predictions.csv and evaluation.html.
    """
    from medtl.cli.terminal import TerminalWatcher, print_evaluation, print_refusals, say

    settings["prevalence"] = dict(map(_read_prevalence, settings["prevalence"]))
    settings["subgroups"] = settings["subgroups"] or None
    with TerminalWatcher(f"medtl evaluate · {run}") as watcher:
        from medtl.workflows import evaluate as workflow

        outcome = workflow.evaluate(run, out=out, watcher=watcher, **settings)
    if as_json:
        click.echo((out / "metrics.json").read_text(encoding="utf-8"), nl=False)
    else:
        print_evaluation(outcome.content, "\nEvaluation")
        click.echo()
        say(f"page: {outcome.page}")
    return print_refusals(outcome.refusals)


def _read_prevalence(text: str) -> tuple[str, float]:
    """Read CLASS=SHARE, or SHARE alone for the positive class. Raises ConfigError config-value."""
    name, _, share = text.rpartition("=")
    try:
        return name, float(share)
    except ValueError as error:
        fix = "write 0.05, or CLASS=0.05"
        raise ConfigError("config-value", "is not a share", where=f"--prevalence {text}", fix=fix) from error


@click.command()
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN RUN ...")
@click.option("--out", type=PATH, required=True, help="Folder for comparison.json, .csv and .html.")
@click.option("--reference", metavar="RUN", help="Compare the others with this run. Default: the first.")
@click.option("--common", is_flag=True, help="Compare on the samples that all runs have.")
@options.as_json("comparison.json")
def compare(runs: tuple[Path, ...], out: Path, reference: str | None, common: bool, as_json: bool) -> None:
    """Compare RUNs on the same samples.

    RUNs are folders of medtl train or medtl evaluate. Shows each metric with its interval, and the paired
    difference from the reference with p-values adjusted for the number of runs. Runs with different
    --label-budget give learning curves: how many labels transfer learning saves.

    \b
    medtl compare SCRATCH HEAD GRADUAL FULL --out DIR
    """
    from medtl.cli.terminal import TerminalWatcher

    if len(runs) < 2:
        raise click.UsageError("give two runs or more")
    with TerminalWatcher(f"medtl compare · {len(runs)} runs") as watcher:
        from medtl.workflows import compare as workflow

        outcome = workflow.compare(runs, out, reference=reference, common=common, watcher=watcher)
    if as_json:
        click.echo((out / "comparison.json").read_text(encoding="utf-8"), nl=False)
        return
    from medtl.report.comparison_page import difference_words, worth_sentence
    from medtl.report.findings import read_bounds
    from medtl.report.formatting import interval_text

    content = outcome.content
    counts, reference = content["counts"], content["reference"]
    click.echo(f"\n{counts['samples']} samples of {counts['patients']} patients; AUROC against {reference}")
    width = max(len(run["name"]) for run in content["runs"])
    for run in content["runs"]:
        area = interval_text(read_bounds(run["metrics"])["auroc"], content["confidence"])
        click.echo(f"  {run['name']:<{width}}  {area}{difference_words(run['differences'].get('auroc'))}")
    if sentence := worth_sentence(content):
        click.echo(f"\n{sentence}")
    click.echo(f"\npage: {outcome.page}")
