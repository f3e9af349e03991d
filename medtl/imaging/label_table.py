"""Read a label table as text: CSV of any usual encoding and delimiter, or Parquet -> rows of named cells."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medtl.errors import LINE_LIMIT, LabelError, SplitError

DELIMITERS = (",", ";", "\t")
NOT_UTF8 = "the label table is not UTF-8; it was read as Windows-1252: check letters with accents"


@dataclass(frozen=True)
class Row:
    """One row of a table: its number as a spreadsheet shows it (the header is row 1), and its cells."""

    number: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A label table as text, with a note for each thing that had to be guessed."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


class LabelRowsError(LabelError):
    """Rows of a label table are wrong: `problems` lists all of them, one line each, in order of the rows."""

    def __init__(self, problems: Sequence[str], where: Path) -> None:
        self.problems = tuple(map(_one_line, problems))
        more = f"{len(problems)} problems, the first: " if len(problems) > 1 else ""
        super().__init__("label-rows", more + self.problems[0], where=where, fix="mend the table")


class LeakRowsError(SplitError):
    """Rows of a label table put a patient into several parts: `problems` lists all of them."""

    def __init__(self, problems: Sequence[str], where: Path) -> None:
        self.problems = tuple(map(_one_line, problems))
        more = f" (and {len(problems) - 1} more patients)" if len(problems) > 1 else ""
        super().__init__("patient-leak", self.problems[0] + more, where=where, fix="split by patient_id")


def read_table(path: Path) -> Table:
    """Read a CSV (comma, semicolon or tab; UTF-8, UTF-16 with a mark, or Windows-1252) or Parquet table.

    Raises LabelError file-missing, file-unreadable, label-table; LabelRowsError for rows that are too long.
    """
    content = _read_bytes(path)
    if content.startswith(b"PAR1"):
        return _table_of_lines(path, _parquet_lines(path), ())
    text, notes = _decode(path, content)
    return _table_of_lines(path, _csv_lines(path, text), notes)


def compared_name(name: str) -> str:
    """Return a column name as it is compared: without case, spaces, "_" and "-"."""
    return re.sub(r"[\s_\-]+", "", name).casefold()


def table_error(path: Path, reason: str, fix: str) -> LabelError:
    """Return the error of a table that cannot be understood as a whole."""
    return LabelError("label-table", reason, where=path, fix=fix)


def _one_line(problem: str) -> str:
    """Return a problem as one printable line of no more than LINE_LIMIT characters."""
    text = " ".join("".join(mark if mark.isprintable() else " " for mark in problem).split())
    return text if len(text) <= LINE_LIMIT else text[: LINE_LIMIT - 1] + "…"


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise LabelError("file-missing", "no such label table", where=path, fix="check --labels") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise LabelError("file-unreadable", reason, where=path, fix="give a CSV file") from error


def _decode(path: Path, content: bytes) -> tuple[str, tuple[str, ...]]:
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding, notes in (("utf-16" if marked else "utf-8-sig", ()), ("cp1252", (NOT_UTF8,))):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, notes
    raise table_error(path, "is not text", "save the table as CSV in UTF-8")


def _csv_lines(path: Path, text: str) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text)))
    except csv.Error as error:
        raise table_error(path, f"is not CSV: {error}", "save the table as CSV") from error


def _delimiter(text: str) -> str:
    """Return the delimiter that gives the header the most columns."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _parquet_lines(path: Path) -> list[list[str]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        fix = "install pyarrow, or save the table as CSV"
        raise table_error(path, "Parquet needs pyarrow", fix) from error
    except (OSError, ValueError) as error:
        raise table_error(path, "is a damaged Parquet file", "save the table as CSV") from error
    cells = frame.astype("string").fillna("").to_numpy(dtype=str).tolist()
    return [[str(name) for name in frame.columns], *cells]


def _table_of_lines(path: Path, lines: list[list[str]], notes: tuple[str, ...]) -> Table:
    filled = [(number, line) for number, line in enumerate(lines, start=1) if any(map(str.strip, line))]
    if not filled:
        raise table_error(path, "is empty", "give a header and a row for each sample")
    header = [name.strip() for name in filled[0][1]]
    while not header[-1]:
        header.pop()
    _check_header(path, header)
    if len(filled) == 1:
        raise table_error(path, "has a header and no rows", "give a row for each sample")
    return Table(path, tuple(header), _rows(path, header, filled[1:]), notes)


def _check_header(path: Path, header: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in header:
        key = compared_name(name)
        if key in seen:
            pair = f"{seen[key]!r} and {name!r}"
            raise table_error(path, f"columns {pair} have the same name", "rename one of them")
        seen[key] = name


def _rows(path: Path, header: list[str], filled: list[tuple[int, list[str]]]) -> tuple[Row, ...]:
    rows, problems = [], []
    for number, line in filled:
        cells = [cell.strip() for cell in line]
        if any(cells[len(header) :]):
            problems.append(f"row {number}: {len(cells)} cells for {len(header)} columns")
        cells += [""] * (len(header) - len(cells))
        rows.append(Row(number, dict(zip(header, cells, strict=False))))
    if problems:
        raise LabelRowsError(problems, path)
    return tuple(rows)
