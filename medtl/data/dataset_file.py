"""The record of a prepared dataset that a user keeps: all that training needs but the pixels.

Manifest -> dataset.json beside the pixels (prepared.py), on this machine; dataset.json -> the same Manifest,
on any other, where the source may be absent. Nothing in it names a patient: ids are salted hashes, and paths
are replaced by their order, on which the split depends.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from medtl.core import __version__
from medtl.core.files import read_json, write_json
from medtl.core.ids import hash_identifier
from medtl.data.attributes import attribute_names, identifying_attributes
from medtl.data.labels import compared_name, read_table
from medtl.data.naming import refused_name, sample_key
from medtl.data.task import (
    Manifest,
    Sample,
    Split,
    Target,
    Task,
    TaskConfig,
    TaskKind,
    has_patient_id,
    place_of,
)
from medtl.errors import CODES, ConfigError, LabelError, ReadError
from medtl.imaging.preprocessing import PreprocessingConfig
from medtl.imaging.series import Series

if TYPE_CHECKING:
    from medtl.data.prepared import PreparedDataset

DATASET_FILE = "dataset.json"
FORMAT: Literal["medtl dataset"] = "medtl dataset"
# The format is named in the first bytes: other files have this name, too.
HEAD_BYTES = 64

# The format of a series whose source is not here.
SERIES_FORMAT = "dataset"


class SampleRecord(BaseModel, extra="forbid", frozen=True):
    """One sample. patient and study are hashes; place is its number in the order of paths."""

    sample_id: str
    patient: str
    study: str
    place: int
    target: Target | None
    split: Split | None
    attributes: dict[str, str]


class RefusalRecord(BaseModel, extra="forbid", frozen=True):
    """One input that could not be read; sample_id: where a sample stands for it. source: a salted hash."""

    code: str
    source: str
    sample_id: str | None = None

    def to_error(self) -> ReadError:
        """Return the refusal; its reason is the meaning of its code: the original may name a file."""
        fix = "correct it in the source folder and prepare that again"
        return ReadError(self.code, CODES.get(self.code, "cannot be read"), where=self.source, fix=fix)


class DatasetRecord(BaseModel, extra="forbid", frozen=True):
    """What dataset.json holds. key: of the pixels that it belongs to; labels_sha256: of the label table."""

    format: Literal["medtl dataset"] = FORMAT
    version: Literal[1] = 1
    medtl: str
    key: str
    labels_sha256: str | None
    kind: TaskKind
    classes: tuple[str, ...]
    reading: TaskConfig
    preprocessing: dict[str, Any]
    notes: tuple[str, ...]
    refusals: tuple[RefusalRecord, ...]
    samples: tuple[SampleRecord, ...]


def is_dataset(folder: Path) -> bool:
    """Return whether a folder is a prepared dataset: other folders have a dataset.json, too."""
    try:
        with (folder / DATASET_FILE).open("rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(HEAD_BYTES)
    except OSError:
        return False


def write_record(
    prepared: "PreparedDataset",
    manifest: Manifest,
    data: Path,
    labels: Path | None,
    reading: TaskConfig,
    preprocessing: PreprocessingConfig,
) -> None:
    """Write dataset.json beside the pixels of a manifest of the folder `data`.

    reading: how the label table `labels` was read. Raises OutputError output-unwritable.
    """
    left_out = identifying_attributes(manifest.samples)
    kept = [name for name in attribute_names(manifest.samples) if name not in left_out]
    notes = list(manifest.remarks)
    if left_out:
        notes.append(f"columns left out of the dataset, as they may name patients: {', '.join(left_out)}")
    unread = [(sample_key(refused_name(error, data)), error) for error in manifest.refusals]
    refusals = [RefusalRecord(code=error.code, source=name) for name, error in unread]
    refusals += [RefusalRecord(code=e.code, source=name, sample_id=name) for name, e in prepared.refusals]
    record = DatasetRecord(
        medtl=__version__,
        key=prepared.key,
        labels_sha256=_hash_table(labels) if labels else None,
        kind=manifest.task.kind,
        classes=manifest.task.classes,
        reading=reading,
        preprocessing=preprocessing.model_dump(mode="json"),
        notes=tuple(notes),
        refusals=tuple(refusals),
        samples=_record_samples(manifest.samples, kept),
    )
    write_json(prepared.folder / DATASET_FILE, record.model_dump(mode="json"))


def read_record(folder: Path) -> DatasetRecord:
    """Read dataset.json. Raises ReadError dataset-damaged."""
    try:
        return DatasetRecord.model_validate(read_json(folder / DATASET_FILE))
    except (OSError, ValueError) as error:  # ValidationError is a ValueError
        reason = "has a dataset.json that this version of medtl did not write"
        raise ReadError("dataset-damaged", reason, where=folder, fix="prepare it again") from error


def load_dataset(folder: Path, labels: Path | None, config: TaskConfig) -> Manifest:
    """Return the manifest of a prepared dataset, whose samples have no files: prepare_samples knows them.

    Raises ReadError dataset-damaged; ConfigError dataset-recipe where a setting of the task is not the one
    that the labels were read with; LabelError label-table for another table, label-rows for samples of a
    class that the task does not have.
    """
    record = read_record(folder)
    if labels is not None and _hash_table(labels) != record.labels_sha256:
        reason = "holds the labels of another table"
        raise LabelError("label-table", reason, where=folder, fix="leave --labels out, or prepare it again")
    for name in ("label_column", "patient_column"):  # what the labels are, and whose
        stored, given = getattr(record.reading, name), getattr(config, name)
        if compared_name(stored) != compared_name(given):
            raise _other_recipe(folder, f"task.{name}", stored, given)
    task = _task(folder, record, config)
    refusals = tuple(one.to_error() for one in record.refusals if one.sample_id is None)
    return Manifest(task, _samples(folder, record, task), record.notes, refusals)


def dataset_of(samples: Iterable[Sample]) -> Path | None:
    """Return the prepared dataset that samples are from, None where they have files of their own."""
    return next((one.series.path.parent for one in samples if one.series.format == SERIES_FORMAT), None)


def check_preprocessing(folder: Path, record: DatasetRecord, config: PreprocessingConfig) -> None:
    """Raise ConfigError dataset-recipe where a dataset was prepared with other settings."""
    values = config.model_dump(mode="json")
    for name in PreprocessingConfig.model_fields:
        stored, value = record.preprocessing.get(name), values.get(name)
        if stored != value:
            raise _other_recipe(folder, f"preprocessing.{name}", stored, value)


def _task(folder: Path, record: DatasetRecord, config: TaskConfig) -> Task:
    """Return the task as the recipe has it; its classes may be more than those of the dataset."""
    classes = config.classes or record.classes
    multilabel = record.kind == "multilabel"
    kind = config.kind or ("multilabel" if multilabel else "binary" if len(classes) == 2 else "multiclass")
    if (kind == "multilabel") != multilabel or (kind == "binary" and len(classes) != 2):
        raise _other_recipe(folder, "task.kind", record.kind, kind)
    return Task(kind, classes)


def _other_recipe(folder: Path, key: str, stored: Any, given: Any) -> ConfigError:
    was, now = ("null" if value is None else str(value).replace(" ", "") for value in (stored, given))
    reason = f"was prepared with {key}={was}, the recipe has {now}"
    fix = "use the recipe that it was prepared with, or prepare another"
    return ConfigError("dataset-recipe", reason, where=folder, fix=fix)


def _samples(folder: Path, record: DatasetRecord, task: Task) -> tuple[Sample, ...]:
    absent = {
        record.classes[one.target]
        for one in record.samples
        if isinstance(one.target, int) and record.classes[one.target] not in task.classes
    }
    if absent:
        reason = f"has samples of {', '.join(sorted(absent))}, which is no class of the task"
        raise LabelError("label-rows", reason, where=folder, fix="set task.classes, or prepare another")
    digits = len(str(len(record.samples)))
    return tuple(
        Sample(
            one.sample_id,
            Series(folder / f"{one.place:0{digits}d}", (), SERIES_FORMAT),
            one.patient,
            study_id=one.study,
            target=_to_task(one.target, record.classes, task),
            split=one.split,
            attributes=one.attributes,
        )
        for one in record.samples
    )


def _to_task(target: Target | None, classes: Sequence[str], task: Task) -> Target | None:
    """Reorder a target from other classes to the task's."""
    if isinstance(target, tuple):
        values = dict(zip(classes, target, strict=True))
        return tuple(values.get(name) for name in task.classes)
    return None if target is None else task.classes.index(classes[target])


def _record_samples(samples: Sequence[Sample], attributes: Sequence[str]) -> tuple[SampleRecord, ...]:
    places = {sample.sample_id: place for place, sample in enumerate(sorted(samples, key=place_of))}
    ids = sorted({sample.patient_id for sample in samples})
    digits = len(str(len(ids)))
    # A hash behind its rank, since intervals are drawn in this order.
    patients = {name: f"{rank:0{digits}d}-{hash_identifier(name)}" for rank, name in enumerate(ids)}
    return tuple(
        SampleRecord(
            sample_id=sample.sample_id,
            patient=patients[sample.patient_id],
            # A patient without an id of their own has that of the study or of the sample.
            study=hash_identifier(sample.study_id) if has_patient_id(sample) else patients[sample.patient_id],
            place=places[sample.sample_id],
            target=sample.target,
            split=sample.split,
            attributes={name: sample.attributes[name] for name in attributes},
        )
        for sample in samples
    )


def _hash_table(path: Path) -> str:
    return hashlib.sha256(read_table(path)).hexdigest()
