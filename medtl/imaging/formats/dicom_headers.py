"""Turn the header of a DICOM file into an Instance: what it shows, and where it lies in the patient.

Values are quoted nowhere: neither in errors nor in logs, since any element may name the patient.
"""

import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import Dataset, Sequence
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    MRImageStorage,
)

from medtl.errors import ReadError
from medtl.imaging.series import HEAD_BYTES
from medtl.imaging.voi import WINDOW_FUNCTIONS, Window

# Their own messages quote values of the file, and go to stderr where nobody set up logging.
for name in ("pydicom", "pylibjpeg", "openjpeg"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

PYDICOM_MODULES = r"pydicom(\.|$)"

# What a preamble may not begin with: the file would run (PS3.10 7.5).
PROGRAM_MAGICS = (b"MZ", b"\x7fELF", b"#!", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
# Transfer syntaxes that lose detail whatever the header says; what an absent Modality must have been.
LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})
MODALITIES = {str(CTImageStorage): "CT", str(MRImageStorage): "MR"}
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
PIXEL_VRS = frozenset({b"OB", b"OW", b"OF", b"OD", b"UN"})
UNDEFINED_LENGTH = 0xFFFFFFFF

# Bytes that a deflated file may inflate to.
MOST_INFLATED_BYTES = 2**27

# Elements that tell echoes, time points and b-values apart within one series.
CONTRAST_KEYWORDS = ("EchoTime", "TemporalPositionIdentifier", "DiffusionBValue")
# Elements that may tell planes at one position apart where those do not, most telling first.
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

# The image header that Siemens scanners keep in private elements, and the number of tiles of newer ones.
SIEMENS_TAGS = (0x00290010, 0x00291010, 0x00291110, 0x00190010, 0x0019100A)

FRAME_GROUP_KEYWORDS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")

HEADER_KEYWORDS = [
    *CONTRAST_KEYWORDS,
    *MOMENT_KEYWORDS,
    *FRAME_GROUP_KEYWORDS,
    "BitsAllocated",
    "BitsStored",
    "BodyPartExamined",
    "BurnedInAnnotation",
    "Columns",
    "HighBit",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImagerPixelSpacing",
    "LossyImageCompression",
    "Modality",
    "ModalityLUTSequence",
    "NumberOfFrames",
    "PatientID",
    "PhotometricInterpretation",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "PixelRepresentation",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "SOPClassUID",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "SeriesInstanceUID",
    "SliceThickness",
    "SpacingBetweenSlices",
    "StudyInstanceUID",
    "VOILUTFunction",
    "VOILUTSequence",
    "ViewPosition",
    "WindowCenter",
    "WindowWidth",
]


SOP_CLASS_TAG = Tag("SOPClassUID")
KEYWORDS_BY_TAG = {Tag(keyword): keyword for keyword in HEADER_KEYWORDS}
HEADER_TAGS = [*KEYWORDS_BY_TAG, *map(Tag, SIEMENS_TAGS)]
TABLE_KEYWORDS = ("ModalityLUTSequence", "VOILUTSequence")

# Value representations whose bytes are text, and the one of nearly all whole numbers in headers.
TEXT_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UI"})
WHOLE_VR = "US"

Values = tuple[str | int | float, ...]
Header = dict[str, Values]


@dataclass(frozen=True)
class Place:
    """Where a file keeps its pixel data, uncompressed: byte and length; and the file's size and time then."""

    start: int
    length: int
    size: int
    time_ns: int


@dataclass(frozen=True)
class Instance:
    """What a DICOM file says of one plane. Identifiers never leave the readers but as hashes.

    position (3,) and orientation (6,), row cosines first, are in LPS mm; pixel_spacing is (rows, columns) in
    mm; rescale is (slope, intercept); voi is the first window; padding the lowest and highest stored value
    that stand for no image; all are None where absent or invalid. contrast and moments hold the values of
    CONTRAST_KEYWORDS and MOMENT_KEYWORDS. frame counts the planes of one file from 0; frames says how many
    the file has; mosaic how many tiles lie side by side in a mosaic, whose tiles are planes (1: no mosaic).
    has_tables: the file has a Modality or VOI LUT. place is None where the pixel data are compressed.
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


@dataclass(frozen=True, eq=False)
class Parsed:
    """A DICOM file as pydicom parsed it: whole, or up to its pixel data, whose place is then known."""

    path: Path
    dataset: Dataset
    transfer_syntax: UID
    place: Place | None = None


def read_header(path: Path) -> Parsed:
    """Read the header of one file. Raises ReadError dicom-header, -truncated, -transfer-syntax, -no-image."""
    with path.open("rb") as file:
        if file.read(4).startswith(PROGRAM_MAGICS):
            raise ReadError(
                "file-unknown", "begins with a program", where=path, fix="copy it from its source"
            )
        file.seek(0)
        stream = inflated(file, path)
        parsed = parse(stream, path, header_only=True)
        with reporting_malformed(path):
            start, length = _find_pixels(stream, parsed.dataset, path)
        status = os.fstat(file.fileno())
    whole = stream is file and length != UNDEFINED_LENGTH
    place = Place(start, length, status.st_size, status.st_mtime_ns) if whole else None
    return Parsed(path, parsed.dataset, parsed.transfer_syntax, place)


def read_dataset(path: Path, data: bytes) -> Parsed:
    """Parse a whole file from its bytes. Raises ReadError as read_header does."""
    return parse(inflated(BytesIO(data), path), path, header_only=False)


def parse(file: BinaryIO, path: Path, *, header_only: bool) -> Parsed:
    """Parse a stream up to its pixel data, or all of it."""
    _silence_warnings()
    tags: list | None = HEADER_TAGS if header_only else None
    with reporting_malformed(path):
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=header_only, specific_tags=tags)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not syntax or not isinstance(syntax, str):  # two values are none
        fix = "export it again, with file meta information"
        raise ReadError("dicom-transfer-syntax", "does not name its transfer syntax", where=path, fix=fix)
    with reporting_malformed(path):
        _check_is_image(dataset, path)  # pydicom gives an empty dataset where the pixel data break off
    return Parsed(path, dataset, UID(syntax))


def header_of(dataset: Dataset) -> Header:
    """Return the elements of a dataset that an Instance is made of, by keyword, without any nested ones.

    Bytes are decoded here, and not by pydicom, for speed: it converts an element in 20 microseconds.
    """
    return {
        KEYWORDS_BY_TAG[tag]: values_of(dataset, tag)
        for tag in dataset.keys()  # noqa: SIM118 a Dataset iterates over its elements
        if tag in KEYWORDS_BY_TAG and KEYWORDS_BY_TAG[tag] not in FRAME_GROUP_KEYWORDS
    }


def values_of(dataset: Dataset, tag: BaseTag) -> Values:
    """Return the values of one element; a sequence counts its items."""
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and element.value is not None:
        kind = element.VR if element.VR not in (None, "UN") else dictionary_VR(tag)
        if kind in TEXT_VRS:
            # As Latin-1 whatever the character set: what is not ASCII here is hashed, and never shown.
            return tuple(part.strip(" \0") for part in element.value.decode("latin-1").split("\\"))
        if kind == WHOLE_VR and len(element.value) == 2:
            return (int.from_bytes(element.value, "little" if element.is_little_endian else "big"),)
    value = dataset[tag].value
    if isinstance(value, Sequence):
        return (len(value),)
    return tuple(value) if isinstance(value, MultiValue) else () if value is None else (value,)


def describe(header: Header, parsed: Parsed) -> Instance:
    """Turn the flat header of a plane into an Instance. Raises ReadError dicom-header."""
    with reporting_malformed(parsed.path):
        instance = _instance(header, parsed)
    if min(instance.rows, instance.columns, instance.samples, instance.frames) < 1:
        reason = "has no valid image size"
        raise ReadError("dicom-header", reason, where=parsed.path, fix="export it again")
    return instance


def _silence_warnings() -> None:
    # Set anew where another filter stands first: catch_warnings is not safe between threads.
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[3] is None or getattr(first[3], "pattern", "") != PYDICOM_MODULES:
        warnings.filterwarnings("ignore", module=PYDICOM_MODULES)


def inflated(file: BinaryIO, path: Path) -> BinaryIO:
    """Return the stream, inflated up to a limit where it is deflated: pydicom would inflate without one."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if DeflatedExplicitVRLittleEndian.encode() not in head:
        return file
    data = file.read()
    start = _end_of_file_meta(data)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with reporting_malformed(path):
        body = inflater.decompress(data[start:], MOST_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        reason = f"inflates to more than {MOST_INFLATED_BYTES} bytes"
        raise ReadError("dicom-too-large", reason, where=path, fix="rewrite it uncompressed")
    if not inflater.eof:
        raise _truncated(path)
    # The same length, so that the file meta group stays as long as it says.
    deflated, plain = (uid.encode() for uid in (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian))
    return BytesIO(data[:start].replace(deflated, plain.ljust(len(deflated), b"\0")) + body)


def _end_of_file_meta(data: bytes) -> int:
    """Return where the file meta group ends, by its length, which is its first element (PS3.10 7.1)."""
    start = 132 if data[128:132] == b"DICM" else 0
    return start + 12 + int.from_bytes(data[start + 8 : start + 12], "little")


@contextmanager
def reporting_malformed(path: Path) -> Iterator[None]:
    """Turn whatever parsing raises into ReadError dicom-header; what the header held is not quoted."""
    try:
        yield
    except ReadError:
        raise
    except (
        Exception
    ) as error:  # pydicom raises nearly anything on malformed bytes, and values are read lazily
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the content
        reason = f"has a header that cannot be parsed ({type(error).__name__})"
        raise ReadError("dicom-header", reason, where=path, fix="export it again from its source") from error


def _truncated(path: Path) -> ReadError:
    fix = "copy it again from its source"
    return ReadError("dicom-truncated", "ends before its pixel data do", where=path, fix=fix)


def _check_is_image(dataset: Dataset, path: Path) -> None:
    named = values_of(dataset, SOP_CLASS_TAG) if SOP_CLASS_TAG in dataset else ()
    kind = UID(str(*named) or str(dataset.file_meta.get("MediaStorageSOPClassUID", "")))
    is_image = "ImageStorage" in kind.keyword and not kind.keyword.startswith("RT")
    if not is_image and (kind.keyword or "Rows" not in dataset):
        name = kind.name if kind.keyword else "an object of unknown kind"
        raise ReadError("dicom-no-image", f"is no image: {name}", where=path, fix="name image files only")
    if "Rows" not in dataset or "Columns" not in dataset:
        raise _truncated(path)


def _instance(header: Header, parsed: Parsed) -> Instance:
    allocated = _whole(header, "BitsAllocated", 0)
    stored = _whole(header, "BitsStored", allocated)
    return Instance(
        path=parsed.path,
        transfer_syntax=parsed.transfer_syntax,
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
        lossy=_text(header, "LossyImageCompression") == "01" or parsed.transfer_syntax in LOSSY,
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
        place=parsed.place,
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
        found = tuple(float(value) for value in header.get(keyword, ()))
    except ValueError:
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def _number(header: Header, keyword: str) -> float | None:
    found = _numbers(header, keyword, 1)
    return found[0] if found else None


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


def _find_pixels(file: BinaryIO, dataset: Dataset, path: Path) -> tuple[int, int]:
    """Return where the pixel data begin and how long they are; UNDEFINED_LENGTH where they are compressed.

    The stream stands before them, and must hold as many bytes as they announce.
    """
    start = file.tell()
    element = file.read(12)
    order = "<" if dataset.original_encoding[1] else ">"
    # By the bytes, not by the transfer syntax: real files contradict theirs, and pydicom follows the bytes.
    explicit = element[4:6] in PIXEL_VRS
    layout = order + ("HHxxxxL" if explicit else "HHL")
    size = struct.calcsize(layout)
    if len(element) < size:
        raise _truncated(path)
    group, number, length = struct.unpack(layout, element[:size])
    if (group << 16 | number) not in PIXEL_TAGS:
        raise _truncated(path)
    if length != UNDEFINED_LENGTH and start + size + length > file.seek(0, os.SEEK_END):
        raise _truncated(path)
    return start + size, length
