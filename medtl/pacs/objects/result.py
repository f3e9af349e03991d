"""The nouns that objects for the PACS are made from: what a model said of a study, and which model it was."""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl.data.task import Task
from medtl.imaging.dicom.patient import SourceFile
from medtl.imaging.image import Image

RESEARCH_ONLY = "Research use only. Not for diagnosis."
# The namespace of the name-based UUIDs that UIDs are made of; it was drawn at random once.
NAMESPACE = uuid.UUID("7a0d4a9e-6a0b-4f0e-9b52-3f6c1c8c2f5d")


@dataclass(frozen=True)
class ModelIdentity:
    """Which model spoke. settings_sha256 is of all that is beside the tensors: thresholds, calibration, ...

    calibration: in words. thresholds: from which probability on a class is predicted, by its name; none for
    classes of which the most probable one is.
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
        """Yield what tells this model from others, one phrase each."""
        yield f"backbone: {self.backbone}"
        yield f"transferred from: {self.weights}"
        yield f"model SHA-256: {self.sha256}"
        yield f"settings SHA-256: {self.settings_sha256}"
        yield f"probabilities: {self.calibration}"
        yield RESEARCH_ONLY


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a model said of one series or projection, and where it looked.

    probabilities follow task.classes; predicted names those of them that were predicted (in multilabel any
    number), prediction_set those that cannot be excluded, None where the model has no sets. ood: the
    verdict of the out-of-distribution check, "" where there is none. heatmap: (*spatial) of the image, in
    [0, 1], of what raised target_class by `method`.
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
        """Return the UID of something about this result: the same images, model and name give the same one.

        So a second run gives a PACS nothing that it does not have.
        """
        files = [f"{one.header.SOPInstanceUID} {one.frames}" for one in self.sources]
        return derived_uid(*names, self.model.uid, self.method, self.image.facts.sha256, *files)


def derived_uid(*names: str) -> str:
    """Return a UID made of a name-based UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(NAMESPACE, chr(10).join(names)).int}"
