"""Samples and the task they are for, read from a label table with every problem listed at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from medtl.imaging.series import Series

TaskKind = Literal["binary", "multiclass", "multilabel"]
Split = Literal["train", "val", "test"]


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
