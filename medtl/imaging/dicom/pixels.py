"""PIXEL DATA -> stored values -> modality units (PS3.3 C.11.1) in which larger is brighter."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.pixels.utils import get_j2k_parameters

from medtl.errors import ReadError
from medtl.imaging.dicom.decoders import DecoderLostError, FrameRefusedError, decode_frame
from medtl.imaging.dicom.elements import reporting_malformed
from medtl.imaging.dicom.instance import Instance, Place
from medtl.imaging.image import Voi, VoiTable, is_bomb

OTHER_JPEG = (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
NATIVE = {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
# The plugin of pydicom and the distribution that decode a transfer syntax. One each: decoders of lossy ones
# differ by one to three grey levels.
DECODERS: dict[uid.UID, tuple[str, str]] = {
    uid.RLELossless: ("pylibjpeg", "pylibjpeg-rle"),
    uid.JPEGBaseline8Bit: ("pillow", "pillow"),
    **dict.fromkeys(OTHER_JPEG, ("gdcm", "python-gdcm")),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), ("pyjpegls", "pyjpegls")),
    **dict.fromkeys(JPEG_2000, ("pylibjpeg", "pylibjpeg-openjpeg")),
}
# The same OpenJPEG, which here decodes grey frames with threads, and does not read all colours.
THREADED = ("pillow", "pillow")
# Pillow refuses much larger images as an attack.
MOST_THREADED_VALUES = 2**26

# Pixel values in one image, 1 GiB as float32. Checked before anything is decoded.
MOST_VALUES = 2**28

GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
# Little-endian words by BitsAllocated.
WORDS: dict[int, np.dtype] = {8: np.dtype("u1"), 16: np.dtype("<u2")}
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PALETTE = "PALETTE COLOR"
# Samples per pixel by Photometric Interpretation.
SAMPLES = {
    **dict.fromkeys((*GREY, PALETTE), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}

# How pixel data that no decoder takes are refused.
UNDECODABLE = ("dicom-pixels", "pixel data that cannot be decoded", "copy or export it again")

# Codestreams: SOC and SIZ of JPEG 2000; the frame headers SOF0 to SOF15 of JPEG, SOF55 of JPEG-LS.
J2K_START = b"\xff\x4f\xff\x51"
START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})


@dataclass(frozen=True, eq=False)
class Pixels:
    """Values (C, H, W) of a plane, the VOI transformation meant for them, and their decoder.

    They have the type in which they are exact; an Image rounds them to float32. padding: the lowest and the
    highest value outside the image, None where the file names none.
    """

    plane: Instance
    values: NDArray
    voi: Voi | None
    padding: tuple[float, float] | None
    decoder: str


def check_decodable(plane: Instance, where: str, count: int = 1) -> None:
    """Refuse by the header alone what would not be read exactly; `count` is the number of such planes.

    Raises ReadError dicom-undecoded, -photometric, -bits, -rescale, -too-large.
    """
    syntax = plane.transfer_syntax
    if syntax not in DECODERS and syntax not in NATIVE:
        name = syntax.name if syntax.keyword else "an unknown transfer syntax"
        reason = f"is in {name}, which is not decoded"
        fix = "rewrite it uncompressed, for example with gdcmconv --raw"
        raise ReadError("dicom-undecoded", reason, where=where, fix=fix)
    if SAMPLES.get(plane.photometric) != plane.samples:
        reason = "has a photometric interpretation that is unknown or contradicts its samples per pixel"
        raise ReadError("dicom-photometric", reason, where=where, fix="convert it to MONOCHROME2 or RGB")
    if not 0 < plane.bits_stored == plane.high_bit + 1 <= plane.bits_allocated:
        reason = "has BitsAllocated, BitsStored and HighBit that contradict each other"
        raise ReadError("dicom-bits", reason, where=where, fix="export it again")
    if plane.rescale is None:
        reason = "has a rescale slope of zero, or slope or intercept that are no numbers"
        raise ReadError("dicom-rescale", reason, where=where, fix="export it again")
    if plane.values * max(count, plane.mosaic**2) > MOST_VALUES:
        size = f"{count} x {plane.rows} x {plane.columns} x {plane.samples}"
        reason = f"has {size} values, more than {MOST_VALUES}"
        raise ReadError("dicom-too-large", reason, where=where, fix="split or shrink it")


def decode(dataset: Dataset, planes: Sequence[Instance]) -> list[Pixels]:
    """Decode planes of one file that passed check_decodable, in the order given.

    Raises ReadError dicom-truncated, -pixels, -decoder, -photometric, -rescale, -not-finite.
    """
    pixels = []
    for plane, (stored, decoder) in zip(planes, _stored_planes(dataset, planes), strict=True):
        if plane.photometric not in GREY:
            pixels.append(Pixels(plane, _colour(dataset, stored, plane), None, None, decoder))
            continue
        meant = plane
        if "ModalityLUTSequence" in dataset:
            stored, meant = _through_table(dataset, stored, plane)
        pixels.append(replace(_grey(stored, meant, _voi(dataset, plane), decoder), plane=plane))
    return pixels


def decode_directly(data: bytes, planes: Sequence[Instance], place: Place) -> list[Pixels] | None:
    """Decode grey, little-endian integers without tables straight from their file; None for all others."""
    first = planes[0]
    simple = first.transfer_syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian)
    simple = simple and first.photometric in GREY and first.bits_allocated in WORDS and first.mosaic == 1
    if not simple or any(plane.has_tables for plane in planes):
        return None
    size = first.values * first.bits_allocated // 8
    if not size * first.frames <= place.length < 2 * size * first.frames:
        return None  # pydicom then says what is wrong
    decoded = []
    for plane in planes:
        start = place.start + plane.frame * size
        words = np.frombuffer(data, WORDS[first.bits_allocated], plane.values, start)
        decoded.append(_grey(_stored_values(words, plane), plane, plane.voi, _named("pydicom")))
    return decoded


def _stored_values(words: NDArray, plane: Instance) -> NDArray:
    """Return the values (H, W) that the lowest BitsStored bits of unsigned words stand for."""
    unused = plane.bits_allocated - plane.bits_stored
    if plane.signed:
        signed = words.view(words.dtype.str.replace("u", "i"))
        words = (signed << unused) >> unused if unused else signed
    elif unused and words.max() >> plane.bits_stored:
        words = words & (2**plane.bits_stored - 1)
    return words.reshape(plane.rows, plane.columns)


def _decoder_of(plane: Instance, frame: bytes) -> tuple[str, str]:
    """Return the plugin and the distribution that decode a frame.

    THREADED does not take a codestream that contradicts its header in sign, or is deeper than 16 bits.
    """
    grey = plane.transfer_syntax == uid.JPEG2000Lossless and plane.photometric in GREY and not plane.signed
    component = get_j2k_parameters(frame) if grey and frame.startswith(J2K_START) else {}
    plain = component.get("is_signed") is False and component["precision"] <= 16
    return THREADED if plain and plane.values <= MOST_THREADED_VALUES else DECODERS[plane.transfer_syntax]


@cache
def _named(distribution: str) -> str:
    return f"{distribution} {version(distribution)}"


def _stored_planes(dataset: Dataset, planes: Sequence[Instance]) -> Iterator[tuple[NDArray, str]]:
    """Yield the stored values of each plane and their decoder; YBR becomes RGB (H, W, 3)."""
    first = planes[0]
    with reporting_malformed(first.path, *UNDECODABLE):
        data = next((dataset[keyword].value for keyword in PIXEL_KEYWORDS if keyword in dataset), b"")
    if not isinstance(data, bytes) or not data:
        raise ReadError("dicom-truncated", "has no pixel data", where=first.path, fix="copy it again")
    frames = _native_frames if first.transfer_syntax in NATIVE else _compressed_frames
    if first.mosaic == 1:
        yield from frames(dataset, data, first, [plane.frame for plane in planes])
        return
    ((whole, decoder),) = frames(dataset, data, first, [0])
    for plane in planes:
        row, column = divmod(plane.frame, plane.mosaic)
        rows = slice(row * plane.rows, (row + 1) * plane.rows)
        yield whole[rows, column * plane.columns : (column + 1) * plane.columns], decoder


def _native_frames(
    dataset: Dataset, data: bytes, plane: Instance, numbers: Sequence[int]
) -> Iterator[tuple[NDArray, str]]:
    """Decode uncompressed frames, in this process: no decoder can crash it."""
    rows, columns = plane.stored_shape
    samples = 2 if plane.photometric == "YBR_FULL_422" else plane.samples
    expected = (rows * columns * samples * plane.bits_allocated * plane.frames + 7) // 8
    if len(data) < expected:
        reason = f"has {len(data)} of {expected} bytes of pixel data"
        raise ReadError("dicom-truncated", reason, where=plane.path, fix="copy it again")
    if len(data) >= 2 * expected:
        raise _other_size(plane)
    for number in numbers:
        with reporting_malformed(plane.path, *UNDECODABLE):
            stored = pixel_array(dataset, index=number)
        yield stored, _named("pydicom")


def _compressed_frames(
    dataset: Dataset, data: bytes, plane: Instance, numbers: Sequence[int]
) -> Iterator[tuple[NDArray, str]]:
    """Decode compressed frames, in a child process."""
    rows, columns = plane.stored_shape
    values = plane.samples * rows * columns * len(numbers)
    if is_bomb(values, len(data)):
        reason = f"has {len(data)} bytes for {values} values"
        raise ReadError("dicom-too-large", reason, where=plane.path, fix="export it again")
    with reporting_malformed(plane.path, *UNDECODABLE):
        offsets = None
        if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
            offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
        encoded = generate_frames(data, number_of_frames=plane.frames, extended_offsets=offsets)
        needed = set(numbers)
        chosen = {number: frame for number, frame in enumerate(encoded) if number in needed}
        frames = [chosen[number] for number in numbers]
    for frame in frames:
        if _codestream_size(frame) not in (None, plane.stored_shape):
            raise _other_size(plane)
        plugin, distribution = _decoder_of(plane, frame)
        yield _decode_compressed(dataset, frame, plane, plugin), _named(distribution)


def _decode_compressed(dataset: Dataset, frame: bytes, plane: Instance, plugin: str) -> NDArray:
    rows, columns = plane.stored_shape
    with reporting_malformed(plane.path):
        planar = int(dataset.get("PlanarConfiguration") or 0)
    request = {
        "transfer_syntax": plane.transfer_syntax,
        "plugin": plugin,
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": plane.samples,
        "photometric_interpretation": plane.photometric,
        "bits_allocated": plane.bits_allocated,
        "bits_stored": plane.bits_stored,
        "pixel_representation": int(plane.signed),
        "planar_configuration": planar,
    }
    try:
        stored = decode_frame(frame, request, rows * columns * plane.samples)
    except FrameRefusedError as error:
        code, what, fix = UNDECODABLE
        raise ReadError(code, f"has {what} ({error.args[0]})", where=plane.path, fix=fix) from error
    except DecoderLostError as error:
        reason = f"has pixel data at which its decoder {error.args[0]}"
        raise ReadError("dicom-decoder", reason, where=plane.path, fix="copy or export it again") from error
    if stored.shape[:2] != (rows, columns):
        raise _other_size(plane)
    return stored


def _other_size(plane: Instance) -> ReadError:
    reason = "has pixel data of another size than its header says"
    return ReadError("dicom-pixels", reason, where=plane.path, fix="export it again")


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Return rows and columns as a JPEG 2000, JPEG or JPEG-LS codestream itself says, None for others."""
    if frame.startswith(J2K_START) and len(frame) >= 24:
        right, bottom, left, top = struct.unpack(">4L", frame[8:24])
        return bottom - top, right - left
    if not frame.startswith(b"\xff\xd8"):
        return None
    place = 2
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4])
        if marker in START_OF_FRAME:
            rows, columns = struct.unpack(">2H", frame[place + 5 : place + 9])
            return rows, columns
        place += 1 if marker == 0xFF else 2 + length
    return None


def _colour(dataset: Dataset, stored: NDArray, plane: Instance) -> NDArray:
    """Return RGB values (3, H, W)."""
    if plane.photometric == PALETTE:
        what, fix = "a palette that cannot be applied", "export it as RGB"
        with reporting_malformed(plane.path, "dicom-pixels", what, fix):  # a palette is checked by its use
            stored = apply_color_lut(stored, dataset)
    return np.moveaxis(stored[..., :3], -1, 0)


def _grey(stored: NDArray, plane: Instance, voi: Voi | None, decoder: str) -> Pixels:
    """Convert stored values (H, W) to modality units in which larger is brighter."""
    slope, intercept = plane.rescale or (1.0, 0.0)
    values = stored if (slope, intercept) == (1.0, 0.0) else stored * slope + intercept
    padding = None
    if plane.padding is not None:
        low, high = sorted(value * slope + intercept for value in plane.padding)
        padding = (low, high)
    if plane.photometric == "MONOCHROME1":
        # Low values are white (PS3.3 C.7.6.3.1.2). The inverted twin is stored as ends - v, with the same
        # rescale: the lowest plus the highest stored value is 2^bits - 1 unsigned, -1 in two's complement.
        if stored.dtype.kind == "f":
            reason = "is MONOCHROME1 in floating point, whose range is not known"
            raise ReadError("dicom-photometric", reason, where=plane.path, fix="convert it to MONOCHROME2")
        ends = (-1 if plane.signed else 2**plane.bits_stored - 1) * slope + 2 * intercept
        values = ends - values
        voi = voi.mirrored(ends) if voi else None
        padding = (ends - padding[1], ends - padding[0]) if padding else None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        reason = "has NaN or infinite values"
        raise ReadError("dicom-not-finite", reason, where=plane.path, fix="export it again")
    return Pixels(plane, values[None], voi, padding, decoder)


def _voi(dataset: Dataset, plane: Instance) -> Voi | None:
    """Return the VOI LUT of a file, which precedes its window; a damaged table is ignored."""
    table = (dataset.get("VOILUTSequence") or [None])[0]
    if table is None:
        return plane.voi
    try:
        count, first, bits = (int(value) for value in table.LUTDescriptor)
        data = table.LUTData
        entries = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
        levels = (entries / (2.0**bits - 1)).astype(np.float32)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return plane.voi
    return VoiTable(float(first), levels) if len(levels) == (count or 2**16) else plane.voi


def _through_table(dataset: Dataset, stored: NDArray, plane: Instance) -> tuple[NDArray, Instance]:
    """Apply the Modality LUT; return its values, and the plane as if these were stored."""
    what, fix = "a Modality LUT that cannot be applied", "export it again"
    with reporting_malformed(plane.path, "dicom-rescale", what, fix):  # a table is checked by its use
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
        values = apply_modality_lut(stored, dataset)
    return values, replace(plane, bits_stored=bits, signed=False, rescale=(1.0, 0.0))
