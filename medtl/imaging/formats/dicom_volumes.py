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

from medtl.imaging.formats.dicom_elements import CONTRAST_KEYWORDS, MOMENT_KEYWORDS
from medtl.imaging.formats.dicom_instance import Instance
from medtl.imaging.formats.dicom_stack import EVEN_MM, SAME_ORIENTATION
from medtl.imaging.series import SLICED_MODALITIES

# Elements of which every plane of a volume may have its own value, so that only their order tells.
TIMES = frozenset({"TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime"})

Parts = list[list[Instance]]


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
