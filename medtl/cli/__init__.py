"""FRONT DOOR: one file per command; each parses, calls one function and prints.

Exit codes: 0 success; 1 the command failed; 2 usage; 3 finished, with some inputs refused.
"""

import signal
import sys
from importlib import import_module
from typing import Any

import click

from medtl.core import __version__
from medtl.errors import AlreadyReportedError, MedtlError

# The commands, in the order in which one uses them, and the module of each; loaded when it is called.
COMMANDS = {
    "demo": "medtl.cli.demo",
    "inspect": "medtl.cli.inspect",
    "prepare": "medtl.cli.prepare",
    "train": "medtl.cli.train",
    "tune": "medtl.cli.tune",
    "evaluate": "medtl.cli.evaluate",
    "compare": "medtl.cli.evaluate",
    "score": "medtl.cli.score",
    "explain": "medtl.cli.explain",
    "report": "medtl.cli.report",
    "results": "medtl.cli.pacs",
    "pacs": "medtl.cli.pacs",
    "export": "medtl.cli.export",
    "backbones": "medtl.cli.weights",
    "weights": "medtl.cli.weights",
    "config": "medtl.cli.config",
}
PROBLEMS_SHOWN = 20
# Errors in the arguments.
USAGE = frozenset({"pacs-address"})


class FrontDoor(click.Group):
    """The commands; any error becomes one line and exit code 1, or 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Load a command."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[name]), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; print an error, or a stop, as one line, and exit with its code."""
        try:
            return super().invoke(ctx)
        except MedtlError as error:
            if not isinstance(error, AlreadyReportedError):  # by another process of torchrun
                _print_error(error)
            ctx.exit(2 if error.code in USAGE else getattr(error, "exit_code", 1))
        except KeyboardInterrupt as stop:
            again = " with --resume" if ctx.invoked_subcommand == "train" else ""
            line = f"medtl: [interrupted] stopped before it was finished: run the same command again{again}"
            click.echo(line, err=True)
            ctx.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))


@click.group(
    cls=FrontDoor, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="medtl")
@click.option(
    "--debug", is_flag=True, help="Show where libraries warn, without their text, which quotes files."
)
def main(debug: bool) -> None:
    """Medical transfer learning that people can trust.

    Turn a folder of X-ray or MRI studies and a label table into a classifier with honest metrics, saliency
    maps and reports. For research use only, not for diagnosis.
    """
    from medtl.core import parallel
    from medtl.core.library_warnings import quieten_libraries

    quieten_libraries(debug)
    signal.signal(signal.SIGTERM, _interrupt)
    parallel.keep_freed_memory()
    parallel.may_spawn = True


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(number)


def _print_error(error: MedtlError) -> None:
    from medtl.cli.terminal import say

    say(f"medtl: {error}", err=True)
    problems = getattr(error, "problems", ())
    for problem in problems[:PROBLEMS_SHOWN]:
        say(f"  {problem}", err=True)
    if len(problems) > PROBLEMS_SHOWN:
        click.echo(f"  and {len(problems) - PROBLEMS_SHOWN} more", err=True)
    sys.stderr.flush()
