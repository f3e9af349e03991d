"""PLANES OF A FOLDER -> sets that form one volume or projection each.

Planes belong together by patient, study, series, matrix and orientation. Where several still lie at one
position, as in a series of echoes, time points or diffusion weightings, an element that distinguishes them
splits them into volumes; without one they stay together, and the stack is refused.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtl.imaging.dicom.instance import CONTRAST_KEYWORDS, MOMENT_KEYWORDS, Instance
from medtl.imaging.dicom.stacks import EVEN_MM, SAME_ORIENTATION, turns_no_pixel
from medtl.imaging.series import SLICED_MODALITIES

# Elements of which every plane of a volume may have its own value, so that only their order distinguishes.
TIMES = frozenset({"TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime"})
# What puts parts in the order of time.
ORDERED = TIMES | {"instance number"}
Parts = list[list[Instance]]
NamedSplit = tuple[str, Callable[[list[Instance]], Parts]]

# Two degrees: slices that are turned by less, and lie among others, are no stack of their own.
TURNED = 0.035

# A single one may be the last or first of a stack: it then lies no further from it than so many distances.
NEXT_SLICE = 1.5

# Planes nearer to one another than this share of their mean distance are several at one position.
CLUMPED = 0.25


@dataclass(frozen=True)
class PlaneSet:
    """Planes that should form one image; notes say how they were separated from others of their series.

    beside_slices: a picture, such as a screen save, in a study that has slices.
    """

    planes: tuple[Instance, ...]
    notes: tuple[str, ...] = ()
    beside_slices: bool = False


def split_planes(planes: Sequence[Instance]) -> list[PlaneSet]:
    """Return the sets that planes form, in the order of their first planes."""
    pictures = _pictures_among(planes)
    sliced = {_study_of(plane) for plane in planes if _is_sliced(plane) and plane.path not in pictures}
    series: dict[tuple, list[Instance]] = defaultdict(list)
    for plane in planes:
        beside = plane.path in pictures and _study_of(plane) in sliced
        if beside or (plane.path in pictures and plane.captured):
            series[(plane.path,)].append(plane)
        else:
            series[_series_of(plane) if _is_sliced(plane) else (plane.path, plane.frame)].append(plane)
    stacks = [one for members in series.values() for one in _split(members, SPLITS, ())]
    sets = [_with_differences(one) for stack in stacks for one in _split_moments(stack)]
    beside_slices = {path for path, study in pictures.items() if study in sliced}
    return [replace(one, beside_slices=one.planes[0].path in beside_slices) for one in sets]


def _pictures_among(planes: Sequence[Instance]) -> dict[Path, tuple[str, str]]:
    """Return the files that are pictures, and their studies.

    What lies in one series with placed planes of its kind is a slice that lost its place.
    """
    placed = {(_series_of(plane), plane.captured) for plane in planes if plane.position is not None}
    pictures = [plane for plane in planes if plane.is_picture]
    own = [plane for plane in pictures if (_series_of(plane), plane.captured) not in placed]
    return {plane.path: _study_of(plane) for plane in own}


def _is_sliced(plane: Instance) -> bool:
    return plane.modality in SLICED_MODALITIES or plane.frames > 1 or plane.mosaic > 1


def _series_of(plane: Instance) -> tuple[str, str, str]:
    return plane.patient_id, plane.study_uid, plane.series_uid or str(plane.path.parent)


def _study_of(plane: Instance) -> tuple[str, str]:
    return plane.patient_id, plane.study_uid or str(plane.path.parent)


def _split_moments(stack: PlaneSet) -> list[PlaneSet]:
    """Split planes of one orientation by echo, time and the like; as a last resort, by something first."""
    planes = list(stack.planes)
    sets = _split(planes, MOMENT_SPLITS, stack.notes)
    for resort in LAST_RESORTS:
        if any(_is_clumped(one.planes) for one in sets):
            others = _split(planes, (resort, *MOMENT_SPLITS), stack.notes)
            sets = sets if any(_is_clumped(one.planes) for one in others) else others
    return sets


def _with_differences(planes: PlaneSet) -> PlaneSet:
    """Add a note on what else differs between planes at different positions."""
    differences = [
        f"its slices differ in {keyword}"
        for number, keyword in enumerate(CONTRAST_KEYWORDS)
        if len({_number_or_text(plane.contrast[number]) for plane in planes.planes}) > 1
    ]
    return replace(planes, notes=(*planes.notes, *differences)) if differences else planes


def _split(planes: list[Instance], splits: Sequence[NamedSplit], notes: tuple[str, ...]) -> list[PlaneSet]:
    """Split planes by one criterion after the other."""
    if not splits:
        return [PlaneSet(tuple(planes), notes)]
    (name, split), *rest = splits
    parts = split(planes)
    if len(parts) == 1:
        return _split(planes, rest, notes)
    sets = []
    for number, part in enumerate(parts, start=1):
        which = f"part {number} of {len(parts)}" if name in ORDERED else f"one of {len(parts)} parts"
        sets += _split(part, rest, (*notes, f"{which} of its series, separated by {name}"))
    return sets


def _gather(planes: Sequence[Instance], keys: Iterable[Hashable]) -> Parts:
    """Put planes of the same key together, in order of appearance."""
    parts: dict[Hashable, list[Instance]] = defaultdict(list)
    for plane, key in zip(planes, keys, strict=True):
        parts[key].append(plane)
    return list(parts.values())


def _by_matrix(planes: list[Instance]) -> Parts:
    return _gather(planes, [(plane.rows, plane.columns, plane.samples) for plane in planes])


def _by_sheet(planes: list[Instance]) -> Parts:
    """Split by file what is a mosaic or grid: each holds the slices of one volume."""
    return _gather(planes, [plane.path if plane.mosaic > 1 else None for plane in planes])


def _by_orientation(planes: list[Instance]) -> Parts:
    """Split planes by orientation; what lies among slices that are hardly turned against it stays with them.

    The stack then says whether the turn matters: to split it would halve a volume without a word. So it would
    to part with a slice that lost its orientation.
    """
    parts: Parts = []
    turned = _by_likeness(planes, _alike)
    for part in sorted(turned, key=lambda part: part[0].orientation is None):
        among = next((other for other in parts if _lies_among(part, other)), None)
        among.extend(part) if among else parts.append(part)
    return parts


def _by_exact_orientation(planes: list[Instance]) -> Parts:
    parts = _by_likeness(planes, _exactly_alike)
    return parts if min(map(len, parts)) > 1 else [planes]


def _by_likeness(planes: Sequence[Instance], alike: Callable[[Instance, Instance], bool]) -> Parts:
    parts: Parts = []
    for plane in planes:
        part = next((part for part in parts if alike(plane, part[0])), None)
        part.append(plane) if part else parts.append([plane])
    return parts


def _lies_among(part: Sequence[Instance], other: Sequence[Instance]) -> bool:
    """Say whether slices, or a single one, lie where others do and are turned by less than TURNED of them."""
    if part[0].orientation is None:
        return True
    if other[0].orientation is None or _apart(part[0], other[0]) > TURNED:
        return False
    along = _along([*other, *part])
    if along is None:
        return False
    one, two = along[len(other) :], along[: len(other)]
    lone = min(len(one), len(two)) == 1 and len(along) > 2
    reach = NEXT_SLICE * np.ptp(max(one, two, key=len)) / (len(along) - 2) if lone else 0.0
    return bool(one.min() < two.max() + reach and two.min() < one.max() + reach)


def _exactly_alike(one: Instance, other: Instance) -> bool:
    """Say whether two planes differ in orientation by no more than its rounding."""
    if one.orientation is None or other.orientation is None:
        return one.orientation is other.orientation
    return one.orientation == other.orientation or _apart(one, other) <= SAME_ORIENTATION


def _alike(one: Instance, other: Instance) -> bool:
    """Say whether two planes differ in orientation by so little that no pixel moves by SAME_CORNER of one."""
    if _exactly_alike(one, other):
        return True
    if one.orientation is None or other.orientation is None or one.pixel_spacing is None:
        return False
    return turns_no_pixel(one, other.orientation)


def _apart(one: Instance, other: Instance) -> float:
    return float(np.abs(np.subtract(one.orientation or (), other.orientation or ())).max())


def _by_number(planes: list[Instance]) -> Parts:
    """Split planes into as many time points as they say there are, which only their numbers tell apart.

    Every position must occur once for each, and the numbers must run without a gap through all positions of
    one time point after another, or through all time points of one position after another.
    """
    places, count = _places(planes), planes[0].temporal_positions or 0
    numbers = [plane.number for plane in planes if plane.number is not None]
    if places is None or count < 2 or not len(numbers) == len(planes) == count * len(set(places)):
        return [planes]
    ranked = sorted(range(len(planes)), key=numbers.__getitem__)
    gapless = sorted(numbers) == [*range(min(numbers), min(numbers) + len(planes))]
    if not gapless or {plane.temporal_positions for plane in planes} != {count}:
        return [planes]
    for order in (np.reshape(ranked, (count, -1)), np.reshape(ranked, (-1, count)).T):
        taken = np.array(places)[order]  # (time points, positions)
        if (taken == taken[0]).all() and len(set(taken[0].tolist())) == taken.shape[1]:
            return [[planes[index] for index in moment] for moment in order]
    return [planes]


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
    ("file", _by_sheet),
    ("matrix", _by_matrix),
    ("orientation", _by_orientation),
)
MOMENT_SPLITS: tuple[NamedSplit, ...] = (
    ("echo, time or b-value", _by_contrast),
    *((keyword, partial(_by_moment, number=number)) for number, keyword in enumerate(MOMENT_KEYWORDS)),
)
LAST_RESORTS: tuple[NamedSplit, ...] = (
    ("instance number", _by_number),
    ("orientation", _by_exact_orientation),
)


def _along(planes: Sequence[Instance]) -> NDArray[np.float64] | None:
    """Return the positions along the normal in mm; None where one is not known."""
    orientation = planes[0].orientation
    if orientation is None or any(plane.position is None for plane in planes):
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array([plane.position for plane in planes]) @ normal


def _is_clumped(planes: Sequence[Instance]) -> bool:
    """Say whether several planes lie at one position, or nearly, as those of a patient who moved do."""
    along = _along(planes)
    if along is None or len(planes) < 2:
        return False
    gaps = np.diff(np.sort(along))
    return bool(gaps.min() <= max(EVEN_MM, CLUMPED * gaps.mean()))


def _places(planes: Sequence[Instance]) -> list[int] | None:
    """Number the positions along the normal, those within EVEN_MM alike; None where one is not known."""
    along = _along(planes)
    if along is None:
        return None
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
