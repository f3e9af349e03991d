"""medtl report: HTML pages with saliency maps."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=PATH)
@click.argument("source", type=PATH, required=False)
@click.option(
    "--data", type=PATH, help="Without SOURCE: the folder that RUN was trained on, to show images from."
)
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
@click.option("--labels", type=PATH, help="Label table of SOURCE: studies that differ from it come first.")
@click.option("--with-identifiers", is_flag=True, help="Name the patients and files. Default: hashes alone.")
@click.option("--any-modality", is_flag=True, help="Take images whose files name another modality, too.")
@click.pass_context
def report(
    ctx: click.Context,
    run: Path,
    source: Path | None,
    data: Path | None,
    out: Path,
    methods: tuple[str, ...],
    check_images: int,
    audit: Path | None,
    labels: Path | None,
    with_identifiers: bool,
    any_modality: bool,
) -> None:
    """Write a page for each study of SOURCE (a folder, or the OUT of medtl score), and an index.

    Without SOURCE, write a page on the training of RUN: curves, what was frozen when, validation, and the
    most confidently wrong images.
    """
    from medtl.cli.terminal import TerminalWatcher, counted, say
    from medtl.workflows.report import ReportOptions, report_run, report_training

    if source is None:
        with TerminalWatcher(f"medtl report · {run}") as watcher:
            click.echo(f"run: {report_training(run, out, watcher, data)}")
        return
    if data is not None:
        raise click.UsageError("--data is for the report on a run: leave SOURCE out, or --data")
    options = ReportOptions(methods, audit, check_images, labels, any_modality, with_identifiers)
    with TerminalWatcher(f"medtl report · {source}") as watcher:
        outcome = report_run(run, source, out, watcher, options)
    say(f"{counted(outcome.studies, 'study', 'studies')}, {outcome.refused} refused: {outcome.index}")
    ctx.exit(3 if outcome.refused else 0)
