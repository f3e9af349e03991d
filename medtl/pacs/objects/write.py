"""Write the objects about a study's result into files, each whole or absent and none twice."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from medtl.core.files import replacing
from medtl.errors import MedtlError, ReadError
from medtl.imaging.series import unreadable
from medtl.pacs.objects.headers import instance_uid
from medtl.pacs.objects.parametric_map import parametric_map
from medtl.pacs.objects.result import StudyResult
from medtl.pacs.objects.secondary_capture import secondary_capture
from medtl.pacs.objects.structured_report import structured_report

BUILDERS: dict[str, Callable[[StudyResult], Dataset]] = {
    "sr": structured_report,
    "sc": secondary_capture,
    "map": parametric_map,
}


def write_object(path: Path, result: StudyResult, kind: str) -> None:
    """Write one object; where the file holds this very object, it stays as it is, its dates too.

    kind is a key of BUILDERS. Raises ReadError result-no-frame, result-header, file-unreadable; OutputError.
    """
    if _holds(path, instance_uid(result, kind)):
        return
    with warnings.catch_warnings(), _reporting_unfit(result), replacing(path) as temporary:
        warnings.simplefilter("ignore")  # they quote the patient's name
        BUILDERS[kind](result).save_as(temporary, enforce_file_format=True)


@contextmanager
def _reporting_unfit(result: StudyResult) -> Iterator[None]:
    """Turn whatever highdicom raises on odd values of the source into a refusal that does not quote them."""
    try:
        yield
    except MedtlError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
        reason = f"has a header that does not allow this object ({type(error).__name__})"
        where = result.sources[0].path
        raise ReadError(
            "result-header", reason, where=where, fix="export it again from its source"
        ) from error


def _holds(path: Path, uid: str) -> bool:
    try:
        found = pydicom.dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True)
    except (FileNotFoundError, InvalidDicomError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return found.get("SOPInstanceUID") == uid
