"""Who a series is of, for those few places where a user asks for it: never for a log or a default page."""

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from medtl.imaging.series import Series

# Keyword in DICOM -> how a page names it (PS3.3 C.7.1.1, C.7.2.1).
ELEMENTS = {
    "PatientName": "name",
    "PatientID": "patient ID",
    "PatientBirthDate": "birth date",
    "StudyDate": "study date",
    "AccessionNumber": "accession number",
}


def read_identifiers(series: Series, source: str) -> dict[str, str]:
    """Return what identifies the patient of a series: its source, and what its DICOM header says.

    A header that cannot be read any more adds nothing.
    """
    found = {"source": source}
    if series.format != "dicom" or not series.files:
        return found
    try:
        header = dcmread(series.files[0], stop_before_pixels=True, specific_tags=list(ELEMENTS))
    except (OSError, InvalidDicomError):
        return found
    values = {name: str(header.get(keyword) or "").strip() for keyword, name in ELEMENTS.items()}
    return found | {name: value for name, value in values.items() if value}
