"""Keep libraries from revealing what a file contains: their warnings and log lines quote its values.

By default none are shown. --debug shows the kind of each warning and the line of code that it came from, but
never its text.
"""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from medtl.errors import printable


def quieten_libraries(debug: bool) -> None:
    """Show only where libraries warn and log (debug), or nothing; here and in child processes."""
    if not debug:
        warnings.simplefilter("ignore")
    # Children show nothing in any case: their warnings would come with their text.
    os.environ["PYTHONWARNINGS"] = "ignore"
    warnings.showwarning = _show_place
    logging.lastResort = PlaceHandler(debug)


class PlaceHandler(logging.Handler):
    """Prints log records that no other handler takes: medtl's in full, others' by their place."""

    def __init__(self, debug: bool) -> None:
        super().__init__(logging.WARNING)
        self.debug = debug

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record of medtl, or the place of another one."""
        if record.name.split(".")[0] == "medtl":
            print(f"medtl: {printable(record.getMessage())}", file=sys.stderr)
        elif self.debug:
            _print_place(record.levelname.lower(), record.pathname, record.lineno)


def _show_place(
    message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    _print_place(category.__name__, filename, lineno)


def _print_place(kind: str, path: str, line: int) -> None:
    place = "/".join(Path(path).parts[-2:])
    print(f"medtl: debug: {kind} at {place}:{line}", file=sys.stderr)
