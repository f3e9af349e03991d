"""medtl results: what goes back to the PACS about each study."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
KINDS = ("sr", "sc", "map", "fhir")


@click.command()
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the objects, outside FOLDER.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(KINDS),
    multiple=True,
    help="Write this kind alone; may be repeated. [default: all]",
)
@click.option(
    "--method",
    help="Saliency method of overlay and map. Default: grad-cam, or integrated-gradients for transformers.",
)
@click.option("--any-modality", is_flag=True, help="Take images whose files name another modality, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON on stdout.")
@click.pass_context
def results(
    ctx: click.Context,
    run: Path,
    folder: Path,
    out: Path,
    kinds: tuple[str, ...],
    method: str | None,
    any_modality: bool,
    as_json: bool,
) -> None:
    """Score the DICOM studies of FOLDER with RUN, and write what goes back to the PACS about each.

    sr: the classification as a Structured Report; sc: the heatmap over the image as a Secondary Capture;
    map: the heatmap of a volume as a Parametric Map; fhir: a DiagnosticReport. They hold the patient data of
    their study; research use only.
    """
    import json
    from dataclasses import asdict

    from medtl.cli.terminal import TerminalWatcher, print_refused_rows, say
    from medtl.runs.common import load_finished
    from medtl.runs.results import write_results

    with TerminalWatcher(f"medtl results · {folder}") as watcher:
        checkpoint = load_finished(run, any_modality=any_modality)
        outcome = write_results(checkpoint, folder, out, watcher, kinds=kinds or KINDS, method=method)
    refused = [row.prediction for row in outcome.rows if row.refused]
    print_refused_rows(refused, outcome.table)
    if as_json:
        rows = [{**asdict(row.prediction), "files": row.files} for row in outcome.rows]
        click.echo(json.dumps(rows, indent=2))
    else:
        files = sum(len(row.files) for row in outcome.rows)
        series = sum(bool(row.files) for row in outcome.rows)
        unlike = sum(row.prediction.screening not in ("", "ok") for row in outcome.rows)
        told = f" ({unlike} not like the training images: the objects say so)" if unlike else ""
        say(f"{files} objects about {series} series{told}, {len(refused)} refused: {outcome.table}")
    ctx.exit(3 if refused else 0)
