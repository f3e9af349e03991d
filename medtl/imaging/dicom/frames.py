"""HEADER OF A FILE -> its planes: one, the frames of an enhanced image, or the tiles of a Siemens mosaic.

A frame becomes a plane by flattening its functional groups (PS3.3 C.7.6.16) into a header like that of a file
with one plane, so that all later code knows planes alone.
"""

import math
import warnings
from dataclasses import replace

import numpy as np
from pydicom import Dataset
from pydicom.tag import Tag

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import FRAME_GROUP_KEYWORDS, Header, reporting_malformed, values_of
from medtl.imaging.dicom.header import Parsed
from medtl.imaging.dicom.instance import HEADER_KEYWORDS, KEYWORDS_BY_TAG, Instance, describe

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
# Scanners write some tens of tiles.
MOST_TILES = 2**12
NAMES_BY_TAG = KEYWORDS_BY_TAG | {Tag(enhanced): classic for enhanced, classic in ENHANCED_NAMES.items()}


def planes_of(parsed: Parsed) -> list[Instance]:
    """Return the planes of a file as they are stored. Raises ReadError dicom-header, -multiframe, -mosaic."""
    dataset = parsed.dataset
    with reporting_malformed(parsed.path):
        # By tag, for speed: pydicom takes 20 microseconds to make an element of a keyword.
        tags = [tag for tag in dataset.keys() if KEYWORDS_BY_TAG.get(tag) in HEADER_KEYWORDS]  # noqa: SIM118
        header = {KEYWORDS_BY_TAG[tag]: values_of(dataset, tag) for tag in tags}
        instance = describe(header, parsed.path, parsed.transfer_syntax, parsed.place)
        if "MOSAIC" in instance.image_type:
            return _tiles(dataset, instance)
        if any(keyword in dataset for keyword in FRAME_GROUP_KEYWORDS):
            return _frames(parsed, header, instance)
    if instance.frames > 1:
        reason = f"has {instance.frames} frames without positions, as a cine has"
        raise ReadError("dicom-multiframe", reason, where=parsed.path, fix="export the frame that is meant")
    return [instance]


def _frames(parsed: Parsed, header: Header, instance: Instance) -> list[Instance]:
    shared = parsed.dataset.get("SharedFunctionalGroupsSequence") or []
    own = parsed.dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(own) != instance.frames:
        reason = f"has functional groups for {len(own)} of {instance.frames} frames"
        raise ReadError("dicom-header", reason, where=instance.path, fix="export it again")
    common = {**header, **(_gather(shared[0]) if shared else {})}
    source = (parsed.path, parsed.transfer_syntax, parsed.place)
    frames = [describe({**common, **_gather(item)}, *source) for item in own]
    return [replace(frame, frame=index, frames=instance.frames) for index, frame in enumerate(frames)]


def _gather(item: Dataset) -> Header:
    """Return the elements of functional groups, by the keywords that a flat header has for them."""
    header: Header = {}
    for tag in item.keys():  # noqa: SIM118 a Dataset iterates over its elements
        if tag in NAMES_BY_TAG:
            header[NAMES_BY_TAG[tag]] = values_of(item, tag)
        elif not tag.is_private and item[tag].VR == "SQ":
            for nested in item[tag].value[:1]:
                header |= _gather(nested)
    return header


def _tiles(dataset: Dataset, instance: Instance) -> list[Instance]:
    """Return the tiles of a mosaic.

    The position in the header is that of a slice as large as the whole mosaic, with the same centre; the
    tiles follow one another along the normal that the Siemens header gives.
    """
    count, normal = _mosaic_layout(dataset, instance)
    grid = math.ceil(math.sqrt(count))
    position, orientation, spacing = instance.position, instance.orientation, instance.slice_spacing
    pixel_spacing = instance.pixel_spacing
    even = 0 < count <= MOST_TILES and instance.rows % grid == 0 and instance.columns % grid == 0
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
