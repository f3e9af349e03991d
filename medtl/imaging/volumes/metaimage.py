"""Read MetaImage, with its pixels in the file (.mha) or beside it (.mhd). ITK reads where the voxels lie.

The header is parsed here, too: sizes, types and files are checked by it before ITK sees them, and must be
what ITK finds.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.series import EXACT, Kind, Reading, Scan, Series, scan_each
from medtl.imaging.volumes import itk_header
from medtl.imaging.volumes.itk_header import DIRECTIONS, FAMILY, ORIGIN, beside, contradiction, numbers, once
from medtl.imaging.volumes.volume_file import MOST_VOXELS, Layout, list_volumes, read_volume, too_large

NAME, TITLE = "metaimage", "MetaImage"
KIND: Kind = "item"  # a volume, or an image of two axes
SUFFIXES: tuple[str, ...] = (".mha", ".mhd")

FIRST_FIELD = re.compile(rb"\s*(ObjectType|ObjectSubType|NDims|Comment|Name|ID|TransformType)\s*=")
MOST_HEADER = 2**16
LAST_FIELD = re.compile(rb"(?:^|\n)\s*ElementDataFile\s*=[ \t]*([^\r\n]*)\r?\n?")

TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
# Names of what places the voxels; MetaIO knows several for each.
SIZES = ("ElementSpacing", "ElementSize")
ORIGINS = ("Offset", "Position", "Origin")
MATRICES = ("TransformMatrix", "Rotation", "Orientation")
LITTLE_ENDIAN = "its order of bytes is not stated: taken for little endian"
MILLIMETRES = frozenset({"", "?", "mm", "millimeter"})


def recognises(path: Path, head: bytes) -> bool:
    """Look for the fields that such a header begins with."""
    return FIRST_FIELD.match(head) is not None and b"NDims" in head


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
    """Return the fields of a header, and where it ends: behind the one that names the file of the pixels."""
    with path.open("rb") as file:
        head = file.read(MOST_HEADER)
    last = LAST_FIELD.search(head)
    if last is None:
        raise contradiction("has a header that does not end with ElementDataFile", path)
    lines = head[: last.end()].decode("utf-8", "replace").splitlines()
    fields = [
        (name.strip(), value.strip()) for name, _, value in (x.partition("=") for x in lines if x.strip())
    ]
    return once(fields, path), last.end()


def _detached(fields: Mapping[str, str], path: Path) -> list[Path]:
    """Return the file of the pixels, where it is another one."""
    name = fields["ElementDataFile"]
    return [] if name.upper() == "LOCAL" else [beside(path, name)]


def _read_layout(head: bytes, path: Path) -> Layout:
    fields, end = _parse(path)
    shape, count, flat = _extents(fields, path)
    channels = _number(fields, "ElementNumberOfChannels", 1, path)
    dtype, notes = _value_type(fields, path)
    detached = _detached(fields, path)
    packed = _flag(fields, "CompressedData", path)
    start = 0 if detached else end
    skip = _number(fields, "HeaderSize", 0, path)
    if skip and (packed or not detached):
        raise contradiction("skips bytes of its own", path)
    if skip < 0:
        values = math.prod(shape) * count * channels
        skip = detached[0].stat().st_size - values * dtype.itemsize
        if skip < 0:
            fix = "copy it again from its source"
            raise ReadError("volume-truncated", "has too few bytes", where=path, fix=fix)
    sized, places = _check_places(fields, flat, path)
    found = itk_header.read_header(path, "MetaImageIO")
    sizes = (*(shape[:2] if flat else shape), *([count] if fields["NDims"] == "4" else []))
    if (found.size, found.components, found.type) != (sizes, channels, dtype.str[1:]):
        raise contradiction("has axes that ITK reads otherwise", path)
    return Layout(
        shape,
        count,
        dtype,
        0 if packed else start + skip,
        None,
        found.placed(sized),
        interleaved=channels,
        flat=flat,
        packed_from=start if packed else None,
        notes=(*notes, *places),
        family=FAMILY,
    )


def _check_places(fields: Mapping[str, str], flat: bool, path: Path) -> tuple[bool, list[str]]:
    """Check that places are numbers; say whether sizes are stated, and note what is not."""
    axes = int(fields["NDims"])
    stated = {}
    for names, count in ((SIZES, axes), (ORIGINS, axes), (MATRICES, axes * axes)):
        given = [numbers(fields[name], count, path) for name in names if name in fields]
        stated[names] = bool(given)
    if not stated[SIZES] and not flat:
        fix = "write its ElementSpacing"
        raise ReadError("volume-affine", "does not state its spacing", where=path, fix=fix)
    notes = [ORIGIN] * (not stated[ORIGINS]) + [DIRECTIONS] * (not stated[MATRICES])
    return stated[SIZES], [] if flat else notes


def _extents(fields: Mapping[str, str], path: Path) -> tuple[tuple[int, int, int], int, bool]:
    """Return the shape of a volume, how many there are, and whether it is an image of two axes."""
    texts = fields.get("DimSize", "").split()
    if not texts or not all(re.fullmatch(r"\d{1,9}", text) and int(text) for text in texts):
        raise contradiction("has no valid sizes", path)
    if fields.get("NDims") != str(len(texts)):
        raise contradiction("says another number of axes than it has sizes", path)
    if not 2 <= len(texts) <= 4:
        reason = f"has {len(texts)} axes"
        raise ReadError("volume-dimensions", reason, where=path, fix="save one volume a file")
    if fields.get("DistanceUnits", "").lower() not in MILLIMETRES:
        raise ReadError("volume-affine", "has another unit of length", where=path, fix="write it in mm")
    i, j, k, count = (*map(int, texts), 1, 1)[:4]
    if i * j * k > MOST_VOXELS:
        raise too_large(f"has {i * j * k} voxels, more than {MOST_VOXELS}", FAMILY, path)
    return (i, j, k), count, len(texts) == 2


def _value_type(fields: Mapping[str, str], path: Path) -> tuple[np.dtype, tuple[str, ...]]:
    code = TYPES.get(fields.get("ElementType", ""))
    text = not _flag(fields, "BinaryData", path, missing=True)
    scaled = (fields.get("ElementToIntensityFunctionSlope"), fields.get("ElementToIntensityFunctionOffset"))
    if code is None or text or scaled not in ((None, None), ("1", "0")):
        reason = "has values in text, of an unknown type, or with a scale of their own"
        raise ReadError("volume-type", reason, where=path, fix="save it in binary with plain values")
    orders = {
        _flag(fields, name, path)
        for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
        if name in fields
    }
    if len(orders) > 1:
        raise contradiction("contradicts itself in the order of its bytes", path)
    notes = () if orders or code[1] == "1" else (LITTLE_ENDIAN,)
    return np.dtype((">" if True in orders else "<") + code), notes


def _flag(fields: Mapping[str, str], name: str, path: Path, *, missing: bool = False) -> bool:
    """Return a field that is true or false; MetaIO goes by the first letter, too."""
    text = fields.get(name, str(missing)).lower()
    if text[:1] not in ("t", "f", "1", "0", "y", "n"):
        raise contradiction(f"has no valid {name}", path)
    return text[0] in "t1y"


def _number(fields: Mapping[str, str], name: str, missing: int, path: Path) -> int:
    text = fields.get(name, str(missing))
    if not re.fullmatch(r"-1|\d{1,9}", text) or (name == "ElementNumberOfChannels" and int(text) < 1):
        raise contradiction(f"has no valid {name}", path)
    return int(text)
