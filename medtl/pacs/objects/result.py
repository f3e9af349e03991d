"""What objects for the PACS are made of: a model, its prediction, and the header of the images scored."""

import logging
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import dictionary_VR

from medtl.data.task import Task
from medtl.imaging.dicom.patient import SourceFile
from medtl.imaging.image import Image

# Its warnings quote the patient's name.
logging.getLogger("highdicom").setLevel(logging.CRITICAL)

RESEARCH_ONLY = "Research use only. Not for diagnosis."
# Namespace of the name-based UUIDs behind our UIDs, generated once at random.
NAMESPACE = uuid.UUID("7a0d4a9e-6a0b-4f0e-9b52-3f6c1c8c2f5d")

# Type 2: present, with or without a value (PS3.3 C.7.1.1, C.7.2.1).
PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
SEXES, SIDES = ("M", "F", "O"), ("R", "L")
AGE = re.compile("[0-9]{3}[DWMY]")
DESCRIPTION_LIMIT = 64
# Series number and description by kind: results of series 4 are series 401, 402 and 403.
SERIES = {"sr": (1, "classification"), "sc": (2, "overlay"), "map": (3, "saliency map")}
MOST_SOURCE_NUMBER = 10**7  # a hundred times that would not be an Integer String


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

    def headers(self) -> list[Dataset]:
        """Return the headers of all source files, with all attributes that objects need."""
        return [_completed(one.header) for one in self.sources]

    def identity(self, kind: str) -> dict[str, Any]:
        """Return what identifies an object: UIDs, numbers, description, and medtl as its equipment.

        kind is a key of SERIES. The serial number of the device identifies the model.
        """
        number, description = SERIES[kind]
        try:
            source = int(self.sources[0].header.get("SeriesNumber") or 0)
        except (TypeError, ValueError):
            source = 0
        return {
            "series_instance_uid": self.uid(kind, "series"),
            "sop_instance_uid": self.uid(kind, "instance"),
            "series_number": (source if 0 <= source < MOST_SOURCE_NUMBER else 0) * 100 + number,
            "instance_number": 1,
            "series_description": f"medtl {description}: research use only",
            "specific_character_set": "ISO_IR 192",
            "manufacturer": "medtl",
            "manufacturer_model_name": self.model.backbone[:DESCRIPTION_LIMIT],
            "software_versions": f"medtl {self.model.medtl}",
            "device_serial_number": self.model.sha256[:16],
        }


def derived_uid(*names: str) -> str:
    """Return a UID derived from a name-based UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(NAMESPACE, chr(10).join(names)).int}"


def _completed(header: Dataset) -> Dataset:
    """Return a copy of a header with all attributes that objects need; missing ones are empty."""
    complete = Dataset()
    complete.update(header)
    for keyword in PATIENT_AND_STUDY:
        if keyword not in complete:
            complete.add_new(keyword, dictionary_VR(keyword), None)
    if complete.PatientSex not in SEXES:
        complete.add_new("PatientSex", "CS", None)  # a new element: the old one belongs to the header
    if not AGE.fullmatch(str(complete.get("PatientAge") or "")):
        complete.pop("PatientAge", None)  # optional, and often written as years alone
    return complete


def add_laterality(built: Dataset, header: Dataset) -> None:
    """Copy the side of a paired body part; the attribute is empty if the source does not state it."""
    named = header.get("Laterality") or header.get("ImageLaterality")
    built.Laterality = named if named in SIDES else None  # images may have B and U, series may not
