"""Header of a source file -> the attributes all objects share: patient, study, UIDs, medtl as equipment."""

import logging
import re
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR

from medtl.pacs.objects.result import StudyResult

# Its warnings quote the patient's name.
logging.getLogger("highdicom").setLevel(logging.CRITICAL)

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


def reference(header: Dataset) -> Dataset:
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


def references(result: StudyResult) -> list[Dataset]:
    """Return the completed headers of all source files."""
    return [reference(one.header) for one in result.sources]


def identity(result: StudyResult, kind: str) -> dict[str, Any]:
    """Return what identifies an object: UIDs, numbers and description. kind is a key of SERIES."""
    number, description = SERIES[kind]
    try:
        source = int(result.sources[0].header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        source = 0
    return {
        "series_instance_uid": result.uid(kind, "series"),
        "sop_instance_uid": result.uid(kind, "instance"),
        "series_number": (source if 0 <= source < MOST_SOURCE_NUMBER else 0) * 100 + number,
        "instance_number": 1,
        "series_description": f"medtl {description}: research use only",
        "specific_character_set": "ISO_IR 192",
    }


def equipment(result: StudyResult) -> dict[str, Any]:
    """Return medtl as the equipment that made an object; the serial number identifies the model."""
    return {
        "manufacturer": "medtl",
        "manufacturer_model_name": result.model.backbone[:DESCRIPTION_LIMIT],
        "software_versions": f"medtl {result.model.medtl}",
        "device_serial_number": result.model.sha256[:16],
    }


def add_laterality(built: Dataset, header: Dataset) -> None:
    """Copy the side of a paired body part; the attribute is empty if the source does not state it."""
    named = header.get("Laterality") or header.get("ImageLaterality")
    built.Laterality = named if named in SIDES else None  # images may have B and U, series may not
