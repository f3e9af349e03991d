"""Deal the planes of a folder into the images that they form: one group for each volume or projection.

Planes belong together by patient, study, series, matrix, contrast and orientation. Where several lie at one
position even so, as in a dynamic or diffusion series, an element that tells them apart deals them into
volumes; without one they stay together, and the stack refuses them.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medtl.imaging.formats.dicom_headers import MOMENT_KEYWORDS, Instance
from medtl.imaging.formats.dicom_stack import EVEN_MM, SAME_ORIENTATION
from medtl.imaging.series import SLICED_MODALITIES

# Elements of which every plane of a volume may have its own value, so that only their order tells.
TIMES = frozenset({"TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime"})


@dataclass(frozen=True)
class Group:
    """Planes that should form one image; notes say how they were told apart from others of their series."""

    planes: tuple[Instance, ...]
    notes: tuple[str, ...] = ()


def deal_planes(planes: Sequence[Instance]) -> list[Group]:
    """Return the groups, in the order in which their first planes are given."""
    series: dict[tuple, list[Instance]] = defaultdict(list)
    orientations: dict[tuple, list[Instance]] = defaultdict(list)
    for plane in planes:
        if not is_slice(plane):
            series[(plane.path, plane.frame)].append(plane)
            continue
        uid = plane.series_uid or str(plane.path.parent)
        key = (plane.patient_id, plane.study_uid, uid, *_matrix(plane), plane.contrast)
        series[(*key, _orientation_number(plane, orientations[key]))].append(plane)
    return [group for members in series.values() for group in _volumes(members)]


def is_slice(plane: Instance) -> bool:
    """Say whether a plane is one of a volume: by its modality, or since its file holds positions of many."""
    return plane.modality in SLICED_MODALITIES or plane.frames > 1 or plane.mosaic > 1


def _matrix(plane: Instance) -> tuple[int, int, int]:
    return plane.rows, plane.columns, plane.samples


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


def _volumes(planes: Sequence[Instance], notes: tuple[str, ...] = ()) -> list[Group]:
    """Deal planes that share positions into volumes that do not, or leave them together."""
    places = _places(planes)
    if places is None or len(set(places)) == len(planes):
        return [Group(tuple(planes), notes)]
    for number, keyword in enumerate(MOMENT_KEYWORDS):
        values = [plane.moments[number] for plane in planes]
        parts = _by_rank(planes, places, values) if keyword in TIMES else _by_value(planes, places, values)
        if len(parts) > 1:
            note = f"one of {len(parts)} parts of its series, told apart by {keyword}"
            return [group for part in parts for group in _volumes(part, (*notes, note))]
    return [Group(tuple(planes), notes)]


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


def _by_value(
    planes: Sequence[Instance], places: Sequence[int], values: Sequence[str]
) -> list[list[Instance]]:
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


def _by_rank(
    planes: Sequence[Instance], places: Sequence[int], values: Sequence[str]
) -> list[list[Instance]]:
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


def _comparable(values: Sequence[str]) -> Sequence[float] | Sequence[str]:
    """Return times as numbers, or as text where one is none: DICOM writes times so that text sorts."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return values
