"""PLANES OF ONE VOLUME -> its slices in order, with their affine; or how they are to be resampled.

An even stack is one whose positions lie on a line along the normal, as nearly as they were written: a scanner
that rounds them to a decimal, or turns its slices by a hundredth of a degree, still means an even stack.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.dicom.instance import Instance
from medtl.imaging.dicom.resampling import even_grid

# Slices may lie this far from an even stack: positions are written with as few as two decimals, which moves
# a gap by up to 0.02 mm, and a hundredth of the spacing is far below what resampling blurs.
EVEN_MM = 0.02
EVEN_SHARE = 0.01

# The first is no allowance for slices that are themselves hundredths of a millimetre apart.
MOST_WRITTEN = 0.2

# Real direction cosines are off by their rounding, up to 1e-4; beyond 1e-3 they are wrong.
UNIT_TOLERANCE = 1e-3
SAME_ORIENTATION = 1e-4
SAME_SPACING = 1e-4

# Orientations are one where the last pixel of a slice moves by no more than this share of a pixel.
SAME_CORNER = 0.5

# What slices of slightly different orientation may move along the normal, of the distance of slices.
MOST_JITTER = 0.1

# Sine of the angle between stacking direction and slice normal. Below it the affine, which follows the
# stacking direction itself, is still exact.
MOST_TILT = 0.005

# What positions may be rounded to, in mm, coarsest first. A missing slice leaves twice the usual gap, and
# rounding makes no gap of two steps and more so much wider than the others.
DECIMALS_MM = (0.1, 0.01)
LEAST_STEPS, MOST_ROUNDED = 2, 1.5
SLOPE_STEPS = 80

# A gap so many times as wide as both of its neighbours is one of missing slices.
WIDE_GAP = 1.8

# Where more of the gaps are wide, slices are unevenly spaced rather than missing.
MOST_WIDE = 1 / 3

# Words of ImageType for series that were computed, which often keep SpacingBetweenSlices of their source.
COMPUTED = frozenset({"DERIVED", "MPR", "MIP", "MINIP", "REFORMATTED", "PROJECTION IMAGE"})
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NAME_LENGTH = 16
RESAMPLE = "set preprocessing.resample_uneven=true"


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order along their normal, and the grid (slices, rows, columns) of the volume that they form.

    affine (RAS+ mm) is of the indices on that grid. offsets (D, 3): where each slice begins on it, in voxels;
    None where the slices are those of the grid. notes: what was repaired, one phrase each.
    """

    instances: tuple[Instance, ...]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()
    offsets: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class _Slices:
    """Slices in order along their common normal; positions (D, 3), directions and gaps (D - 1,) in LPS mm.

    jitter_mm: how far their orientations move a corner. rounding_mm: what positions are rounded to, where
    that is why they are not on a line; 0 otherwise.
    """

    ordered: tuple[Instance, ...]
    positions: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    normal: NDArray[np.float64]
    gaps: NDArray[np.float64]
    jitter_mm: float
    rounding_mm: float

    @property
    def step(self) -> NDArray[np.float64]:
        """The mean vector from one slice to the next; along the normal where positions are rounded."""
        step = (self.positions[-1] - self.positions[0]) / len(self.gaps)
        drift = step - np.dot(step, self.normal) * self.normal
        return step - drift if np.abs(drift).max() * len(self.gaps) <= self.rounding_mm else step

    @property
    def strays(self) -> NDArray[np.float64]:
        """Where slices are, relative to an even stack (D, 3)."""
        return self.positions - (self.positions[0] + np.arange(len(self.positions))[:, None] * self.step)


def arrange(instances: Sequence[Instance], where: str, resample_uneven: bool = False) -> Stack:
    """Order two or more slices into a stack; with resample_uneven also a tilted or unevenly spaced one.

    Raises ReadError series-mixed, -geometry, -spacing, -duplicate, -positions, -gap, -irregular, -tilted.
    """
    _check_alike(instances, where)
    _check_geometry(instances, where)
    slices = _in_order(instances)
    _check_apart(slices, where)
    _check_orientations(slices, where)
    try:
        _check_even(slices, where)
    except ReadError as error:
        if not resample_uneven or error.code == "series-gap" or _isolated(slices.gaps).any():
            raise
        _check_declared_spacing(slices, where)
        return _resampled(slices)
    _check_declared_spacing(slices, where)
    return _even(slices)


def turns_no_pixel(plane: Instance, orientation: Sequence[float]) -> bool:
    """Say whether another orientation moves the last pixel of a plane by no more than SAME_CORNER of one."""
    apart = np.abs(np.subtract(plane.orientation or (), orientation)).max()
    pixel = min(plane.pixel_spacing or (0.0,))
    return bool(apart <= UNIT_TOLERANCE and _corner_shift(plane, orientation) <= SAME_CORNER * pixel)


def _corner_shift(plane: Instance, orientation: Sequence[float]) -> float:
    """Return how far the last pixel of a plane moves where it has another orientation, in mm."""
    spacing = plane.pixel_spacing or (0.0, 0.0)
    row, column = np.subtract(plane.orientation or orientation, orientation).reshape(2, 3)
    return float(np.linalg.norm(row * spacing[1] * plane.columns + column * spacing[0] * plane.rows))


def short_name(path: Path) -> str:
    """Return the end of a file's name: a line has to hold two of them, and its fix."""
    name = path.name
    return name if len(name) <= NAME_LENGTH else "…" + name[1 - NAME_LENGTH :]


def _name(one: Instance) -> str:
    return short_name(one.path)


def _check_alike(instances: Sequence[Instance], where: str) -> None:
    uids = [(one.sop_uid, one.frame) for one in instances if one.sop_uid]
    if len(set(uids)) < len(uids):
        reason = "different slices have the same SOPInstanceUID"
        raise ReadError("series-duplicate", reason, where=where, fix="remove the wrong ones")
    kinds = {(one.rows, one.columns, one.samples) for one in instances}
    if len(kinds) > 1:
        sizes = " and ".join(f"{rows}x{columns}x{samples}" for rows, columns, samples in sorted(kinds)[:3])
        fix = "export them as separate series"
        raise ReadError("series-mixed", f"has slices of {sizes}", where=where, fix=fix)


def _check_geometry(instances: Sequence[Instance], where: str) -> None:
    for one in instances:
        if one.position is None or one.orientation is None:
            keyword = "ImagePositionPatient" if one.position is None else "ImageOrientationPatient"
            reason = f"no valid {keyword} in {_name(one)}"
            raise ReadError("series-geometry", reason, where=where, fix="export it again with geometry")
    for one in {one.orientation: one for one in instances}.values():
        row, column = np.array(one.orientation).reshape(2, 3)
        off = (np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, np.dot(row, column))
        if np.abs(off).max() > UNIT_TOLERANCE:
            reason = f"direction cosines of {_name(one)} are not perpendicular unit vectors"
            raise ReadError("series-geometry", reason, where=where, fix="export it again")
    for one in instances:
        if one.pixel_spacing is None or min(one.pixel_spacing) <= 0:
            reason = f"no positive PixelSpacing in {_name(one)}"
            raise ReadError("series-spacing", reason, where=where, fix="export it again with PixelSpacing")
    spacings = np.array([one.pixel_spacing for one in instances])
    if np.ptp(spacings, axis=0).max() > SAME_SPACING:
        reason = "PixelSpacing differs between slices"
        raise ReadError("series-spacing", reason, where=where, fix="export them as separate series")


def _in_order(instances: Sequence[Instance]) -> _Slices:
    # The directions in which the column index and the row index increase. The median of equal ones is exact.
    cosines = np.median([one.orientation for one in instances], axis=0)
    row, column = cosines.reshape(2, 3)
    normal = np.cross(row, column)
    ordered = tuple(sorted(instances, key=lambda one: float(np.dot(one.position or (), normal))))
    positions = np.array([one.position for one in ordered])
    turned = {one.orientation: one for one in ordered}.values()
    return _Slices(
        ordered,
        positions,
        row,
        column,
        normal,
        gaps=np.diff(positions @ normal),
        jitter_mm=max(_corner_shift(one, cosines.tolist()) for one in turned),
        rounding_mm=_rounding(ordered, normal),
    )


def _lie_on_line(positions: NDArray[np.float64]) -> bool:
    """Say whether positions follow one another evenly, within EVEN_MM."""
    line = np.linspace(positions[0], positions[-1], len(positions))
    return bool(np.linalg.norm(positions - line, axis=1).max() <= EVEN_MM)


def _rounding(ordered: Sequence[Instance], normal: NDArray[np.float64]) -> float:
    """Return what positions of an even stack are rounded to, in mm; 0 where that explains nothing."""
    positions = np.array([one.position for one in ordered])
    if _lie_on_line(positions) or _number_steps(ordered):
        return 0.0
    decimals = [_decimal_of(values) for values in positions.T]
    largest = max(decimals)
    gaps = np.diff(positions @ normal)
    explained = all(_is_rounded_line(*pair) for pair in zip(positions.T, decimals, strict=True))
    whole = gaps.min() > (LEAST_STEPS - 0.5) * largest and gaps.max() <= MOST_ROUNDED * np.median(gaps)
    return largest if explained and whole else 0.0


def _number_steps(ordered: Sequence[Instance]) -> list[int]:
    """Return by how much InstanceNumber grows from slice to slice where that differs, otherwise nothing."""
    numbers = [one.number for one in ordered if one.number is not None]
    steps = [later - earlier for earlier, later in pairwise(numbers)]
    falling = [-step for step in steps]
    known = len(steps) == len(ordered) - 1
    rising = next((some for some in (steps, falling) if known and min(some) > 0 and max(some) < 2**31), [])
    return rising if len(set(rising)) > 1 else []


def _decimal_of(values: NDArray[np.float64]) -> float:
    """Return the coarsest decimal step of which all values are multiples; 0 for one that does not change."""
    if np.ptp(values) <= EVEN_MM:
        return 0.0
    steps = (step for step in DECIMALS_MM if np.abs(values - step * np.round(values / step)).max() < 1e-6)
    return next(steps, 0.0)


def _is_rounded_line(values: NDArray[np.float64], decimal: float) -> bool:
    """Say whether values are those of a line, each rounded to a decimal step.

    Differences from one to the next are then within one step of each other, and there is a line about which
    all values spread by one step at most.
    """
    if decimal == 0 or np.ptp(np.diff(values)) > decimal + EVEN_MM / 4:
        return bool(np.ptp(np.diff(values)) <= EVEN_MM)
    number = np.arange(len(values))
    lowest, highest = sorted((values[-1] - values[0]) / (len(values) - 1) + np.array([-decimal, decimal]))
    for _ in range(SLOPE_STEPS):  # the spread about a line is convex in its slope
        one, other = lowest + (highest - lowest) / 3, highest - (highest - lowest) / 3
        if np.ptp(values - one * number) < np.ptp(values - other * number):
            highest = other
        else:
            lowest = one
    return bool(np.ptp(values - lowest * number) <= decimal + EVEN_MM / 4)


def _check_apart(slices: _Slices, where: str) -> None:
    if slices.gaps.min() > EVEN_MM:
        return
    place = int(slices.gaps.argmin())
    names = " and ".join(_name(one) for one in slices.ordered[place : place + 2])
    fix = "export time points, echoes or copies as separate series"
    raise ReadError("series-positions", f"{names} lie at the same position", where=where, fix=fix)


def _check_orientations(slices: _Slices, where: str) -> None:
    """Refuse slices that are turned against the others by more than a stack of one orientation allows."""
    common = [*slices.row, *slices.column]
    for orientation, one in {one.orientation: one for one in slices.ordered}.items():
        if orientation is not None and not turns_no_pixel(one, common):
            turns = np.linalg.norm(np.subtract(orientation, common).reshape(2, 3), axis=1)
            degrees = np.degrees(turns.max())
            reason = f"{_name(one)} is turned by {degrees:.2f} degrees against the other slices"
            fix = "export it again, or the turned slices as a series of their own"
            raise ReadError("series-geometry", reason, where=where, fix=fix)


def _check_even(slices: _Slices, where: str) -> None:
    """Check that slices, ordered along the normal, follow one another by `step` on a straight line."""
    step, strays, usual = slices.step, slices.strays, float(np.median(slices.gaps))
    rounding = 2 * slices.rounding_mm
    jitter = min(slices.jitter_mm, MOST_JITTER * usual)
    written = min(EVEN_MM, MOST_WRITTEN * usual)
    if np.abs(strays @ slices.normal).max() > max(written, EVEN_SHARE * usual, rounding, jitter):
        raise _uneven(slices, where)
    length = float(np.linalg.norm(step))
    aside = float(np.linalg.norm(strays, axis=1).max())
    if aside > max(EVEN_MM, EVEN_SHARE * length, rounding, slices.jitter_mm):
        reason = f"slices lie up to {aside:.3f} mm beside a straight line"
        fix = f"resample it, or {RESAMPLE}"
        raise ReadError("series-irregular", reason, where=where, fix=fix)
    tilt = float(np.linalg.norm(step - np.dot(step, slices.normal) * slices.normal)) / length
    if tilt > MOST_TILT and tilt * length * len(slices.gaps) > EVEN_MM:
        reason = f"slices are sheared by {np.degrees(np.arcsin(tilt)):.1f} degrees (gantry tilt)"
        fix = f"resample it, or {RESAMPLE}"
        raise ReadError("series-tilted", reason, where=where, fix=fix)


def _isolated(gaps: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say of each gap whether it is wider than both of its neighbours by what a missing slice leaves."""
    beside = np.maximum(np.append(0, gaps[:-1]), np.append(gaps[1:], 0))
    wide = gaps > WIDE_GAP * np.percentile(gaps, 25, method="lower")
    few = wide.sum() < 2 or wide.mean() <= MOST_WIDE
    return (gaps > WIDE_GAP * beside) & (beside > 0) & few


def _uneven(slices: _Slices, where: str) -> ReadError:
    """Say whether slices are missing or irregular, from their numbers, and the gaps between them in mm."""
    gaps, ordered, isolated = slices.gaps, slices.ordered, _isolated(slices.gaps)
    steps = np.array(_number_steps(ordered) or [1] * len(gaps), dtype=float)
    left_out = (steps > steps.min()) & (gaps > MOST_ROUNDED * gaps.min())
    if left_out.any():
        place = int(left_out.argmax())
        between = f"between {_name(ordered[place])} and {_name(ordered[place + 1])}"
        wide, narrow = gaps[place], gaps.min()
        apart = f"{wide:.3f} mm apart, elsewhere {narrow:.3f}"
        reason = f"slices are missing {between}, where InstanceNumber skips ({apart})"
        return ReadError("series-gap", reason, where=where, fix="fetch the whole series again")
    alone = isolated.any()
    widest, usual = int((gaps * isolated if alone else gaps).argmax()), float(np.median(gaps))
    missing = gaps[widest] / usual - 1
    between = f"between {_name(ordered[widest])} and {_name(ordered[widest + 1])}"
    if alone and missing > 0.5 and abs(missing - round(missing)) < 0.1:
        reason = f"{round(missing)} missing {between} ({gaps[widest]:.3f} mm, elsewhere {usual:.3f})"
        return ReadError("series-gap", reason, where=where, fix="fetch the whole series again")
    apart = f"slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart"
    reason = f"{apart}: some may be missing {between}" if alone else f"{apart}, widest {between}"
    fix = "fetch them (it is not resampled across them)" if alone else f"resample it, or {RESAMPLE}"
    return ReadError("series-irregular", reason, where=where, fix=fix)


def _check_declared_spacing(slices: _Slices, where: str) -> None:
    """Refuse an even stack of which every second slice, or more, is absent.

    Only where SpacingBetweenSlices is not smaller than SliceThickness: some scanners write the empty gap
    between slices there, not the distance of their centres. What was computed often keeps the spacing of its
    source: there the numbers of the slices decide.
    """
    first, spacing = slices.ordered[0], float(np.median(slices.gaps))
    declared, thickness = first.slice_spacing, first.slice_thickness
    if not declared or not thickness or abs(declared) < 0.99 * thickness:
        return
    if not COMPUTED.isdisjoint(first.image_type) and _numbered_without_gap(slices.ordered):
        return
    ratio = spacing / abs(declared)
    if ratio > 1.5 and abs(ratio - round(ratio)) < 0.05:
        reason = f"slices are {spacing:.3f} mm apart, the header says {abs(declared):.3f}: some are missing"
        raise ReadError("series-gap", reason, where=where, fix="fetch the whole series again")


def _numbered_without_gap(ordered: Sequence[Instance]) -> bool:
    """Say whether all slices have numbers, which leave none out."""
    numbers = [one.number for one in ordered if one.number is not None]
    return len(numbers) == len(ordered) and max(numbers) - min(numbers) < len(ordered)


def _even(slices: _Slices) -> Stack:
    first = slices.ordered[0]
    step, spacing = slices.step, first.pixel_spacing or (1.0, 1.0)
    columns = [step, slices.column * spacing[0], slices.row * spacing[1], slices.positions[0]]
    return Stack(
        slices.ordered,
        _ras_affine(columns),
        (float(np.linalg.norm(step)), spacing[0], spacing[1]),
        (len(slices.ordered), first.rows, first.columns),
        tuple(_repairs(slices)),
    )


def _resampled(slices: _Slices) -> Stack:
    """Return the even stack to which slices, tilted or unevenly spaced, are to be resampled."""
    first = slices.ordered[0]
    spacing = first.pixel_spacing or (1.0, 1.0)
    places = slices.positions - slices.positions[0]
    aside = np.column_stack([places @ slices.column / spacing[0], places @ slices.row / spacing[1]])
    grid = even_grid(places @ slices.normal, aside, first.rows, first.columns)
    axes = [slices.normal * grid.step_mm, slices.column * spacing[0], slices.row * spacing[1]]
    origin = slices.positions[0] + grid.first[0] * axes[1] + grid.first[1] * axes[2]
    gaps, shifts = slices.gaps, np.ptp(aside, axis=0)
    note = f"resampled to an even {grid.step_mm:.3f} mm: its slices are {gaps.min():.3f}"
    note += f" to {gaps.max():.3f} mm apart, and shifted by up to {shifts.max():.1f} pixels"
    return Stack(
        slices.ordered,
        _ras_affine([*axes, origin]),
        (grid.step_mm, spacing[0], spacing[1]),
        grid.shape,
        (*_repairs(slices), note),
        grid.offsets,
    )


def _ras_affine(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the affine of the indices slice, row, column, from its columns in LPS."""
    affine = np.eye(4)
    affine[:3] = np.stack(columns, axis=1)
    return LPS_TO_RAS @ affine


def _repairs(slices: _Slices) -> list[str]:
    notes = []
    apart = float(np.ptp(np.array([one.orientation for one in slices.ordered]), axis=0).max())
    if apart > SAME_ORIENTATION:
        degrees = np.degrees(apart)
        notes.append(f"its slices differ in orientation by up to {degrees:.3f} degrees: the median counts")
    if slices.rounding_mm:
        notes.append(f"positions are rounded to {slices.rounding_mm:g} mm: the mean spacing counts")
    return notes
