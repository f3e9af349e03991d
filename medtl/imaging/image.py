"""The Image: exact pixels, where they lie in the patient, how to display them, and what their file says."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError

# Whole numbers up to here are exact in float32.
EXACT_WHOLE = 2**24
ROUNDED = "values beyond 2^24 were rounded to the 24 bits of float32"
RAW_VALUES = "for processing: raw detector values, not those meant for display"
# More values than any radiograph has, out of almost no bytes, are a bomb.
LARGE_VALUES, MOST_SHRINKING = 2**25, 500
WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class Window:
    """A display window in the units of the pixels, with its VOI LUT function (PS3.3 C.11.2.1.2)."""

    centre: float
    width: float
    function: str = "LINEAR"

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map values to grey levels in [0, 1], in the same shape."""
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                grey = 1 / (1 + np.exp(-4 * (values.astype(np.float64) - self.centre) / self.width))
            return grey.astype(np.float32)
        half, width = (0.5, self.width - 1) if self.function == "LINEAR" else (0.0, self.width)
        if width <= 0:  # a LINEAR window of width 1 is a threshold
            return (values > self.centre - half).astype(np.float32)
        return np.clip((values - (self.centre - half)) / width + 0.5, 0, 1).astype(np.float32)

    def mirrored(self, ends: float) -> "Window":
        """Return the window of the values `ends - v`, which shows them as this one shows v, inverted."""
        return Window(ends - self.centre + (self.function == "LINEAR"), self.width, self.function)


@dataclass(frozen=True, eq=False)
class VoiTable:
    """A VOI LUT: grey levels float32 (n,) in [0, 1] of whole values from `first` on (PS3.3 C.11.2.1.1)."""

    first: float
    levels: NDArray[np.float32]

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map values to grey levels; values beyond the table have those of its ends."""
        places = np.clip(np.rint(values - self.first), 0, len(self.levels) - 1)
        return self.levels[places.astype(np.int64)]

    def mirrored(self, ends: float) -> "VoiTable":
        """Return the table of the values `ends - v`, which shows them as this one shows v, inverted."""
        return VoiTable(ends - (self.first + len(self.levels) - 1), 1 - self.levels[::-1])


Voi = Window | VoiTable


@dataclass(frozen=True)
class ImageFacts:
    """What a reader learned besides pixels. Nothing here identifies a patient except `source`.

    `source` is the path as the user gave it: for their own tables, never for a report. Keys are salted hashes
    (core/ids.py), empty where the file names none. `voi` is the transformation meant for display, `padding`
    the range of values outside the image; both are in the units of the pixels and come from the first slice,
    None where it names none. `pixel_aspect` is the height of a pixel by its width, where the file says only
    that and they differ. `stacked`: the channels are no colours, but the volumes of one file or the
    components of its voxels. `notes` are repairs and peculiarities, one phrase each.
    """

    source: str
    format: str
    modality: str = ""
    body_part: str = ""
    view: str = ""
    decoder: str = ""
    sha256: str = ""
    photometric: str = ""
    bits: int = 0
    voi: Voi | None = None
    padding: tuple[float, float] | None = None
    pixel_aspect: float | None = None
    patient_key: str = ""
    study_key: str = ""
    series_key: str = ""
    stacked: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels on a grid.

    pixels: float32 (C, *spatial). A projection or photograph is (C, H, W): rows, columns. A DICOM volume is
    (C, D, H, W): slices along the slice normal, rows, columns. A NIfTI volume keeps the axis order of the
    file. Values are the stored ones after the Modality LUT or rescale; larger is always brighter.

    affine: float64 (4, 4), maps indices along the spatial axes of `pixels` to millimetres in RAS+; None for a
    projection or photograph.

    spacing_mm: distance between neighbours along each spatial axis; None where the file does not say.
    """

    pixels: NDArray[np.float32]
    affine: NDArray[np.float64] | None
    spacing_mm: tuple[float, ...] | None
    facts: ImageFacts = field(repr=False)

    @property
    def spatial_dims(self) -> int:
        """2 for a projection, slice or photograph; 3 for a volume."""
        return self.pixels.ndim - 1


class ImageWarning(NamedTuple):
    """What is suspicious about an image that was read exactly: a key of medtl.errors.CODES, and a phrase."""

    code: str
    reason: str


def find_warning(image: Image) -> ImageWarning | None:
    """Return what is suspicious about the pixels of an image, None where nothing is."""
    if image.pixels.min() == image.pixels.max():
        return ImageWarning("image-constant", "every pixel has the same value")
    if RAW_VALUES in image.facts.notes:
        return ImageWarning("image-raw", RAW_VALUES)
    return None


def rounding_notes(values: NDArray) -> tuple[str, ...]:
    """Return a note where some values, as a file has them, lie beyond 2^24 and lose bits in an Image."""
    if values.dtype.kind not in "iuf" or values.dtype.itemsize <= (2 if values.dtype.kind in "iu" else 4):
        return ()
    far = values[(values > EXACT_WHOLE) | (values < -EXACT_WHOLE)]
    with np.errstate(over="ignore", invalid="ignore"):
        exact = bool((far.astype(np.float32).astype(values.dtype) == far).all())
    return () if exact else (ROUNDED,)


def fill_nan(pixels: NDArray[np.float32], *, allowed: bool, code: str, source: str) -> tuple[str, ...]:
    """Give NaN in pixels (C, *spatial) the lowest value of their channel, in place; return a note on it.

    Raises ReadError `code` for infinite values, for a channel of NaN alone, and for any NaN unless `allowed`.
    """
    with np.errstate(invalid="ignore"):
        if np.isfinite(pixels.min()) and np.isfinite(pixels.max()):
            return ()
    filled = 0
    for channel in pixels:
        missing = np.isnan(channel)
        if np.isinf(channel).any() or missing.all():
            reason = "has NaN alone" if missing.all() else "has infinite or immense values"
            raise ReadError(code, reason, where=source, fix="mask them")
        if missing.any() and not allowed:
            fix = "fill or mask them, or set preprocessing.fill_nan=true"
            raise ReadError(code, "has NaN values", where=source, fix=fix)
        channel[missing] = channel[~missing].min()
        filled += int(missing.sum())
    return (f"{filled} NaN {'was' if filled == 1 else 'were'} given the lowest value",)


def without_padding(image: Image) -> NDArray[np.float32]:
    """Return the pixels, in which padding has the lowest value of the others and so looks like background."""
    if image.facts.padding is None:
        return image.pixels
    low, high = image.facts.padding
    padded = (image.pixels >= low) & (image.pixels <= high)
    if padded.all() or not padded.any():
        return image.pixels
    return np.where(padded, image.pixels[~padded].min(), image.pixels)


def is_bomb(values: int, stored_bytes: int) -> bool:
    """Say whether so many pixel values cannot honestly come from so few bytes."""
    return values > max(LARGE_VALUES, MOST_SHRINKING * stored_bytes)
