"""medtl report: HTML pages with saliency maps."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=PATH)
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the pages.")
@click.option("--any-modality", is_flag=True, help="Take images whose files name another modality, too.")
@click.pass_context
def report(ctx: click.Context, run: Path, source: Path, out: Path, any_modality: bool) -> None:
    """Write a page for each study of SOURCE (a folder, or the OUT of medtl score), and an index."""
    from medtl.cli.terminal import TerminalWatcher
    from medtl.runs.report import report_run

    with TerminalWatcher(f"medtl report · {source}") as watcher:
        outcome = report_run(run, source, out, watcher, any_modality=any_modality)
    click.echo(f"{outcome.studies} studies, {outcome.refused} refused: {outcome.index}")
    ctx.exit(3 if outcome.refused else 0)
