"""Keep libraries from telling what a file holds: their warnings and log lines quote its values.

By default nothing of theirs is shown. --debug shows who warned, of which kind and on which line of its code,
where the words can be looked up; the words themselves stay unsaid.
"""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TextIO


def quieten_libraries(debug: bool) -> None:
    """Let warnings and logs of libraries show their place alone (debug), or nothing; here and in children."""
    if not debug:
        warnings.simplefilter("ignore")
    # Of children nothing is shown in any case: their warnings come with all words.
    os.environ["PYTHONWARNINGS"] = "ignore"
    warnings.showwarning = _show_place
    logging.lastResort = PlaceHandler(debug)


class PlaceHandler(logging.Handler):
    """What logging takes for loggers without a handler: medtl's warnings in full, others' by their place."""

    def __init__(self, debug: bool) -> None:
        super().__init__(logging.WARNING)
        self.debug = debug

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record of medtl's, or the place of another one."""
        from medtl.errors import printable

        if record.name.split(".")[0] == "medtl":
            print(f"medtl: {printable(record.getMessage())}", file=sys.stderr)
        elif self.debug:
            _print_place(record.levelname.lower(), record.pathname, record.lineno)


def _show_place(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _print_place(category.__name__, filename, lineno)


def _print_place(kind: str, path: str, line: int) -> None:
    place = "/".join(Path(path).parts[-2:])
    print(f"medtl: debug: {kind} at {place}:{line}", file=sys.stderr)
