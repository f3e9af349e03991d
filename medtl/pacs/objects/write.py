"""Write the objects about a study's result into files, each whole or absent and none twice."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from medtl.core.files import replacing, write_json
from medtl.errors import ReadError
from medtl.imaging.series import unreadable
from medtl.pacs.objects.fhir import bundle_id, fhir_bundle, holds_bundle
from medtl.pacs.objects.parametric_map import parametric_map
from medtl.pacs.objects.result import StudyResult
from medtl.pacs.objects.secondary_capture import secondary_capture
from medtl.pacs.objects.structured_report import structured_report

BUILDERS: dict[str, Callable[[StudyResult], Dataset]] = {
    "sr": structured_report,
    "sc": secondary_capture,
    "map": parametric_map,
}


def object_path(result: StudyResult, kind: str) -> str:
    """Return where an object of a kind of KINDS belongs, below the folder for results."""
    if kind == "fhir":
        return f"fhir/{bundle_id(result)}.json"
    return f"dicom/{result.uid(kind, 'instance')}-{kind}.dcm"


def write_object(path: Path, result: StudyResult, kind: str) -> None:
    """Write one object; if the file already holds this very object, it is left as it is, with its dates.

    kind is one of KINDS. Raises ReadError result-no-frame, result-header, file-unreadable; OutputError.
    """
    if kind == "fhir":
        if not holds_bundle(path, result):
            write_json(path, fhir_bundle(result))
    elif not _holds(path, result.uid(kind, "instance")):
        try:  # neither warnings nor errors of highdicom are shown: they quote the patient's name
            with warnings.catch_warnings(action="ignore"), replacing(path) as temporary:
                BUILDERS[kind](result).save_as(temporary, enforce_file_format=True)
        except (ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
            reason = f"has a header that does not allow this object ({type(error).__name__})"
            where, fix = result.sources[0].path, "export it again from its source"
            raise ReadError("result-header", reason, where=where, fix=fix) from error


def _holds(path: Path, uid: str) -> bool:
    try:
        header = pydicom.dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True)
    except (FileNotFoundError, InvalidDicomError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return header.get("SOPInstanceUID") == uid
