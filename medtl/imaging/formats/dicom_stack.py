"""Turn the positions of slices into the geometry of one volume, or say why they form none.

Everything follows from ImagePositionPatient and ImageOrientationPatient (PS3.3 C.7.6.2.1.1); InstanceNumber,
SliceLocation and SliceThickness are never trusted for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.formats.dicom_instance import Instance

# Slices may lie this far from an even stack: positions are written with as few as two decimals, which moves
# a gap by up to 0.02 mm, and a hundredth of the spacing is far below what resampling blurs.
EVEN_MM = 0.02
EVEN_SHARE = 0.01

# Real direction cosines are off by their rounding, up to 1e-4; beyond 1e-3 they are wrong.
UNIT_TOLERANCE = 1e-3
SAME_ORIENTATION = 1e-4
SAME_SPACING = 1e-4

# Sine of the angle between stacking direction and slice normal. Below it the affine, which follows the
# stacking direction itself, is still exact.
MOST_TILT = 0.005

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order along their normal, with the affine (RAS+ mm) of the indices slice, row, column."""

    instances: tuple[Instance, ...]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]


def arrange(instances: Sequence[Instance], where: str) -> Stack:
    """Order two or more slices into a stack.

    Raises ReadError series-mixed, -geometry, -spacing, -duplicate, -positions, -gap, -irregular, -tilted.
    """
    _check_alike(instances, where)
    _check_geometry(instances, where)
    row, column = _cosines(instances[0])
    normal = np.cross(row, column)
    ordered = sorted(instances, key=lambda one: float(np.dot(one.position or (), normal)))
    positions = np.array([one.position for one in ordered])  # (D, 3) in LPS
    _check_even(ordered, positions @ normal, where)
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    _check_straight(positions, step, normal, where)
    _check_declared_spacing(instances[0], float(np.linalg.norm(step)), where)
    return _stack(ordered, positions[0], step, row, column)


def _cosines(instance: Instance) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the directions in which the column index and the row index increase."""
    cosines = np.array(instance.orientation)
    return cosines[:3], cosines[3:]


def _stack(
    ordered: Sequence[Instance],
    origin: NDArray[np.float64],
    step: NDArray[np.float64],
    row: NDArray[np.float64],
    column: NDArray[np.float64],
) -> Stack:
    between_rows, between_columns = ordered[0].pixel_spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3] = np.stack([step, column * between_rows, row * between_columns, origin], axis=1)
    spacing = (float(np.linalg.norm(step)), between_rows, between_columns)
    return Stack(tuple(ordered), LPS_TO_RAS @ affine, spacing)


def _check_alike(instances: Sequence[Instance], where: str) -> None:
    uids = [(one.sop_uid, one.frame) for one in instances if one.sop_uid]
    if len(set(uids)) < len(uids):
        reason = "different slices have the same SOPInstanceUID"
        raise ReadError("series-duplicate", reason, where=where, fix="remove the wrong ones")
    kinds = {(one.rows, one.columns, one.samples) for one in instances}
    if len(kinds) > 1:
        sizes = " and ".join(f"{rows}x{columns}x{samples}" for rows, columns, samples in sorted(kinds)[:3])
        raise ReadError(
            "series-mixed", f"has slices of {sizes}", where=where, fix="export them as series apart"
        )


def _check_geometry(instances: Sequence[Instance], where: str) -> None:
    for one in instances:
        for value, keyword in (
            (one.position, "ImagePositionPatient"),
            (one.orientation, "ImageOrientationPatient"),
        ):
            if value is None:
                reason = f"no valid {keyword} in {one.path.name}"
                raise ReadError("series-geometry", reason, where=where, fix="export it again with geometry")
        if not _is_orthonormal(*_cosines(one)):
            reason = f"direction cosines of {one.path.name} are not perpendicular unit vectors"
            raise ReadError("series-geometry", reason, where=where, fix="export it again")
        if one.pixel_spacing is None or min(one.pixel_spacing) <= 0:
            reason = f"no positive PixelSpacing in {one.path.name}"
            raise ReadError("series-spacing", reason, where=where, fix="export it again with PixelSpacing")
    spacings = np.array([one.pixel_spacing for one in instances])
    if np.ptp(spacings, axis=0).max() > SAME_SPACING:
        raise ReadError(
            "series-spacing", "PixelSpacing differs between slices", where=where, fix="export them apart"
        )


def _is_orthonormal(row: NDArray[np.float64], column: NDArray[np.float64]) -> bool:
    off = (np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, np.dot(row, column))
    return bool(np.abs(off).max() <= UNIT_TOLERANCE)


def _check_even(ordered: Sequence[Instance], along: NDArray[np.float64], where: str) -> None:
    """Check the distances along the normal (D,) in mm, in ascending order."""
    gaps = np.diff(along)
    if gaps.min() <= EVEN_MM:
        first = int(gaps.argmin())
        names = f"{ordered[first].path.name} and {ordered[first + 1].path.name}"
        fix = "time points, echoes or copies in one series: export them as series apart"
        raise ReadError("series-positions", f"{names} lie at the same position", where=where, fix=fix)
    usual = float(np.median(gaps))
    even = along[0] + np.arange(len(along)) * (along[-1] - along[0]) / len(gaps)
    if np.abs(along - even).max() <= max(EVEN_MM, EVEN_SHARE * usual):
        return
    widest = int(gaps.argmax())
    missing = gaps[widest] / usual - 1
    between = f"between {ordered[widest].path.name} and {ordered[widest + 1].path.name}"
    if missing > 0.5 and abs(missing - round(missing)) < 0.1:
        reason = f"{round(missing)} missing {between} ({gaps[widest]:.3f} mm, elsewhere {usual:.3f})"
        raise ReadError("series-gap", reason, where=where, fix="fetch the whole series again")
    reason = f"slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart, widest {between}"
    raise ReadError("series-irregular", reason, where=where, fix="resample it to even slices")


def _check_straight(
    positions: NDArray[np.float64], step: NDArray[np.float64], normal: NDArray[np.float64], where: str
) -> None:
    sideways = step - np.dot(step, normal) * normal
    tilt = float(np.linalg.norm(sideways) / np.linalg.norm(step))
    line = positions[0] + np.arange(len(positions))[:, None] * step
    strays = float(np.linalg.norm(positions - line, axis=1).max())
    if tilt > MOST_TILT:
        reason = f"slices are sheared by {np.degrees(np.arcsin(tilt)):.1f} degrees (gantry tilt)"
        raise ReadError("series-tilted", reason, where=where, fix="resample it to a straight stack")
    if strays > max(EVEN_MM, EVEN_SHARE * float(np.linalg.norm(step))):
        reason = f"slices lie up to {strays:.3f} mm beside a straight line"
        raise ReadError("series-irregular", reason, where=where, fix="resample it to even slices")


def _check_declared_spacing(instance: Instance, spacing: float, where: str) -> None:
    """Refuse an even stack of which every second slice, or more, is absent.

    Only where SpacingBetweenSlices is not smaller than SliceThickness: some scanners write the empty gap
    between slices there instead of the distance of their centres.
    """
    declared, thickness = instance.slice_spacing, instance.slice_thickness
    if not declared or not thickness or abs(declared) < 0.99 * thickness:
        return
    ratio = spacing / abs(declared)
    if ratio > 1.5 and abs(ratio - round(ratio)) < 0.05:
        reason = f"slices are {spacing:.3f} mm apart, the header says {abs(declared):.3f}: some are missing"
        raise ReadError("series-gap", reason, where=where, fix="fetch the whole series again")
