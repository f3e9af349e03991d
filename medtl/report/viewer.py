"""Pack an image and its maps as text, from which the viewer of a page draws any slice in any window.

values -> whole levels -> differences of neighbours, byte by byte -> deflate -> base64

The text stands in the page, since a page that was opened from disk may read no file beside it.
"""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.report.findings import StudyFinding
from medtl.report.pictures import STAGE_SIDE, Frame, frame_of, frame_of_extent, overlay_ramp

FINE_LEVELS, COARSE_LEVELS = 4096, 512
FINE_VOXELS = 2_000_000  # larger volumes have fewer levels: of their window some 250 stay

# How many widths of the window are kept on either side of it.
FINE_REACH, COARSE_REACH = 1.0, 0.5
NAMES = ("axial", "coronal", "sagittal")

# Rows and columns of the plane that fixes each axis; slices run upwards where they are rows.
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
    low, high = kept_range(volume, finding.window, reach)
    scale = (levels - 1) / (high - low)
    return {
        "shape": list(volume.shape),
        "levels": levels,
        "range": [low, high],
        "window": [(edge - low) * scale for edge in finding.window],
        "image": pack(np.rint((np.clip(volume, low, high) - low) * scale).astype(np.uint16)),
        "maps": [pack(to_bytes(as_stack(found.heatmap))) for found in finding.maps],
        "ramp": base64.b64encode(overlay_ramp().tobytes()).decode(),
        "start": list(peak_voxel(finding)),
    }


def as_stack(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (D, H, W) of an image (H, W) or (D, H, W)."""
    return image.reshape(-1, *image.shape[-2:])


def kept_range(volume: NDArray[np.float32], window: tuple[float, float], reach: float) -> tuple[float, float]:
    """Return the values that are kept apart: those of the image, no further from the window than `reach`."""
    low, high = window
    width = high - low
    return (
        min(low, max(float(volume.min()), low - reach * width)),
        max(high, min(float(volume.max()), high + reach * width)),
    )


def peak_voxel(finding: StudyFinding) -> tuple[int, ...]:
    """Return the voxel (slice, row, column) where the first map is largest, otherwise the centre."""
    stack = as_stack(finding.image)
    if not finding.maps or not finding.maps[0].heatmap.any():
        return tuple(side // 2 for side in stack.shape)
    heatmap = as_stack(finding.maps[0].heatmap)
    return tuple(int(place) for place in np.unravel_index(int(heatmap.argmax()), heatmap.shape))


def pack(levels: NDArray[np.uint8] | NDArray[np.uint16]) -> str:
    """Pack whole numbers: their differences in reading order, all low bytes first, then all high ones."""
    steps = np.diff(levels.ravel(), prepend=levels.dtype.type(0))  # wraps, as the viewer's sums do
    planes = steps.astype(steps.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, steps.itemsize).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()


def to_bytes(heatmap: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a heatmap in [0, 1] in 256 levels."""
    return np.rint(np.clip(heatmap, 0, 1) * 255).astype(np.uint8)


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
