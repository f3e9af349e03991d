"""Turn the heatmap of a volume into a Parametric Map on the grid of its slices (PS3.3 A.75)."""

import numpy as np
from highdicom import VOILUTTransformation, Volume
from highdicom.pm import ParametricMap, RealWorldValueMapping
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.pacs.objects import concepts
from medtl.pacs.objects.result import RESEARCH_ONLY, StudyResult, add_laterality

# Viewers show 16-bit maps, but hardly any shows float maps; a step is 1.5e-5.
TOP = 2**16 - 1
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def parametric_map(result: StudyResult) -> ParametricMap:
    """Return the heatmap, 0 to 1 as 0 to 65535; each frame refers to the slices at its position.

    Raises ReadError result-no-frame if the slices lack a frame of reference.
    """
    assert result.image.affine is not None
    headers, first_position = result.headers(), (RAS_TO_LPS @ result.image.affine)[:3, 3].round(6)
    for header in headers:
        header.SliceThickness = header.get("SliceThickness")  # highdicom requires the attribute
        if "ImagePositionPatient" not in header and "PerFrameFunctionalGroupsSequence" not in header:
            # A grid of slices, which says in private elements where they lie; highdicom requires one place.
            header.ImagePositionPatient = first_position.tolist()
    frame_of_reference = str(headers[0].get("FrameOfReferenceUID") or "")
    if not frame_of_reference:
        where, fix = result.image.facts.source, "leave out --kind map"
        reason = "lacks FrameOfReferenceUID, so a map has no position in the patient"
        raise ReadError("result-no-frame", reason, where=where, fix=fix)
    levels: NDArray[np.uint16] = np.round(np.clip(result.heatmap, 0, 1) * TOP).astype(np.uint16)
    written = ParametricMap(
        source_images=headers,
        pixel_array=Volume(
            levels,
            affine=RAS_TO_LPS @ result.image.affine,
            coordinate_system="PATIENT",
            frame_of_reference_uid=frame_of_reference,
        ),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(result)],
        voi_lut_transformations=[VOILUTTransformation(window_center=TOP / 2, window_width=TOP)],
        content_label="SALIENCY",
        content_description=concepts.meaning_of(f"{result.method} of {result.target_class}"),
        content_qualification="RESEARCH",
        **result.identity("map"),
    )
    _drop_other_frames(written, result)
    add_laterality(written, headers[0])
    written.ContentCreatorName = None  # type 2, and nobody created it (PS3.3 table 10-12)
    written.ImageComments = f"What raised the model's score for {result.target_class}. {RESEARCH_ONLY}"
    return written


def _drop_other_frames(written: ParametricMap, result: StudyResult) -> None:
    """Drop references to frames at the same positions that were not scored, such as those of another echo."""
    scored = {str(one.header.SOPInstanceUID): one.frames for one in result.sources}
    for group in written.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence", ()):
            derivation.SourceImageSequence = [
                item
                for item in derivation.SourceImageSequence
                if item.get("ReferencedFrameNumber") is None
                or item.ReferencedFrameNumber in (scored[item.ReferencedSOPInstanceUID] or ())
            ]


def _mapping(result: StudyResult) -> RealWorldValueMapping:
    return RealWorldValueMapping(
        lut_label="SALIENCY",
        lut_explanation=concepts.meaning_of(f"0 none, 1 most: {result.method} of {result.target_class}"),
        unit=concepts.NO_UNITS,
        value_range=(0, TOP),
        slope=1 / TOP,
        intercept=0.0,
        quantity_definition=concepts.SALIENCY,
    )
