"""Turn the header of one DICOM file into the planes that it holds: one, the frames of an enhanced image, or
the tiles of a Siemens mosaic.

A frame becomes a plane by flattening its functional groups (PS3.3 C.7.6.16) into a header like that of a file
with one plane, so that everything after this knows planes alone.
"""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom import Dataset

from medtl.errors import ReadError
from medtl.imaging.formats.dicom_headers import (
    FRAME_GROUP_KEYWORDS,
    HEADER_KEYWORDS,
    Instance,
    describe,
    reporting_malformed,
)

# What enhanced images call an element of classic ones.
ENHANCED_NAMES = {
    "EffectiveEchoTime": "EchoTime",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "FrameType": "ImageType",
    "InversionTimes": "InversionTime",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "FrameAcquisitionDateTime": "AcquisitionDateTime",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
}
FLAT_KEYWORDS = frozenset(HEADER_KEYWORDS) - frozenset(FRAME_GROUP_KEYWORDS)


def planes_of(dataset: Dataset, path: Path) -> list[Instance]:
    """Return the planes of a file, in the order in which they are stored.

    Raises ReadError dicom-header; dicom-multiframe for frames without positions, dicom-mosaic for a mosaic
    that does not say how it is laid out.
    """
    instance = describe(dataset, path)
    with reporting_malformed(path):
        if "MOSAIC" in instance.image_type:
            return _tiles(dataset, instance)
        if any(dataset.get(keyword) for keyword in FRAME_GROUP_KEYWORDS):
            return _frames(dataset, instance)
    if instance.frames > 1:
        reason = f"has {instance.frames} frames without positions, as a cine has"
        raise ReadError("dicom-multiframe", reason, where=path, fix="export the frame that is meant")
    return [instance]


def _frames(dataset: Dataset, instance: Instance) -> list[Instance]:
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(own) != instance.frames:
        reason = f"has functional groups for {len(own)} of {instance.frames} frames"
        raise ReadError("dicom-header", reason, where=instance.path, fix="export it again")
    common = Dataset()
    for keyword in FLAT_KEYWORDS:
        if keyword in dataset:
            common[keyword] = dataset[keyword]
    for item in shared[:1]:
        _gather(item, common)
    return [_frame(dataset, common, item, index, instance) for index, item in enumerate(own)]


def _frame(dataset: Dataset, common: Dataset, own: Dataset, index: int, instance: Instance) -> Instance:
    flat = Dataset(common)
    flat.file_meta = dataset.file_meta
    _gather(own, flat)
    return replace(describe(flat, instance.path), frame=index, frames=instance.frames)


def _gather(item: Dataset, flat: Dataset) -> None:
    """Copy the elements of functional groups that a flat header has, under the names that it has for them."""
    for element in item:
        if element.VR == "SQ":
            for nested in element.value[:1]:
                _gather(nested, flat)
            continue
        keyword = ENHANCED_NAMES.get(element.keyword, element.keyword)
        if keyword in FLAT_KEYWORDS:
            setattr(flat, keyword, element.value)


def _tiles(dataset: Dataset, instance: Instance) -> list[Instance]:
    """Return the tiles of a mosaic.

    The position in the header is that of a slice as large as the whole mosaic, with the same centre; the
    tiles follow one another along the normal that the Siemens header gives.
    """
    count, normal = _mosaic_layout(dataset, instance)
    grid = math.ceil(math.sqrt(count))
    position, orientation = instance.position, instance.orientation
    pixel_spacing, spacing = instance.pixel_spacing, instance.slice_spacing
    even = grid > 0 and instance.rows % grid == 0 and instance.columns % grid == 0
    if not (even and position and orientation and pixel_spacing and spacing) or normal is None:
        reason = "is a Siemens mosaic that does not say how its tiles lie"
        fix = "convert it to NIfTI, for example with dcm2niix"
        raise ReadError("dicom-mosaic", reason, where=instance.path, fix=fix)
    rows, columns = instance.rows // grid, instance.columns // grid
    along_row = np.array(orientation[:3]) * pixel_spacing[1] * (instance.columns - columns) / 2
    along_column = np.array(orientation[3:]) * pixel_spacing[0] * (instance.rows - rows) / 2
    first = np.array(position) + along_row + along_column
    tile = replace(instance, rows=rows, columns=columns, mosaic=grid)
    return [
        replace(tile, frame=index, position=tuple(first + index * spacing * normal)) for index in range(count)
    ]


def _mosaic_layout(dataset: Dataset, instance: Instance) -> tuple[int, np.ndarray | None]:
    """Return the number of tiles and the direction in which they follow one another, in LPS."""
    warnings.filterwarnings("ignore", message="The DICOM readers are highly experimental")
    from nibabel.nicom import csareader

    header = csareader.get_csa_header(dataset, "image")
    count = csareader.get_n_mosaic(header) if header else None
    normal = csareader.get_slice_normal(header) if header else None
    if count is None and dataset.get(0x00190010) is not None:
        value = dataset.get(0x0019100A)
        count = int(value.value) if value is not None else None
    if normal is None and instance.orientation:
        normal = np.cross(instance.orientation[:3], instance.orientation[3:])
    return count or 0, normal
