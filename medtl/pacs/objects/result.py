"""What objects for the PACS are made of: what a model predicted for a study, and which model it was."""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl.data.task import Task
from medtl.imaging.dicom.patient import SourceFile
from medtl.imaging.image import Image

RESEARCH_ONLY = "Research use only. Not for diagnosis."
# Namespace of the name-based UUIDs behind our UIDs, generated once at random.
NAMESPACE = uuid.UUID("7a0d4a9e-6a0b-4f0e-9b52-3f6c1c8c2f5d")


@dataclass(frozen=True)
class ModelIdentity:
    """Which model it was. settings_sha256 covers everything besides the tensors: thresholds, calibration, ...

    calibration: in words. thresholds: decision threshold by class; empty if the most probable class wins.
    """

    backbone: str
    weights: str
    sha256: str
    settings_sha256: str
    medtl: str
    calibration: str
    thresholds: Mapping[str, float]

    @property
    def uid(self) -> str:
        """UID of the model as an observer."""
        return derived_uid("model", self.sha256, self.settings_sha256, self.medtl)

    def parameters(self) -> Iterator[str]:
        """Yield what distinguishes this model from others, one phrase each."""
        yield f"backbone: {self.backbone}"
        yield f"pretrained weights: {self.weights}"
        yield f"model SHA-256: {self.sha256}"
        yield f"settings SHA-256: {self.settings_sha256}"
        yield f"probabilities: {self.calibration}"
        yield RESEARCH_ONLY


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a model predicted for one series or projection, and where it looked.

    probabilities follow task.classes; predicted: the predicted classes (in multilabel any number);
    prediction_set: its classes, None if the model has none. ood: the verdict of the out-of-distribution
    check, "" if there was none. heatmap: (*spatial) of the image, in [0, 1]: what raised the score for
    target_class, by `method`.
    """

    sources: tuple[SourceFile, ...]
    image: Image
    task: Task
    probabilities: tuple[float, ...]
    predicted: tuple[str, ...]
    prediction_set: tuple[str, ...] | None
    ood: str
    target_class: str
    method: str
    heatmap: NDArray[np.float32]
    model: ModelIdentity

    def uid(self, *names: str) -> str:
        """Return the UID for `names`: the same images, model and names give the same UID.

        A second run thus sends a PACS nothing new.
        """
        files = [f"{one.header.SOPInstanceUID} {one.frames}" for one in self.sources]
        return derived_uid(*names, self.model.uid, self.method, self.image.facts.sha256, *files)


def derived_uid(*names: str) -> str:
    """Return a UID derived from a name-based UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(NAMESPACE, chr(10).join(names)).int}"
