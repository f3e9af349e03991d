"""medtl report: HTML pages with saliency maps."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=PATH)
@click.argument("source", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the pages.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="Saliency method; several stand side by side. Default: the one that suits the network.",
)
@click.option(
    "--check-images",
    type=click.IntRange(min=0),
    default=6,
    show_default=True,
    help="Check the methods on so many of the images, and say in words what came of it; 0 checks nothing.",
)
@click.option("--audit", type=PATH, help="Quote what medtl explain --audit wrote there in place of checking.")
@click.option("--with-identifiers", is_flag=True, help="Name the patients and files. Default: hashes alone.")
@click.option("--any-modality", is_flag=True, help="Take images whose files name another modality, too.")
@click.pass_context
def report(
    ctx: click.Context,
    run: Path,
    source: Path,
    out: Path,
    methods: tuple[str, ...],
    check_images: int,
    audit: Path | None,
    with_identifiers: bool,
    any_modality: bool,
) -> None:
    """Write a page for each study of SOURCE (a folder, or the OUT of medtl score), and an index."""
    from medtl.cli.terminal import TerminalWatcher
    from medtl.runs.report import ReportOptions, report_run

    options = ReportOptions(methods, audit, check_images, any_modality, with_identifiers)
    with TerminalWatcher(f"medtl report · {source}") as watcher:
        outcome = report_run(run, source, out, watcher, options)
    click.echo(f"{outcome.studies} studies, {outcome.refused} refused: {outcome.index}")
    ctx.exit(3 if outcome.refused else 0)
