"""PIXEL DATA -> stored values -> modality units (PS3.3 C.11.1) in which larger is brighter."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.pixels import apply_color_lut

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import reporting_malformed
from medtl.imaging.dicom.instance import Instance, Place
from medtl.imaging.dicom.stored import named, stored_planes, stored_values
from medtl.imaging.dicom.syntaxes import DECODERS, GREY, NATIVE, fix_of, name_of
from medtl.imaging.dicom.tables import Table, modality_table, voi_of
from medtl.imaging.image import EXACT_WHOLE, Voi, rounding_notes

# Pixel values in one image, 1 GiB as float32. Checked before anything is decoded.
MOST_VALUES = 2**28

# Little-endian words by BitsAllocated.
WORDS: dict[int, np.dtype] = {8: np.dtype("u1"), 16: np.dtype("<u2")}
PALETTE = "PALETTE COLOR"
# Samples per pixel by Photometric Interpretation.
SAMPLES = {
    **dict.fromkeys((*GREY, PALETTE), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}
# Photometric Interpretations whose values may be in the upper bits of their words.
SHIFTABLE = frozenset({*GREY, PALETTE, "RGB"})


@dataclass(frozen=True, eq=False)
class Pixels:
    """Values (C, H, W) of a plane, the VOI transformation meant for them, their decoder, and notes.

    They have the type in which they are exact; an Image rounds them to float32. padding: the lowest and the
    highest value outside the image, None where the file names none. missing: some are NaN.
    """

    plane: Instance
    values: NDArray
    voi: Voi | None
    padding: tuple[float, float] | None
    decoder: str
    notes: tuple[str, ...] = ()
    missing: bool = False


def check_decodable(plane: Instance, where: str, count: int = 1) -> None:
    """Refuse by the header alone what would not be read exactly; `count` is the number of such planes.

    Raises ReadError dicom-undecoded, -photometric, -bits, -rescale, -too-large.
    """
    syntax = plane.transfer_syntax
    if syntax not in DECODERS and syntax not in NATIVE:
        reason = f"is in {name_of(syntax)}, which is not decoded"
        raise ReadError("dicom-undecoded", reason, where=where, fix=fix_of(syntax))
    if SAMPLES.get(plane.photometric) != plane.samples:
        reason = "has a photometric interpretation that is unknown or contradicts its samples per pixel"
        raise ReadError("dicom-photometric", reason, where=where, fix="convert it to MONOCHROME2 or RGB")
    lowest = 0 if plane.photometric in SHIFTABLE else plane.high_bit + 1
    if not max(1, lowest) <= plane.bits_stored <= plane.high_bit + 1 <= plane.bits_allocated:
        reason = "has BitsAllocated, BitsStored and HighBit that contradict each other"
        raise ReadError("dicom-bits", reason, where=where, fix="export it again")
    if syntax in NATIVE and plane.bits_allocated != 1 and plane.bits_allocated % 8:
        reason = f"has BitsAllocated {plane.bits_allocated}, which is not decoded"
        raise ReadError("dicom-bits", reason, where=where, fix="export it with BitsAllocated 16")
    if plane.rescale is None:
        reason = "has a rescale slope of zero, or slope or intercept that are no numbers"
        raise ReadError("dicom-rescale", reason, where=where, fix="export it again")
    if plane.values * max(count, plane.mosaic**2) > MOST_VALUES:
        size = f"{count} x {plane.rows} x {plane.columns} x {plane.samples}"
        reason = f"has {size} values, more than {MOST_VALUES}"
        raise ReadError("dicom-too-large", reason, where=where, fix="split or shrink it")


def decode(dataset: Dataset, planes: Sequence[Instance], by_lut_shape: bool = False) -> list[Pixels]:
    """Decode planes of one file that passed check_decodable, in the order given.

    by_lut_shape: PresentationLUTShape decides which grey values are white, where the file names one. Raises
    ReadError dicom-truncated, -pixels, -decoder, -bits, -photometric, -rescale, -not-finite.
    """
    pixels = []
    for plane, stored in zip(planes, stored_planes(dataset, planes), strict=True):
        if plane.photometric in GREY:
            one = _decode_grey(dataset, plane, stored.values, stored.decoder, by_lut_shape)
        else:
            one = Pixels(plane, _colour(dataset, stored.values, plane), None, None, stored.decoder)
        pixels.append(replace(one, notes=(*stored.notes, *one.notes)))
    return pixels


def _decode_grey(
    dataset: Dataset, plane: Instance, stored: NDArray, decoder: str, by_lut_shape: bool
) -> Pixels:
    """Convert stored values as the tables of the file say, where it has any."""
    table, notes = modality_table(dataset, plane)
    meant = plane if table is None else _after(table, plane)
    values = stored if table is None else table.apply(stored)
    slope, intercept = meant.rescale or (1.0, 0.0)
    low, high = sorted(end * slope + intercept for end in meant.stored_range)
    voi, more = voi_of(dataset, plane, (low, high))
    grey = _grey(values, meant, voi, decoder, by_lut_shape)
    return replace(grey, plane=plane, notes=(*notes, *more, *grey.notes))


def _after(table: Table, plane: Instance) -> Instance:
    """Return the plane as if what a Modality LUT makes of its values were stored."""
    padding = table.apply_range(*plane.padding) if plane.padding else None
    return replace(plane, bits_stored=table.bits, signed=False, rescale=(1.0, 0.0), padding=padding)


def decode_directly(
    data: bytes, planes: Sequence[Instance], place: Place, by_lut_shape: bool = False
) -> list[Pixels] | None:
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
        stored = stored_values(words.reshape(plane.rows, plane.columns), plane)
        decoded.append(_grey(stored, plane, plane.voi, named("pydicom"), by_lut_shape))
    return decoded


def _colour(dataset: Dataset, stored: NDArray, plane: Instance) -> NDArray:
    """Return RGB values (3, H, W)."""
    if plane.photometric == PALETTE:
        what, fix = "a palette that cannot be applied", "export it as RGB"
        with reporting_malformed(plane.path, "dicom-pixels", what, fix):  # a palette is checked by its use
            stored = apply_color_lut(stored, dataset)
    return np.moveaxis(stored[..., :3], -1, 0)


def _grey(stored: NDArray, plane: Instance, voi: Voi | None, decoder: str, by_lut_shape: bool) -> Pixels:
    """Convert stored values (H, W) to modality units in which larger is brighter."""
    slope, intercept = plane.rescale or (1.0, 0.0)
    values = stored if (slope, intercept) == (1.0, 0.0) else stored * slope + intercept
    padding = None
    if plane.padding is not None:
        low, high = sorted(value * slope + intercept for value in plane.padding)
        padding = (low, high)
    if plane.is_inverted(by_lut_shape):
        # Low values are white (PS3.3 C.7.6.3.1.2). The inverted twin is stored as ends - v, with the same
        # rescale: the lowest plus the highest stored value is 2^bits - 1 unsigned, -1 in two's complement.
        if stored.dtype.kind == "f":
            reason = "is inverted (MONOCHROME1) in floating point, whose range is not known"
            raise ReadError("dicom-photometric", reason, where=plane.path, fix="convert it to MONOCHROME2")
        ends = (-1 if plane.signed else 2**plane.bits_stored - 1) * slope + 2 * intercept
        values = ends - values
        voi = voi.mirrored(ends) if voi else None
        padding = (ends - padding[1], ends - padding[0]) if padding else None
    wide = stored.dtype.itemsize > 2 or abs(slope) * 2.0**plane.bits_stored + abs(intercept) > EXACT_WHOLE
    with np.errstate(over="ignore"):
        held = values.astype(np.float32) if wide else values
    missing = held.dtype.kind == "f" and not np.isfinite(held).all()
    if missing and np.isinf(held).any():
        reason = "has infinite values, or some that float32 cannot hold"
        raise ReadError("dicom-not-finite", reason, where=plane.path, fix="export it again")
    return Pixels(plane, values[None], voi, padding, decoder, rounding_notes(values) if wide else (), missing)
