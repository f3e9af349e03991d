"""What a DICOM header says of a patient and a scanner that subgroups are formed by, and that names nobody."""

import re
from datetime import date

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from medtl.imaging.series import Series

# PS3.3 C.7.1.1, C.7.2.2, C.7.5.1
ELEMENTS = (
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "Manufacturer",
    "ManufacturerModelName",
)
AGE = re.compile(r"(\d{3})([DWMY])")  # PS3.5 6.2, AS
A_YEAR = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}
DATE = re.compile(r"(\d{4})(\d{2})(\d{2})")


def read_group_facts(series: Series) -> dict[str, str]:
    """Return "sex" (F, M or O), "age" in whole years and "scanner" of a series, "" where it does not say.

    Of what is not DICOM, or cannot be read any more, nothing.
    """
    if series.format != "dicom" or not series.files:
        return {}
    try:
        header = dcmread(series.files[0], stop_before_pixels=True, specific_tags=list(ELEMENTS))
    except (OSError, InvalidDicomError):
        return {}
    sex = _text(header, "PatientSex").upper()
    maker = [_text(header, "Manufacturer"), _text(header, "ManufacturerModelName")]
    return {
        "sex": sex if sex in ("F", "M", "O") else "",
        "age": _age(header),
        "scanner": " ".join(part for part in maker if part),
    }


def _age(header: Dataset) -> str:
    """Return the age at the study in whole years: as stated, or from the birth date."""
    stated = AGE.fullmatch(_text(header, "PatientAge").upper())
    if stated:
        return str(int(int(stated[1]) / A_YEAR[stated[2]]))
    born, seen = _date(_text(header, "PatientBirthDate")), _date(_text(header, "StudyDate"))
    if born is None or seen is None or seen < born:
        return ""
    return str(seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day)))


def _date(text: str) -> date | None:
    found = DATE.fullmatch(text)
    try:
        return date(*map(int, found.groups())) if found else None
    except ValueError:
        return None


def _text(header: Dataset, keyword: str) -> str:
    return str(header.get(keyword) or "").strip()
