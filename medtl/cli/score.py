"""medtl score: score every study of a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medtl.core.stopping import StopSignal

if TYPE_CHECKING:
    from medtl.cli.terminal import TerminalWatcher
    from medtl.inference.predictor import Prediction
    from medtl.inference.streaming import ScoreOutcome

PATH = click.Path(path_type=Path)
FORMATS = click.Choice(["csv", "jsonl", "parquet"])


@click.command()
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the tables and the journal.")
@click.option("--with", "others", type=PATH, multiple=True, metavar="RUN", help="A run that judges, too.")
@click.option("--tta", is_flag=True, help="Average over mirror images, where training saw them.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="bf16 is faster on processors with bfloat16, and changes a probability by about 0.01 at most.",
)
@click.option(
    "--engine",
    type=click.Choice(["torch", "onnx"]),
    default="torch",
    show_default=True,
    help="onnx: ONNX Runtime if its logits agree, otherwise PyTorch.",
)
@click.option(
    "--format",
    "formats",
    type=FORMATS,
    multiple=True,
    default=("csv",),
    help="Which scores.* to write; repeatable. Default: csv.",
)
@click.option("--resume/--anew", default=True, help="Keep the rows of the journal in OUT (default), or not.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes. Default: one a processor.",
)
@click.option("--cluster", type=click.Choice(["ray"]), help="Judge on the cluster that RAY_ADDRESS names.")
@click.option("--watch", is_flag=True, help="Go on with what arrives in FOLDER, until it is stopped.")
@click.option(
    "--settle",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="With --watch: seconds for which a file must be left alone, and between looks.",
)
@click.option("--any-modality", is_flag=True, help="Take images whose files name another modality, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON on stdout.")
@click.pass_context
def score(
    ctx: click.Context,
    run: Path,
    folder: Path,
    out: Path,
    others: tuple[Path, ...],
    tta: bool,
    precision: str,
    engine: str,
    formats: tuple[str, ...],
    resume: bool,
    workers: int | None,
    cluster: str | None,
    watch: bool,
    settle: float,
    any_modality: bool,
    as_json: bool,
) -> None:
    """Score the series and images of FOLDER with RUN: one row each, probabilities or a refusal.

    Stopped or killed, the same command goes on where it was, to the same table.
    """
    from medtl.cli.terminal import TerminalWatcher, say
    from medtl.core.progress import StoppedError
    from medtl.inference.streaming import ScoreOptions
    from medtl.workflows.score import score_run, watch_run

    if watch and as_json:
        raise click.UsageError("--json prints one document when all is done; --watch is never done")
    if engine != "torch" and precision == "bf16":
        raise click.UsageError("--precision bf16 is PyTorch's: give --engine torch")
    options = ScoreOptions(
        others,
        any_modality,
        tta,
        precision,  # type: ignore[arg-type]
        engine,  # type: ignore[arg-type]
        formats,
        not resume,
        workers,
        cluster,  # type: ignore[arg-type]
    )
    stop = StopSignal()
    try:
        with stop, TerminalWatcher(f"medtl score · {folder}") as watcher:
            if watch:
                watch_run(run, folder, out, watcher, options, stop, settle)
            told = _Telling(watcher, as_json)
            outcome = score_run(run, folder, out, watcher, options, stop, told)
    except StoppedError as error:
        say(f"medtl: {error}", err=True)
        ctx.exit(stop.exit_code)
    except KeyboardInterrupt:
        fix = "rows so far are kept: the same command goes on"
        say(f"medtl: [interrupted] {out}: stopped by the user; {fix}", err=True)
        ctx.exit(stop.exit_code)
    told.show(outcome)
    ctx.exit(3 if outcome.refused else 0)


class _Telling:
    """Tells of refusals and oddities on stderr as rows come, and then of the whole on stdout."""

    def __init__(self, watcher: "TerminalWatcher", as_json: bool) -> None:
        self.watcher = watcher
        self.as_json = as_json
        self.unlike = 0
        self.rows: list[dict[str, Any]] = []

    def __call__(self, row: "Prediction") -> None:
        """Tell of a row, and keep it where all are to be printed."""
        from dataclasses import asdict

        from medtl.cli.terminal import print_refused_row, say
        from medtl.errors import printable

        self.watcher.remove_bar()
        self.unlike += row.ood not in ("", "ok")
        if row.status == "refused":
            print_refused_row(row)
        elif row.code:
            say(f"warning: [{row.code}] {printable(f'{row.source}: {row.reason}')}", err=True)
        if self.as_json:
            self.rows.append(asdict(row))

    def show(self, outcome: "ScoreOutcome") -> None:
        """Print the rows as JSON, or what they came to."""
        import json

        from medtl.cli.terminal import say

        if self.as_json:
            click.echo(json.dumps(self.rows, indent=2))
            return
        kept = f" ({outcome.kept} rows were there)" if outcome.kept else ""
        tables = ", ".join(map(str, outcome.tables))
        told = f" ({self.unlike} out of distribution, see column ood)" if self.unlike else ""
        reasons = "; ".join(f"{count} {reason}" for reason, count in outcome.scan.left_out.items())
        skipped = f"{outcome.skipped} other files skipped" + (f" ({reasons})" if reasons else "")
        say(f"{outcome.scored} scored{told}, {outcome.refused} refused, {skipped}{kept}: {tables}")
