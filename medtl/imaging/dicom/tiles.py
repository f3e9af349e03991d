"""SHEET OF TILES -> planes: the slices of a volume that a scanner laid side by side in one plane.

Siemens calls such a sheet a mosaic, United Imaging a grid. The layout is in private elements, whose block a
transfer may have moved and whose value representation it may have lost.
"""

import math
import warnings
from dataclasses import replace
from io import BytesIO

import numpy as np
from pydicom import Dataset
from pydicom.filereader import read_sequence
from pydicom.tag import BaseTag, Tag

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import Header
from medtl.imaging.dicom.functional_groups import flatten
from medtl.imaging.dicom.instance import Instance, describe

# Scanners write some tens of tiles.
MOST_TILES = 2**12

# Private elements that say how tiles lie, by group and the last byte of the element. Siemens: the image
# header, and the number of tiles of newer scanners. United Imaging: the number, and an item for each tile.
SIEMENS_GROUP, CSA_HEADER = 0x0029, 0x10
SIEMENS_COUNT = (0x0019, 0x0A)
GRID_COUNT, GRID_ITEMS = (0x0065, 0x50), (0x0065, 0x51)
PRIVATE_BLOCKS = range(0x10, 0x20)
PRIVATE_TAGS = [
    *(Tag(group, block) for group in (0x0019, SIEMENS_GROUP, 0x0065) for block in PRIVATE_BLOCKS),
    *(
        Tag(group, block << 8 | number)
        for group, number in ((SIEMENS_GROUP, CSA_HEADER), SIEMENS_COUNT, GRID_COUNT, GRID_ITEMS)
        for block in PRIVATE_BLOCKS
    ),
]

GRID_TAGS = frozenset(Tag(GRID_ITEMS[0], block << 8 | GRID_ITEMS[1]) for block in PRIVATE_BLOCKS)
ITEM = b"\xfe\xff\x00\xe0"

# No MR scanner images a slice higher and wider than this.
MOST_FIELD_MM = 500.0


def tiles_of(dataset: Dataset, header: Header, instance: Instance) -> list[Instance]:
    """Return the tiles of a sheet, or the plane itself where it is none. Raises ReadError dicom-mosaic."""
    items = _grid_items(dataset)
    if "VFRAME" in instance.image_type or (items and all("ImagePositionPatient" in item for item in items)):
        return _grid(dataset, items or [], header, instance)
    count, normal = _mosaic_layout(dataset, instance)
    if "MOSAIC" in instance.image_type or count > 1:
        return _mosaic(count, normal, instance)
    return [instance]


def unknown_layout(instance: Instance, maker: str = "Siemens mosaic") -> ReadError:
    """Return the refusal of a sheet of which nothing says how its tiles lie."""
    reason = f"is a {maker} that does not say how its tiles lie"
    fix = "export it again with its private elements, or as single slices"
    return ReadError("dicom-mosaic", reason, where=instance.path, fix=fix)


def _grid(dataset: Dataset, items: list[Dataset], header: Header, instance: Instance) -> list[Instance]:
    """Return the tiles of a grid, each of which has an item with its position."""
    count = _grid_count(dataset) or len(items)
    tiles = [
        describe({**header, **flatten(item)}, instance.path, instance.transfer_syntax, instance.place)
        for item in items[:MOST_TILES]
    ]
    columns = math.ceil(math.sqrt(count)) or 1
    rows = math.ceil(count / columns) or 1
    even = instance.rows % rows == 0 and instance.columns % columns == 0
    if not (0 < count == len(tiles) and even and all(tile.position for tile in tiles)):
        raise unknown_layout(instance, "United Imaging grid")
    high, wide = instance.rows // rows, instance.columns // columns
    return [
        replace(tile, frame=index, rows=high, columns=wide, mosaic=columns, mosaic_rows=rows)
        for index, tile in enumerate(tiles)
    ]


def _grid_items(dataset: Dataset) -> list[Dataset] | None:
    """Return the items that say where the tiles of a grid lie, None where no element holds any."""
    tag = _find(dataset, *GRID_ITEMS)
    if tag is None:
        return None
    value = dataset[tag].value
    if not isinstance(value, bytes):
        return list(value) if dataset[tag].VR == "SQ" else None
    if not value.startswith(ITEM):
        return None
    # PS3.5 6.2.2: what is in a sequence of unknown representation is implicit; some writers left it explicit.
    implicit = not (value[12:14].isalpha() and value[12:14].isupper())
    return list(read_sequence(BytesIO(value), implicit, True, len(value), "iso8859"))


def _grid_count(dataset: Dataset) -> int:
    """Return how many tiles a grid says it has, 0 where it does not."""
    tag = _find(dataset, *GRID_COUNT)
    value = dataset[tag].value if tag is not None else 0
    text = value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else str(value or 0)
    return int(float(text or 0))


def _find(dataset: Dataset, group: int, number: int, creator: str = "") -> BaseTag | None:
    """Return the tag of a private element, in whichever block it is; of this creator where one is given."""
    for block in PRIVATE_BLOCKS:
        tag, owner = Tag(group, block << 8 | number), dataset.get(Tag(group, block))
        if tag in dataset and (not creator or (owner is not None and str(owner.value).strip() == creator)):
            return tag
    return None


def _mosaic(count: int, normal: np.ndarray | None, instance: Instance) -> list[Instance]:
    """Return the tiles of a mosaic.

    The position in the header is that of a slice as large as the whole mosaic, with the same centre; the
    tiles follow one another along the normal that the Siemens header gives.
    """
    grid = math.ceil(math.sqrt(count))
    position, orientation, spacing = instance.position, instance.orientation, instance.slice_spacing
    pixel_spacing = instance.pixel_spacing
    even = 0 < count <= MOST_TILES and instance.rows % grid == 0 and instance.columns % grid == 0
    if not (even and position and orientation and pixel_spacing and spacing) or normal is None:
        raise unknown_layout(instance)
    rows, columns = instance.rows // grid, instance.columns // grid
    along_row = np.array(orientation[:3]) * pixel_spacing[1] * (instance.columns - columns) / 2
    along_column = np.array(orientation[3:]) * pixel_spacing[0] * (instance.rows - rows) / 2
    first = np.array(position) + along_row + along_column
    tile = replace(instance, rows=rows, columns=columns, mosaic=grid, mosaic_rows=grid)
    return [
        replace(tile, frame=index, position=tuple(first + index * spacing * normal)) for index in range(count)
    ]


def _mosaic_layout(dataset: Dataset, instance: Instance) -> tuple[int, np.ndarray | None]:
    """Return the number of tiles and the direction in which they follow one another, in LPS."""
    warnings.filterwarnings("ignore", message="The DICOM readers are highly experimental")
    from nibabel.nicom import csareader

    tag = _find(dataset, SIEMENS_GROUP, CSA_HEADER, "SIEMENS CSA HEADER")
    header = csareader.read(dataset[tag].value) if tag is not None else None
    count = csareader.get_n_mosaic(header) if header else None
    normal = csareader.get_slice_normal(header) if header else None
    tag = _find(dataset, *SIEMENS_COUNT, "SIEMENS MR HEADER")
    if count is None and tag is not None:
        count = int(dataset[tag].value)
    if normal is None and instance.orientation:
        normal = np.cross(instance.orientation[:3], instance.orientation[3:])
    return count or 0, normal


def check_no_sheet(instance: Instance) -> None:
    """Refuse a lone MR image without a position, of a size that can be cut, that is likely to be a sheet.

    A slice that lost its geometry has no orientation either; a screen save has none. Raises dicom-mosaic.
    """
    size = np.multiply(instance.pixel_spacing or (0, 0), (instance.rows, instance.columns))
    likely = instance.orientation is not None or bool(size.min() > MOST_FIELD_MM)
    if likely and instance.may_be_tiled and instance.position is None and not instance.is_picture:
        reason = "may be a grid of slices: it is a lone MR image without a position"
        fix = "export its slices one by one, with ImagePositionPatient"
        raise ReadError("dicom-mosaic", reason, where=instance.path, fix=fix)
