"""Pack an image and its maps as text, from which the viewer of a page draws any slice in any window.

values -> whole levels -> differences of neighbours, byte by byte -> deflate -> base64

The text stands in the page, since a page that was opened from disk may read no file beside it.
"""

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.reporting.figures import overlay_ramp
from medtl.reporting.findings import StudyFinding

FINE_LEVELS, COARSE_LEVELS = 4096, 512
FINE_VOXELS = 2_000_000  # larger volumes have fewer levels: of their window some 250 stay
# How many widths of the window are kept on either side of it.
FINE_REACH, COARSE_REACH = 1.0, 0.5


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
