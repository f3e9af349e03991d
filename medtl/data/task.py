"""The task and its samples: the classes, what the user says about them, and their order."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, field_validator, model_validator

from medtl.data.encodings import known_encoding
from medtl.errors import ReadError
from medtl.imaging.series import Series

TaskKind = Literal["binary", "multiclass", "multilabel"]
Split = Literal["train", "val", "test"]
Target = int | tuple[float | None, ...]

# Names of the class that means "nothing there", most certain first: it comes before the others.
NEGATIVES = (
    *("normal", "none", "negative", "neg", "no", "healthy", "control", "controls", "absent", "nothing"),
    *("nofinding", "nofindings", "notumor", "notumour", "0", "false", "benign"),
)
NEGATING_WORDS = ("no", "non", "not", "without")


@dataclass(frozen=True)
class Task:
    """The classes to predict.

    binary and multiclass: one class per sample; in binary the last class is the positive one.
    multilabel: any set of classes per sample, each of them possibly unlabelled.
    """

    kind: TaskKind
    classes: tuple[str, ...]

    @property
    def asked_classes(self) -> tuple[str, ...]:
        """The classes that are evaluated against the rest: all, or in binary the positive one."""
        return self.classes[-1:] if self.kind == "binary" else self.classes


class TaskConfig(BaseModel, extra="forbid", frozen=True, coerce_numbers_to_str=True):
    """What the user says about the task; the label table says the rest.

    classes: in the order of the outputs; in binary the last one is positive. Needed for a table with one
    column per class, unless those columns are named label_<class>. encoding: of the label table, as Python
    names it (gbk, shift_jis, cp1251, cp1252); needed where it is not UTF-8 and not certainly Windows-1252.
    """

    kind: TaskKind | None = None
    classes: tuple[str, ...] | None = None
    label_column: str = "label"
    path_column: str = "path"
    patient_column: str = "patient_id"
    encoding: str | None = None

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, name: str | None) -> str | None:
        return None if name is None else known_encoding(name)

    @model_validator(mode="after")
    def _classes_fit(self) -> "TaskConfig":
        classes = self.classes
        if classes is None:
            return self
        if len(set(classes)) != len(classes) or any(not name or name != name.strip() for name in classes):
            raise ValueError("classes must be different, and neither empty nor padded with spaces")
        if any("|" in name for name in classes):
            raise ValueError("a class name may not hold '|'")
        if len(classes) < 2 or (self.kind == "binary" and len(classes) != 2):
            what = f"{self.kind or 'a'} task with {len(classes)} classes"
            raise ValueError(f"{what}: name two or more (binary: two)")
        return self


def order_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Order class names: the ones that mean "nothing there" first, the rest by name."""
    return tuple(sorted(set(names), key=lambda name: (_negative_rank(name), name.casefold(), name)))


def _negative_rank(name: str) -> int:
    words = re.findall(r"[^\W_]+", name.casefold())
    joined = "".join(words)
    if joined in NEGATIVES:
        return NEGATIVES.index(joined)
    negated = len(words) > 1 and words[0] in NEGATING_WORDS
    return len(NEGATIVES) if negated else len(NEGATIVES) + 1


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
    target: Target | None = None
    split: Split | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The samples of one task. remarks: one plain line for each thing that the user should know.

    refusals: labelled inputs that were found and cannot be read; no sample stands for them.
    """

    task: Task
    samples: tuple[Sample, ...]
    remarks: tuple[str, ...]
    refusals: tuple[ReadError, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """The remarks, and a line that counts the refusals."""
        if not self.refusals:
            return self.remarks
        text = "labelled inputs that cannot be read and are left out"
        return (*self.remarks, f"{text}: {len(self.refusals)}, first {self.refusals[0]}")


def has_patient_id(sample: Sample) -> bool:
    """Return whether the patient is known: if not, each study or sample counts as a patient."""
    return sample.patient_id not in (sample.sample_id, sample.study_id)


def place_of(sample: Sample) -> tuple[str, str, str]:
    """Return a sort key that depends on neither the rows' order nor the salt."""
    return sample.series.path.as_posix(), sample.series.item or "", sample.sample_id
