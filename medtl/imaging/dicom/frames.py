"""HEADER OF A FILE -> its planes: one, the frames of an enhanced image, or the tiles of a mosaic or grid.

A frame becomes a plane by flattening its functional groups (PS3.3 C.7.6.16) into a header like that of a file
with one plane, so that all later code knows planes alone.
"""

from dataclasses import replace

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import FRAME_GROUP_KEYWORDS, Header, reporting_malformed, values_of
from medtl.imaging.dicom.functional_groups import flatten
from medtl.imaging.dicom.header import Parsed
from medtl.imaging.dicom.instance import HEADER_KEYWORDS, KEYWORDS_BY_TAG, TILED, Instance, describe
from medtl.imaging.dicom.tiles import GRID_TAGS, tiles_of, unknown_layout


def planes_of(parsed: Parsed) -> list[Instance]:
    """Return the planes of a file as they are stored. Raises ReadError dicom-header, -multiframe, -mosaic.

    A Secondary Capture of several frames is returned as one plane, which cannot be read.
    """
    dataset = parsed.dataset
    with reporting_malformed(parsed.path):
        # By tag, for speed: pydicom takes 20 microseconds to make an element of a keyword.
        tags = [tag for tag in dataset.keys() if KEYWORDS_BY_TAG.get(tag) in HEADER_KEYWORDS]  # noqa: SIM118
        header = {KEYWORDS_BY_TAG[tag]: values_of(dataset, tag) for tag in tags}
        instance = describe(header, parsed.path, parsed.transfer_syntax, parsed.place)
        planes = [instance]
        if any(keyword in dataset for keyword in FRAME_GROUP_KEYWORDS):
            planes = _frames(parsed, header, instance)
        elif instance.frames > 1 and not instance.is_picture:
            raise several_frames(instance)
        if len(planes) == 1 and (planes[0].may_be_tiled or not GRID_TAGS.isdisjoint(dataset.keys())):
            planes = tiles_of(dataset, header, planes[0])
    return [replace(plane, repairs=parsed.repairs) for plane in planes] if parsed.repairs else planes


def several_frames(instance: Instance) -> ReadError:
    """Return the refusal of frames of which nothing says where they lie."""
    reason = f"has {instance.frames} frames without positions, as a cine has"
    return ReadError("dicom-multiframe", reason, where=instance.path, fix="export the frame that is meant")


def _frames(parsed: Parsed, header: Header, instance: Instance) -> list[Instance]:
    shared = parsed.dataset.get("SharedFunctionalGroupsSequence") or []
    own = parsed.dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(own) != instance.frames:
        reason = f"has functional groups for {len(own)} of {instance.frames} frames"
        raise ReadError("dicom-header", reason, where=instance.path, fix="export it again")
    common = {**header, **(flatten(shared[0]) if shared else {})}
    source = (parsed.path, parsed.transfer_syntax, parsed.place)
    frames = [describe({**common, **flatten(item)}, *source) for item in own]
    # Scanners that write one frame a slice may keep the word (Siemens XA); real mosaics share one position.
    if len(frames) > 1 == len({frame.position for frame in frames}) and not TILED.isdisjoint(
        frames[0].image_type
    ):
        raise unknown_layout(instance)
    return [replace(frame, frame=index, frames=instance.frames) for index, frame in enumerate(frames)]
