"""FRONT DOOR: one file per command; each parses, calls one function and prints.

Exit codes: 0 all well; 1 the command failed; 2 usage; 3 finished, with some inputs refused.
"""

import signal
import sys
from typing import Any

import click

from medtl import __version__
from medtl.cli.compare import compare
from medtl.cli.config import config
from medtl.cli.demo import demo
from medtl.cli.evaluate import evaluate
from medtl.cli.explain import explain
from medtl.cli.export import export
from medtl.cli.inspect import inspect
from medtl.cli.libraries import quieten_libraries
from medtl.cli.pacs import pacs, results
from medtl.cli.prepare import prepare
from medtl.cli.report import report
from medtl.cli.score import score
from medtl.cli.terminal import say
from medtl.cli.train import train
from medtl.cli.tune import tune
from medtl.cli.weights import backbones, weights
from medtl.core.parallel import allow_spawning, keep_freed_memory
from medtl.errors import MedtlError

PROBLEMS_SHOWN = 20
# Faults in what an option says, and in nothing else.
USAGE = frozenset({"pacs-address"})


class FrontDoor(click.Group):
    """The commands in the order in which one uses them; any fault becomes one line and exit code 1, or 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Keep the order of add_command."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; print a fault as one line, also a stop that the command itself does not answer."""
        try:
            return super().invoke(ctx)
        except MedtlError as error:
            _print_error(error)
            ctx.exit(2 if error.code in USAGE else getattr(error, "exit_code", 1))
        except KeyboardInterrupt as stop:
            click.echo(
                "medtl: [interrupted] stopped before it was done: run the same command again", err=True
            )
            ctx.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))


@click.group(
    cls=FrontDoor, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="medtl")
@click.option(
    "--debug", is_flag=True, help="Show where libraries warn; never their words, which quote files."
)
def main(debug: bool) -> None:
    """Medical transfer learning that people can trust.

    From a folder of X-ray or MRI studies and a label table to a classifier with honest numbers, saliency maps
    and reports. Research use only, not for diagnosis.
    """
    quieten_libraries(debug)
    signal.signal(signal.SIGTERM, _interrupt)
    keep_freed_memory()
    allow_spawning()


COMMANDS = (
    *(demo, inspect, prepare, train, tune, evaluate, compare, score, explain, report, results),
    *(pacs, export, backbones, weights, config),
)
for command in COMMANDS:
    main.add_command(command)


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(number)


def _print_error(error: MedtlError) -> None:
    say(f"medtl: {error}", err=True)
    problems = getattr(error, "problems", ())
    for problem in problems[:PROBLEMS_SHOWN]:
        say(f"  {problem}", err=True)
    if len(problems) > PROBLEMS_SHOWN:
        click.echo(f"  and {len(problems) - PROBLEMS_SHOWN} more", err=True)
    sys.stderr.flush()
