"""HEADER -> where its voxels lie, as ITK reads it, in a child process: it may crash on malformed headers."""

import math
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.dicom.decoders import DecoderLostError, FrameRefusedError, pool_of
from medtl.imaging.volumes.nifti_header import is_regular
from medtl.imaging.volumes.volume_file import inside

CHILD = (sys.executable, "-P", "-m", "medtl.imaging.volumes.itk_process")
SECONDS = 8.0

# Codes of refusals of volumes in formats other than NIfTI.
FAMILY = "volume"

# Types by SimpleITK's pixel ids, of one value a voxel and of several.
TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
FIRST_VECTOR_ID = 12

ORIGIN = "its origin is not stated: taken for 0"
DIRECTIONS = "its directions are not stated: taken for those of the patient"

# ITK's axes point left, back and up.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class ItkHeader:
    """What ITK makes of a header; affine in RAS+ mm, None of two axes, which have no place in a patient."""

    size: tuple[int, ...]
    components: int
    type: str
    spacing: tuple[float, ...]
    affine: NDArray[np.float64] | None

    def placed(self, stated: bool) -> NDArray[np.float64]:
        """Return the affine; of two axes their sizes, NaN where the file does not state them."""
        if self.affine is not None:
            return self.affine
        return np.diag([*(self.spacing[:2] if stated else (math.nan, math.nan)), 1.0, 1.0])


def decoder() -> str:
    """Return the name and version of the library."""
    return f"SimpleITK {version('SimpleITK')}"


def once(fields: list[tuple[str, Value]], path: Path) -> dict[str, Value]:
    """Return the fields of a text header by name. Raises ReadError volume-header where one is there twice."""
    named = dict(fields)
    if len(named) < len(fields):
        raise contradiction("says something twice in its header", path)
    return named


def beside(header: Path, name: str) -> Path:
    """Return the file of pixels that a header names, which must be in its own folder.

    Raises ReadError volume-pair.
    """
    name = name.removeprefix("./")
    plain = name not in ("", ".", "..") and not set(name) & set('/\\:%*?"<>|\0') and name.isprintable()
    if not plain or name.upper().split()[0] == "LIST":
        reason = "names pixels in another folder or in several files"
        raise ReadError("volume-pair", reason, where=header, fix="save it as one file")
    data = header.with_name(name)
    if data.is_file() and data.samefile(header):
        raise ReadError("volume-pair", "names itself as its pixels", where=header, fix="write it again")
    if not data.is_file():
        reason = f"has its pixels in {name}, which is not here"
        raise ReadError("volume-pair", reason, where=header, fix="put that file beside it")
    return inside(data, header, FAMILY)


def contradiction(reason: str, path: Path) -> ReadError:
    """Return the refusal of a header that cannot be understood."""
    return ReadError("volume-header", reason, where=path, fix="write it again, with ITK or Slicer")


def numbers(text: str, count: int, path: Path) -> list[float]:
    """Return so many numbers. Raises ReadError volume-header: ITK reads "0.-8" as 0, without a word."""
    try:
        values = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise contradiction("has places or sizes in its header that are no numbers", path)
    return values


def read_header(path: Path, image_io: str) -> ItkHeader:
    """Read a header with ITK. Raises ReadError volume-header, -affine, -decoder."""
    try:
        answer = pool_of(CHILD).decode(b"", {"path": str(path.absolute()), "image_io": image_io}, SECONDS)
    except FrameRefusedError as error:
        raise contradiction("has a header that ITK does not read", path) from error
    except DecoderLostError as error:
        reason = f"ITK {error.args[0]} at its header"
        raise ReadError(
            "volume-decoder", reason, where=path, fix="write it again, or leave it out"
        ) from error
    return _header_of([float(number) for number in answer], path)


def _header_of(answer: list[float], path: Path) -> ItkHeader:
    axes, components, kind = (int(number) for number in answer[:3])
    size, spacing, origin = (answer[3 + axes * part : 3 + axes * (part + 1)] for part in range(3))
    direction = np.reshape(answer[3 + 3 * axes :], (axes, axes))
    extents = tuple(int(extent) for extent in size)
    kind = kind - FIRST_VECTOR_ID if kind >= FIRST_VECTOR_ID else kind
    if not 0 <= kind < len(TYPES) or not 2 <= axes <= 4:
        reason = f"has {axes} axes, or complex values"
        raise ReadError("volume-type", reason, where=path, fix="save it with one real number per voxel")
    affine = _affine(direction, spacing, origin, path)
    return ItkHeader(extents, components, TYPES[kind], tuple(spacing), affine)


def _affine(
    direction: NDArray, spacing: list[float], origin: list[float], path: Path
) -> NDArray[np.float64] | None:
    """Return the affine of the first three axes; of two axes none, if they run as they are stored."""
    if len(spacing) == 2:
        if not np.array_equal(direction, np.eye(2)) or not all(0 < one < math.inf for one in spacing):
            raise ReadError("volume-affine", "is flat and turned", where=path, fix="save it as a volume")
        return None
    if len(spacing) == 4 and (direction[3, :3].any() or direction[:3, 3].any()):
        raise ReadError("volume-affine", "mixes space and time", where=path, fix="save its volumes apart")
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * spacing[:3]
    affine[:3, 3] = origin[:3]
    if not is_regular(affine):
        raise ReadError("volume-affine", "has a singular affine", where=path, fix="write it again")
    return LPS_TO_RAS @ affine
