"""Write tables of names and numbers as CSV: names that a spreadsheet would run are quoted, numbers never."""

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path

from medtl.imaging.storage import safe_cell, write_text


def write_table(path: Path, rows: Iterable[Iterable[str | float]]) -> None:
    """Write rows, header first, atomically. A number that is NaN, undefined, is an empty cell."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    write_text(path, lines.getvalue())


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return safe_cell(value)
    return "" if math.isnan(value) else repr(value)
