"""An image and its maps -> text in the page, from which its viewer draws any slice in any window.

values -> integer levels -> differences of neighbours, byte by byte -> deflate -> base64

The text is part of the page, since a page opened from disk may not read a file beside it.
"""

import base64
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.report.findings import StudyFinding
from medtl.report.pictures import STAGE_SIDE, as_stack, overlay_ramp, peak_voxel, to_bytes

FINE_LEVELS, COARSE_LEVELS = 4096, 512
FINE_VOXELS = 2_000_000  # larger volumes have fewer levels: about 250 within their window

# How many window widths are stored on either side of the window.
FINE_REACH, COARSE_REACH = 1.0, 0.5
VOLUME_SIDE = 640  # px of the longer side of the first plane of a volume
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
        "maps": [pack(to_bytes(as_stack(heatmap))) for heatmap in finding.maps.values()],
        "ramp": base64.b64encode(overlay_ramp().tobytes()).decode(),
        "start": list(start_voxel(finding)),
    }


def start_voxel(finding: StudyFinding) -> tuple[int, ...]:
    """Return the voxel (slice, row, column) where the first map is largest, otherwise the centre."""
    return peak_voxel(next(iter(finding.maps.values()), None), as_stack(finding.image).shape)


def pack(levels: NDArray[np.uint8] | NDArray[np.uint16]) -> str:
    """Pack whole numbers: their differences in reading order, all low bytes first, then all high ones."""
    steps = np.diff(levels.ravel(), prepend=levels.dtype.type(0))  # wraps, as the viewer's sums do
    planes = steps.astype(steps.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, steps.itemsize).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()


def lay_out(finding: StudyFinding) -> list[dict[str, Any]]:
    """Return the planes of a finding; first the plane of acquisition, across the widest spacing.

    The planes of a volume have one scale and frames of one width, so that lengths can be compared.
    """
    spacing = ((1.0, 1.0, 1.0) + (finding.spacing_mm or ()))[-3:]
    extents = [count * step for count, step in zip(as_stack(finding.image).shape, spacing, strict=True)]
    axes = [0] if finding.image.ndim == 2 else sorted(range(3), key=lambda axis: -round(spacing[axis], 3))
    widest = max(extents[ROWS_COLUMNS[axis][1]] for axis in axes)
    side = STAGE_SIDE if len(axes) == 1 else VOLUME_SIDE
    scale = side / max(widest, extents[ROWS_COLUMNS[axes[0]][0]])
    return [_plane(finding, axis, extents, widest, scale) for axis in axes]


def _plane(
    finding: StudyFinding, axis: int, extents: list[float], widest: float, scale: float
) -> dict[str, Any]:
    """Return one plane: the axis that it fixes, how many slices there are, and its frame on the page in px.

    across: the width of its pixels, which are centred in the frame and have its height. ruler: a length and
    its text, None if the spacing is unknown. letters: of its four sides, empty if unknown. profile: the
    maximum of the map in each slice, as the points of an SVG polyline in a unit square; empty without a map.
    """
    down, across = (extents[other] * scale for other in ROWS_COLUMNS[axis])
    unknown = f"axis {axis + 1}" if finding.image.ndim == 3 else "image"
    return {
        "axis": axis,
        "name": NAMES[axis] if finding.oriented else unknown,
        "count": as_stack(finding.image).shape[axis],
        "width": max(1, round(widest * scale)),
        "height": max(1, round(down)),
        "across": across,
        "ruler": _ruler(widest, scale) if finding.spacing_mm else None,
        "letters": LETTERS[axis] if finding.oriented else (),
        "profile": _profile(finding, axis),
    }


def _ruler(width_mm: float, scale: float) -> tuple[float, str]:
    """Return the largest of 1, 2 or 5 times a power of ten within a quarter of a width."""
    power = 10.0 ** math.floor(math.log10(width_mm / 4))
    length = max(step * power for step in (1, 2, 5) if step * power <= width_mm / 4 * (1 + 1e-9))
    return length * scale, f"{length:g} mm"


def _profile(finding: StudyFinding, axis: int) -> str:
    heatmap = next(iter(finding.maps.values()), None)
    if heatmap is None:
        return ""
    peaks = as_stack(heatmap).max(axis=ROWS_COLUMNS[axis])
    places = np.linspace(0, 1, len(peaks)) if len(peaks) > 1 else np.array([0.5])
    return " ".join(f"{place:.3f},{1 - peak:.3f}" for place, peak in zip(places, peaks, strict=True))
