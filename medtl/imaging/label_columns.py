"""Decide which column of a label table says what, or say which columns there are and what is missing."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from medtl.errors import LabelError
from medtl.imaging.label_table import Table, compared_name, table_error
from medtl.imaging.task import TaskConfig

CLASS_PREFIX = "label_"

# What other tables call a column, as compared_name returns it.
SERIES_NAMES = ("seriesuid", "seriesinstanceuid")
STUDY_NAMES = ("studyuid", "studyinstanceuid")
PATIENT_NAMES = ("patient", "patientid", "patientname", "subject", "subjectid", "participantid", "mrn", "pid")
IDENTIFIERS = {*PATIENT_NAMES, *SERIES_NAMES, *STUDY_NAMES, "sopuid", "sopinstanceuid", "instanceuid"}


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
        wanted = f"{config.path_column}, series_uid or study_uid"
        names = (config.path_column, "series_uid", "study_uid")
        raise _missing_column(table, wanted, names, "task.path_column")
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
        wanted = f"{config.label_column}, and no two columns {CLASS_PREFIX}<class>"
        raise _missing_column(table, wanted, (config.label_column,), "task.label_column or task.classes")
    return None, classes


def _class_columns(table: Table, by_name: Mapping[str, str], config: TaskConfig) -> dict[str, str]:
    if config.classes is None:
        prefixed = {
            name[len(CLASS_PREFIX) :]: name
            for name in table.columns
            if name.casefold().startswith(CLASS_PREFIX)
        }
        return {name: column for name, column in prefixed.items() if name}
    found = {
        name: by_name.get(compared_name(CLASS_PREFIX + name)) or by_name.get(compared_name(name))
        for name in config.classes
    }
    absent = [name for name, column in found.items() if column is None]
    if absent:
        raise _missing_column(table, f"for class {listed(absent)}", absent, "task.classes")
    return {name: column for name, column in found.items() if column}


def _missing_column(table: Table, wanted: str, names: Iterable[str], setting: str) -> LabelError:
    near = [hit for name in names for hit in difflib.get_close_matches(name, table.columns, n=1, cutoff=0.5)]
    fix = f"did you mean {near[0]!r}? set {setting}" if near else f"rename a column, or set {setting}"
    return table_error(table.path, f"no column {wanted}; found: {listed(table.columns)}", fix)
