"""Samples and the task they are for, read from a label table with every problem listed at once.

labels.csv -> Table -> each row looked up in the scan of its folder -> Samples of a Task
archive.npz (its labels are inside)                                 -> Samples of a Task
prepared dataset (its dataset.json holds them)                      -> Samples of a Task
"""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from medtl.core.progress import SILENT, Watcher
from medtl.data.dataset_file import is_dataset, load_dataset
from medtl.data.labels import (
    PATIENT_NAMES,
    Columns,
    LabelRowsError,
    LeakRowsError,
    Row,
    Table,
    assign_columns,
    compared_name,
    in_one_form,
    listed,
    load_table,
    table_error,
)
from medtl.data.naming import Folder, NoSeriesError, sample_key, source_name
from medtl.data.task import Manifest, Sample, Split, Target, Task, TaskConfig, TaskKind, order_classes
from medtl.errors import LabelError, ReadError
from medtl.imaging.medmnist import archive_labels
from medtl.imaging.reader import scan
from medtl.imaging.series import EXACT, Reading, Series

LABELS_FILE = "labels.csv"
FLAGS = {"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}

Located = tuple[Row, Sample]  # a row whose series was found
RowError = tuple[int, str]  # the number of the row, and one phrase


def load_manifest(
    data: Path,
    labels: Path | None,
    config: TaskConfig,
    reading: Reading = EXACT,
    watcher: Watcher = SILENT,
) -> Manifest:
    """Read the samples of a folder, file or archive, from a label table or from the archive itself.

    Without `labels` the folder's labels.csv is used, or the labels inside a MedMNIST archive; a prepared
    dataset (`medtl prepare`) holds its own, and takes no others. A table has a
    column `path` (relative to the folder; for an item of an archive "file.npz#train/17"), `series_uid` or
    `study_uid`; a column `label`, or one 0/1/empty column per class (TaskConfig.classes, or named
    label_<class>); optionally `patient_id`, `study_id`, `split`; every other column is an attribute. reading:
    what the recipe asks of the readers.

    Raises LabelError label-table; LabelRowsError, with all problems; LeakRowsError; ReadError of the scan;
    ReadError dataset-damaged; ConfigError dataset-recipe.
    """
    if is_dataset(data):
        return load_dataset(data, labels, config)
    if labels is None and (data / LABELS_FILE).is_file():
        labels = data / LABELS_FILE
    if labels is None:
        return _manifest_of_archive(data, config)
    table = load_table(labels, config.encoding)
    columns = assign_columns(table, config)
    table = in_one_form(table, columns.locator, config.classes or ())
    folder = Folder(data, scan(data, reading=reading, watcher=watcher))
    return _manifest_of_table(Source(table, columns, config, folder))


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


@dataclass(frozen=True)
class Source:
    """All that a manifest of a table is made from."""

    table: Table
    columns: Columns
    config: TaskConfig
    folder: Folder

    @cached_property
    def task(self) -> Task:
        """The task that the labels and the recipe define."""
        if self.columns.label is None:
            return Task("multilabel", tuple(self.columns.classes))
        labels = {row.cells[self.columns.label] for row in self.table.rows}
        classes = self.config.classes or order_classes(name for name in labels if name and "|" not in name)
        return Task(self.config.kind or ("binary" if len(classes) == 2 else "multiclass"), classes)


def _manifest_of_table(source: Source) -> Manifest:
    table, columns, task = source.table, source.columns, source.task
    located, refusals, problems = _locate_rows(source)
    if len(problems) == len(table.rows) > 1 and all(" does not exist" in text for _, text in problems):
        fix = f"paths are relative to --data, {source.folder.root}"
        reason = f"none of the paths exists: {problems[0][1]}"
        raise LabelError("label-rows", reason, where=table.path, fix=fix)
    if columns.label:
        problems += _list_class_problems(task.classes, source.config)
    problems += _list_repeats(located, columns)
    problems += _list_cell_problems(table, columns, task)
    leaks = _list_leaks(located)
    if problems:
        lines = [f"row {number}: {text}" for number, text in sorted(problems, key=lambda pair: pair[0])]
        raise LabelRowsError([*lines, *leaks], table.path)
    if leaks:
        raise LeakRowsError(leaks, table.path)
    if not located:
        raise LabelRowsError([f"none of {len(refusals)} inputs can be read: {refusals[0]}"], table.path)
    samples = tuple(sample for _, sample in located)
    return Manifest(task, samples, _remarks(source, samples), tuple(refusals))


def _locate_rows(source: Source) -> tuple[list[Located], list[ReadError], list[RowError]]:
    columns, folder = source.columns, source.folder
    find = folder.find_path if columns.located_by == "path" else folder.find_uid
    located, refusals, problems = [], [], []
    for row in source.table.rows:
        cell = row.cells[columns.locator]
        try:
            if not cell:
                raise NoSeriesError(f"{columns.locator} is empty")
            located.append((row, _sample(row.cells, find(cell), source)))
        except NoSeriesError as problem:
            problems.append((row.number, str(problem)))
        except ReadError as refusal:
            refusals.append(refusal)
    return located, refusals, problems


def _sample(cells: Mapping[str, str], series: Series, source: Source) -> Sample:
    """Return the sample of a row; what its cells say is checked afterwards, all rows at once."""
    columns, data = source.columns, source.folder.data
    sample_id = sample_key(source_name(series, data))
    study = cells.get(columns.study or "", "") or series.study_key
    if not study and series.item is not None and series.format != "medmnist":
        study = sample_key(source_name(replace(series, item=None), data))  # the volumes of one file
    # A study is of one patient, named or not.
    patient = cells.get(columns.patient or "", "") or series.patient_key or study or sample_id
    return Sample(
        sample_id,
        series,
        patient,
        study_id=study,
        target=_target(cells, columns, source.task),
        split=cells[columns.split].casefold() if columns.split else None,  # type: ignore[arg-type]
        attributes={name: cells[name] for name in columns.attributes},
    )


def _target(cells: Mapping[str, str], columns: Columns, task: Task) -> Target | None:
    if columns.label is None:
        return tuple(FLAGS.get(cells[columns.classes[name]]) for name in task.classes)
    label = cells[columns.label]
    return task.classes.index(label) if label in task.classes else None


def _list_class_problems(classes: Sequence[str], config: TaskConfig) -> list[RowError]:
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


def _list_cell_problems(table: Table, columns: Columns, task: Task) -> list[RowError]:
    """List cells that are empty or hold a value which they may not hold."""
    problems = []
    for row in table.rows:
        texts = _label_problems(row, columns, task)
        if columns.patient and not row.cells[columns.patient]:
            texts.append(f"{columns.patient} is empty: fill it in, or remove the column")
        split = row.cells[columns.split] if columns.split else "train"
        if split.casefold() not in get_args(Split):
            texts.append(f"split {split!r} is not train, val or test" if split else "split is empty")
        problems += [(row.number, text) for text in texts]
    return problems


def _list_repeats(located: Sequence[Located], columns: Columns) -> list[RowError]:
    """List rows that name the same series again, with the same label or with another."""
    first: dict[str, Row] = {}
    labels = (columns.label,) if columns.label else columns.classes.values()
    problems = []
    for row, sample in located:
        before = first.setdefault(sample.sample_id, row)
        if before is not row:
            same = all(row.cells[name] == before.cells[name] for name in labels)
            text = f"duplicate of row {before.number}"
            text = text if same else f"conflicting label: row {before.number} has another one"
            where = f" for {row.cells[columns.locator]}" if columns.located_by == "path" else ""
            problems.append((row.number, text + where))
    return problems


def _list_leaks(located: Sequence[Located]) -> list[str]:
    """Return a line for each patient whom the split column puts into several parts.

    It names rows: the id may be a name or a record number, and errors end in logs.
    """
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for row, sample in located:
        rows[sample.patient_id].setdefault(sample.split or "", row.number)
    return [
        f"the patient of rows {', '.join(map(str, parts.values()))} is in {' and '.join(parts)}"
        for parts in rows.values()
        if len(parts) > 1
    ]


def _label_problems(row: Row, columns: Columns, task: Task) -> list[str]:
    if columns.label is None:
        cells = {name: row.cells[column] for name, column in columns.classes.items()}
        if not any(cells.values()):
            return ["no class is labelled"]
        wrong = [name for name, cell in cells.items() if cell and cell not in FLAGS]
        return [f"{name} is {cells[name]!r}: write 1, 0, or nothing where it is not known" for name in wrong]
    label = row.cells[columns.label]
    if not label:
        return ["label is empty"]
    if "|" in label:
        return [f"label {label!r} names several classes: give one 0/1 column per class"]
    if label in task.classes:
        return []
    near = difflib.get_close_matches(label, task.classes, n=1)
    return [f"label {label!r} is no class" + (f", did you mean {near[0]!r}?" if near else "")]


def _remarks(source: Source, samples: Sequence[Sample]) -> tuple[str, ...]:
    unlisted = len(source.folder.scanned.series) - len(samples)
    return (
        *source.table.notes,
        *_class_notes(source.config, source.task),
        *_patient_notes(source, samples),
        *([f"{unlisted} images or series of the folder are not in the table"] if unlisted else []),
    )


def _class_notes(config: TaskConfig, task: Task) -> list[str]:
    if config.classes or task.kind == "multilabel":
        return []
    last = f"; {task.classes[-1]} is the positive one" if task.kind == "binary" else ""
    return [f"classes in order: {listed(task.classes)}{last} (task.classes sets another order)"]


def _patient_notes(source: Source, samples: Sequence[Sample]) -> list[str]:
    column = source.columns.patient
    if column:
        names: dict[str, set[str]] = defaultdict(set)
        for one in samples:
            names[one.series.patient_key].add(one.patient_id)
        # The split would not keep them whole.
        several = sum(len(ids) > 1 for key, ids in names.items() if key)
        text = f"{several} DICOM patients have more than one {column}: is it a patient's id?"
        return [text] if several else []
    near = next((name for name in source.table.columns if compared_name(name) in PATIENT_NAMES), None)
    hint = f"; is it column {near}? then set task.patient_column" if near else ""
    missing = sum(not one.series.patient_key for one in samples)
    alone = "each study" if any(one.study_id for one in samples) else "each path"
    if missing == len(samples):
        return [f"no patient ids: {alone} is its own patient{hint}"]
    notes = [f"no {source.config.patient_column} column: DICOM PatientID (hashed) groups the split{hint}"]
    return notes + ([f"{missing} inputs have no PatientID: {alone} is its own patient"] if missing else [])


def _manifest_of_archive(data: Path, config: TaskConfig) -> Manifest:
    """Return the samples of a MedMNIST archive, or of a folder that holds one and nothing else."""
    series = scan(data).series
    archives = {entry.path for entry in series}
    if len(archives) != 1 or any(entry.format != "medmnist" for entry in series):
        fix = f"give --labels, or put a {LABELS_FILE} into the folder"
        raise LabelError("label-table", "no label table", where=data, fix=fix)
    (path,) = archives
    labels = archive_labels(path)
    bare = [f"{entry.item}: no label" for entry in series if not labels.get(entry.item or "")]
    if bare:
        raise LabelRowsError(bare, path)
    task = _task_of_archive(path, labels, config)
    samples = tuple(_sample_of_item(entry, labels[entry.item or ""], task, data) for entry in series)
    remarks = (*_class_notes(config, task), "no patient ids: each item of the archive is its own patient")
    return Manifest(task, samples, remarks)


def _sample_of_item(entry: Series, values: tuple[int, ...], task: Task, data: Path) -> Sample:
    sample_id = sample_key(source_name(entry, data))
    part = (entry.item or "").split("/")[0]
    target: Target = tuple(map(float, values)) if task.kind == "multilabel" else values[0]
    return Sample(sample_id, entry, sample_id, target=target, split=part)  # type: ignore[arg-type]


def _task_of_archive(path: Path, labels: Mapping[str, tuple[int, ...]], config: TaskConfig) -> Task:
    """Name the classes of an archive: as the recipe does, in order, otherwise "0", "1", ..."""
    flags = max(map(len, labels.values()))
    highest = max(value for values in labels.values() for value in values)
    multilabel = flags > 1
    needed = flags if multilabel else max(2, highest + 1)
    wrong = [
        f"{item}: label {values} is not understood"
        for item, values in labels.items()
        if len(values) != flags or not all(0 <= value < (2 if multilabel else needed) for value in values)
    ]
    if wrong:
        raise LabelRowsError(wrong, path)
    classes = config.classes or tuple(map(str, range(needed)))
    if len(classes) < needed or (multilabel and len(classes) > needed):
        reason = f"has {needed} classes, {len(classes)} are named"
        raise table_error(path, reason, "name each in task.classes")
    kind: TaskKind = "multilabel" if multilabel else "binary" if len(classes) == 2 else "multiclass"
    if config.kind not in (None, kind):
        raise table_error(path, f"is {kind}, and the task is {config.kind}", "leave task.kind out")
    return Task(kind, classes)
