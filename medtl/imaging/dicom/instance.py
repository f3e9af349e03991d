"""HEADER -> Instance: what a DICOM header says about one plane, and which elements say it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydicom.tag import Tag
from pydicom.uid import UID, CTImageStorage, MRImageStorage

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import FRAME_GROUP_KEYWORDS, Header, reporting_malformed
from medtl.imaging.image import WINDOW_FUNCTIONS, Window

# Elements that distinguish echoes, time points and b-values within one series.
CONTRAST_KEYWORDS = ("EchoTime", "TemporalPositionIdentifier", "DiffusionBValue")

# Elements that may distinguish planes at one position where those do not, most specific first.
MOMENT_KEYWORDS = (
    "ImageType",
    "ComplexImageComponent",
    "DiffusionGradientOrientation",
    "InversionTime",
    "FlipAngle",
    "AcquisitionNumber",
    "TriggerTime",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
)
# What an absent Modality must have been.
MODALITIES = {str(CTImageStorage): "CT", str(MRImageStorage): "MR"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file keeps its uncompressed pixel data, in bytes, and the file's size and time when scanned."""

    start: int
    length: int
    size: int
    time_ns: int


# What is made of the values of one element, or of several.


def _text(header: Header, keyword: str) -> str:
    return "\\".join(map(str, header.get(keyword, ())))


def _texts(header: Header, *keywords: str) -> tuple[str, ...]:
    return tuple(_text(header, keyword) for keyword in keywords)


def _code(header: Header, keyword: str) -> str:
    return _text(header, keyword).upper()


def _codes(header: Header, keyword: str) -> tuple[str, ...]:
    return tuple(_code(header, keyword).split("\\"))


def _modality(header: Header, keyword: str, sop_class: str) -> str:
    return _code(header, keyword) or MODALITIES.get(_text(header, sop_class), "")


def _whole(header: Header, *keywords: str, absent: int = 0) -> int:
    """Return the whole number of the first element that has one, `absent` where none has."""
    for keyword in keywords:
        if header.get(keyword, ()) not in ((), ("",)):
            return int(header[keyword][0])
    return absent


def _high_bit(header: Header, keyword: str, *stored: str) -> int:
    return _whole(header, keyword, absent=_whole(header, *stored) - 1)


def _flag(header: Header, keyword: str) -> bool:
    return bool(_whole(header, keyword))


def _numbers(header: Header, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return exactly `count` finite numbers of an element, or None."""
    try:
        values = tuple(map(float, header.get(keyword, ())))
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _number(header: Header, keyword: str) -> float | None:
    values = _numbers(header, keyword, 1)
    return values[0] if values else None


def _rescale(header: Header, *keywords: str) -> tuple[float, float] | None:
    """Return slope and intercept, 1 and 0 where they are absent, None where they are unusable."""
    slope, intercept = (
        absent if header.get(keyword, ("",)) in ((), ("",)) else _number(header, keyword)
        for keyword, absent in zip(keywords, (1.0, 0.0), strict=True)
    )
    return (slope, intercept) if slope and intercept is not None else None


def _window(header: Header, function: str, *keywords: str) -> Window | None:
    """Return the first window, None where it is absent or no window."""
    first = {keyword: header.get(keyword, ())[:1] for keyword in keywords}
    centre, width = (_number(first, keyword) for keyword in keywords)
    named = _code(header, function) or "LINEAR"
    if centre is None or width is None or width <= 0 or named not in WINDOW_FUNCTIONS:
        return None
    return Window(centre, width, named)


def _padding(header: Header, *keywords: str) -> tuple[float, float] | None:
    """Return the range of padding values, whose two ends come in either order (PS3.3 C.7.5.1.1.2)."""
    value, limit = (_number(header, keyword) for keyword in keywords)
    if value is None:
        return None
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


def _has_items(header: Header, *keywords: str) -> bool:
    return any(header.get(keyword, (0,)) != (0,) for keyword in keywords)


@dataclass(frozen=True, slots=True)
class Instance:
    """What a DICOM file says about one plane. Identifiers leave the readers only as hashes.

    Each annotation names the function that reads the field and the elements that it is read from.

    position (3,) and orientation (6,), row cosines first, are in LPS mm; pixel_spacing is (rows, columns) in
    mm; rescale is (slope, intercept); voi is the first window; padding the lowest and highest stored value
    outside the image; all are None where absent or invalid. contrast and moments hold the values of
    CONTRAST_KEYWORDS and MOMENT_KEYWORDS. frame counts the planes of a file from 0; frames is how many the
    file has; mosaic is how many tiles a mosaic has side by side (1: no mosaic). has_tables: the file has a
    Modality or VOI LUT. place is None where the pixel data are compressed.
    """

    path: Path
    transfer_syntax: UID
    place: Place | None
    sop_uid: Annotated[str, _text, "SOPInstanceUID"]
    patient_id: Annotated[str, _text, "PatientID"] = field(repr=False)
    study_uid: Annotated[str, _text, "StudyInstanceUID"] = field(repr=False)
    series_uid: Annotated[str, _text, "SeriesInstanceUID"] = field(repr=False)
    modality: Annotated[str, _modality, "Modality", "SOPClassUID"]
    image_type: Annotated[tuple[str, ...], _codes, "ImageType"]
    rows: Annotated[int, _whole, "Rows"]
    columns: Annotated[int, _whole, "Columns"]
    samples: Annotated[int, partial(_whole, absent=1), "SamplesPerPixel"]
    frames: Annotated[int, partial(_whole, absent=1), "NumberOfFrames"]
    photometric: Annotated[str, _code, "PhotometricInterpretation"]
    bits_allocated: Annotated[int, _whole, "BitsAllocated"]
    bits_stored: Annotated[int, _whole, "BitsStored", "BitsAllocated"]
    high_bit: Annotated[int, _high_bit, "HighBit", "BitsStored", "BitsAllocated"]
    signed: Annotated[bool, _flag, "PixelRepresentation"]
    rescale: Annotated[tuple[float, float] | None, _rescale, "RescaleSlope", "RescaleIntercept"]
    voi: Annotated[Window | None, _window, "VOILUTFunction", "WindowCenter", "WindowWidth"]
    padding: Annotated[tuple[float, float] | None, _padding, "PixelPaddingValue", "PixelPaddingRangeLimit"]
    burned_in: Annotated[str, _code, "BurnedInAnnotation"]
    lossy: Annotated[str, _code, "LossyImageCompression"]
    body_part: Annotated[str, _code, "BodyPartExamined"]
    view: Annotated[str, _code, "ViewPosition"]
    position: Annotated[tuple[float, ...] | None, partial(_numbers, count=3), "ImagePositionPatient"]
    orientation: Annotated[tuple[float, ...] | None, partial(_numbers, count=6), "ImageOrientationPatient"]
    pixel_spacing: Annotated[tuple[float, ...] | None, partial(_numbers, count=2), "PixelSpacing"]
    imager_spacing: Annotated[tuple[float, ...] | None, partial(_numbers, count=2), "ImagerPixelSpacing"]
    slice_spacing: Annotated[float | None, _number, "SpacingBetweenSlices"]
    slice_thickness: Annotated[float | None, _number, "SliceThickness"]
    contrast: Annotated[tuple[str, ...], _texts, *CONTRAST_KEYWORDS]
    moments: Annotated[tuple[str, ...], _texts, *MOMENT_KEYWORDS]
    has_tables: Annotated[bool, _has_items, "ModalityLUTSequence", "VOILUTSequence"]
    frame: int = 0
    mosaic: int = 1

    @property
    def values(self) -> int:
        """Number of pixel values of the plane."""
        return self.rows * self.columns * self.samples

    @property
    def flat_spacing(self) -> tuple[float, ...] | None:
        """Spacing of rows and columns in mm, at the patient or else at the detector; None if unknown."""
        known = (self.pixel_spacing, self.imager_spacing)
        return next((spacing for spacing in known if spacing is not None and min(spacing) > 0), None)

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns of the stored frame that the plane is, or is a tile of."""
        return self.rows * self.mosaic, self.columns * self.mosaic


SOURCES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    name: (hint.__metadata__[0], hint.__metadata__[1:])
    for name, hint in get_type_hints(Instance, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
HEADER_KEYWORDS = {keyword for _, keywords in SOURCES.values() for keyword in keywords}
KEYWORDS_BY_TAG = {Tag(keyword): keyword for keyword in HEADER_KEYWORDS.union(FRAME_GROUP_KEYWORDS)}


# What was made of elements of earlier planes: most planes of a series have it in common, and share it.
_shared: dict[Any, Any] = {}
MOST_SHARED = 2**14


def _read_shared(name: str, header: Header) -> Any:
    read, keywords = SOURCES[name]
    stored = tuple(header.get(keyword) for keyword in keywords)
    try:
        return _shared[name, stored]
    except (KeyError, TypeError):  # or values that cannot be a key
        value = read(header, *keywords)
    # As keys, 1 and 1.0 are one: only text and whole numbers are shared.
    if all(isinstance(one, str | int) for values in stored if values for one in values):
        if len(_shared) >= MOST_SHARED:
            _shared.clear()
        _shared[name, stored] = value
    return value


def describe(header: Header, path: Path, transfer_syntax: UID, place: Place | None) -> Instance:
    """Turn the flat header of a plane into an Instance. Raises ReadError dicom-header."""
    with reporting_malformed(path):
        values = {name: _read_shared(name, header) for name in SOURCES}
    instance = Instance(path, _shared.setdefault(transfer_syntax, transfer_syntax), place, **values)
    if min(instance.rows, instance.columns, instance.samples, instance.frames) < 1:
        raise ReadError("dicom-header", "has no valid image size", where=path, fix="export it again")
    return instance
