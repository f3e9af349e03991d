"""The Sample, one labelled unit of a task, and the Manifest, all samples of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medtl.errors import ReadError
from medtl.imaging.series import Series
from medtl.imaging.task import Split, Target, Task


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
    """The samples of one task. notes: one plain line for each thing that the user should know of them.

    refusals: labelled inputs that were found and cannot be read; no sample stands for them.
    """

    task: Task
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    refusals: tuple[ReadError, ...] = ()


def refusal_notes(refusals: Sequence[ReadError]) -> tuple[str, ...]:
    """Return the line that says how many labelled inputs were found and cannot be read."""
    text = "labelled inputs that cannot be read and are left out"
    return (f"{text}: {len(refusals)}, first {refusals[0]}",) if refusals else ()


def has_patient_id(sample: Sample) -> bool:
    """Say whether the patient is known: where not, the manifest lets each study or sample be its own."""
    return sample.patient_id not in (sample.sample_id, sample.study_id)


def place_of(sample: Sample) -> tuple[str, str, str]:
    """Return what puts samples into an order that depends on neither the rows' order nor the salt."""
    return sample.series.path.as_posix(), sample.series.item or "", sample.sample_id
