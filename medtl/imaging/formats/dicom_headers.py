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
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from medtl.errors import ReadError
from medtl.imaging.series import HEAD_BYTES
from medtl.imaging.voi import WINDOW_FUNCTIONS, Window

# Their own messages quote values of the file, and go to stderr where nobody set up logging.
for name in ("pydicom", "pylibjpeg", "openjpeg"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

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
    "ViewPosition",
    "WindowCenter",
    "WindowWidth",
]


@dataclass(frozen=True)
class Instance:
    """What a DICOM file says of one plane. Identifiers never leave the readers but as hashes.

    position (3,) and orientation (6,), row cosines first, are in LPS mm; pixel_spacing is (rows, columns) in
    mm; rescale is (slope, intercept); voi is the first window; padding the lowest and highest stored value
    that stand for no image; all are None where absent or invalid. contrast and moments hold the values of
    CONTRAST_KEYWORDS and MOMENT_KEYWORDS. frame counts the planes of one file from 0; frames says how many
    the file has; mosaic how many tiles lie side by side in a mosaic, whose tiles are planes (1: no mosaic).
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
    frame: int = 0
    mosaic: int = 1

    @property
    def values(self) -> int:
        """Number of pixel values of the plane."""
        return self.rows * self.columns * self.samples

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns of the stored frame that the plane is, or is a tile of."""
        return self.rows * self.mosaic, self.columns * self.mosaic


def read_header(path: Path) -> Dataset:
    """Read the header of one file. Raises ReadError dicom-header, -truncated, -transfer-syntax, -no-image."""
    with path.open("rb") as file:
        stream = inflated(file, path)
        dataset = parse(stream, path, header_only=True)
        with reporting_malformed(path):
            _check_is_image(dataset, path)
            _check_pixels_follow(stream, dataset, path)
    return dataset


def read_dataset(path: Path, data: bytes) -> Dataset:
    """Parse a whole file from its bytes. Raises ReadError as read_header does."""
    return parse(inflated(BytesIO(data), path), path, header_only=False)


def parse(file: BinaryIO, path: Path, *, header_only: bool) -> Dataset:
    """Parse a stream up to its pixel data, or all of it."""
    _silence_warnings()
    tags: list | None = [*HEADER_KEYWORDS, *SIEMENS_TAGS] if header_only else None
    with reporting_malformed(path):
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=header_only, specific_tags=tags)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not syntax:
        fix = "export it again, with file meta information"
        raise ReadError("dicom-transfer-syntax", "does not name its transfer syntax", where=path, fix=fix)
    return dataset


def describe(dataset: Dataset, path: Path) -> Instance:
    """Turn the flat header of a plane into an Instance. Raises ReadError dicom-header."""
    with reporting_malformed(path):
        instance = _instance(dataset, path)
    if min(instance.rows, instance.columns, instance.samples, instance.frames) < 1:
        raise ReadError("dicom-header", "has no valid image size", where=path, fix="export it again")
    return instance


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return exactly `count` finite numbers of an element, or None."""
    value = dataset.get(keyword)
    items = [value] if isinstance(value, str | int | float) else list(value or ())
    try:
        found = tuple(float(item) for item in items)
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def _silence_warnings() -> None:
    # A filter for pydicom alone, set anew each time: catch_warnings is not safe between threads.
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


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
    kind = UID(str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", "")))
    is_image = "ImageStorage" in kind.keyword and not kind.keyword.startswith("RT")
    if not is_image and (kind.keyword or "Rows" not in dataset):
        name = kind.name if kind.keyword else "an object of unknown kind"
        raise ReadError("dicom-no-image", f"is no image: {name}", where=path, fix="name image files only")
    if "Rows" not in dataset or "Columns" not in dataset:
        raise _truncated(path)


def _instance(dataset: Dataset, path: Path) -> Instance:
    allocated = _whole(dataset, "BitsAllocated", 0)
    stored = _whole(dataset, "BitsStored", allocated)
    return Instance(
        path=path,
        transfer_syntax=UID(dataset.file_meta.TransferSyntaxUID),
        sop_class=UID(_text(dataset, "SOPClassUID")).keyword,
        sop_uid=_text(dataset, "SOPInstanceUID"),
        patient_id=_text(dataset, "PatientID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        modality=_text(dataset, "Modality").upper(),
        image_type=_texts(dataset, "ImageType"),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        samples=_whole(dataset, "SamplesPerPixel", 1),
        frames=_whole(dataset, "NumberOfFrames", 1),
        photometric=_text(dataset, "PhotometricInterpretation").upper(),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=_whole(dataset, "HighBit", stored - 1),
        signed=bool(_whole(dataset, "PixelRepresentation", 0)),
        rescale=_rescale(dataset),
        voi=_window(dataset),
        padding=_padding(dataset),
        burned_in=_text(dataset, "BurnedInAnnotation").upper() == "YES",
        lossy=_text(dataset, "LossyImageCompression") == "01",
        body_part=_text(dataset, "BodyPartExamined").upper(),
        view=_text(dataset, "ViewPosition").upper(),
        position=numbers(dataset, "ImagePositionPatient", 3),
        orientation=numbers(dataset, "ImageOrientationPatient", 6),
        pixel_spacing=numbers(dataset, "PixelSpacing", 2),
        imager_spacing=numbers(dataset, "ImagerPixelSpacing", 2),
        slice_spacing=_number(dataset, "SpacingBetweenSlices"),
        slice_thickness=_number(dataset, "SliceThickness"),
        contrast=tuple(_text(dataset, keyword) for keyword in CONTRAST_KEYWORDS),
        moments=tuple(_text(dataset, keyword) for keyword in MOMENT_KEYWORDS),
    )


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    value = dataset.get(keyword) or ()
    return (value.upper(),) if isinstance(value, str) else tuple(str(item).upper() for item in value)


def _whole(dataset: Dataset, keyword: str, absent: int) -> int:
    value = dataset.get(keyword)
    return absent if value is None or value == "" else int(value)


def _rescale(dataset: Dataset) -> tuple[float, float] | None:
    """Return slope and intercept, 1 and 0 where they are absent, None where they are unusable."""
    slope, intercept = (
        _number(dataset, keyword) if dataset.get(keyword) not in (None, "") else absent
        for keyword, absent in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    return (slope, intercept) if slope and intercept is not None else None


def _window(dataset: Dataset) -> Window | None:
    centre, width = (_first_number(dataset, keyword) for keyword in ("WindowCenter", "WindowWidth"))
    function = _text(dataset, "VOILUTFunction").upper() or "LINEAR"
    if centre is None or width is None or function not in WINDOW_FUNCTIONS:
        return None
    return Window(centre, width, function) if width > 0 else None


def _padding(dataset: Dataset) -> tuple[float, float] | None:
    """Return the range of padding values, whose two ends come in either order (PS3.3 C.7.5.1.1.2)."""
    value = _number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(dataset, "PixelPaddingRangeLimit")
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


def _first_number(dataset: Dataset, keyword: str) -> float | None:
    value = dataset.get(keyword)
    first = value[0] if isinstance(value, MultiValue) and value else value
    return float(first) if isinstance(first, int | float) and math.isfinite(first) else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    found = numbers(dataset, keyword, 1)
    return found[0] if found else None


def _check_pixels_follow(file: BinaryIO, dataset: Dataset, path: Path) -> None:
    """Check that the stream, which stands before the pixel data, holds as many bytes as they announce."""
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
