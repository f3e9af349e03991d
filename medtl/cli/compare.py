"""medtl compare: compare runs on the same samples."""

from pathlib import Path

import click

from medtl.cli import options
from medtl.cli.options import PATH


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
