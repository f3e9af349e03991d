"""What all objects share: patient and study as the source has them, their UIDs, and medtl as equipment."""

import logging
import re
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR

from medtl.pacs.objects.result import StudyResult

# Its warnings quote the patient's name.
logging.getLogger("highdicom").setLevel(logging.CRITICAL)

# Must be there, with or without a value (PS3.3 C.7.1.1, C.7.2.1).
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
# Of a series 4 the series of results are 401, 402 and 403, as far as that is an Integer String.
NUMBERS = {"sr": 1, "sc": 2, "map": 3}
DESCRIPTIONS = {"sr": "classification", "sc": "overlay", "map": "saliency map"}
MOST_SOURCE_NUMBER = 10**7


def reference(header: Dataset) -> Dataset:
    """Return a header that objects are made from: what must be there and is not has no value."""
    complete = Dataset()
    complete.update(header)
    for keyword in PATIENT_AND_STUDY:
        if keyword not in complete:
            complete.add_new(keyword, dictionary_VR(keyword), None)
    if complete.PatientSex not in SEXES:
        complete.add_new("PatientSex", "CS", None)  # a new element: the old one is the header's
    if not AGE.fullmatch(str(complete.get("PatientAge") or "")):
        complete.pop("PatientAge", None)  # optional, and often written as years alone
    return complete


def references(result: StudyResult) -> list[Dataset]:
    """Return the headers of all source files, complete."""
    return [reference(one.header) for one in result.sources]


def identity(result: StudyResult, kind: str) -> dict[str, Any]:
    """Return what tells an object apart: its UIDs, numbers and description. kind is a key of NUMBERS."""
    return {
        "series_instance_uid": result.uid(kind, "series"),
        "sop_instance_uid": instance_uid(result, kind),
        "series_number": _series_number(result.sources[0].header, kind),
        "instance_number": 1,
        "series_description": f"medtl {DESCRIPTIONS[kind]}: research use only",
        "specific_character_set": "ISO_IR 192",
    }


def instance_uid(result: StudyResult, kind: str) -> str:
    """Return the SOP Instance UID of an object about a result."""
    return result.uid(kind, "instance")


def equipment(result: StudyResult) -> dict[str, Any]:
    """Return medtl as the equipment that made an object; its serial number is that of the model."""
    return {
        "manufacturer": "medtl",
        "manufacturer_model_name": result.model.backbone[:DESCRIPTION_LIMIT],
        "software_versions": f"medtl {result.model.medtl}",
        "device_serial_number": result.model.sha256[:16],
    }


def add_laterality(built: Dataset, header: Dataset) -> None:
    """Copy which side of a paired part an image shows; without a value where the source does not say."""
    named = header.get("Laterality") or header.get("ImageLaterality")
    built.Laterality = named if named in SIDES else None  # images may also say B and U, series may not


def _series_number(header: Dataset, kind: str) -> int:
    try:
        number = int(header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return (number if 0 <= number < MOST_SOURCE_NUMBER else 0) * 100 + NUMBERS[kind]
