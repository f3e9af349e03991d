"""A DAMAGED FILE -> the series that its header names, as far as the header can be parsed."""

from pathlib import Path

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from medtl.core.ids import hash_identifier
from medtl.imaging.containers import open_file
from medtl.imaging.dicom.elements import silence_warnings, values_of
from medtl.imaging.dicom.header import inflated
from medtl.imaging.dicom.instance import Instance
from medtl.imaging.series import SeriesId

TAGS = tuple(Tag(keyword) for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"))


def identity_of(plane: Instance) -> SeriesId:
    """Return the series that a plane belongs to."""
    patient, study, series = map(hash_identifier, (plane.patient_id, plane.study_uid, plane.series_uid))
    return patient, study, series or str(plane.path.parent)


def read_identity(path: Path) -> SeriesId | None:
    """Return the series that a damaged file names; None where it names none, or is cut before it does."""
    silence_warnings()
    try:
        with open_file(path) as file:
            dataset = read_partial(inflated(file, path), _is_behind, force=True, specific_tags=[*TAGS])
        if any(_is_cut(dataset, tag) for tag in TAGS):
            return None
        texts = ["\\".join(map(str, values_of(dataset, tag))) if tag in dataset else "" for tag in TAGS]
    except Exception:  # it is damaged: pydicom raises nearly anything
        return None
    patient, study, series = map(hash_identifier, texts)
    return (patient, study, series) if series else None


def _is_cut(dataset: Dataset, tag: BaseTag) -> bool:
    """Say whether the file ends within a value: half of a UID names another series."""
    element = dataset.get_item(tag) if tag in dataset else None
    return isinstance(element, RawDataElement) and len(element.value or b"") < element.length


def _is_behind(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag > TAGS[-1]
