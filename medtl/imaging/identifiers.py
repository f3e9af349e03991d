"""Who a series is of, for those few places where a user asks for it: never for a log or a default page."""

from medtl.imaging.formats.dicom_source import read_texts
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
    found = read_texts(series, ELEMENTS)
    return {"source": source} | {ELEMENTS[keyword]: value for keyword, value in found.items() if value}
