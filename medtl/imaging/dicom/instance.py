"""HEADER -> Instance: what a DICOM header says about one plane, and which elements say it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalIntraOralXRayImageStorageForPresentation,
    DigitalIntraOralXRayImageStorageForProcessing,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MRImageStorage,
    SecondaryCaptureImageStorage,
)

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import FRAME_GROUP_KEYWORDS, Header, reporting_malformed
from medtl.imaging.image import WINDOW_FUNCTIONS, Window
from medtl.imaging.series import SLICED_MODALITIES

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
# PresentationLUTShape: whether low values are white (PS3.3 C.11.6.1).
INVERSE_BY_SHAPE = {"INVERSE": True, "IDENTITY": False}
# Values of PixelPaddingValue have two bytes.
WORD_BITS = 16
# What the pixels of a detector are for; PresentationIntentType says it, or else the SOP class.
FOR_PROCESSING, FOR_PRESENTATION = "FOR PROCESSING", "FOR PRESENTATION"
INTENTS = {
    str(DigitalXRayImageStorageForProcessing): FOR_PROCESSING,
    str(DigitalMammographyXRayImageStorageForProcessing): FOR_PROCESSING,
    str(DigitalIntraOralXRayImageStorageForProcessing): FOR_PROCESSING,
    str(DigitalXRayImageStorageForPresentation): FOR_PRESENTATION,
    str(DigitalMammographyXRayImageStorageForPresentation): FOR_PRESENTATION,
    str(DigitalIntraOralXRayImageStorageForPresentation): FOR_PRESENTATION,
}
# Words of ImageType for a sheet of tiles: a Siemens mosaic, a United Imaging grid.
TILED = frozenset({"MOSAIC", "VFRAME"})

# Rows or columns of the smallest tile.
LEAST_TILE = 16

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


def _frames(header: Header, keyword: str) -> int:
    """Return the number of frames; an empty one, or zero, is that of a file with one frame."""
    return _whole(header, keyword) or 1


def _ordinal(header: Header, keyword: str) -> int | None:
    """Return a whole number that nothing depends on: None where there is none."""
    try:
        return int(header[keyword][0])
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None


def _can_be_cut(rows: int, columns: int) -> bool:
    """Say whether tiles, n side by side and n or n - 1 one above another, fill a plane."""
    return any(
        columns % side == 0
        and columns // side >= LEAST_TILE
        and any(rows % high == 0 and rows // high >= LEAST_TILE for high in (side, side - 1))
        for side in range(2, columns // LEAST_TILE + 1)
    )


def _is_captured(header: Header, keyword: str) -> bool:
    """Say whether the SOP class is Secondary Capture, of one frame or several (PS3.4 B.5)."""
    return f"{_text(header, keyword)}.".startswith(f"{SecondaryCaptureImageStorage}.")


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


def _padding(header: Header, value: str, limit: str, sign: str, *stored: str) -> tuple[float, float] | None:
    """Return the range of padding values, whose two ends come in either order (PS3.3 C.7.5.1.1.2)."""
    low = _number(header, value)
    if low is None:
        return None
    high = _number(header, limit)
    bits, signed = _whole(header, *stored), _flag(header, sign)
    ends = [_as_stored(end, bits, signed) for end in (low, low if high is None else high)]
    return min(ends), max(ends)


def _as_stored(value: float, bits: int, signed: bool) -> float:
    """Give a value of two bytes the sign of the pixels, which writers get wrong (US for SS, SS for US)."""
    if bits > WORD_BITS or value % 1:
        return value
    value %= 2**WORD_BITS
    if signed and value >= 2 ** (WORD_BITS - 1):
        return value - 2**WORD_BITS
    return value - 2**bits if signed and 2 ** (bits - 1) <= value < 2**bits else value


def _intent(header: Header, intent: str, sop_class: str) -> str:
    named = _code(header, intent)
    known = named in (FOR_PROCESSING, FOR_PRESENTATION)
    return named if known else INTENTS.get(_text(header, sop_class), "")


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
    file has; mosaic is how many tiles a sheet has side by side (1: no sheet), mosaic_rows how many one above
    another. has_tables: the file has a Modality or VOI LUT. place is None where pixel data are compressed.
    number and temporal_positions are InstanceNumber and NumberOfTemporalPositions; captured: the SOP class is
    Secondary Capture. repairs are what the header left to its bytes, one phrase each.
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
    frames: Annotated[int, _frames, "NumberOfFrames"]
    stated_frames: Annotated[int, partial(_whole, absent=1), "NumberOfFrames"]
    photometric: Annotated[str, _code, "PhotometricInterpretation"]
    lut_shape: Annotated[str, _code, "PresentationLUTShape"]
    intent: Annotated[str, _intent, "PresentationIntentType", "SOPClassUID"]
    bits_allocated: Annotated[int, _whole, "BitsAllocated"]
    bits_stored: Annotated[int, _whole, "BitsStored", "BitsAllocated"]
    high_bit: Annotated[int, _high_bit, "HighBit", "BitsStored", "BitsAllocated"]
    signed: Annotated[bool, _flag, "PixelRepresentation"]
    rescale: Annotated[tuple[float, float] | None, _rescale, "RescaleSlope", "RescaleIntercept"]
    voi: Annotated[Window | None, _window, "VOILUTFunction", "WindowCenter", "WindowWidth"]
    padding: Annotated[
        tuple[float, float] | None,
        _padding,
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "PixelRepresentation",
        "BitsStored",
        "BitsAllocated",
    ]
    burned_in: Annotated[str, _code, "BurnedInAnnotation"]
    lossy: Annotated[str, _code, "LossyImageCompression"]
    body_part: Annotated[str, _code, "BodyPartExamined"]
    view: Annotated[str, _code, "ViewPosition"]
    position: Annotated[tuple[float, ...] | None, partial(_numbers, count=3), "ImagePositionPatient"]
    orientation: Annotated[tuple[float, ...] | None, partial(_numbers, count=6), "ImageOrientationPatient"]
    pixel_spacing: Annotated[tuple[float, ...] | None, partial(_numbers, count=2), "PixelSpacing"]
    imager_spacing: Annotated[tuple[float, ...] | None, partial(_numbers, count=2), "ImagerPixelSpacing"]
    film_spacing: Annotated[
        tuple[float, ...] | None, partial(_numbers, count=2), "NominalScannedPixelSpacing"
    ]
    pixel_aspect: Annotated[tuple[float, ...] | None, partial(_numbers, count=2), "PixelAspectRatio"]
    slice_spacing: Annotated[float | None, _number, "SpacingBetweenSlices"]
    slice_thickness: Annotated[float | None, _number, "SliceThickness"]
    contrast: Annotated[tuple[str, ...], _texts, *CONTRAST_KEYWORDS]
    moments: Annotated[tuple[str, ...], _texts, *MOMENT_KEYWORDS]
    has_tables: Annotated[bool, _has_items, "ModalityLUTSequence", "VOILUTSequence"]
    number: Annotated[int | None, _ordinal, "InstanceNumber"]
    temporal_positions: Annotated[int | None, _ordinal, "NumberOfTemporalPositions"]
    captured: Annotated[bool, _is_captured, "SOPClassUID"]
    frame: int = 0
    mosaic: int = 1
    mosaic_rows: int = 1
    repairs: tuple[str, ...] = ()

    @property
    def values(self) -> int:
        """Number of pixel values of the plane."""
        return self.rows * self.columns * self.samples

    @property
    def flat_spacing(self) -> tuple[float, ...] | None:
        """Spacing of rows and columns in mm, at the patient or else at detector or film; None if unknown."""
        known = (self.pixel_spacing, self.imager_spacing, self.film_spacing)
        return next((spacing for spacing in known if spacing is not None and min(spacing) > 0), None)

    @property
    def flat_aspect(self) -> float | None:
        """Height of a pixel by its width, where that alone is known and it is not square; None otherwise."""
        ratio = self.pixel_aspect
        if self.flat_spacing is not None or ratio is None or min(ratio) <= 0 or ratio[0] == ratio[1]:
            return None
        return ratio[0] / ratio[1]

    @property
    def stored_range(self) -> tuple[float, float]:
        """The lowest and the highest value that BitsStored bits hold."""
        lowest = -(2.0 ** (self.bits_stored - 1)) if self.signed else 0.0
        return lowest, lowest + 2.0**self.bits_stored - 1

    def is_inverted(self, by_lut_shape: bool) -> bool:
        """Say whether low values are white, by PresentationLUTShape where it names a shape and decides."""
        if by_lut_shape and self.lut_shape in INVERSE_BY_SHAPE:
            return INVERSE_BY_SHAPE[self.lut_shape]
        return self.photometric == "MONOCHROME1"

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns of the stored frame that the plane is, or is a tile of."""
        return self.rows * self.mosaic_rows, self.columns * self.mosaic

    @property
    def may_be_tiled(self) -> bool:
        """Whether it may be a sheet of tiles: it says so, or is an MR image that says not where it lies."""
        unplaced = self.modality == "MR" and self.position is None
        return not TILED.isdisjoint(self.image_type) or (unplaced and _can_be_cut(self.rows, self.columns))

    @property
    def is_picture(self) -> bool:
        """Whether it is a picture of slices or of text, such as a screen save, and not a slice itself."""
        derived = self.captured or ("SECONDARY" in self.image_type and self.orientation is None)
        return derived and self.position is None and self.modality in SLICED_MODALITIES


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
# Those that each plane has for itself, and the others.
OWN = {name: SOURCES[name] for name in ("sop_uid", "position", "number")}
SHARED = tuple(name for name in SOURCES if name not in OWN)


def _read_shared(name: str, header: Header) -> Any:
    read, keywords = SOURCES[name]
    stored = tuple(map(header.get, keywords))
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
        values = {name: _read_shared(name, header) for name in SHARED}
        values |= {name: read(header, *keywords) for name, (read, keywords) in OWN.items()}
    instance = Instance(path, _shared.setdefault(transfer_syntax, transfer_syntax), place, **values)
    if min(instance.rows, instance.columns, instance.samples, instance.frames) < 1:
        raise ReadError("dicom-header", "has no valid image size", where=path, fix="export it again")
    return instance
