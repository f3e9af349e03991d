"""Read a label table as text: CSV of any delimiter, or Parquet -> rows of named cells."""

import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medtl.core.files import PathLike
from medtl.data.encodings import EncodingError, decode
from medtl.data.task import TaskConfig
from medtl.errors import LINE_LIMIT, LabelError, SplitError, one_line

DELIMITERS = (",", ";", "\t")
CLASS_PREFIX = "label_"
# How Excel's files begin: zip, and the container of older versions.
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")

# What other tables call a column, as compared_name returns it.
SERIES_NAMES = ("seriesuid", "seriesinstanceuid")
STUDY_NAMES = ("studyuid", "studyinstanceuid")
PATIENT_NAMES = ("patient", "patientid", "patientname", "subject", "subjectid", "participantid", "mrn", "pid")
IDENTIFIERS = {*PATIENT_NAMES, *SERIES_NAMES, *STUDY_NAMES, "sopuid", "sopinstanceuid", "instanceuid"}


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
        self.problems = tuple(one_line(problem, LINE_LIMIT) for problem in problems)
        more = f"{len(problems)} problems, the first: " if len(problems) > 1 else ""
        super().__init__("label-rows", more + self.problems[0], where=where, fix="correct the table")


class LeakRowsError(SplitError):
    """Rows of a label table put a patient into several parts: `problems` lists all of them."""

    def __init__(self, problems: Sequence[str], where: Path) -> None:
        self.problems = tuple(one_line(problem, LINE_LIMIT) for problem in problems)
        more = f" (and {len(problems) - 1} more patients)" if len(problems) > 1 else ""
        super().__init__("patient-leak", self.problems[0] + more, where=where, fix="split by patient_id")


def load_table(path: PathLike, encoding: str | None = None) -> Table:
    """Read a CSV (comma, semicolon or tab) or Parquet table.

    encoding: of a CSV without a byte order mark; by default UTF-8, or Windows-1252 where that is certain.

    Raises LabelError file-missing, file-unreadable, label-table; LabelRowsError for rows that are too long.

    >>> import medtl
    >>> medtl.load_table(medtl.sample_data("xray") / "labels.csv").columns[:2]
    ('path', 'label')
    """
    path = Path(path)
    content = read_table(path)
    if content.startswith(b"PAR1"):
        return _table_of_lines(path, _parquet_lines(path), ())
    if content.startswith(WORKBOOKS):
        raise table_error(path, "is a spreadsheet file, not CSV", "save it from there as CSV UTF-8")
    try:
        text, notes = decode(content, encoding)
    except EncodingError as error:
        raise table_error(path, *error.args) from error
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise table_error(path, f"is not CSV: {error}", "save the table as CSV") from error
    return _table_of_lines(path, lines, notes)


def read_table(path: Path) -> bytes:
    """Return the bytes of a label table. Raises LabelError file-missing, file-unreadable."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise LabelError("file-missing", "no such label table", where=path, fix="check --labels") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise LabelError("file-unreadable", reason, where=path, fix="give a CSV file") from error


def compared_name(name: str) -> str:
    """Return a column name as it is compared: without case, spaces, "_" and "-"."""
    return re.sub(r"[\s_\-]+", "", one_form(name)).casefold()


def one_form(text: str) -> str:
    """Return a text in Unicode's composed form: é may be one character or two, and looks the same."""
    return unicodedata.normalize("NFC", text)


def in_one_form(table: Table, locator: str, names: Iterable[str]) -> Table:
    """Return a table whose cells are in one form, which is that of `names` for these.

    Paths and UIDs, in the column `locator`, stay as they are: file names differ by their form.
    """
    forms = {one_form(name): name for name in names}
    rows = []
    for row in table.rows:
        cells = {name: forms.get(one_form(cell), one_form(cell)) for name, cell in row.cells.items()}
        rows.append(replace(row, cells={**cells, locator: row.cells[locator]}))
    return replace(table, rows=tuple(rows))


def table_error(path: Path, reason: str, fix: str) -> LabelError:
    """Return the error of a table that cannot be understood as a whole."""
    return LabelError("label-table", reason, where=path, fix=fix)


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
    if len(filled) < 2:
        reason = "has a header and no rows" if filled else "is empty"
        raise table_error(path, reason, "give a header and a row for each sample")
    header = [one_form(name.strip()) for name in filled[0][1]]
    while not header[-1]:
        header.pop()
    seen: dict[str, str] = {}
    for name in header:
        key = compared_name(name)
        if key in seen:
            pair = f"{seen[key]!r} and {name!r}"
            raise table_error(path, f"columns {pair} have the same name", "rename one of them")
        seen[key] = name
    return Table(path, tuple(header), _rows(path, header, filled[1:]), notes)


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


@dataclass(frozen=True)
class Columns:
    """Which column says what. label is None where `classes` maps each class to a column of its own."""

    locator: str
    located_by: Literal["path", "uid"]
    label: str | None
    classes: Mapping[str, str]
    patient: str | None
    study: str | None
    split: str | None
    attributes: tuple[str, ...]


def assign_columns(table: Table, config: TaskConfig) -> Columns:
    """Decide which column says what. Raises LabelError label-table, which names the columns found."""
    by_name = {compared_name(name): name for name in table.columns}
    path = by_name.get(compared_name(config.path_column))
    uids = [by_name[name] for name in (*SERIES_NAMES, *STUDY_NAMES) if name in by_name]
    if not path and not uids:
        names = (config.path_column, "series_uid", "study_uid")
        raise _missing_column(table, "{}, {} or {}".format(*names), names, "task.path_column")
    label, classes = _label_columns(table, by_name, config)
    patient, study, split = map(by_name.get, (compared_name(config.patient_column), "studyid", "split"))
    used = {path, *uids, label, *classes.values(), patient, study, split}
    attributes = tuple(
        name for name in table.columns if name not in used and compared_name(name) not in IDENTIFIERS
    )
    return Columns(
        path or uids[0], "path" if path else "uid", label, classes, patient, study, split, attributes
    )


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Return names as a phrase that stays short however many they are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _label_columns(
    table: Table, by_name: Mapping[str, str], config: TaskConfig
) -> tuple[str | None, Mapping[str, str]]:
    """Return the label column, or the column of each class; never guess that a 0/1 column is a class."""
    label = by_name.get(compared_name(config.label_column))
    if config.kind != "multilabel" and (label or config.kind):
        if label is None:
            raise _missing_column(table, config.label_column, (config.label_column,), "task.label_column")
        return label, {}
    classes = _class_columns(table, by_name, config)
    if len(classes) < 2:
        needed = f"{config.label_column}, and no two columns {CLASS_PREFIX}<class>"
        raise _missing_column(table, needed, (config.label_column,), "task.label_column or task.classes")
    return None, classes


def _class_columns(table: Table, by_name: Mapping[str, str], config: TaskConfig) -> dict[str, str]:
    if config.classes is None:
        prefixed = [name for name in table.columns if name.casefold().startswith(CLASS_PREFIX)]
        return {name[len(CLASS_PREFIX) :]: name for name in prefixed if name.casefold() != CLASS_PREFIX}
    found = {
        name: by_name.get(compared_name(CLASS_PREFIX + name)) or by_name.get(compared_name(name))
        for name in config.classes
    }
    absent = [name for name, column in found.items() if column is None]
    if absent:
        raise _missing_column(table, f"for class {listed(absent)}", absent, "task.classes")
    return {name: column for name, column in found.items() if column}


def _missing_column(table: Table, needed: str, names: Iterable[str], setting: str) -> LabelError:
    near = [hit for name in names for hit in difflib.get_close_matches(name, table.columns, n=1, cutoff=0.5)]
    fix = f"did you mean {near[0]!r}? set {setting}" if near else f"rename a column, or set {setting}"
    return table_error(table.path, f"no column {needed}; found: {listed(table.columns)}", fix)
