"""Write the objects about a study's result into files, each whole or absent and none twice."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from medtl.imaging.formats.dicom_faults import reporting_malformed
from medtl.imaging.storage import replacing
from medtl.reporting.dicom.headers import instance_uid
from medtl.reporting.dicom.parametric_map import parametric_map
from medtl.reporting.dicom.result import StudyResult
from medtl.reporting.dicom.secondary_capture import secondary_capture
from medtl.reporting.dicom.structured_report import structured_report

BUILDERS: dict[str, Callable[[StudyResult], Dataset]] = {
    "sr": structured_report,
    "sc": secondary_capture,
    "map": parametric_map,
}


def write_object(path: Path, result: StudyResult, kind: str) -> None:
    """Write one object; where the file holds this very object, it stays as it is, its dates too.

    kind is a key of BUILDERS. Raises ReadError result-no-frame; dicom-header where the source's header holds
    what no object can; OutputError.
    """
    if _holds(path, instance_uid(result, kind)):
        return
    with warnings.catch_warnings(), reporting_malformed(result.sources[0].path), replacing(path) as temporary:
        warnings.simplefilter("ignore")  # they quote the patient's name
        BUILDERS[kind](result).save_as(temporary, enforce_file_format=True)


def _holds(path: Path, uid: str) -> bool:
    try:
        found = pydicom.dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True)
    except (FileNotFoundError, InvalidDicomError):
        return False
    return found.get("SOPInstanceUID") == uid
