"""Deal the planes of a folder into the images that they form: one set for each volume or projection.

Planes belong together by patient, study, series, matrix and orientation. Where several lie at one position
even so, as in a series of echoes, time points or diffusion weightings, an element that tells them apart deals
them into volumes; without one they stay together, and the stack refuses them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.errors import ReadError
from medtl.imaging.dicom.elements import CONTRAST_KEYWORDS, MOMENT_KEYWORDS
from medtl.imaging.dicom.instance import Instance
from medtl.imaging.series import SLICED_MODALITIES

# Elements of which every plane of a volume may have its own value, so that only their order tells.
TIMES = frozenset({"TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime"})
Parts = list[list[Instance]]

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
    """Planes that should form one image; notes say how they were told apart from others of their series."""

    planes: tuple[Instance, ...]
    notes: tuple[str, ...] = ()


def deal_planes(planes: Sequence[Instance]) -> list[PlaneSet]:
    """Return the sets, in the order in which their first planes are given."""
    series: dict[tuple, list[Instance]] = defaultdict(list)
    for plane in planes:
        uid = plane.series_uid or str(plane.path.parent)
        whole = (plane.patient_id, plane.study_uid, uid)
        series[whole if is_slice(plane) else (plane.path, plane.frame)].append(plane)
    return [one for members in series.values() for one in _divide(members, SPLITS, ())]


def is_slice(plane: Instance) -> bool:
    """Say whether a plane is one of a volume: by its modality, or since its file holds positions of many."""
    return plane.modality in SLICED_MODALITIES or plane.frames > 1 or plane.mosaic > 1


def _divide(
    planes: list[Instance],
    splits: Sequence[tuple[str, Callable[[list[Instance]], Parts]]],
    notes: tuple[str, ...],
) -> list[PlaneSet]:
    """Divide planes by one split after the other."""
    if not splits:
        return [PlaneSet(tuple(planes), (*notes, *_differences(planes)))]
    (name, split), *rest = splits
    parts = split(planes)
    if len(parts) > 1:
        notes = (*notes, f"one of {len(parts)} parts of its series, told apart by {name}")
    return [one for part in parts for one in _divide(part, rest, notes)]


def _differences(planes: Sequence[Instance]) -> list[str]:
    """Say where planes that form one volume differ in what usually tells volumes apart."""
    values = zip(*(plane.contrast for plane in planes), strict=True)
    return [
        f"its slices differ in {keyword}"
        for keyword, found in zip(CONTRAST_KEYWORDS, values, strict=True)
        if len(set(map(_number_or_text, found))) > 1
    ]


def _gather(planes: Sequence[Instance], keys: Iterable[Hashable]) -> Parts:
    """Put planes of the same key together, in order of appearance."""
    parts: dict[Hashable, list[Instance]] = defaultdict(list)
    for plane, key in zip(planes, keys, strict=True):
        parts[key].append(plane)
    return list(parts.values())


def _by_matrix(planes: list[Instance]) -> Parts:
    return _gather(planes, [(plane.rows, plane.columns, plane.samples) for plane in planes])


def _by_orientation(planes: list[Instance]) -> Parts:
    known: list[Instance] = []
    return _gather(planes, [_orientation_number(plane, known) for plane in planes])


def _orientation_number(plane: Instance, known: list[Instance]) -> int:
    """Number the orientations of one series in the order in which they come up."""
    for number, other in enumerate(known):
        if _same_orientation(plane, other):
            return number
    known.append(plane)
    return len(known) - 1


def _same_orientation(one: Instance, other: Instance) -> bool:
    if one.orientation is None or other.orientation is None:
        return one.orientation is other.orientation
    return bool(np.abs(np.subtract(one.orientation, other.orientation)).max() <= SAME_ORIENTATION)


def _by_contrast(planes: list[Instance]) -> Parts:
    """Deal planes by echo, time point and b-value, unless each has a position of its own."""
    places = _places(planes)
    if places is not None and len(set(places)) == len(planes):
        return [planes]  # some scanners count time points slice by slice
    return _gather(planes, [tuple(map(_number_or_text, plane.contrast)) for plane in planes])


def _by_moment(planes: list[Instance], number: int) -> Parts:
    """Deal planes that share positions by one more element, where it tells them apart."""
    places = _places(planes)
    if places is None or len(set(places)) == len(planes):
        return [planes]
    values = [plane.moments[number] for plane in planes]
    deal = _by_rank if MOMENT_KEYWORDS[number] in TIMES else _by_value
    return deal(planes, places, values) or [planes]


SPLITS: tuple[tuple[str, Callable[[list[Instance]], Parts]], ...] = (
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
    """Deal planes by the value of an element; into nothing unless each value has every position alike."""
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
    """Deal planes by the order of their times at each position; into nothing where times tell no order."""
    times: dict[int, list[tuple[Any, int]]] = defaultdict(list)
    for index, (place, time) in enumerate(zip(places, _comparable(values), strict=True)):
        times[place].append((time, index))
    count = len(times[0])
    if not all(values) or any(len({time for time, _ in row}) != count for row in times.values()):
        return []
    if any(len(row) != count for row in times.values()):
        return []
    ranked = [[planes[index] for _, index in sorted(row)] for _, row in sorted(times.items())]
    return [list(volume) for volume in zip(*ranked, strict=True)]


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _comparable(values: Sequence[str]) -> Sequence[float] | Sequence[str]:
    """Return times as numbers, or as text where one is none: DICOM writes times so that text sorts."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return values


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
