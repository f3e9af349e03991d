"""medtl score: score every study of a folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medtl.cli import options
from medtl.cli.options import PATH
from medtl.core.progress import StopSignal

if TYPE_CHECKING:
    from medtl.cli.terminal import TerminalWatcher
    from medtl.inference.predictor import Prediction
    from medtl.inference.streaming import ScoreOutcome

FORMATS = click.Choice(["csv", "jsonl", "parquet"])


@click.command()
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for the tables and the journal.")
@click.option("--with", "others", type=PATH, multiple=True, metavar="RUN", help="Average with this run.")
@click.option("--tta", is_flag=True, help="Average over mirror images, if training used them.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    help="bf16 is faster on CPUs with bfloat16, and changes a probability by about 0.01 at most.",
)
@click.option(
    "--engine",
    type=click.Choice(["torch", "onnx"]),
    default="torch",
    help="onnx: ONNX Runtime if its logits agree, otherwise PyTorch.",
)
@click.option(
    "--format",
    "formats",
    type=FORMATS,
    multiple=True,
    default=("csv",),
    help="Format of the table; repeatable.",
)
@click.option("--overwrite/--resume", default=False, help="Score all again, or reuse the rows in OUT.")
@click.option("--workers", type=click.IntRange(1), help="Processes. Default: one for each CPU.")
@click.option("--cluster", type=click.Choice(["ray"]), help="Score on the cluster that RAY_ADDRESS names.")
@click.option("--watch", is_flag=True, help="Keep scoring what arrives in FOLDER, until stopped.")
@click.option(
    "--settle",
    type=click.FloatRange(min=0.1),
    default=5.0,
    help="With --watch: seconds for which a file must be unchanged, and between looks.",
)
@options.any_modality
@options.as_json("the rows as JSON")
def score(run: Path, folder: Path, out: Path, as_json: bool, **settings: Any) -> int:
    """Score the studies of FOLDER with RUN.

    Each series or image gets one row: probabilities, or the reason why it was refused. If it is stopped or
    killed, the same command resumes and writes the same table.
    """
    from medtl.cli.terminal import TerminalWatcher

    if settings["watch"] and as_json:
        raise click.UsageError("--json prints one document at the end, and --watch has no end")
    if settings["engine"] != "torch" and settings["precision"] == "bf16":
        raise click.UsageError("--precision bf16 needs --engine torch")
    with StopSignal() as stop, TerminalWatcher(f"medtl score · {folder}") as watcher:
        from medtl.workflows.score import score_folder

        printer = _RowPrinter(watcher, as_json)
        outcome = score_folder(run, folder, out, watcher=watcher, stop=stop, on_row=printer, **settings)
    printer.finish(outcome)
    return 3 if outcome.refused else 0


class _RowPrinter:
    """Prints refusals and warnings on stderr as rows come, and a summary on stdout."""

    def __init__(self, watcher: "TerminalWatcher", as_json: bool) -> None:
        self.watcher = watcher
        self.as_json = as_json
        self.unlike = 0
        self.rows: list[Prediction] = []

    def __call__(self, row: "Prediction") -> None:
        """Print a row's line, if it has one, and store the row where all are to be printed."""
        from medtl.cli.terminal import print_refusal, say
        from medtl.errors import printable

        self.watcher.remove_bar()
        self.unlike += row.ood not in ("", "ok")
        if row.status == "refused":
            print_refusal(row)
        elif row.code:
            say(f"warning: [{row.code}] {printable(f'{row.source}: {row.reason}')}", err=True)
        if self.as_json:
            self.rows.append(row)

    def finish(self, outcome: "ScoreOutcome") -> None:
        """Print the rows as JSON, or a summary."""
        from medtl.cli.terminal import print_json, say

        if self.as_json:
            print_json(self.rows)
            return
        before = f" ({outcome.kept} rows were already there)" if outcome.kept else ""
        tables = ", ".join(map(str, outcome.tables))
        unlike = f" ({self.unlike} out of distribution, see column ood)" if self.unlike else ""
        left_out = outcome.scan.left_out
        reasons = [
            f"{reason}: {count}" if len(left_out) > 1 else reason for reason, count in left_out.items()
        ]
        skipped = f"{outcome.skipped} skipped" + (f" ({', '.join(reasons)})" if reasons else "")
        say(f"{outcome.scored} scored{unlike}, {outcome.refused} refused, {skipped}{before}: {tables}")
