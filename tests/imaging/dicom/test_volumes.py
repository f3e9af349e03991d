"""Planes of a folder become the volumes that they form; what nothing distinguishes is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from medtl.data.naming import source_name
from medtl.imaging.dicom.frames import planes_of
from medtl.imaging.dicom.header import read_header
from medtl.imaging.dicom.volumes import PlaneSet, split_planes
from medtl.imaging.reader import read_images, scan
from tests.imaging.conftest import fixed_uid, pattern, refusal

Change = Callable[[int, Dataset], object]


@pytest.fixture
def deal(make_series: Callable) -> Callable[..., list[PlaneSet]]:
    """Return a dealer of the planes of a series of six, of which `change` edits each."""

    def run(change: Change, **options: Any) -> list[PlaneSet]:
        paths = make_series(**{"instances": 6, "change": change, **options})
        return split_planes([plane for path in paths for plane in planes_of(read_header(path))])

    return run


def numbers(groups: Sequence[PlaneSet]) -> list[list[int]]:
    """Return the slice numbers of make_series in each group, by the names that it gives."""
    return [[int(plane.path.name.split("-")[1]) for plane in group.planes] for group in groups]


def at_places(count: int, **elements: Sequence[Any]) -> Change:
    """Put slices k at `count` positions in turn, each with its own value of some elements."""

    def change(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [0, 0, 3.0 * (k % count)]
        for keyword, values in elements.items():
            if values[k] is not None:
                setattr(dataset, keyword, values[k])

    return change


TOLD_APART = {
    "acquisitions": ("AcquisitionNumber", [1, 1, 1, 2, 2, 2]),
    "magnitude and phase": ("ComplexImageComponent", ["MAGNITUDE"] * 3 + ["PHASE"] * 3),
    "kinds of image": ("ImageType", [["ORIGINAL", "PRIMARY", "M"]] * 3 + [["ORIGINAL", "PRIMARY", "P"]] * 3),
    "directions": ("DiffusionGradientOrientation", [[1.0, 0.0, 0.0]] * 3 + [[0.0, 1.0, 0.0]] * 3),
    "inversions": ("InversionTime", [100] * 3 + [900] * 3),
    "flip angles": ("FlipAngle", [5] * 3 + [20] * 3),
    "heart phases": ("TriggerTime", [0] * 3 + [400] * 3),
    "heart phases, each slice at its own times": ("TriggerTime", [0, 11, 22, 400, 411, 422]),
    "times of acquisition": ("AcquisitionTime", ["120000", "120001", "120002", "120010", "120011", "120012"]),
    "dates and times": ("AcquisitionDateTime", [f"2020010112000{second}" for second in range(6)]),
    "times of content": ("ContentTime", [f"1200{second:02d}.5" for second in range(6)]),
}


@pytest.mark.parametrize(("keyword", "values"), TOLD_APART.values(), ids=TOLD_APART)
def test_planes_at_one_position_are_split_by_what_distinguishes_them(
    deal: Callable, keyword: str, values: Sequence[Any]
) -> None:
    groups = deal(at_places(3, **{keyword: values}))
    assert numbers(groups) == [[0, 1, 2], [3, 4, 5]]
    assert {group.notes for group in groups} == {(f"one of 2 parts of its series, separated by {keyword}",)}


def test_times_deal_by_their_order_at_each_position_and_not_by_their_values(deal: Callable) -> None:
    # At the second position the later image has an earlier time than any of the first position.
    groups = deal(at_places(3, TriggerTime=[500, 1, 30, 900, 2, 40]))
    assert numbers(groups) == [[0, 1, 2], [3, 4, 5]]


def test_times_are_compared_as_numbers(deal: Callable) -> None:
    groups = deal(at_places(3, TriggerTime=[9, 9, 9, 100, 100, 100]))
    assert numbers(groups) == [[0, 1, 2], [3, 4, 5]]


def test_two_elements_may_both_be_needed(deal: Callable) -> None:
    groups = deal(at_places(2, FlipAngle=[5] * 4 + [20] * 4, AcquisitionNumber=[1, 1, 2, 2] * 2), instances=8)
    assert numbers(groups) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [len(group.notes) for group in groups] == [2] * 4


def test_b_values_and_directions_become_a_volume_each(deal: Callable) -> None:
    directions = [None] * 2 + [[1.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 1.0]] * 2
    groups = deal(
        at_places(2, DiffusionBValue=[0, 0, 1000, 1000, 1000, 1000], DiffusionGradientOrientation=directions)
    )
    assert numbers(groups) == [[0, 1], [2, 3], [4, 5]]
    assert [len(group.notes) for group in groups] == [1, 2, 2]


NOT_TOLD_APART: dict[str, dict[str, Sequence[Any]]] = {
    "nothing differs": {},
    "an acquisition lacks a slice": {"AcquisitionNumber": [1, 1, 1, 2, 2, 1]},
    "three values at two positions": {"FlipAngle": [1, 1, 1, 2, 2, 3]},
    "times that are equal": {"TriggerTime": [0, 0, 0, 0, 400, 400]},
    "a time that is missing": {"TriggerTime": [0, 0, 0, 400, 400, None]},
}


@pytest.mark.parametrize("elements", NOT_TOLD_APART.values(), ids=NOT_TOLD_APART)
def test_what_cannot_be_distinguished_stays_together_and_is_refused(
    deal: Callable, tmp_path: Path, elements: dict[str, Sequence[Any]]
) -> None:
    (group,) = deal(at_places(3, **elements))
    assert len(group.planes) == 6
    assert refusal(tmp_path / "mr").code == "series-positions"


def test_an_aborted_last_acquisition_is_refused_and_not_left_out(deal: Callable, tmp_path: Path) -> None:
    (group,) = deal(at_places(3, AcquisitionNumber=[1, 1, 1, 2, 2]), instances=5)
    assert len(group.planes) == 5
    assert refusal(tmp_path / "mr").code == "series-positions"


def test_a_value_that_differs_between_positions_splits_nothing(deal: Callable) -> None:
    """A spine in blocks: each position has one image, whatever else differs."""
    groups = deal(lambda k, dataset: setattr(dataset, "AcquisitionNumber", k // 3))
    assert numbers(groups) == [[0, 1, 2, 3, 4, 5]] and groups[0].notes == ()


@pytest.mark.parametrize("keyword", ["EchoTime", "TemporalPositionIdentifier", "DiffusionBValue"])
def test_contrasts_at_one_position_are_volumes_of_their_own(deal: Callable, keyword: str) -> None:
    groups = deal(at_places(3, **{keyword: [1, 1, 1, 2, 2, 2]}))
    assert numbers(groups) == [[0, 1, 2], [3, 4, 5]]
    note = "one of 2 parts of its series, separated by echo, time or b-value"
    assert [group.notes for group in groups] == [(note,), (note,)]


SPELLINGS: dict[str, tuple[str, list[Any]]] = {
    "a time point for each slice": ("TemporalPositionIdentifier", [1, 2, 3, 4, 5, 6]),
    "one echo time, spelled in two ways": ("EchoTime", ["5", "5.0"] * 3),
}


@pytest.mark.parametrize(("keyword", "values"), SPELLINGS.values(), ids=SPELLINGS)
def test_a_contrast_that_differs_between_positions_splits_nothing(
    deal: Callable, keyword: str, values: list[Any]
) -> None:
    groups = deal(lambda k, dataset: setattr(dataset, keyword, values[k]))
    assert numbers(groups) == [[0, 1, 2, 3, 4, 5]]


def test_positions_that_are_nearly_the_same_are_one(deal: Callable) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [0, 0, 3.0 * (k % 3) + 0.01 * (k // 3)]
        dataset.AcquisitionNumber = k // 3

    assert numbers(deal(change)) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("apart", [0.0, 5e-5], ids=["equal", "rounded"])
def test_one_orientation_is_one_volume(deal: Callable, apart: float) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ImageOrientationPatient = [1, apart * (k % 2), 0, 0, 1, 0]

    assert len(deal(change)) == 1


@pytest.mark.parametrize(
    "elements",
    [
        {"PatientID": ["one", "other"]},
        {"StudyInstanceUID": [fixed_uid("one"), fixed_uid("other")]},
        {"SeriesInstanceUID": [fixed_uid("one"), fixed_uid("other")]},
        {"ImageOrientationPatient": [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]]},
    ],
    ids=lambda elements: next(iter(elements)),
)
def test_planes_of_another_volume_are_split_off(deal: Callable, elements: dict[str, Sequence]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        for keyword, values in elements.items():
            setattr(dataset, keyword, values[k // 3])

    assert numbers(deal(change)) == [[0, 1, 2], [3, 4, 5]]


def test_without_a_series_uid_the_folder_stands_for_the_series(deal: Callable) -> None:
    def change(k: int, dataset: Dataset) -> None:
        del dataset.SeriesInstanceUID

    assert len(deal(change)) == 1


def test_radiographs_are_images_of_their_own(deal: Callable) -> None:
    groups = deal(lambda k, dataset: setattr(dataset, "Modality", "DX"))
    assert [len(group.planes) for group in groups] == [1] * 6


def test_planes_without_a_position_stay_together_for_the_stack_to_refuse(
    deal: Callable, tmp_path: Path
) -> None:
    (group,) = deal(lambda k, dataset: dataset.pop("ImagePositionPatient"))
    assert len(group.planes) == 6
    assert refusal(tmp_path / "mr").code == "series-geometry"


def test_volumes_of_one_folder_are_named_by_their_first_files_and_read_apart(
    make_series: Callable, tmp_path: Path
) -> None:
    make_series(instances=6, change=at_places(3, AcquisitionNumber=[1, 1, 1, 2, 2, 2]))
    found = scan(tmp_path / "mr").series
    assert [source_name(series, tmp_path) for series in found] == ["mr/0-0-of-1.dcm", "mr/1-3-of-1.dcm"]
    assert [series.item for series in found] == [None, None]
    for start, image in zip((0, 3), read_images(tmp_path / "mr"), strict=True):
        expected = np.stack([pattern(6, 5, seed=seed) for seed in range(start, start + 3)])
        np.testing.assert_array_equal(image.pixels[0], expected)


def test_a_volume_keeps_its_name_whatever_the_order_of_files(make_series: Callable, tmp_path: Path) -> None:
    paths = make_series(instances=6, change=at_places(3, AcquisitionNumber=[1, 1, 1, 2, 2, 2]))
    assert scan(paths) == scan(paths[::-1]) == scan(tmp_path / "mr")
