"""PLANES OF A FOLDER -> sets that form one volume or projection each -> stacks with an affine.

Planes belong together by patient, study, series, matrix and orientation. Where several still lie at one
position, as in a series of echoes, time points or diffusion weightings, an element that distinguishes them
splits them into volumes; without one they stay together, and the stack is refused.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.dicom.instance import CONTRAST_KEYWORDS, MOMENT_KEYWORDS, Instance
from medtl.imaging.series import SLICED_MODALITIES

# Elements of which every plane of a volume may have its own value, so that only their order distinguishes.
TIMES = frozenset({"TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime"})
Parts = list[list[Instance]]
NamedSplit = tuple[str, Callable[[list[Instance]], Parts]]

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


@dataclass(frozen=True)
class PlaneSet:
    """Planes that should form one image; notes say how they were separated from others of their series."""

    planes: tuple[Instance, ...]
    notes: tuple[str, ...] = ()


def split_planes(planes: Sequence[Instance]) -> list[PlaneSet]:
    """Return the sets that planes form, in the order of their first planes."""
    series: dict[tuple, list[Instance]] = defaultdict(list)
    for plane in planes:
        uid = plane.series_uid or str(plane.path.parent)
        whole = (plane.patient_id, plane.study_uid, uid)
        sliced = plane.modality in SLICED_MODALITIES or plane.frames > 1 or plane.mosaic > 1
        series[whole if sliced else (plane.path, plane.frame)].append(plane)
    return [one for members in series.values() for one in _split(members, SPLITS, ())]


def _split(planes: list[Instance], splits: Sequence[NamedSplit], notes: tuple[str, ...]) -> list[PlaneSet]:
    """Split planes by one criterion after the other."""
    if not splits:
        differences = [
            f"its slices differ in {keyword}"
            for number, keyword in enumerate(CONTRAST_KEYWORDS)
            if len({_number_or_text(plane.contrast[number]) for plane in planes}) > 1
        ]
        return [PlaneSet(tuple(planes), (*notes, *differences))]
    (name, split), *rest = splits
    parts = split(planes)
    if len(parts) > 1:
        notes = (*notes, f"one of {len(parts)} parts of its series, separated by {name}")
    return [one for part in parts for one in _split(part, rest, notes)]


def _gather(planes: Sequence[Instance], keys: Iterable[Hashable]) -> Parts:
    """Put planes of the same key together, in order of appearance."""
    parts: dict[Hashable, list[Instance]] = defaultdict(list)
    for plane, key in zip(planes, keys, strict=True):
        parts[key].append(plane)
    return list(parts.values())


def _by_matrix(planes: list[Instance]) -> Parts:
    return _gather(planes, [(plane.rows, plane.columns, plane.samples) for plane in planes])


def _by_orientation(planes: list[Instance]) -> Parts:
    parts: Parts = []
    for plane in planes:
        part = next((part for part in parts if _same_orientation(plane, part[0])), None)
        part.append(plane) if part else parts.append([plane])
    return parts


def _same_orientation(one: Instance, other: Instance) -> bool:
    if one.orientation is None or other.orientation is None:
        return one.orientation is other.orientation
    return bool(np.abs(np.subtract(one.orientation, other.orientation)).max() <= SAME_ORIENTATION)


def _by_contrast(planes: list[Instance]) -> Parts:
    """Split planes by echo, time point and b-value, unless each has a position of its own."""
    places = _places(planes)
    if places is not None and len(set(places)) == len(planes):
        return [planes]  # some scanners count time points slice by slice
    return _gather(planes, [tuple(map(_number_or_text, plane.contrast)) for plane in planes])


def _by_moment(planes: list[Instance], number: int) -> Parts:
    """Split planes that share positions by one more element, where it distinguishes them."""
    places = _places(planes)
    if places is None or len(set(places)) == len(planes):
        return [planes]
    values = [plane.moments[number] for plane in planes]
    split = _by_rank if MOMENT_KEYWORDS[number] in TIMES else _by_value
    return split(planes, places, values) or [planes]


SPLITS: tuple[NamedSplit, ...] = (
    ("matrix", _by_matrix),
    ("orientation", _by_orientation),
    ("echo, time or b-value", _by_contrast),
    *((keyword, partial(_by_moment, number=number)) for number, keyword in enumerate(MOMENT_KEYWORDS)),
)


def _places(planes: Sequence[Instance]) -> list[int] | None:
    """Number the positions along the normal, those within EVEN_MM alike; None where one is not known."""
    orientation = planes[0].orientation
    if orientation is None or any(plane.position is None for plane in planes):
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    along = np.array([plane.position for plane in planes]) @ normal
    order = np.argsort(along)
    numbers = np.empty(len(planes), dtype=int)
    numbers[order] = np.concatenate([[0], np.cumsum(np.diff(along[order]) > EVEN_MM)])
    return numbers.tolist()


def _by_value(planes: Sequence[Instance], places: Sequence[int], values: Sequence[str]) -> Parts:
    """Split planes by the value of an element; return nothing unless each value has the same positions."""
    parts: dict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        parts[value].append(index)
    positions = len(set(places))
    for indices in parts.values():
        uses = Counter(places[index] for index in indices)
        if len(uses) != positions or len(set(uses.values())) != 1:
            return []
    return [[planes[index] for index in indices] for indices in parts.values()]


def _by_rank(planes: Sequence[Instance], places: Sequence[int], values: Sequence[str]) -> Parts:
    """Split planes by the order of their times at each position; return nothing where these have no order."""
    try:  # as numbers, or as text where one is none: DICOM writes times so that text sorts
        comparable: Sequence[Any] = [float(value) for value in values]
    except ValueError:
        comparable = values
    ordered = sorted(zip(places, comparable, range(len(planes)), strict=True))
    count = len(planes) // len(set(places))
    even = all(place == index // count for index, (place, _, _) in enumerate(ordered))
    distinct = len({(place, time) for place, time, _ in ordered}) == len(planes)
    if not (even and distinct and all(values)):
        return []
    return [[planes[index] for _, _, index in ordered[rank::count]] for rank in range(count)]


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


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
    # The directions in which the column index and the row index increase.
    row, column = np.array(instances[0].orientation).reshape(2, 3)
    normal = np.cross(row, column)
    ordered = sorted(instances, key=lambda one: float(np.dot(one.position or (), normal)))
    positions = np.array([one.position for one in ordered])  # (D, 3) in LPS
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    between_slices = float(np.linalg.norm(step))
    between_rows, between_columns = ordered[0].pixel_spacing or (1.0, 1.0)
    _check_even(ordered, step, normal, where)
    _check_declared_spacing(instances[0], between_slices, where)
    affine = np.eye(4)
    affine[:3] = np.stack([step, column * between_rows, row * between_columns, positions[0]], axis=1)
    return Stack(tuple(ordered), LPS_TO_RAS @ affine, (between_slices, between_rows, between_columns))


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
            reason = f"no valid {keyword} in {one.path.name}"
            raise ReadError("series-geometry", reason, where=where, fix="export it again with geometry")
        row, column = np.array(one.orientation).reshape(2, 3)
        off = (np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, np.dot(row, column))
        if np.abs(off).max() > UNIT_TOLERANCE:
            reason = f"direction cosines of {one.path.name} are not perpendicular unit vectors"
            raise ReadError("series-geometry", reason, where=where, fix="export it again")
        if one.pixel_spacing is None or min(one.pixel_spacing) <= 0:
            reason = f"no positive PixelSpacing in {one.path.name}"
            raise ReadError("series-spacing", reason, where=where, fix="export it again with PixelSpacing")
    spacings = np.array([one.pixel_spacing for one in instances])
    if np.ptp(spacings, axis=0).max() > SAME_SPACING:
        reason = "PixelSpacing differs between slices"
        raise ReadError("series-spacing", reason, where=where, fix="export them as separate series")


def _check_even(
    ordered: Sequence[Instance], step: NDArray[np.float64], normal: NDArray[np.float64], where: str
) -> None:
    """Check that slices, ordered along the normal, follow one another by `step` on a straight line."""
    positions = np.array([one.position for one in ordered])
    gaps = np.diff(positions @ normal)
    if gaps.min() <= EVEN_MM:
        names = " and ".join(one.path.name for one in ordered[int(gaps.argmin()) :][:2])
        fix = "export time points, echoes or copies as separate series"
        raise ReadError("series-positions", f"{names} lie at the same position", where=where, fix=fix)
    strays = positions - (positions[0] + np.arange(len(positions))[:, None] * step)
    if np.abs(strays @ normal).max() > max(EVEN_MM, EVEN_SHARE * float(np.median(gaps))):
        raise _uneven(ordered, gaps, where)
    length = float(np.linalg.norm(step))
    tilt = float(np.linalg.norm(step - np.dot(step, normal) * normal)) / length
    if tilt > MOST_TILT:
        reason = f"slices are sheared by {np.degrees(np.arcsin(tilt)):.1f} degrees (gantry tilt)"
        raise ReadError("series-tilted", reason, where=where, fix="resample it to a straight stack")
    aside = float(np.linalg.norm(strays, axis=1).max())
    if aside > max(EVEN_MM, EVEN_SHARE * length):
        reason = f"slices lie up to {aside:.3f} mm beside a straight line"
        raise ReadError("series-irregular", reason, where=where, fix="resample it to even slices")


def _uneven(ordered: Sequence[Instance], gaps: NDArray[np.float64], where: str) -> ReadError:
    """Say whether slices are missing or irregular, from the gaps between them in mm."""
    widest, usual = int(gaps.argmax()), float(np.median(gaps))
    missing = gaps[widest] / usual - 1
    between = f"between {ordered[widest].path.name} and {ordered[widest + 1].path.name}"
    if missing > 0.5 and abs(missing - round(missing)) < 0.1:
        reason = f"{round(missing)} missing {between} ({gaps[widest]:.3f} mm, elsewhere {usual:.3f})"
        return ReadError("series-gap", reason, where=where, fix="fetch the whole series again")
    reason = f"slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart, widest {between}"
    return ReadError("series-irregular", reason, where=where, fix="resample it to even slices")


def _check_declared_spacing(instance: Instance, spacing: float, where: str) -> None:
    """Refuse an even stack of which every second slice, or more, is absent.

    Only where SpacingBetweenSlices is not smaller than SliceThickness: some scanners write the empty gap
    between slices there, not the distance of their centres.
    """
    declared, thickness = instance.slice_spacing, instance.slice_thickness
    if not declared or not thickness or abs(declared) < 0.99 * thickness:
        return
    ratio = spacing / abs(declared)
    if ratio > 1.5 and abs(ratio - round(ratio)) < 0.05:
        reason = f"slices are {spacing:.3f} mm apart, the header says {abs(declared):.3f}: some are missing"
        raise ReadError("series-gap", reason, where=where, fix="fetch the whole series again")
