"""medtl report: HTML pages with saliency maps."""

from pathlib import Path
from typing import Any

import click

from medtl.cli import options
from medtl.cli.options import PATH


@click.command()
@click.argument("run", type=PATH)
@click.argument("source", type=PATH, required=False)
@click.option("--data", type=PATH, help="Without SOURCE: the folder RUN was trained on, to show images from.")
@click.option("--out", type=PATH, required=True, help="Folder for the pages.")
@options.methods
@click.option(
    "--check-images", type=click.IntRange(0), default=6, help="Images to check the maps on; 0: none."
)
@click.option("--audit", type=PATH, help="Quote this audit by medtl explain --audit instead of checking.")
@click.option("--labels", type=PATH, help="Label table of SOURCE: studies predicted differently come first.")
@click.option("--with-identifiers", is_flag=True, help="Name patients and files. Default: only hashes.")
@options.any_modality
def report(run: Path, source: Path | None, data: Path | None, out: Path, **settings: Any) -> int:
    """Write HTML pages about studies, or about RUN's training.

    With SOURCE (a folder, or the OUT of medtl score): a page for each study, and an index. Without SOURCE: a
    page about the training: curves, what was frozen when, validation, and the most confident mistakes.
    """
    from medtl.cli.terminal import TerminalWatcher, counted, say

    if source is not None and data is not None:
        raise click.UsageError("--data is for the report on a run: omit SOURCE, or --data")
    with TerminalWatcher(f"medtl report · {source or run}") as watcher:
        from medtl.workflows.report import report_folder, report_training

        if source is None:
            say(f"run: {report_training(run, out, data=data, watcher=watcher)}")
            return 0
        pages = report_folder(run, source, out, watcher=watcher, **settings)
    say(f"{counted(pages.studies, 'study', 'studies')}, {pages.refused} refused: {pages.index}")
    return 3 if pages.refused else 0
