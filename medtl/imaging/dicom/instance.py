"""HEADER -> Instance: what a DICOM header says about one plane."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.uid import (
    UID,
    CTImageStorage,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    MRImageStorage,
)

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import CONTRAST_KEYWORDS, MOMENT_KEYWORDS, Header, reporting_malformed
from medtl.imaging.image import WINDOW_FUNCTIONS, Window

# Transfer syntaxes that lose detail whatever the header says; what an absent Modality must have been.
LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})
MODALITIES = {str(CTImageStorage): "CT", str(MRImageStorage): "MR"}
TABLE_KEYWORDS = ("ModalityLUTSequence", "VOILUTSequence")


@dataclass(frozen=True)
class Place:
    """Where a file keeps its uncompressed pixel data, in bytes, and the file's size and time when scanned."""

    start: int
    length: int
    size: int
    time_ns: int


@dataclass(frozen=True)
class Instance:
    """What a DICOM file says about one plane. Identifiers leave the readers only as hashes.

    position (3,) and orientation (6,), row cosines first, are in LPS mm; pixel_spacing is (rows, columns) in
    mm; rescale is (slope, intercept); voi is the first window; padding the lowest and highest stored value
    outside the image; all are None where absent or invalid. contrast and moments hold the values of
    CONTRAST_KEYWORDS and MOMENT_KEYWORDS. frame counts the planes of a file from 0; frames is how many the
    file has; mosaic is how many tiles a mosaic has side by side (1: no mosaic). has_tables: the file has a
    Modality or VOI LUT. place is None where the pixel data are compressed.
    """

    path: Path
    transfer_syntax: UID
    sop_class: str
    sop_uid: str
    patient_id: str = field(repr=False)
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    modality: str
    image_type: tuple[str, ...]
    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    rescale: tuple[float, float] | None
    voi: Window | None
    padding: tuple[float, float] | None
    burned_in: bool
    lossy: bool
    body_part: str
    view: str
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    imager_spacing: tuple[float, ...] | None
    slice_spacing: float | None
    slice_thickness: float | None
    contrast: tuple[str, ...]
    moments: tuple[str, ...]
    has_tables: bool
    frame: int = 0
    mosaic: int = 1
    place: Place | None = None

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


def describe(header: Header, path: Path, transfer_syntax: UID, place: Place | None) -> Instance:
    """Turn the flat header of a plane into an Instance. Raises ReadError dicom-header."""
    with reporting_malformed(path):
        instance = _instance(header, path, transfer_syntax, place)
    if min(instance.rows, instance.columns, instance.samples, instance.frames) < 1:
        reason = "has no valid image size"
        raise ReadError("dicom-header", reason, where=path, fix="export it again")
    return instance


def _instance(header: Header, path: Path, transfer_syntax: UID, place: Place | None) -> Instance:
    allocated = _whole(header, "BitsAllocated", 0)
    stored = _whole(header, "BitsStored", allocated)
    return Instance(
        path=path,
        transfer_syntax=transfer_syntax,
        sop_class=UID(_text(header, "SOPClassUID")).keyword,
        sop_uid=_text(header, "SOPInstanceUID"),
        patient_id=_text(header, "PatientID"),
        study_uid=_text(header, "StudyInstanceUID"),
        series_uid=_text(header, "SeriesInstanceUID"),
        modality=_text(header, "Modality").upper() or MODALITIES.get(_text(header, "SOPClassUID"), ""),
        image_type=tuple(str(value).upper() for value in header.get("ImageType", ())),
        rows=_whole(header, "Rows", 0),
        columns=_whole(header, "Columns", 0),
        samples=_whole(header, "SamplesPerPixel", 1),
        frames=_whole(header, "NumberOfFrames", 1),
        photometric=_text(header, "PhotometricInterpretation").upper(),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=_whole(header, "HighBit", stored - 1),
        signed=bool(_whole(header, "PixelRepresentation", 0)),
        rescale=_rescale(header),
        voi=_window(header),
        padding=_padding(header),
        burned_in=_text(header, "BurnedInAnnotation").upper() == "YES",
        lossy=_text(header, "LossyImageCompression") == "01" or transfer_syntax in LOSSY,
        body_part=_text(header, "BodyPartExamined").upper(),
        view=_text(header, "ViewPosition").upper(),
        position=_numbers(header, "ImagePositionPatient", 3),
        orientation=_numbers(header, "ImageOrientationPatient", 6),
        pixel_spacing=_numbers(header, "PixelSpacing", 2),
        imager_spacing=_numbers(header, "ImagerPixelSpacing", 2),
        slice_spacing=_number(header, "SpacingBetweenSlices"),
        slice_thickness=_number(header, "SliceThickness"),
        contrast=tuple(_text(header, keyword) for keyword in CONTRAST_KEYWORDS),
        moments=tuple(_text(header, keyword) for keyword in MOMENT_KEYWORDS),
        has_tables=any(header.get(keyword, (0,)) != (0,) for keyword in TABLE_KEYWORDS),
        place=place,
    )


def _text(header: Header, keyword: str) -> str:
    return "\\".join(str(value) for value in header.get(keyword, ()))


def _whole(header: Header, keyword: str, absent: int) -> int:
    """Return a whole number, `absent` where the element is not there or empty."""
    values = header.get(keyword, ())
    if not values or values == ("",):
        return absent
    return int(values[0])


def _numbers(header: Header, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return exactly `count` finite numbers of an element, or None."""
    try:
        values = tuple(float(value) for value in header.get(keyword, ()))
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _number(header: Header, keyword: str) -> float | None:
    values = _numbers(header, keyword, 1)
    return values[0] if values else None


def _rescale(header: Header) -> tuple[float, float] | None:
    """Return slope and intercept, 1 and 0 where they are absent, None where they are unusable."""
    slope, intercept = (
        absent if header.get(keyword, ("",)) in ((), ("",)) else _number(header, keyword)
        for keyword, absent in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    return (slope, intercept) if slope and intercept is not None else None


def _window(header: Header) -> Window | None:
    """Return the first window, None where it is absent or no window."""
    function = _text(header, "VOILUTFunction").upper() or "LINEAR"
    first = {keyword: header.get(keyword, ())[:1] for keyword in ("WindowCenter", "WindowWidth")}
    centre, width = (_number(first, keyword) for keyword in first)
    if centre is None or width is None or function not in WINDOW_FUNCTIONS:
        return None
    return Window(centre, width, function) if width > 0 else None


def _padding(header: Header) -> tuple[float, float] | None:
    """Return the range of padding values, whose two ends come in either order (PS3.3 C.7.5.1.1.2)."""
    value = _number(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(header, "PixelPaddingRangeLimit")
    return (value, value) if limit is None else (min(value, limit), max(value, limit))
