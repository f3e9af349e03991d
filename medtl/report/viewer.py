"""An image and its maps -> text in the page, from which its viewer draws any slice in any window.

values -> integer levels -> differences of neighbours, byte by byte -> deflate -> base64

The text is part of the page, since a page opened from disk may not read a file beside it.
"""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.report.findings import StudyFinding
from medtl.report.pictures import (
    STAGE_SIDE,
    Frame,
    as_stack,
    frame_of,
    frame_of_extent,
    overlay_ramp,
    peak_voxel,
    to_bytes,
)

FINE_LEVELS, COARSE_LEVELS = 4096, 512
FINE_VOXELS = 2_000_000  # larger volumes have fewer levels: about 250 within their window

# How many window widths are stored on either side of the window.
FINE_REACH, COARSE_REACH = 1.0, 0.5
NAMES = ("axial", "coronal", "sagittal")

# Rows and columns of the plane that fixes each axis; slices run upwards if they are rows.
ROWS_COLUMNS = ((1, 2), (0, 2), (0, 1))

# Left, right, top and bottom of each plane, where the axes run to the head, the back and the left.
LETTERS = (("R", "L", "A", "P"), ("R", "L", "H", "F"), ("A", "P", "H", "F"))


def pack_study(finding: StudyFinding) -> dict[str, Any]:
    """Return what the viewer reads, plain data for JSON.

    shape: slices, rows, columns. range: the values of the first and the last of `levels` levels. window: in
    levels. image, maps: packed levels. start: the voxel of the first map's peak, otherwise the centre.
    """
    volume = as_stack(finding.image)
    levels, reach = (FINE_LEVELS, FINE_REACH) if volume.size <= FINE_VOXELS else (COARSE_LEVELS, COARSE_REACH)
    black, white = finding.window
    margin = reach * (white - black)
    low = min(black, max(float(volume.min()), black - margin))
    high = max(white, min(float(volume.max()), white + margin))
    scale = (levels - 1) / (high - low)
    return {
        "shape": list(volume.shape),
        "levels": levels,
        "range": [low, high],
        "window": [(edge - low) * scale for edge in finding.window],
        "image": pack(np.rint((np.clip(volume, low, high) - low) * scale).astype(np.uint16)),
        "maps": [pack(to_bytes(as_stack(saliency.heatmap))) for saliency in finding.maps],
        "ramp": base64.b64encode(overlay_ramp().tobytes()).decode(),
        "start": list(start_voxel(finding)),
    }


def start_voxel(finding: StudyFinding) -> tuple[int, ...]:
    """Return the voxel (slice, row, column) where the first map is largest, otherwise the centre."""
    heatmap = finding.maps[0].heatmap if finding.maps else None
    return peak_voxel(heatmap, as_stack(finding.image).shape)


def pack(levels: NDArray[np.uint8] | NDArray[np.uint16]) -> str:
    """Pack whole numbers: their differences in reading order, all low bytes first, then all high ones."""
    steps = np.diff(levels.ravel(), prepend=levels.dtype.type(0))  # wraps, as the viewer's sums do
    planes = steps.astype(steps.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, steps.itemsize).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()


@dataclass(frozen=True)
class Plane:
    """One plane: the axis that it fixes, how many slices there are, and where its pixels lie in its frame.

    left, top, width, height: px of the frame. letters: of its four sides, empty if unknown. profile: the
    maximum of the map in each slice, as the points of an SVG polyline in a unit square; empty without a map.
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
    """Return the planes of a finding; first the plane of acquisition, across the widest spacing.

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
    peaks = as_stack(finding.maps[0].heatmap).max(axis=ROWS_COLUMNS[axis])
    places = np.linspace(0, 1, len(peaks)) if len(peaks) > 1 else np.array([0.5])
    return " ".join(f"{place:.3f},{1 - peak:.3f}" for place, peak in zip(places, peaks, strict=True))
