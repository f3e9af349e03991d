"""medtl score: score every study of a folder."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for scores.csv.")
@click.option("--any-modality", is_flag=True, help="Take images whose files name another modality, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON on stdout.")
@click.pass_context
def score(ctx: click.Context, run: Path, folder: Path, out: Path, any_modality: bool, as_json: bool) -> None:
    """Score the series and images of FOLDER with RUN: one row each, probabilities or a refusal."""
    import json
    from dataclasses import asdict

    from medtl.cli.terminal import TerminalWatcher
    from medtl.runs.score import score_run

    with TerminalWatcher(f"medtl score · {folder}") as watcher:
        outcome = score_run(run, folder, out, watcher, any_modality=any_modality)
    refused = [row for row in outcome.predictions if row.status == "refused"]
    for row in refused:
        click.echo(f"refused: [{row.code}] {row.source}: {row.reason}: {row.fix}", err=True)
    for row in outcome.predictions:
        if row.status == "scored" and row.code:
            click.echo(f"warning: [{row.code}] {row.source}: {row.reason}", err=True)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in outcome.predictions], indent=2))
    else:
        scored = len(outcome.predictions) - len(refused)
        unlike = sum(row.screening not in ("", "ok") for row in outcome.predictions)
        told = f" ({unlike} not like the training images, see screening)" if unlike else ""
        rest = f"{len(refused)} refused, {outcome.skipped} other files skipped"
        click.echo(f"{scored} scored{told}, {rest}: {outcome.table}")
    ctx.exit(3 if refused else 0)
