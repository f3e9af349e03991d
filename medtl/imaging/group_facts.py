"""What a DICOM header says of a patient and a scanner that subgroups are formed by, and that names nobody."""

import re
from collections.abc import Mapping
from datetime import date

from medtl.imaging.formats.dicom_source import read_texts
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
    header = read_texts(series, ELEMENTS)
    if not header:
        return {}
    sex = header["PatientSex"].upper()
    maker = [header["Manufacturer"], header["ManufacturerModelName"]]
    return {
        "sex": sex if sex in ("F", "M", "O") else "",
        "age": _age(header),
        "scanner": " ".join(part for part in maker if part),
    }


def _age(header: Mapping[str, str]) -> str:
    """Return the age at the study in whole years: as stated, or from the birth date."""
    stated = AGE.fullmatch(header["PatientAge"].upper())
    if stated:
        return str(int(int(stated[1]) / A_YEAR[stated[2]]))
    born, seen = _date(header["PatientBirthDate"]), _date(header["StudyDate"])
    if born is None or seen is None or seen < born:
        return ""
    return str(seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day)))


def _date(text: str) -> date | None:
    found = DATE.fullmatch(text)
    try:
        return date(*map(int, found.groups())) if found else None
    except ValueError:
        return None
