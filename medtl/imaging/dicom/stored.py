"""PIXEL DATA -> stored values: what the bits of a frame stand for, in any transfer syntax."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.pixels import pixel_array

from medtl.errors import ReadError
from medtl.imaging.dicom.codestream import Codestream, read_codestream, split_frames, tidied
from medtl.imaging.dicom.decoders import DecoderLostError, FrameRefusedError, decode_frame
from medtl.imaging.dicom.elements import reporting_malformed
from medtl.imaging.dicom.instance import Instance
from medtl.imaging.dicom.syntaxes import DECODERS, GREY, JPEG_LS, NATIVE, name_of
from medtl.imaging.image import is_bomb

# The same OpenJPEG, which here decodes grey frames with threads, and does not read all colours.
THREADED = ("pillow", "pillow")
# Pillow refuses much larger images as an attack.
MOST_THREADED_VALUES = 2**26

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

# The tag with which each fragment of compressed pixel data begins.
ITEM = b"\xfe\xff\x00\xe0"

# OpenJPEG may lose bits of deeper samples.
MOST_PRECISION = 24

# How pixel data that no decoder takes are refused.
UNDECODABLE = ("dicom-pixels", "pixel data that cannot be decoded", "copy or export it again")
WRONG_TABLE = "its offset table is wrong: fragments show where its frames begin"
TIDIED = "the end of its JPEG-LS codestream was put right"


class Stored(NamedTuple):
    """Stored values (H, W), or RGB (H, W, 3), of a plane, their decoder, and what was repaired."""

    values: NDArray
    decoder: str
    notes: tuple[str, ...] = ()


def stored_planes(dataset: Dataset, planes: Sequence[Instance]) -> Iterator[Stored]:
    """Yield the stored values of each plane; YBR becomes RGB. Raises as decode does."""
    first = planes[0]
    with reporting_malformed(first.path, *UNDECODABLE):
        data = next((dataset[keyword].value for keyword in PIXEL_KEYWORDS if keyword in dataset), b"")
    if not isinstance(data, bytes) or not data:
        raise ReadError("dicom-truncated", "has no pixel data", where=first.path, fix="copy it again")
    _check_encapsulation(dataset, data, first)
    frames = _native_frames if first.transfer_syntax in NATIVE else _compressed_frames
    if first.mosaic == 1:
        yield from frames(dataset, data, first, [plane.frame for plane in planes])
        return
    (whole,) = frames(dataset, data, first, [0])
    for plane in planes:
        row, column = divmod(plane.frame, plane.mosaic)
        rows = slice(row * plane.rows, (row + 1) * plane.rows)
        columns = slice(column * plane.columns, (column + 1) * plane.columns)
        yield whole._replace(values=whole.values[rows, columns])


def _check_encapsulation(dataset: Dataset, data: bytes, plane: Instance) -> None:
    """Refuse pixel data that are compressed where the transfer syntax is not, or the other way round."""
    native = plane.transfer_syntax in NATIVE
    fragments = any(dataset[keyword].is_undefined_length for keyword in PIXEL_KEYWORDS if keyword in dataset)
    if native and fragments:
        reason = "has compressed pixel data, but names an uncompressed transfer syntax"
    elif not (native or fragments or data.startswith(ITEM)):
        reason = f"has uncompressed pixel data, but names {name_of(plane.transfer_syntax)}"
    else:
        return
    raise ReadError("dicom-transfer-syntax", reason, where=plane.path, fix="export it again")


def stored_values(words: NDArray, plane: Instance) -> NDArray:
    """Return what the BitsStored bits of words from HighBit down stand for; all other bits are ignored.

    Raises ReadError dicom-bits where the values are in other bits than HighBit says.
    """
    order, size = words.dtype.byteorder, words.dtype.itemsize
    below, above = plane.high_bit + 1 - plane.bits_stored, 8 * size - (plane.high_bit + 1)
    words = words.view(f"{order}u{size}")
    low_only = below and words.max() < 2**plane.bits_stored and (words & (2**below - 1)).any()
    if low_only or above < 0:
        reason = f"has values in other bits than those that end at HighBit {plane.high_bit}"
        raise ReadError("dicom-bits", reason, where=plane.path, fix="export it again")
    if plane.signed:
        signed = words.view(f"{order}i{size}")
        return (signed << above) >> (above + below) if above or below else signed
    unclean = below or (above and words.max() >> plane.bits_stored)
    return words >> below & (2**plane.bits_stored - 1) if unclean else words


def _fit(samples: NDArray, plane: Instance, stream: Codestream | None) -> NDArray:
    """Return the stored values that samples stand for, whatever depth and sign their codestream has."""
    if stream and stream.precision > MOST_PRECISION and np.abs(samples).max() >= 2**MOST_PRECISION:
        reason = f"has pixel data of {stream.precision} bits, which no decoder keeps exactly"
        raise ReadError("dicom-pixels", reason, where=plane.path, fix="export it uncompressed")
    if stream is None or stream.precision > plane.high_bit:
        return stored_values(samples, plane)
    if stream.precision > plane.bits_stored:
        reason = f"is of {stream.precision} bits, which BitsStored and HighBit contradict"
        raise ReadError("dicom-bits", reason, where=plane.path, fix="export it again")
    # Such a codestream holds values alone, wherever their bits were before it was made.
    if stream.precision == plane.bits_stored:
        return stored_values(samples, replace(plane, high_bit=plane.bits_stored - 1))
    # A shallower one that errs in its sign: decoders disagree on values whose highest bit is set.
    if stream.signed in (None, plane.signed) or not (samples >> (stream.precision - 1)).any():
        return samples
    reason = f"has {stream.precision} bits of another sign than its header says"
    raise ReadError("dicom-bits", reason, where=plane.path, fix="export it again")


def _native_frames(
    dataset: Dataset, data: bytes, plane: Instance, numbers: Sequence[int]
) -> Iterator[Stored]:
    """Decode uncompressed frames, in this process: no decoder can crash it."""
    rows, columns = plane.stored_shape
    samples = 2 if plane.photometric == "YBR_FULL_422" else plane.samples
    expected = (rows * columns * samples * plane.bits_allocated * plane.frames + 7) // 8
    if len(data) < expected:
        reason = f"has {len(data)} of {expected} bytes of pixel data"
        raise ReadError("dicom-truncated", reason, where=plane.path, fix="copy it again")
    if len(data) >= 2 * expected:
        raise _other_size(plane)
    words = plane.photometric in (*GREY, "PALETTE COLOR", "RGB") and plane.bits_allocated >= 8
    for number in numbers:
        with reporting_malformed(plane.path, *UNDECODABLE):
            values = pixel_array(dataset, index=number, correct_unused_bits=not words)
        if words and values.dtype.kind != "f":
            values = stored_values(values, plane)
        yield Stored(values, named("pydicom"))


def _compressed_frames(
    dataset: Dataset, data: bytes, plane: Instance, numbers: Sequence[int]
) -> Iterator[Stored]:
    """Decode compressed frames, in a child process."""
    rows, columns = plane.stored_shape
    values = plane.samples * rows * columns * len(numbers)
    if is_bomb(values, len(data)):
        reason = f"has {len(data)} bytes for {values} values"
        raise ReadError("dicom-too-large", reason, where=plane.path, fix="export it again")
    with reporting_malformed(plane.path, *UNDECODABLE):
        offsets = dataset.get("ExtendedOffsetTable") or b""
        found = split_frames(data, plane.frames, np.frombuffer(offsets, "<u8").tolist())
    if found is None:
        reason = f"has fragments that do not form as many frames as its header says ({plane.frames})"
        raise ReadError("dicom-pixels", reason, where=plane.path, fix="export it again")
    frames, repaired = found
    for number in numbers:
        frame = b"".join(data[start:end] for start, end in frames[number])
        stored = _decode_compressed(dataset, frame, plane)
        yield stored._replace(notes=(*stored.notes, WRONG_TABLE)) if repaired else stored


def _decode_compressed(dataset: Dataset, frame: bytes, plane: Instance) -> Stored:
    """Decode one frame as its codestream says it is, then make of it what the header says."""
    stream = read_codestream(frame)
    if stream is not None and (stream.rows, stream.columns) != plane.stored_shape:
        raise _other_size(plane)
    plugin, distribution = _decoder_of(plane, stream)
    request = _request(dataset, plane, stream, plugin)
    try:
        samples, notes = _decode_tidied(frame, request, plane)
    except FrameRefusedError as error:
        code, what, fix = UNDECODABLE
        raise ReadError(code, f"has {what} ({error.args[0]})", where=plane.path, fix=fix) from error
    except DecoderLostError as error:
        reason = f"has pixel data at which its decoder {error.args[0]}"
        raise ReadError("dicom-decoder", reason, where=plane.path, fix="copy or export it again") from error
    if samples.shape[:2] != plane.stored_shape:
        raise _other_size(plane)
    return Stored(_fit(samples, plane, stream), named(distribution), notes)


def _decode_tidied(frame: bytes, request: dict, plane: Instance) -> tuple[NDArray, tuple[str, ...]]:
    """Decode a frame; where JPEG-LS is refused, once more without zeros at its end."""
    rows, columns = plane.stored_shape
    values = rows * columns * plane.samples
    try:
        return decode_frame(frame, request, values), ()
    except FrameRefusedError:
        for attempt in tidied(frame) if plane.transfer_syntax in JPEG_LS else ():
            try:
                return decode_frame(attempt, request, values), (TIDIED,)
            except FrameRefusedError:
                continue
        raise


def _request(dataset: Dataset, plane: Instance, stream: Codestream | None, plugin: str) -> dict:
    """Return what a decoder needs: the codestream's own depth and sign, so that it alters neither."""
    rows, columns = plane.stored_shape
    with reporting_malformed(plane.path):
        planar = int(dataset.get("PlanarConfiguration") or 0)
    cell = stream.container if stream else plane.bits_allocated
    return {
        "transfer_syntax": plane.transfer_syntax,
        "plugin": plugin,
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": plane.samples,
        "photometric_interpretation": plane.photometric,
        "bits_allocated": cell,
        "bits_stored": stream.precision if stream else cell,
        "pixel_representation": int(bool(stream and stream.signed)),
        "planar_configuration": planar,
    }


def _decoder_of(plane: Instance, stream: Codestream | None) -> tuple[str, str]:
    """Return the plugin and the distribution that decode a frame.

    THREADED takes no signed codestream, and none deeper than 16 bits.
    """
    grey = plane.transfer_syntax == uid.JPEG2000Lossless and plane.photometric in GREY
    plain = grey and stream is not None and stream.signed is False and stream.precision <= 16
    return THREADED if plain and plane.values <= MOST_THREADED_VALUES else DECODERS[plane.transfer_syntax]


@cache
def named(distribution: str) -> str:
    """Return a distribution with its version."""
    return f"{distribution} {version(distribution)}"


def _other_size(plane: Instance) -> ReadError:
    reason = "has pixel data of another size than its header says"
    return ReadError("dicom-pixels", reason, where=plane.path, fix="export it again")
