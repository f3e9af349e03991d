"""Lay out the planes of an image for its viewer: one of a projection, three linked ones of a volume."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl.reporting.figures import STAGE_SIDE, Frame, frame_of, frame_of_extent
from medtl.reporting.findings import StudyFinding
from medtl.reporting.pixels import as_stack

NAMES = ("axial", "coronal", "sagittal")
# Rows and columns of the plane that fixes each axis; slices run upwards where they are rows.
ROWS_COLUMNS = ((1, 2), (0, 2), (0, 1))
# Left, right, top and bottom of each plane, where the axes run to the head, the back and the left.
LETTERS = (("R", "L", "A", "P"), ("R", "L", "H", "F"), ("A", "P", "H", "F"))


@dataclass(frozen=True)
class Plane:
    """One plane: the axis that it fixes, how many slices there are, and where its pixels lie in its frame.

    left, top, width, height: px of the frame. letters: of its four sides, empty where they are not known.
    profile: how large the map is in each slice, as the points of an SVG polyline in a square of 1; empty
    without a map.
    """

    axis: int
    name: str
    count: int
    frame: Frame
    left: float
    top: float
    width: float
    height: float
    letters: tuple[str, ...]
    profile: str


def lay_out(finding: StudyFinding) -> list[Plane]:
    """Return the planes of a finding, first the one in which it was acquired: across the widest step.

    The planes of a volume have one scale and frames of one width, so that lengths can be compared.
    """
    if finding.image.ndim == 2:
        frame = frame_of(finding.image, finding.spacing_mm)
        return [Plane(0, "image", 1, frame, 0, 0, frame.width, frame.height, (), "")]
    spacing = finding.spacing_mm or (1.0, 1.0, 1.0)
    extents = [count * step for count, step in zip(finding.image.shape, spacing, strict=True)]
    widest_first = sorted(range(3), key=lambda axis: -round(spacing[axis], 3))
    return [_plane(finding, axis, extents) for axis in widest_first]


def _plane(finding: StudyFinding, axis: int, extents: list[float]) -> Plane:
    down, across = (extents[other] for other in ROWS_COLUMNS[axis])
    widest = max(extents[1:])
    scale, known = STAGE_SIDE / max(extents), finding.spacing_mm is not None
    frame = frame_of_extent(down, widest, known=known, scale=scale)
    width = across / widest * frame.width
    return Plane(
        axis,
        NAMES[axis] if finding.oriented else f"axis {axis + 1}",
        finding.image.shape[axis],
        frame,
        (frame.width - width) / 2,
        0.0,
        width,
        frame.height,
        LETTERS[axis] if finding.oriented else (),
        _profile(finding, axis),
    )


def _profile(finding: StudyFinding, axis: int) -> str:
    if not finding.maps:
        return ""
    peaks = _peaks(as_stack(finding.maps[0].heatmap), axis)
    places = np.linspace(0, 1, len(peaks)) if len(peaks) > 1 else np.array([0.5])
    return " ".join(f"{place:.3f},{1 - peak:.3f}" for place, peak in zip(places, peaks, strict=True))


def _peaks(heatmap: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    return heatmap.max(axis=tuple(other for other in range(3) if other != axis))
