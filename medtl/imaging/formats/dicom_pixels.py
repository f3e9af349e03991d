"""Turn the pixel data of one DICOM instance into values in which larger is brighter.

Stored values are decoded, brought to modality units (PS3.3 C.11.1), and inverted where low values are white.
"""

import struct
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.uid import UID, JPEGExtended12Bit

from medtl.errors import ReadError
from medtl.imaging.formats.dicom_headers import DECODERS, Instance

# Pixel values in one image, 1 GiB as float32. Checked before anything is decoded.
MOST_VALUES = 2**28

GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PALETTE = "PALETTE COLOR"
COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})

# Codestreams: SOC and SIZ of JPEG 2000; the frame headers SOF0 to SOF15 of JPEG, SOF55 of JPEG-LS.
J2K_START = b"\xff\x4f\xff\x51"
START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})


@dataclass(frozen=True, eq=False)
class Pixels:
    """Values float32 (C, H, W) of one instance, their first VOI window, and how they came about."""

    values: NDArray[np.float32]
    window: tuple[float, float] | None
    decoder: str
    notes: tuple[str, ...]


def check_decodable(instance: Instance, where: str, count: int = 1) -> None:
    """Refuse by the header alone what would not be read exactly; `count` is the number of such slices.

    Raises ReadError dicom-multiframe, -mosaic, -undecoded, -photometric, -bits, -rescale, -too-large.
    """
    _check_frames(instance, where)
    _check_coding(instance, where)
    _check_values(instance, where)
    if instance.values * count > MOST_VALUES:
        size = f"{count} x {instance.rows} x {instance.columns} x {instance.samples}"
        reason = f"has {size} values, more than {MOST_VALUES}"
        raise ReadError("dicom-too-large", reason, where=where, fix="split or shrink it")


def decode(dataset: Dataset, instance: Instance) -> Pixels:
    """Decode one instance that passed check_decodable.

    Raises ReadError dicom-truncated, -pixels, -photometric, -rescale, -not-finite.
    """
    where = str(instance.path)
    plugin, distribution = DECODERS[instance.transfer_syntax]
    stored = _decode(dataset, instance, plugin)
    decoder = f"{distribution} {version(distribution)}"
    if instance.photometric not in GREY:
        return Pixels(_colour(dataset, stored, instance), None, decoder, ())
    values, window, notes = _grey(dataset, stored, instance)
    if not np.isfinite(values).all():
        raise ReadError("dicom-not-finite", "has NaN or infinite values", where=where, fix="export it again")
    return Pixels(values[None], window, decoder, notes)


def _check_frames(instance: Instance, where: str) -> None:
    enhanced = instance.sop_class.startswith(("Enhanced", "LegacyConverted"))
    if instance.frames > 1 or enhanced:
        reason = f"is multi-frame ({instance.frames} frames), which is not read yet"
        fix = "convert it to single-frame DICOM or NIfTI"
        raise ReadError("dicom-multiframe", reason, where=where, fix=fix)
    if "MOSAIC" in instance.image_type:
        fix = "convert it to NIfTI, for example with dcm2niix"
        raise ReadError("dicom-mosaic", "is a Siemens mosaic, which is not read yet", where=where, fix=fix)


def _check_coding(instance: Instance, where: str) -> None:
    twelve_bits = instance.transfer_syntax == JPEGExtended12Bit and instance.bits_stored > 8
    if instance.transfer_syntax not in DECODERS or twelve_bits:
        fix = "rewrite it uncompressed, for example with gdcmconv --raw"
        reason = f"is in {_name(instance.transfer_syntax)}, which is not decoded"
        raise ReadError("dicom-undecoded", reason, where=where, fix=fix)
    single = instance.photometric in GREY | {PALETTE}
    known = single or instance.photometric in COLOUR
    if not known or instance.samples != (1 if single else 3):
        reason = "has a photometric interpretation that is unknown or contradicts its samples per pixel"
        raise ReadError("dicom-photometric", reason, where=where, fix="convert it to MONOCHROME2 or RGB")


def _check_values(instance: Instance, where: str) -> None:
    stored = instance.bits_stored
    if not 0 < stored <= instance.bits_allocated or instance.high_bit != stored - 1:
        reason = "has BitsAllocated, BitsStored and HighBit that contradict each other"
        raise ReadError("dicom-bits", reason, where=where, fix="export it again")
    if instance.rescale is None:
        reason = "has a rescale slope of zero, or slope or intercept that are no numbers"
        raise ReadError("dicom-rescale", reason, where=where, fix="export it again")


def _name(syntax: UID) -> str:
    return syntax.name if syntax.keyword else "an unknown transfer syntax"


def _decode(dataset: Dataset, instance: Instance, plugin: str) -> NDArray:
    """Return stored values, (H, W) or (H, W, 3); YBR becomes RGB."""
    _check_length(dataset, instance)
    try:
        return pixel_array(dataset, decoding_plugin=plugin)
    except Exception as error:  # decoders fail in as many ways as there are malformed streams
        raise _undecodable(instance, error) from error


def _check_length(dataset: Dataset, instance: Instance) -> None:
    """Check that the pixel data hold one frame of the header's size, before memory is taken for it."""
    data = _pixel_bytes(dataset, instance)
    if instance.transfer_syntax.is_encapsulated:
        size = _codestream_size(_first_frame(data, instance))
        fits = size is None or size == (instance.rows, instance.columns)
    else:
        samples = 2 if instance.photometric == "YBR_FULL_422" else instance.samples
        expected = instance.rows * instance.columns * samples * instance.bits_allocated // 8
        if len(data) < expected:
            reason = f"has {len(data)} of {expected} bytes of pixel data"
            raise ReadError("dicom-truncated", reason, where=instance.path, fix="copy it again")
        fits = len(data) < 2 * expected
    if not fits:
        reason = "has pixel data of another size than its header says"
        raise ReadError("dicom-pixels", reason, where=instance.path, fix="export it again")


def _pixel_bytes(dataset: Dataset, instance: Instance) -> bytes:
    keyword = next((name for name in PIXEL_KEYWORDS if name in dataset), None)
    try:
        data = dataset[keyword].value if keyword else None
    except Exception as error:  # see _decode
        raise _undecodable(instance, error) from error
    if not isinstance(data, bytes) or not data:
        raise ReadError("dicom-truncated", "has no pixel data", where=instance.path, fix="copy it again")
    return data


def _undecodable(instance: Instance, error: Exception) -> ReadError:
    reason = f"has pixel data that cannot be decoded ({type(error).__name__})"
    return ReadError("dicom-pixels", reason, where=instance.path, fix="copy or export it again")


def _first_frame(data: bytes, instance: Instance) -> bytes:
    try:
        return pydicom.encaps.get_frame(data, 0, number_of_frames=1)
    except Exception as error:  # see _decode
        raise _undecodable(instance, error) from error


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


def _colour(dataset: Dataset, stored: NDArray, instance: Instance) -> NDArray[np.float32]:
    """Return RGB values (3, H, W)."""
    if instance.photometric == PALETTE:
        try:
            stored = apply_color_lut(stored, dataset)
        except Exception as error:  # pydicom checks a palette only by using it
            reason = f"has a palette that cannot be applied ({type(error).__name__})"
            raise ReadError("dicom-pixels", reason, where=instance.path, fix="export it as RGB") from error
    return np.ascontiguousarray(np.moveaxis(stored[..., :3], -1, 0), dtype=np.float32)


def _grey(
    dataset: Dataset, stored: NDArray, instance: Instance
) -> tuple[NDArray[np.float32], tuple[float, float] | None, tuple[str, ...]]:
    values, mirror = _to_modality_units(dataset, stored, instance)
    window = instance.window
    notes = []
    if "PixelPaddingValue" in dataset:
        notes.append("has a pixel padding value")
    if instance.photometric == "MONOCHROME1":
        # Low values are white (PS3.3 C.7.6.3.1.2).
        if mirror is None:
            reason = "is MONOCHROME1 in floating point, whose range is not known"
            raise ReadError("dicom-photometric", reason, where=instance.path, fix="convert it to MONOCHROME2")
        values = mirror - values
        window = (mirror - window[0], window[1]) if window else None
        notes.append("inverted from MONOCHROME1")
    return values.astype(np.float32), window, tuple(notes)


def _to_modality_units(
    dataset: Dataset, stored: NDArray, instance: Instance
) -> tuple[NDArray[np.float64], float | None]:
    """Return values (H, W) and the sum of the lowest and highest value that they could take.

    That sum minus a value is the value of the inverted twin: stored as range - v, with the same rescale.
    """
    if "ModalityLUTSequence" in dataset:
        return _through_table(dataset, stored, instance)
    slope, intercept = instance.rescale or (1.0, 0.0)
    if stored.dtype.kind == "f":
        return stored * slope + intercept, None
    # Lowest plus highest stored value: 2^bits - 1 unsigned, -1 in two's complement.
    ends = -1 if instance.signed else 2**instance.bits_stored - 1
    return stored * slope + intercept, ends * slope + 2 * intercept


def _through_table(
    dataset: Dataset, stored: NDArray, instance: Instance
) -> tuple[NDArray[np.float64], float]:
    try:
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
        return apply_modality_lut(stored, dataset).astype(np.float64), 2.0**bits - 1
    except Exception as error:  # pydicom checks a table only by using it
        reason = f"has a Modality LUT that cannot be applied ({type(error).__name__})"
        raise ReadError("dicom-rescale", reason, where=instance.path, fix="export it again") from error
