"""Read NRRD, with its pixels in the file (.nrrd) or beside it (.nhdr). ITK reads where the voxels lie.

The header is parsed here, too: sizes, types and files are checked by it before ITK sees them, and must be
what ITK finds. A file that does not name its space is refused, as is one of NIfTI without an affine.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.series import EXACT, Kind, Reading, Scan, Series, scan_each
from medtl.imaging.volumes import itk_header
from medtl.imaging.volumes.itk_header import FAMILY, ORIGIN, beside, contradiction, numbers, once
from medtl.imaging.volumes.volume_file import MOST_VOXELS, Layout, list_volumes, read_volume, too_large

NAME, TITLE = "nrrd", "NRRD"
KIND: Kind = "item"  # a volume, or an image of two axes
SUFFIXES: tuple[str, ...] = (".nrrd", ".nhdr")

MAGIC = re.compile(rb"NRRD000[1-5]\r?\n")
MOST_HEADER = 2**20
MOST_AXES = 5

TYPE = re.compile(
    r"(?P<unsigned>unsigned |u)?(?:signed )?"
    r"(?:int(?P<bits>8|16|32|64)(?:_t)?|(?P<word>char|short|int|long ?long)(?: int)?)"
)
BITS = {"char": 8, "short": 16, "int": 32, "longlong": 64}
FLOATS = {"float": "f4", "double": "f8"}
ORDERS = {"little": "<", "big": ">"}
PACKED = {"raw": False, "gzip": True, "gz": True}
SPACES = frozenset(
    {"left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las"}
)
ITK_SPACE = "its space is not named: taken for that of ITK, left-posterior-superior"
MILLIMETRES = frozenset({"", "mm", "millimeter", "millimeters"})

# What the values along an axis are, where it is no axis of space.
COLOUR_KINDS = frozenset({"rgb-color", "rgba-color", "3-color", "4-color"})
VOLUME_KINDS = frozenset({"list", "time", "none", "???", "domain", "space"})


@dataclass(frozen=True)
class Axes:
    """The axes of an array, first one fastest: of volumes, and of a voxel's values before or behind them."""

    shape: tuple[int, int, int]
    interleaved: int = 1
    count: int = 1
    components: bool = False
    colour: bool = False
    flat: bool = False
    note: str = ""


def recognises(path: Path, head: bytes) -> bool:
    """Look for NRRD's magic."""
    return MAGIC.match(head) is not None


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """List each volume of each file as a series; refuse by the header what would not be read exactly."""
    return scan_each(partial(_list_volumes, reading=reading), files, workers)


def read(series: Series) -> Image:
    """Read one volume, or all as channels.

    Raises ReadError volume-header, -pair, -damaged, -truncated, -too-large, -dimensions, -type, -affine,
    -not-finite, -decoder.
    """
    return read_volume(series, _read_layout, itk_header.decoder())


def _list_volumes(path: Path, reading: Reading) -> list[Series]:
    fields, _ = _parse(path)
    return list_volumes([path, *_detached(fields, path)], NAME, _read_layout, reading)


def _parse(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields of a header, and where it ends."""
    with path.open("rb") as file:
        head = file.read(MOST_HEADER)
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None and len(head) == MOST_HEADER:
        raise contradiction("has a header that does not end", path)
    text = (head if end is None else head[: end.start()]).decode("utf-8", "replace")
    lines = [line for line in text.splitlines()[1:] if not line.startswith("#") and ":=" not in line]
    fields = [(name.strip().lower(), value.strip()) for name, _, value in (x.partition(":") for x in lines)]
    aliases = {"datafile": "data file", "byteskip": "byte skip", "lineskip": "line skip"}
    return once([(aliases.get(name, name), value) for name, value in fields], path), (
        len(head) if end is None else end.end()
    )


def _detached(fields: Mapping[str, str], path: Path) -> list[Path]:
    """Return the file of the pixels, where it is another one."""
    return [beside(path, fields["data file"])] if "data file" in fields else []


def _read_layout(head: bytes, path: Path) -> Layout:
    fields, end = _parse(path)
    if PACKED.get(fields.get("encoding", "").lower()) is None:
        reason = "has values in text, hexadecimal digits or bzip2"
        raise ReadError("volume-type", reason, where=path, fix="save it with encoding raw or gzip")
    axes = _axes(fields, path)
    dtype = _value_type(fields, path)
    detached = _detached(fields, path)
    packed = PACKED[fields["encoding"].lower()]
    start = 0 if detached else end
    skip = _skip(fields, packed, path)
    if skip < 0:
        values = math.prod(axes.shape) * axes.interleaved * axes.count
        skip = (detached or [path])[0].stat().st_size - values * dtype.itemsize - start
        if skip < 0:
            fix = "copy it again from its source"
            raise ReadError("volume-truncated", "has too few bytes", where=path, fix=fix)
    found = itk_header.read_header(path, "NrrdImageIO")
    _compare(axes, dtype, found, path)
    notes = [axes.note] if axes.note else []
    notes += [] if axes.flat or "space origin" in fields else [ORIGIN]
    notes += ["old min and old max were not applied"] if "old min" in fields or "old max" in fields else []
    return Layout(
        axes.shape,
        axes.count,
        dtype,
        skip if packed else start + skip,
        None,
        found.placed("spacings" in fields or "space directions" in fields),
        components=axes.components,
        interleaved=axes.interleaved,
        colour=axes.colour,
        flat=axes.flat,
        packed_from=start if packed else None,
        notes=tuple(notes),
        family=FAMILY,
    )


def _skip(fields: Mapping[str, str], packed: bool, path: Path) -> int:
    """Return how many bytes lie before the pixels; -1: as many as are left over."""
    text = fields.get("byte skip", "0")
    if (
        fields.get("line skip", "0") != "0"
        or not re.fullmatch(r"-1|\d{1,12}", text)
        or (packed and text != "0")
    ):
        raise contradiction("skips lines, or bytes of compressed pixels", path)
    return int(text)


def _value_type(fields: Mapping[str, str], path: Path) -> np.dtype:
    text = " ".join(fields.get("type", "").lower().split())
    match = TYPE.fullmatch(text)
    code = _integer(match) if match else FLOATS.get(text)
    if code is None:
        reason, fix = "has an unknown type of values", "save it with one real number per voxel"
        raise ReadError("volume-type", reason, where=path, fix=fix)
    order = ORDERS.get(fields.get("endian", "little" if code[1] == "1" else "").lower())
    if order is None:
        raise contradiction("does not say in which order its bytes are", path)
    return np.dtype(order + code)


def _integer(match: re.Match[str]) -> str:
    bits = int(match["bits"] or BITS[match["word"].replace(" ", "")])
    return f"{'u' if match['unsigned'] else 'i'}{bits // 8}"


def _axes(fields: Mapping[str, str], path: Path) -> Axes:
    """Tell the axes of space from that of values, by `space directions`."""
    sizes, directions, kinds = _lists(fields, path)
    space = fields.get("space", "").lower()
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit.strip().lower() not in MILLIMETRES for unit in units):
        raise ReadError("volume-affine", "has another unit of length", where=path, fix="write it in mm")
    if math.prod(sizes) == 0 or len(sizes) > MOST_AXES:
        raise contradiction("has no valid sizes", path)
    if len(sizes) == 2 and not space:
        return Axes((sizes[0], sizes[1], 1), flat=True)
    spatial = [axis for axis, one in enumerate(directions) if one != "none"]
    unnamed_times = len(spatial) == 4 and fields.get("space dimension") == "4"
    if unnamed_times:
        spatial = spatial[:3]
    elif space not in SPACES:
        named = f"names no space of the patient but {space[:30]}" if space else "does not name its space"
        reason = f"{named}: where it lies is unknown"
        fix = "write its space, such as left-posterior-superior"
        raise ReadError("volume-affine", reason, where=path, fix=fix)
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    if len(spatial) != 3 or spatial[2] - spatial[0] != 2 or len(others) > 1:
        reason = f"has {len(spatial)} axes in space and {len(others)} others"
        raise ReadError("volume-dimensions", reason, where=path, fix="save one volume a file")
    shape = (sizes[spatial[0]], sizes[spatial[1]], sizes[spatial[2]])
    if math.prod(shape) > MOST_VOXELS:
        raise too_large(f"has {math.prod(shape)} voxels, more than {MOST_VOXELS}", FAMILY, path)
    note = ITK_SPACE if unnamed_times else ""
    if not others:
        return Axes(shape, note=note)
    number, kind = sizes[others[0]], kinds[others[0]]
    if kind == "complex":
        raise ReadError("volume-type", "has complex values", where=path, fix="save one real number per voxel")
    if others[0] == 0:
        colour = kind in COLOUR_KINDS and number in (3, 4)
        return Axes(shape, interleaved=number, colour=colour, note=note)
    return Axes(shape, count=number, components=number > 1 and kind not in VOLUME_KINDS, note=note)


def _lists(fields: Mapping[str, str], path: Path) -> tuple[list[int], list[str], list[str]]:
    """Return size, direction and kind of each axis."""
    texts = fields.get("sizes", "").split()
    if not texts or not all(re.fullmatch(r"\d{1,9}", text) for text in texts):
        raise contradiction("has no valid sizes", path)
    if fields.get("dimension") != str(len(texts)):
        raise contradiction("says another number of axes than it has sizes", path)
    directions = re.findall(r"none|\([^()]*\)", fields.get("space directions", ""))
    in_space = [one for one in directions if one != "none"]
    for vector in (*in_space, *([fields["space origin"]] if "space origin" in fields and in_space else [])):
        numbers(vector.strip("()"), in_space[0].count(",") + 1, path)
    if "spacings" in fields and len(texts) == 2:
        numbers(fields["spacings"], 2, path)
    kinds = fields.get("kinds", "").lower().split() or ["???"] * len(texts)
    if len(kinds) != len(texts) or len(directions) not in (0, len(texts)):
        raise contradiction("says another number of kinds or directions than it has sizes", path)
    return [int(text) for text in texts], directions, kinds


def _compare(axes: Axes, dtype: np.dtype, found: itk_header.ItkHeader, path: Path) -> None:
    """Check that ITK found the same sizes and type."""
    shape = axes.shape[:2] if axes.flat else axes.shape
    several = found.components if len(found.size) <= 3 else found.size[3]
    if found.size[:3] != shape or found.type != dtype.str[1:] or several != axes.interleaved * axes.count:
        raise contradiction("has axes that ITK reads otherwise", path)
