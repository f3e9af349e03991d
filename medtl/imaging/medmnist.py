"""ARCHIVES in MedMNIST's layout -> images: one .npz holds many labelled images, each a series of its own.

Arrays are {train,val,test}_images, (N, H, W), (N, H, W, 3) or (N, D, H, W) of uint8, and {..}_labels,
(N, 1) or (N, K). An item is named by its part and row: "train/17".
"""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.containers import ZIP_MAGIC, holds
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.series import EXACT, Kind, Reading, Scan, Series, scan_each

NAME, TITLE = "medmnist", "MedMNIST"
KIND: Kind = "item"
SUFFIXES: tuple[str, ...] = (".npz",)

PARTS = ("train", "val", "test")
# Bytes of one array, decompressed. Checked by its header, before it is decompressed.
MOST_BYTES = 2**31
MOST_ITEMS = 2**20  # of one array; each becomes a series
COLOUR_CHANNELS = 3
AS_MEDMNIST = "write it in MedMNIST's layout"
HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

# What zipfile and numpy raise on archives that are damaged.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError)

Shape = tuple[int, ...]


def recognises(path: Path, head: bytes) -> bool:
    """Look for a zip archive that lists an array of images."""
    return head.startswith(ZIP_MAGIC) and holds(path, [f"{part}_images.npy" for part in PARTS])


def scan(files: Sequence[Path], workers: int | None = None, reading: Reading = EXACT) -> Scan:
    """List every item of each archive, from the headers of its arrays alone."""
    return scan_each(_list_items, files, workers)


def read(series: Series) -> Image:
    """Read one item. Raises ReadError archive-item, -damaged, -layout, -too-large."""
    path = series.files[0]
    part, _, row = (series.item or "").partition("/")
    images = None
    if part in PARTS and row.isascii() and row.isdigit():
        images = _array(path, path.stat().st_mtime_ns, f"{part}_images")
    if images is None or int(row) >= len(images):
        reason = f"has no item {series.item}"
        raise ReadError("archive-item", reason, where=series.path, fix='name one as "train/17"')
    stored = images[int(row)]
    colour = images.ndim == 4 and images.shape[-1] == COLOUR_CHANNELS
    pixels = np.moveaxis(stored, -1, 0) if colour else stored[None]
    facts = ImageFacts(
        source=series.source,
        format=NAME,
        decoder=f"numpy {np.__version__}",
        sha256=hashlib.sha256(stored.tobytes()).hexdigest(),
        photometric="RGB" if colour else "MONOCHROME2",
        bits=8,
        notes=series.notes,
    )
    return Image(np.ascontiguousarray(pixels, dtype=np.float32), None, None, facts)


def _list_items(path: Path) -> list[Series]:
    items = [f"{part}/{row}" for part, shape in _shapes(path) for row in range(shape[0])]
    return [Series(path, (path,), NAME, item=item) for item in items]


def archive_labels(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the labels of every labelled item: one class index, or one 0 or 1 per class.

    Raises ReadError archive-damaged, -layout, -too-large.
    """
    labels: dict[str, tuple[int, ...]] = {}
    for part, shape in _shapes(path):
        table = _array(path, path.stat().st_mtime_ns, f"{part}_labels")
        if table is None:
            continue
        if table.shape[:1] != shape[:1] or table.dtype.kind not in "iub":
            reason = f"{part}_labels do not give whole numbers for each of {shape[0]} images"
            raise ReadError("archive-layout", reason, where=path, fix=AS_MEDMNIST)
        for row, values in enumerate(table):
            labels[f"{part}/{row}"] = tuple(map(int, values.ravel()))
    return labels


def _shapes(path: Path) -> Iterator[tuple[str, Shape]]:
    """Yield each part with the shape of its images, checked, without decompressing them."""
    with _opened(path) as archive:
        for part in PARTS:
            name = f"{part}_images"
            if f"{name}.npy" in archive.namelist():
                yield part, _checked_shape(archive, name, path)


def _checked_shape(archive: zipfile.ZipFile, name: str, path: Path) -> Shape:
    """Check the header of an array against the bytes it takes, and return its shape."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        shape, _, dtype = HEADER_READERS[np.lib.format.read_magic(file)](file)
        size = file.tell() + math.prod(shape) * dtype.itemsize
    images = name.endswith("_images")
    if info.file_size > MOST_BYTES or (images and shape and shape[0] > MOST_ITEMS):
        reason = f"{name} has more than {MOST_BYTES} bytes or {MOST_ITEMS} images"
        raise ReadError("archive-too-large", reason, where=path, fix="split it")
    if dtype.hasobject or size != info.file_size:
        raise ValueError("array of objects, or of another size than its header says")
    if images and (dtype != np.uint8 or len(shape) not in (3, 4) or min(shape[1:]) < 1):
        reason = f"{name} is not (N, H, W), (N, H, W, 3) or (N, D, H, W) of uint8"
        raise ReadError("archive-layout", reason, where=path, fix=AS_MEDMNIST)
    return shape


@lru_cache(maxsize=4)
def _array(path: Path, mtime_ns: int, name: str) -> NDArray | None:
    """Decompress one array, cached so that the next item costs nothing; zipfile checks its CRC."""
    with _opened(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        _checked_shape(archive, name, path)
        with archive.open(f"{name}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            file.read()  # to the end, where the CRC is compared
    array.flags.writeable = False
    return array


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive, and refuse it where it proves damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DAMAGE as error:
        reason = f"is corrupt or incomplete ({type(error).__name__})"
        raise ReadError("archive-damaged", reason, where=path, fix="download it again") from error
