"""Read headers of a DICOM series again, and no pixels: what a result refers to, or a few elements as text."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset

from medtl.errors import ReadError
from medtl.imaging.formats.dicom_faults import reporting_malformed, silence_warnings
from medtl.imaging.formats.dicom_instance import Instance
from medtl.imaging.formats.dicom_parsing import inflated
from medtl.imaging.series import Series, unreadable

# Without these a result cannot say which patient's images it is about (PS3.3 C.12.1, C.7.2.1, C.7.3.1).
IDENTIFYING = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


@dataclass(frozen=True, eq=False)
class SourceFile:
    """The header of one file that was read, its text decoded; and which of its frames, counted from 1.

    frames is None for a file with one frame. It holds all that the file says of the patient.
    """

    path: Path
    header: Dataset
    frames: tuple[int, ...] | None


def read_sources(series: Series) -> tuple[SourceFile, ...]:
    """Read the headers of a DICOM series, in slice order.

    Raises ReadError result-no-study where a file lacks a UID or they are of several series; dicom-header;
    file-missing, file-unreadable where one is there no more.
    """
    sources = tuple(_read_source(path, series) for path in series.files)
    studies = {(one.header.StudyInstanceUID, one.header.SeriesInstanceUID) for one in sources}
    if len(studies) > 1:
        reason = "has files of several series, so there is no one study that a result could go back to"
        raise ReadError("result-no-study", reason, where=series.path, fix="export it again")
    return sources


def read_texts(series: Series, keywords: Iterable[str]) -> dict[str, str]:
    """Return elements of a series' first file as text, "" for one that is absent.

    Nothing of what is not DICOM, or cannot be read any more. No line quotes a value.
    """
    if series.format != "dicom" or not series.files:
        return {}
    path, tags = series.files[0], list(keywords)
    silence_warnings()
    try:
        with path.open("rb") as file, reporting_malformed(path):
            stream = inflated(file, path)
            header = pydicom.dcmread(stream, force=True, stop_before_pixels=True, specific_tags=tags)
            return {keyword: str(header.get(keyword) or "").strip() for keyword in tags}
    except (OSError, ReadError):
        return {}


def _read_source(path: Path, series: Series) -> SourceFile:
    silence_warnings()
    try:
        with path.open("rb") as file, reporting_malformed(path):
            header = pydicom.dcmread(inflated(file, path), force=True, stop_before_pixels=True)
            header.decode()
            absent = [keyword for keyword in IDENTIFYING if not str(header.get(keyword) or "")]
    except OSError as error:
        raise unreadable(path, error) from error
    if absent:
        reason = f"lacks {absent[0]}, so no result can refer to it"
        raise ReadError("result-no-study", reason, where=path, fix="export it again from its source")
    return SourceFile(path, header, _frames(path, series.planes))


def _frames(path: Path, planes: tuple[Instance, ...]) -> tuple[int, ...] | None:
    own = [plane for plane in planes if plane.path == path]
    several = any(plane.frames > 1 for plane in own)
    return tuple(sorted(plane.frame + 1 for plane in own)) if several else None
