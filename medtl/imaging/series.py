"""Group files into series: the units that are read, labelled and scored."""

from dataclasses import dataclass
from pathlib import Path

from medtl.errors import ReadError


@dataclass(frozen=True)
class Series:
    """One unit to read: a DICOM series or projection, one file of another format, or one item of an archive.

    files are in slice order for a DICOM volume. path is what names the unit to the user: the folder of a
    DICOM series that has the folder to itself, otherwise its first file. item is the name of one item of an
    archive that holds many ("train/17"), None otherwise. Keys are salted hashes, empty where unknown.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    item: str | None = None
    modality: str = ""
    patient_key: str = ""
    study_key: str = ""
    series_key: str = ""


@dataclass(frozen=True)
class Scan:
    """What a folder holds: series to read, what was refused, and how many files are no images at all."""

    series: tuple[Series, ...]
    refusals: tuple[ReadError, ...]
    skipped: int
