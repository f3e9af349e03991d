"""List what is wrong with the rows of a label table: classes, cells, repeats, patients in several parts."""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from medtl.imaging.label_columns import Columns, listed
from medtl.imaging.label_table import Row, Table
from medtl.imaging.series import Series
from medtl.imaging.task import Split, Task, TaskConfig

FLAGS = {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}

RowProblem = tuple[int, str]  # the number of the row, and one phrase


@dataclass(frozen=True)
class Located:
    """A row whose series was found."""

    row: Row
    series: Series
    sample_id: str
    patient_id: str
    study_id: str


def list_class_problems(classes: Sequence[str], config: TaskConfig) -> list[RowProblem]:
    """List what is wrong with the classes as a whole, for the header: row 1."""
    problems = []
    if len(classes) < 2:
        only = f"only one class, {classes[0]!r}" if classes else "no class"
        problems.append(f"the labels have {only}: two or more are needed")
    if config.kind == "binary" and len(classes) > 2:
        problems.append(f"the labels have {len(classes)} classes, and the task is binary: {listed(classes)}")
    spellings: dict[str, str] = {}
    for name in classes if config.classes is None else ():
        other = spellings.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            problems.append(f"are {other!r} and {name!r} one class? write them alike, or set task.classes")
    return [(1, text) for text in problems]


def list_cell_problems(table: Table, columns: Columns, task: Task) -> list[RowProblem]:
    """List cells that are empty or hold a value which they may not hold."""
    return [
        (row.number, text)
        for row in table.rows
        for text in (
            *_label_problems(row, columns, task),
            *_patient_problems(row, columns),
            *_split_problems(row, columns),
        )
    ]


def list_repeats(located: Sequence[Located], columns: Columns) -> list[RowProblem]:
    """List rows that name the same series again, with the same label or with another."""
    first: dict[str, Located] = {}
    problems = []
    for entry in located:
        before = first.setdefault(entry.sample_id, entry)
        if before is not entry:
            problems.append((entry.row.number, _repeat(entry.row, before.row, columns)))
    return problems


def list_leaks(located: Sequence[Located], columns: Columns) -> list[str]:
    """Return a line for each patient whom the split column puts into several parts."""
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in located if columns.split else ():
        part = entry.row.cells[columns.split or ""].casefold()
        rows[entry.patient_id].setdefault(part, entry.row.number)
    return [_leak(parts) for parts in rows.values() if len(parts) > 1]


def _label_problems(row: Row, columns: Columns, task: Task) -> list[str]:
    if columns.label is None:
        return _flag_problems(row, columns)
    label = row.cells[columns.label]
    if not label:
        return ["label is empty"]
    if "|" in label:
        return [f"label {label!r} names several classes: give one 0/1 column per class"]
    if label in task.classes:
        return []
    near = difflib.get_close_matches(label, task.classes, n=1)
    return [f"label {label!r} is no class" + (f", did you mean {near[0]!r}?" if near else "")]


def _flag_problems(row: Row, columns: Columns) -> list[str]:
    cells = {name: row.cells[column] for name, column in columns.classes.items()}
    if not any(cells.values()):
        return ["no class is labelled"]
    wrong = [name for name, cell in cells.items() if cell and cell not in FLAGS]
    return [f"{name} is {cells[name]!r}: write 1, 0, or nothing where it is not known" for name in wrong]


def _patient_problems(row: Row, columns: Columns) -> list[str]:
    if columns.patient is None or row.cells[columns.patient]:
        return []
    return [f"{columns.patient} is empty: fill it in, or remove the column"]


def _split_problems(row: Row, columns: Columns) -> list[str]:
    given = row.cells[columns.split] if columns.split else "train"
    if given.casefold() in get_args(Split):
        return []
    return [f"split {given!r} is not train, val or test" if given else "split is empty"]


def _repeat(row: Row, before: Row, columns: Columns) -> str:
    names = (columns.label,) if columns.label else columns.classes.values()
    same = all(row.cells[name] == before.cells[name] for name in names)
    text = (
        f"duplicate of row {before.number}"
        if same
        else f"conflicting label: row {before.number} has another one"
    )
    return f"{text} for {row.cells[columns.locator]}" if columns.located_by == "path" else text


def _leak(parts: Mapping[str, int]) -> str:
    """Name a patient by rows: the id itself may be a name or a record number, and errors end in logs."""
    numbers = ", ".join(str(number) for number in parts.values())
    return f"the patient of rows {numbers} is in {' and '.join(parts)}"
