"""Planes of a folder become the volumes that they form; what nothing distinguishes is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import UID, MRImageStorage, SecondaryCaptureImageStorage

from medtl.data.naming import source_name
from medtl.imaging.dicom.frames import planes_of
from medtl.imaging.dicom.header import read_header
from medtl.imaging.dicom.volumes import TIMES, PlaneSet, split_planes
from medtl.imaging.reader import read_images, scan
from tests.imaging.conftest import build_dataset, fixed_uid, pattern, refusal, save

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
    which = ("part 1 of 2", "part 2 of 2") if keyword in TIMES else ("one of 2 parts",) * 2
    notes = [(f"{part} of its series, separated by {keyword}",) for part in which]
    assert [group.notes for group in groups] == notes


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


# Time points that only numbers tell apart


def dynamic(times: int, places: int, number: Callable[[int, int], int], **elements: Any) -> Change:
    """Put slice k at time k // places and position k % places, numbered by both."""

    def change(k: int, dataset: Dataset) -> None:
        time, place = divmod(k, places)
        dataset.ImagePositionPatient = [0, 0, 3.0 * place]
        dataset.InstanceNumber, dataset.NumberOfTemporalPositions = number(time, place), times
        for keyword, value in elements.items():
            setattr(dataset, keyword, value) if value is not None else delattr(dataset, keyword)

    return change


NUMBERED: dict[str, Callable[[int, int], int]] = {
    "position after position": lambda time, place: 1 + 3 * time + place,
    "position after position, downwards": lambda time, place: 3 + 3 * time - place,
    "time after time": lambda time, place: 1 + 2 * place + time,
    "from another number on": lambda time, place: 901 + 3 * time + place,
    "from a negative number on": lambda time, place: -2 + 3 * time + place,
    "interleaved positions": lambda time, place: 1 + 3 * time + (0, 2, 1)[place],
}


@pytest.mark.parametrize("number", NUMBERED.values(), ids=NUMBERED)
def test_numbers_tell_time_points_apart_where_the_header_says_how_many(
    deal: Callable, number: Callable[[int, int], int]
) -> None:
    groups = deal(dynamic(2, 3, number))
    assert sorted(sorted(one) for one in numbers(groups)) == [[0, 1, 2], [3, 4, 5]]
    notes = {tuple(sorted(one)): group.notes for one, group in zip(numbers(groups), groups, strict=True)}
    for part, slices in enumerate(((0, 1, 2), (3, 4, 5)), start=1):
        assert notes[slices] == (f"part {part} of 2 of its series, separated by instance number",)


UNNUMBERED: dict[str, Change] = {
    "no number of time points": dynamic(2, 3, NUMBERED["time after time"], NumberOfTemporalPositions=None),
    "another number of time points": dynamic(2, 3, NUMBERED["time after time"], NumberOfTemporalPositions=3),
    "one time point": dynamic(2, 3, NUMBERED["time after time"], NumberOfTemporalPositions=1),
    "a gap in the numbers": dynamic(2, 3, lambda time, place: 1 + 4 * time + place),
    "numbers in no order": dynamic(2, 3, lambda time, place: (4, 1, 3, 2, 6, 5)[3 * time + place]),
    "numbers that repeat": dynamic(2, 3, lambda time, place: 1 + place),
    "no numbers": dynamic(2, 3, NUMBERED["time after time"], InstanceNumber=None),
    "numbers beyond all sense": dynamic(2, 3, NUMBERED["time after time"], InstanceNumber=2**31 - 1),
}


@pytest.mark.parametrize("change", UNNUMBERED.values(), ids=UNNUMBERED)
def test_numbers_that_do_not_say_which_time_it_is_split_nothing(
    deal: Callable, tmp_path: Path, change: Change
) -> None:
    (group,) = deal(change)
    assert len(group.planes) == 6
    assert refusal(tmp_path / "mr").code == "series-positions"


def test_a_position_that_lacks_a_time_point_is_refused(deal: Callable, tmp_path: Path) -> None:
    (group,) = deal(dynamic(2, 3, NUMBERED["position after position"]), instances=5)
    assert len(group.planes) == 5
    assert refusal(tmp_path / "mr").code == "series-positions"


def test_numbers_help_where_b_values_tell_only_some_volumes_apart(deal: Callable) -> None:
    """One volume without weighting, and two directions that have no element of their own."""

    def change(k: int, dataset: Dataset) -> None:
        dynamic(3, 3, NUMBERED["position after position"])(k, dataset)
        dataset.DiffusionBValue = 0 if k < 3 else 1000

    assert numbers(deal(change, instances=9)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_an_element_that_distinguishes_goes_before_the_numbers(deal: Callable) -> None:
    groups = deal(dynamic(2, 3, NUMBERED["position after position"], TriggerTime="0"))
    assert len(groups) == 2
    groups = deal(at_places(3, TriggerTime=[0] * 3 + [400] * 3, NumberOfTemporalPositions=[2] * 6))
    assert {note for group in groups for note in group.notes} == {
        f"part {part} of 2 of its series, separated by TriggerTime" for part in (1, 2)
    }


# Pictures beside slices


@pytest.fixture
def add_picture(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of a screen save of the study that make_series writes."""

    def add(name: str, sop_class: UID = SecondaryCaptureImageStorage, **elements: Any) -> Path:
        dataset = build_dataset(
            pattern(20, 16, dtype="uint8", top=255),
            sop_class,
            **{
                "Modality": "MR",
                "ImageType": ["DERIVED", "SECONDARY"],
                "PatientID": "CANARY-1",
                "StudyInstanceUID": fixed_uid("study", 1),
                "SeriesInstanceUID": fixed_uid("pictures"),
                "PixelSpacing": None,
                **elements,
            },
        )
        return save(dataset, tmp_path / name)

    return add


PICTURE_KINDS: dict[str, dict[str, Any]] = {
    "secondary captures": {},
    "captures of several frames": {"NumberOfFrames": 4},
    "captures in the series of the slices": {"SeriesInstanceUID": fixed_uid("series", 1, "mr")},
    "MR images that are derived": {"sop_class": MRImageStorage},
    "screen saves of another image type": {"ImageType": ["ORIGINAL", "PRIMARY"]},
}


@pytest.mark.parametrize("kind", PICTURE_KINDS.values(), ids=PICTURE_KINDS)
def test_pictures_beside_slices_are_counted(
    make_series: Callable, add_picture: Callable, tmp_path: Path, kind: dict[str, Any]
) -> None:
    make_series()
    for number in range(2):
        add_picture(f"mr/screen{number}.dcm", **kind)
    found = scan(tmp_path)
    assert [len(series.files) for series in found.series] == [3] and not found.refusals
    assert found.skipped == 2


def test_captures_of_several_frames_are_counted_under_their_name(
    make_series: Callable, add_picture: Callable, tmp_path: Path
) -> None:
    make_series()
    add_picture("mr/cine.dcm", NumberOfFrames=4)
    what = "DICOM objects other than images (Secondary Capture of several frames)"
    assert scan(tmp_path).left_out == {what: 1}


def test_a_picture_that_is_named_is_read(
    make_series: Callable, add_picture: Callable, tmp_path: Path
) -> None:
    paths, picture = make_series(), add_picture("mr/screen.dcm")
    assert scan(tmp_path).left_out == {"screen saves and other pictures beside slices": 1}
    for source in (picture, [*paths, picture]):
        image = next(one for one in read_images(source) if one.facts.source == str(picture))
        np.testing.assert_array_equal(image.pixels, pattern(1, 20, 16, dtype="uint8", top=255))
    frames = add_picture("mr/frames.dcm", NumberOfFrames=4)
    assert refusal([*paths, frames]).code == "dicom-no-image"


def test_a_study_of_pictures_alone_is_read_image_by_image(add_picture: Callable, tmp_path: Path) -> None:
    """As films that were scanned."""
    for number in range(3):
        add_picture(f"films/{number}.dcm", Modality="CT")
    images = read_images(tmp_path / "films")
    assert [image.pixels.shape for image in images] == [(1, 20, 16)] * 3
    assert (
        refusal(add_picture("films/frames.dcm", Modality="CT", NumberOfFrames=4)).code == "dicom-multiframe"
    )


def test_pictures_of_another_study_stay(make_series: Callable, add_picture: Callable, tmp_path: Path) -> None:
    make_series()
    add_picture("mr/other.dcm", StudyInstanceUID=fixed_uid("study", 2))
    found = scan(tmp_path)
    assert len(found.series) == 2 and found.skipped == 0


def test_a_capture_with_a_position_is_a_slice(make_series: Callable, tmp_path: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.SOPClassUID = SecondaryCaptureImageStorage

    make_series(change=change, Modality="MR")
    assert [image.pixels.shape[1] for image in read_images(tmp_path)] == [3]


def test_slices_that_lost_their_geometry_are_no_pictures(make_series: Callable, tmp_path: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ImageType = ["DERIVED", "SECONDARY"]
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    make_series(change=change)
    assert refusal(tmp_path).code == "series-geometry"


@pytest.mark.parametrize("lost", [0, 2, 4], ids=["first", "middle", "last"])
def test_a_derived_slice_that_lost_its_geometry_is_missed_and_not_left_out(
    make_series: Callable, tmp_path: Path, lost: int
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ImageType = ["DERIVED", "SECONDARY", "MPR"]
        if k == lost:
            del dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    make_series(instances=5, change=change)
    assert refusal(tmp_path).code == "series-geometry"
