"""SERIES -> its headers, read again without pixels: what a result refers to, or a few elements as text."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import Dataset

from medtl.errors import ReadError
from medtl.imaging.containers import open_file
from medtl.imaging.dicom.elements import reporting_malformed, silence_warnings
from medtl.imaging.dicom.header import inflated
from medtl.imaging.series import DICOM, Series, unreadable

# Without these a result cannot say which patient's images it is about (PS3.3 C.12.1, C.7.2.1, C.7.3.1).
IDENTIFYING = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")

# PS3.3 C.7.1.1, C.7.2.2, C.7.5.1
GROUP_ELEMENTS = (
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "Manufacturer",
    "ManufacturerModelName",
)
AGE = re.compile(r"(\d{3})([DWMY])")  # PS3.5 6.2, AS
A_YEAR = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}
DATE = re.compile(r"[0-9]{8}")  # PS3.5 6.2, DA

# Keyword in DICOM -> how a page names it (PS3.3 C.7.1.1, C.7.2.1).
IDENTIFYING_ELEMENTS = {
    "PatientName": "name",
    "PatientID": "patient ID",
    "PatientBirthDate": "birth date",
    "StudyDate": "study date",
    "AccessionNumber": "accession number",
}


@dataclass(frozen=True, eq=False)
class SourceFile:
    """The decoded header of one file that was read, with all that it says about the patient.

    frames: which of its frames were read, counted from 1; None for a file with one frame.
    """

    path: Path
    header: Dataset
    frames: tuple[int, ...] | None


def read_sources(series: Series) -> tuple[SourceFile, ...]:
    """Read the headers of a DICOM series, in slice order.

    Raises ReadError result-no-study where a file lacks a UID or they belong to several series; dicom-header;
    file-missing, file-unreadable where one has gone.
    """
    sources = tuple(_read_source(path, series) for path in series.files)
    studies = {(one.header.StudyInstanceUID, one.header.SeriesInstanceUID) for one in sources}
    if len(studies) > 1:
        reason = "has files of several series, so a result could not refer to one study"
        raise ReadError("result-no-study", reason, where=series.path, fix="export it again")
    return sources


def read_texts(series: Series, keywords: Iterable[str]) -> dict[str, str]:
    """Return elements of a series' first file as text, "" for one that is absent.

    Returns nothing for what is not DICOM or can no longer be read. No line quotes a value.
    """
    if series.format != DICOM or not series.files:
        return {}
    path, tags = series.files[0], list(keywords)
    try:
        with open_file(path) as file, reporting_malformed(path):
            header = _parse(file, path, tags)
            return {keyword: str(header.get(keyword) or "").strip() for keyword in tags}
    except (OSError, ReadError):
        return {}


def _read_source(path: Path, series: Series) -> SourceFile:
    try:
        with open_file(path) as file, reporting_malformed(path):
            header = _parse(file, path)
            header.decode()
            absent = [keyword for keyword in IDENTIFYING if not str(header.get(keyword) or "")]
    except OSError as error:
        raise unreadable(path, error) from error
    if absent:
        reason = f"lacks {absent[0]}, so no result can refer to it"
        raise ReadError("result-no-study", reason, where=path, fix="export it again from its source")
    own = [plane for plane in series.planes if plane.path == path]
    several = any(plane.frames > 1 for plane in own)
    return SourceFile(path, header, tuple(sorted(plane.frame + 1 for plane in own)) if several else None)


def _parse(file: BinaryIO, path: Path, tags: list[str] | None = None) -> Dataset:
    silence_warnings()
    stream = inflated(file, path)
    return pydicom.dcmread(stream, force=True, stop_before_pixels=True, specific_tags=tags)


def read_group_facts(series: Series) -> dict[str, str]:
    """Return "sex" (F, M or O), "age" in whole years and "scanner" of a series, "" where it does not say.

    Returns nothing for what is not DICOM or can no longer be read.
    """
    header = read_texts(series, GROUP_ELEMENTS)
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
    dates = (header["PatientBirthDate"], header["StudyDate"])
    try:
        born, seen = (date.fromisoformat(text) for text in dates if DATE.fullmatch(text))
    except ValueError:  # one of them is absent, or no date
        return ""
    years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return str(years) if years >= 0 else ""


def read_identifiers(series: Series, source: str) -> dict[str, str]:
    """Return what identifies the patient of a series: its source, and what its DICOM header says.

    A header that can no longer be read adds nothing.
    """
    texts = read_texts(series, IDENTIFYING_ELEMENTS)
    named = {IDENTIFYING_ELEMENTS[keyword]: value for keyword, value in texts.items() if value}
    return {"source": source} | named
