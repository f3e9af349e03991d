"""Samples and the task they are for, read from a label table with every problem listed at once.

labels.csv -> Table -> each row located in the scan of its folder -> Samples of a Task
archive.npz (its labels are inside)                                -> Samples of a Task
"""

import csv
import difflib
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from medtl.errors import LINE_LIMIT, LabelError, ReadError, SplitError
from medtl.imaging.deidentify import hash_identifier
from medtl.imaging.formats.medmnist import archive_labels
from medtl.imaging.series import Scan, Series, scan

TaskKind = Literal["binary", "multiclass", "multilabel"]
Split = Literal["train", "val", "test"]
Target = int | tuple[float | None, ...]
LocatedBy = Literal["path", "series_uid", "study_uid"]

LABELS_FILE = "labels.csv"
CLASS_PREFIX = "label_"
DELIMITERS = (",", ";", "\t")
NOT_UTF8 = "the label table is not UTF-8; it was read as {}: check letters with accents"
FLAGS = {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}

# What other tables call a column: names are compared without case, spaces, "_" and "-".
UID_NAMES = {"series_uid": ("seriesuid", "seriesinstanceuid"), "study_uid": ("studyuid", "studyinstanceuid")}
PATIENT_NAMES = ("patient", "patientid", "patientname", "subject", "subjectid", "participantid", "mrn", "pid")
IDENTIFIERS = {*PATIENT_NAMES, *sum(UID_NAMES.values(), ()), "sopuid", "sopinstanceuid", "instanceuid"}

# Names of the class that means "nothing there", most certain first: it comes before the others.
NEGATIVES = (
    *("normal", "none", "negative", "neg", "no", "healthy", "control", "controls", "absent", "nothing"),
    *("nofinding", "nofindings", "notumor", "notumour", "0", "false", "benign"),
)
NEGATING_WORDS = ("no", "non", "not", "without")


@dataclass(frozen=True)
class Task:
    """What is to be told apart.

    binary and multiclass: one class per sample; in binary the last class is the positive one.
    multilabel: any set of classes per sample, each of them possibly unlabelled.
    """

    kind: TaskKind
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """One labelled (or unlabelled) unit.

    target: class index for binary and multiclass; for multilabel one of 1.0, 0.0 or None (not labelled) per
    class; None for an unlabelled sample. patient_id and study_id are for grouping and are never shown.
    """

    sample_id: str
    series: Series
    patient_id: str
    study_id: str = ""
    target: int | tuple[float | None, ...] | None = None
    split: Split | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


class TaskConfig(BaseModel):
    """What the user says of the task; the label table says the rest.

    classes: in the order of the outputs; in binary the last one is positive. Needed for a table with one
    column per class, unless those columns are named label_<class>.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    kind: TaskKind | None = None
    classes: tuple[str, ...] | None = None
    label_column: str = "label"
    path_column: str = "path"
    patient_column: str = "patient_id"

    @model_validator(mode="after")
    def _classes_fit(self) -> "TaskConfig":
        classes = self.classes
        if classes is None:
            return self
        if len(set(classes)) != len(classes) or not all(name.strip() == name != "" for name in classes):
            raise ValueError("classes must be different, and neither empty nor padded with spaces")
        if len(classes) < 2 or (self.kind == "binary" and len(classes) != 2):
            raise ValueError(
                f"{self.kind or 'a'} task with {len(classes)} classes: name two or more (binary: two)"
            )
        if any("|" in name for name in classes):
            raise ValueError("a class name may not hold '|'")
        return self


@dataclass(frozen=True)
class Manifest:
    """The samples of one task. notes: one plain line for each thing that the user should know of them.

    refusals: labelled inputs that were found and cannot be read; no sample stands for them.
    """

    task: Task
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    refusals: tuple[ReadError, ...] = ()


def _one_line(problem: str) -> str:
    """Return a problem as one printable line of no more than LINE_LIMIT characters."""
    text = " ".join("".join(mark if mark.isprintable() else " " for mark in problem).split())
    return text if len(text) <= LINE_LIMIT else text[: LINE_LIMIT - 1] + "…"


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


def load_manifest(data: Path, labels: Path | None, config: TaskConfig) -> Manifest:
    """Read what the samples of a folder, file or archive are, from a label table or from the archive itself.

    Without `labels` the folder's labels.csv is used, or the labels inside a MedMNIST archive. A table has a
    column `path` (relative to the folder; for an item of an archive "file.npz#train/17"), `series_uid` or
    `study_uid`; a column `label`, or one 0/1/empty column per class (TaskConfig.classes, or named
    label_<class>); optionally `patient_id`, `study_id`, `split`; every other column is an attribute.

    Raises LabelError label-table; LabelRowsError, with all problems; LeakRowsError; ReadError of the scan.
    """
    if labels is None and (data / LABELS_FILE).is_file():
        labels = data / LABELS_FILE
    if labels is None:
        return _manifest_of_archive(data, config)
    table = read_table(labels)
    columns = assign_columns(table, config)
    return _manifest_of_table(Source(table, columns, config, Folder(data, scan(data))))


def targets(task: Task, samples: Sequence[Sample]) -> NDArray:
    """Return the targets as an array: int64 (N,), or float32 (N, K) with NaN where a class is not labelled.

    Raises LabelError label-rows for a sample without a label.
    """
    bare = sum(sample.target is None for sample in samples)
    if bare:
        raise LabelError("label-rows", f"{bare} of {len(samples)} samples have no label", fix="label them")
    values = [sample.target for sample in samples]
    if task.kind == "multilabel":
        return np.array(values, dtype=np.float32).reshape(len(samples), len(task.classes))
    return np.array(values, dtype=np.int64)


def source_name(series: Series, root: Path) -> str:
    """Name a series by its path relative to `root` (to its folder, where it is a file), with its item."""
    base = root if root.is_dir() else root.parent
    name = series.path.name if series.path == base else _relative(series.path, base)
    return f"{name}#{series.item}" if series.item else name


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


def read_table(path: Path) -> Table:
    """Read a CSV (comma, semicolon or tab; UTF-8, UTF-16 with a mark, or cp1252) or Parquet table as text.

    Raises LabelError file-missing, file-unreadable, label-table; LabelRowsError for rows of another length.
    """
    content = _read_bytes(path)
    if content.startswith(b"PAR1"):
        return _table_of_lines(path, _parquet_lines(path), ())
    if content.startswith(b"PK\x03\x04"):
        raise _table_error(path, "is a spreadsheet or an archive", "save the table as CSV")
    text, notes = _decode(content)
    if "\0" in text:
        raise _table_error(path, "is not text", "save the table as CSV")
    return _table_of_lines(path, _csv_lines(path, text), notes)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise LabelError("file-missing", "no such label table", where=path, fix="check --labels") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise LabelError("file-unreadable", reason, where=path, fix="give a CSV file") from error


def _decode(content: bytes) -> tuple[str, tuple[str, ...]]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace"), ()
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return text, () if encoding == "utf-8-sig" else (NOT_UTF8.format("Windows-1252"),)
    return content.decode("latin-1"), (NOT_UTF8.format("Latin-1"),)


def _csv_lines(path: Path, text: str) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text)))
    except csv.Error as error:
        raise _table_error(path, f"is not CSV: {error}", "save the table as CSV") from error


def _delimiter(text: str) -> str:
    """Return the delimiter that gives the header the most columns."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _parquet_lines(path: Path) -> list[list[str]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise _table_error(
            path, "Parquet needs pyarrow", "install pyarrow, or save the table as CSV"
        ) from error
    except (OSError, ValueError) as error:
        raise _table_error(path, "is a damaged Parquet file", "save the table as CSV") from error
    cells = frame.astype("string").fillna("").to_numpy(dtype=str).tolist()
    return [[str(name) for name in frame.columns], *cells]


def _table_of_lines(path: Path, lines: list[list[str]], notes: tuple[str, ...]) -> Table:
    filled = [(number, line) for number, line in enumerate(lines, start=1) if any(map(str.strip, line))]
    if not filled:
        raise _table_error(path, "is empty", "give a header and a row for each sample")
    header = [name.strip() for name in filled[0][1]]
    while header and not header[-1]:
        header.pop()
    _check_header(path, header)
    if len(filled) == 1:
        raise _table_error(path, "has a header and no rows", "give a row for each sample")
    return Table(path, tuple(header), _rows(path, header, filled[1:]), notes)


def _check_header(path: Path, header: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in header:
        if _key(name) in seen:
            pair = f"{seen[_key(name)]!r} and {name!r}"
            raise _table_error(path, f"columns {pair} have the same name", "rename one of them")
        seen[_key(name)] = name


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


def _key(name: str) -> str:
    """Return a column name as it is compared: without case, spaces, "_" and "-"."""
    return re.sub(r"[\s_\-]+", "", name).casefold()


def _table_error(path: Path, reason: str, fix: str) -> LabelError:
    return LabelError("label-table", reason, where=path, fix=fix)


@dataclass(frozen=True)
class Columns:
    """Which column says what. label is None where `classes` maps each class to a column of its own."""

    locator: str
    located_by: LocatedBy
    label: str | None
    classes: Mapping[str, str]
    patient: str | None
    study: str | None
    split: str | None
    attributes: tuple[str, ...]


def assign_columns(table: Table, config: TaskConfig) -> Columns:
    """Decide which column says what. Raises LabelError label-table, which names the columns found."""
    by_key = {_key(name): name for name in table.columns}
    locators: dict[LocatedBy, str | None] = {
        "path": by_key.get(_key(config.path_column)),
        "series_uid": _first(by_key, UID_NAMES["series_uid"]),
        "study_uid": _first(by_key, UID_NAMES["study_uid"]),
    }
    found = [(kind, name) for kind, name in locators.items() if name]
    if not found:
        wanted = f"{config.path_column}, series_uid or study_uid"
        raise _missing_column(table, wanted, (config.path_column, *UID_NAMES), "task.path_column")
    label, classes = _label_columns(table, by_key, config)
    patient, study, split = (by_key.get(key) for key in (_key(config.patient_column), "studyid", "split"))
    used = {*locators.values(), label, *classes.values(), patient, study, split}
    others = tuple(name for name in table.columns if name not in used and _key(name) not in IDENTIFIERS)
    (located_by, locator), *_ = found
    return Columns(locator, located_by, label, classes, patient, study, split, others)


def _first(by_key: Mapping[str, str], keys: Iterable[str]) -> str | None:
    return next((by_key[key] for key in keys if key in by_key), None)


def _label_columns(
    table: Table, by_key: Mapping[str, str], config: TaskConfig
) -> tuple[str | None, Mapping[str, str]]:
    """Return the label column, or the column of each class; never guess that a 0/1 column is a class."""
    label = by_key.get(_key(config.label_column))
    if config.kind != "multilabel" and (label or config.kind):
        if label is None:
            raise _missing_column(table, config.label_column, (config.label_column,), "task.label_column")
        return label, {}
    classes = _class_columns(table, by_key, config)
    if len(classes) < 2:
        wanted = f"{config.label_column}, and no two columns {CLASS_PREFIX}<class>"
        raise _missing_column(table, wanted, (config.label_column,), "task.label_column or task.classes")
    return None, classes


def _class_columns(table: Table, by_key: Mapping[str, str], config: TaskConfig) -> dict[str, str]:
    if config.classes is None:
        prefixed = [name for name in table.columns if name.casefold().startswith(CLASS_PREFIX)]
        return {name[len(CLASS_PREFIX) :]: name for name in prefixed if name[len(CLASS_PREFIX) :]}
    columns = {name: _first(by_key, (_key(CLASS_PREFIX + name), _key(name))) for name in config.classes}
    absent = [name for name, column in columns.items() if column is None]
    if absent:
        raise _missing_column(table, f"for class {_listed(absent)}", absent, "task.classes")
    return {name: column for name, column in columns.items() if column}


def _missing_column(table: Table, wanted: str, names: Iterable[str], setting: str) -> LabelError:
    near = [hit for name in names for hit in difflib.get_close_matches(name, table.columns, n=1, cutoff=0.5)]
    fix = f"did you mean {near[0]!r}? set {setting}" if near else f"rename a column, or set {setting}"
    return _table_error(table.path, f"no column {wanted}; found: {_listed(table.columns)}", fix)


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


@dataclass(frozen=True)
class Problem:
    """Why a row names no series, as one phrase."""

    text: str


class Folder:
    """A scanned folder (or file), in which a cell of a table is looked up by path or by UID."""

    def __init__(self, data: Path, found: Scan) -> None:
        self.data = data
        self.root = data if data.is_dir() else data.parent
        self.resolved_root = self.root.resolve()
        self.found = found
        self.by_item: dict[str, Series] = {}
        self.by_name: dict[str, list[Series]] = defaultdict(list)
        self.by_folder: dict[str, list[Series]] = defaultdict(list)
        self.by_key: dict[str, list[Series]] = defaultdict(list)
        self.by_last_part: dict[str, str] = {}
        self.refused = {error.where: error for error in found.refusals}
        for series in found.series:
            self._add(series)

    def find_uid(self, uid: str) -> Series | Problem:
        """Return the one series of a series or study UID, which is compared by its salted hash."""
        found = _only(self.by_key.get(hash_identifier(uid), []), "the UID")
        refused = f"; {len(self.refused)} inputs of the folder cannot be read" if self.refused else ""
        return found or Problem(f"no readable series has this UID{refused}")

    def find_path(self, cell: str) -> Series | ReadError | Problem:
        """Return the one series that a path names, or why it was refused, or why it names none."""
        if cell in self.by_item:
            return self.by_item[cell]
        try:
            path = self._inside(cell)
            exists = path is not None and path.exists()
        except (OSError, RuntimeError, ValueError):
            return Problem(f"{cell} is not a usable path")
        if path is None:
            return Problem(f"{cell} leads out of the folder")
        return self._find_existing(path, cell) if exists else Problem(self._missing(cell))

    def _add(self, series: Series) -> None:
        for file in series.files:
            name = _relative(file, self.root)
            self.by_name[name].append(series)
            self.by_last_part.setdefault(file.name.casefold(), name)
        if series.item:
            self.by_item[source_name(series, self.data)] = series
            if not self.data.is_dir():
                self.by_item[series.item] = series
        top = Path(_relative(series.path, self.root))
        for folder in (top, *top.parents):
            self.by_folder[folder.as_posix()].append(series)
        for key in {series.series_key, series.study_key} - {""}:
            self.by_key[key].append(series)

    def _inside(self, cell: str) -> Path | None:
        """Return the path that a cell means, or None where it leads out of the folder, links followed."""
        path = Path(os.path.normpath(self.root / cell))
        if "\\" in cell and not path.exists():
            path = Path(os.path.normpath(self.root / cell.replace("\\", "/")))
        return path if path.resolve().is_relative_to(self.resolved_root) else None

    def _find_existing(self, path: Path, cell: str) -> Series | ReadError | Problem:
        for name in (_relative(path, self.root), _relative(path.resolve(), self.resolved_root)):
            if path.is_dir() and name in self.by_folder:
                return self._one_of_folder(path, self.by_folder[name], cell)
            if name in self.by_name:
                return self._one_of_file(name, cell)
        refusals = self._refusals_at(path)
        if len(refusals) > 1:
            return Problem(
                f"{cell} holds {len(refusals)} series, none of which can be read: name one of them"
            )
        return refusals[0] if refusals else Problem(f"{cell} holds no image that can be read")

    def _one_of_file(self, name: str, cell: str) -> Series | Problem:
        found = _only(self.by_name[name], cell)
        if isinstance(found, Series) and len(found.files) > 1 and _relative(found.path, self.root) != name:
            return Problem(f"{cell} is one of {len(found.files)} files of a series: name {self._unit(found)}")
        return found or Problem(f"{cell} holds no image that can be read")

    def _unit(self, series: Series) -> str:
        return "its folder" if series.path.is_dir() else source_name(series, self.data)

    def _one_of_folder(self, path: Path, inside: list[Series], cell: str) -> Series | Problem:
        refused = len(self._refusals_at(path))
        if refused:
            return Problem(
                f"{cell} holds {len(inside)} readable and {refused} refused series: name one of them"
            )
        return _only(inside, cell) or Problem(f"{cell} holds no image that can be read")

    def _refusals_at(self, path: Path) -> list[ReadError]:
        """Return the refusals of a file, or of what lies in a folder. Errors hold paths on one line."""
        places = {" ".join(str(place).split()) for place in (path, path.absolute(), path.resolve())}
        below = tuple(place + os.sep for place in places)
        return [error for where, error in self.refused.items() if where in places or where.startswith(below)]

    def _missing(self, cell: str) -> str:
        near = self.by_last_part.get(cell.replace("\\", "/").rsplit("/", 1)[-1].casefold())
        return f"{cell} does not exist" + (f" (did you mean {near}?)" if near else "")


def _only(series: list[Series], what: str) -> Series | Problem | None:
    if len(series) > 1:
        return Problem(f"{what} holds {len(series)} series: name one of them")
    return series[0] if series else None


def _relative(path: Path, base: Path) -> str:
    for start in (base, base.absolute(), base.resolve()):
        if path.is_relative_to(start):
            return path.relative_to(start).as_posix()
    return path.as_posix()


class RowProblems(list[tuple[int, str]]):
    """What is wrong with a table: the number of the row, and one phrase."""


@dataclass(frozen=True)
class Source:
    """All that a manifest is made from."""

    table: Table
    columns: Columns
    config: TaskConfig
    folder: Folder


@dataclass(frozen=True)
class Located:
    """A row whose series was found."""

    row: Row
    series: Series
    sample_id: str
    patient_id: str


def _manifest_of_table(source: Source) -> Manifest:
    columns, problems = source.columns, RowProblems()
    task = _task_of_table(source, problems)
    located, refusals = _locate_rows(source, problems)
    _check_twins(located, columns, problems)
    _check_cells(source.table, columns, task, problems)
    _raise_problems(problems, _find_leaks(located, columns), source.table.path)
    if not located:
        raise LabelRowsError(
            [f"none of {len(refusals)} inputs can be read: {refusals[0]}"], source.table.path
        )
    samples = tuple(_sample(entry, columns, task) for entry in located)
    return Manifest(task, samples, _notes(source, task, located, refusals), tuple(refusals))


def _raise_problems(problems: RowProblems, leaks: Sequence[str], where: Path) -> None:
    """Raise all problems at once; a leak alone is the split's error."""
    if problems:
        lines = [f"row {number}: {text}" for number, text in sorted(problems, key=lambda pair: pair[0])]
        raise LabelRowsError([*lines, *leaks], where)
    if leaks:
        raise LeakRowsError(leaks, where)


def _locate_rows(source: Source, problems: RowProblems) -> tuple[list[Located], list[ReadError]]:
    columns, folder = source.columns, source.folder
    located, refusals = [], []
    for row in source.table.rows:
        cell = row.cells[columns.locator]
        found = _find(folder, columns, cell) if cell else Problem(f"{columns.locator} is empty")
        if isinstance(found, Problem):
            problems.append((row.number, found.text))
        elif isinstance(found, ReadError):
            refusals.append(found)
        else:
            located.append(_located(row, columns, found, folder))
    return located, refusals


def _find(folder: Folder, columns: Columns, cell: str) -> Series | ReadError | Problem:
    return folder.find_path(cell) if columns.located_by == "path" else folder.find_uid(cell)


def _located(row: Row, columns: Columns, series: Series, folder: Folder) -> Located:
    sample_id = _sample_id(series, folder.data)
    given = row.cells[columns.patient] if columns.patient else ""
    return Located(row, series, sample_id, given or series.patient_key or sample_id)


def _sample_id(series: Series, data: Path) -> str:
    return "s" + hash_identifier(source_name(series, data), length=10)


def _check_twins(located: Sequence[Located], columns: Columns, problems: RowProblems) -> None:
    """List rows that name the same series twice, with the same label or with another."""
    first: dict[str, Located] = {}
    for entry in located:
        before = first.setdefault(entry.sample_id, entry)
        if before is entry:
            continue
        what, number = entry.row.cells[columns.locator], before.row.number
        same = _label_cells(entry.row, columns) == _label_cells(before.row, columns)
        text = f"duplicate of row {number}" if same else f"conflicting label: row {number} has another one"
        problems.append((entry.row.number, text if columns.located_by != "path" else f"{text} for {what}"))


def _label_cells(row: Row, columns: Columns) -> list[str]:
    return [row.cells[name] for name in ((columns.label,) if columns.label else columns.classes.values())]


def _check_cells(table: Table, columns: Columns, task: Task, problems: RowProblems) -> None:
    """List cells that are empty or hold a value which they may not hold."""
    for row in table.rows:
        texts = (
            [_label_problem(row.cells[columns.label], task)]
            if columns.label
            else _flag_problems(row, columns)
        )
        if columns.patient and not row.cells[columns.patient]:
            texts.append(f"{columns.patient} is empty: fill it in, or remove the column")
        if columns.split and row.cells[columns.split].casefold() not in get_args(Split):
            given = row.cells[columns.split]
            texts.append(f"split {given!r} is not train, val or test" if given else "split is empty")
        problems += [(row.number, text) for text in texts if text]


def _label_problem(label: str, task: Task) -> str:
    if not label:
        return "label is empty"
    if "|" in label:
        return f"label {label!r} names several classes: give one 0/1 column per class"
    if label in task.classes:
        return ""
    near = difflib.get_close_matches(label, task.classes, n=1)
    return f"label {label!r} is no class" + (f", did you mean {near[0]!r}?" if near else "")


def _flag_problems(row: Row, columns: Columns) -> list[str]:
    cells = {name: row.cells[column] for name, column in columns.classes.items()}
    wrong = [name for name, cell in cells.items() if cell and cell not in FLAGS]
    if not any(cells.values()):
        return ["no class is labelled"]
    return [f"{name} is {cells[name]!r}: write 1, 0, or nothing where it is not known" for name in wrong]


def _find_leaks(located: Sequence[Located], columns: Columns) -> list[str]:
    """Return a line for each patient whom the split column puts into several parts."""
    if columns.split is None:
        return []
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in located:
        part = entry.row.cells[columns.split].casefold()
        rows[entry.patient_id].setdefault(part, entry.row.number)
    return [_leak(patient, parts) for patient, parts in rows.items() if len(parts) > 1]


def _leak(patient_id: str, parts: Mapping[str, int]) -> str:
    numbers = ", ".join(str(number) for number in parts.values())
    return f"patient {patient_id} is in {' and '.join(parts)} (rows {numbers})"


def _sample(entry: Located, columns: Columns, task: Task) -> Sample:
    cells = entry.row.cells
    return Sample(
        entry.sample_id,
        entry.series,
        entry.patient_id,
        study_id=(cells[columns.study] if columns.study else "") or entry.series.study_key,
        target=_target(entry.row, columns, task),
        split=cells[columns.split].casefold() if columns.split else None,  # type: ignore[arg-type]
        attributes={name: cells[name] for name in columns.attributes},
    )


def _target(row: Row, columns: Columns, task: Task) -> Target:
    if columns.label:
        return task.classes.index(row.cells[columns.label])
    return tuple(FLAGS.get(row.cells[columns.classes[name]]) for name in task.classes)


def _notes(
    source: Source, task: Task, located: Sequence[Located], refusals: Sequence[ReadError]
) -> tuple[str, ...]:
    notes = [*source.table.notes, *_class_notes(source.config, task), *_patient_notes(source, located)]
    unlisted = len(source.folder.found.series) - len(located)
    if unlisted:
        notes.append(f"{unlisted} images or series of the folder are not in the table")
    if refusals:
        notes.append(
            f"labelled inputs that cannot be read and are left out: {len(refusals)}, first {refusals[0]}"
        )
    return tuple(notes)


def _class_notes(config: TaskConfig, task: Task) -> list[str]:
    if config.classes or task.kind == "multilabel":
        return []
    last = f"; {task.classes[-1]} is the positive one" if task.kind == "binary" else ""
    return [f"classes in order: {_listed(task.classes)}{last} (task.classes sets another order)"]


def _patient_notes(source: Source, located: Sequence[Located]) -> list[str]:
    if source.columns.patient:
        return _alias_notes(source.columns.patient, located)
    near = next((name for name in source.table.columns if _key(name) in PATIENT_NAMES), None)
    hint = f"; is it column {near}? then set task.patient_column" if near else ""
    missing = sum(not entry.series.patient_key for entry in located)
    if missing == len(located):
        return [f"no patient ids: each path is its own patient{hint}"]
    notes = [f"no {source.config.patient_column} column: DICOM PatientID (hashed) groups the split{hint}"]
    return notes + ([f"{missing} inputs have no PatientID: each is its own patient"] if missing else [])


def _alias_notes(column: str, located: Sequence[Located]) -> list[str]:
    """Point out DICOM patients who have several ids in the table: the split would not keep them whole."""
    names: dict[str, set[str]] = defaultdict(set)
    for entry in located:
        names[entry.series.patient_key].add(entry.patient_id)
    several = sum(len(ids) > 1 for key, ids in names.items() if key)
    return [f"{several} DICOM patients have more than one {column}: is it a patient's id?"] if several else []


def _task_of_table(source: Source, problems: RowProblems) -> Task:
    """Return the task; a fault in the classes as a whole is listed for the header, row 1."""
    columns, config = source.columns, source.config
    if columns.label is None:
        return Task("multilabel", tuple(columns.classes))
    labels = {row.cells[columns.label] for row in source.table.rows} - {""}
    classes = config.classes or order_classes(label for label in labels if "|" not in label)
    problems += [(1, text) for text in _class_problems(classes, config)]
    return Task(config.kind or ("binary" if len(classes) == 2 else "multiclass"), classes)


def _class_problems(classes: Sequence[str], config: TaskConfig) -> list[str]:
    problems = []
    if len(classes) < 2:
        only = f"only one class, {classes[0]!r}" if classes else "no class"
        problems.append(f"the labels have {only}: two or more are needed")
    if config.kind == "binary" and len(classes) > 2:
        problems.append(f"the labels have {len(classes)} classes, and the task is binary: {_listed(classes)}")
    by_key: dict[str, str] = {}
    for name in classes:
        other = by_key.setdefault(" ".join(name.casefold().split()), name)
        if other != name and config.classes is None:
            problems.append(f"are {other!r} and {name!r} one class? write them alike, or set task.classes")
    return problems


def order_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Order class names: the ones that mean "nothing there" first, the rest naturally ("T2" before "T10")."""
    return tuple(sorted(set(names), key=lambda name: (_negative_rank(name), _natural(name))))


def _negative_rank(name: str) -> int:
    words = re.findall(r"[^\W_]+", name.casefold())
    joined = "".join(words)
    if joined in NEGATIVES:
        return NEGATIVES.index(joined)
    negated = len(words) > 1 and words[0] in NEGATING_WORDS
    return len(NEGATIVES) if negated else len(NEGATIVES) + 1


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key that compares numbers by their size: by how many digits they have, then by these."""
    parts = re.split(r"0*([0-9]+)", name.casefold())
    return [(len(part) if index % 2 else 0, part) for index, part in enumerate(parts)], name


def _manifest_of_archive(data: Path, config: TaskConfig) -> Manifest:
    """Return the samples of a MedMNIST archive, or of a folder that holds one and nothing else."""
    series = scan(data).series
    archives = {entry.path for entry in series}
    if len(archives) != 1 or any(entry.item is None for entry in series):
        fix = f"give --labels, or put a {LABELS_FILE} into the folder"
        raise LabelError("label-table", "no label table", where=data, fix=fix)
    (path,) = archives
    labels = archive_labels(path)
    bare = [f"{entry.item}: no label" for entry in series if not labels.get(entry.item or "")]
    if bare:
        raise LabelRowsError(bare, path)
    task = _task_of_archive(path, labels, config)
    samples = tuple(_archive_sample(entry, labels[entry.item or ""], task, data) for entry in series)
    notes = (*_class_notes(config, task), "no patient ids: each item of the archive is its own patient")
    return Manifest(task, samples, notes)


def _task_of_archive(path: Path, labels: Mapping[str, tuple[int, ...]], config: TaskConfig) -> Task:
    """Name the classes of an archive: as the recipe does, in order, otherwise "0", "1", ..."""
    width = max(map(len, labels.values()))
    highest = max(value for values in labels.values() for value in values)
    needed = width if width > 1 else max(2, highest + 1)
    allowed = set(range(2 if width > 1 else needed))
    wrong = [
        item for item, values in labels.items() if len(values) != width or not allowed.issuperset(values)
    ]
    if wrong:
        raise LabelRowsError([f"{item}: label {labels[item]} is not understood" for item in wrong], path)
    classes = config.classes or tuple(map(str, range(needed)))
    if len(classes) < needed or (width > 1 and len(classes) != needed):
        raise _table_error(
            path, f"has {needed} classes, {len(classes)} are named", "name each in task.classes"
        )
    kind: TaskKind = "multilabel" if width > 1 else "binary" if len(classes) == 2 else "multiclass"
    if config.kind not in (None, kind):
        raise _table_error(path, f"is {kind}, and the task is {config.kind}", "leave task.kind out")
    return Task(kind, classes)


def _archive_sample(series: Series, values: tuple[int, ...], task: Task, data: Path) -> Sample:
    target: Target = tuple(map(float, values)) if task.kind == "multilabel" else values[0]
    part = (series.item or "").split("/")[0]
    split = part if part in get_args(Split) else None
    sample_id = _sample_id(series, data)
    return Sample(sample_id, series, sample_id, target=target, split=split)  # type: ignore[arg-type]
