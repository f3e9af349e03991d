"""Planes of one file: frames of an enhanced image and tiles of a mosaic lie where their header says."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from medtl.errors import ReadError
from medtl.imaging.dicom.frames import planes_of
from medtl.imaging.dicom.header import read_header
from medtl.imaging.dicom.instance import Instance
from medtl.imaging.reader import read_images, scan
from tests.imaging.conftest import AXIAL, build_enhanced, build_mosaic, csa_header, pattern, refusal, save

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
UPWARDS = [(-10.0, -20.0, 2.5 * place) for place in range(3)]


def planes(dataset: Dataset, folder: Path) -> list[Instance]:
    """Write a dataset and return the planes that it holds."""
    return planes_of(read_header(save(dataset, folder / "in" / "a.dcm")))


def enhanced(positions: Sequence[Sequence[float]] = UPWARDS, **elements: Any) -> Dataset:
    """Return an enhanced image with one frame for each position."""
    return build_enhanced(pattern(len(positions), 6, 5), positions, AXIAL, **elements)


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


# Enhanced images


def test_each_frame_has_its_own_position_and_the_shared_geometry(tmp_path: Path) -> None:
    found = planes(enhanced(), tmp_path)
    assert [plane.frame for plane in found] == [0, 1, 2]
    assert [plane.position for plane in found] == UPWARDS
    assert {(plane.orientation, plane.pixel_spacing, plane.frames) for plane in found} == {
        (AXIAL, (0.5, 0.25), 3)
    }


def test_the_group_of_a_frame_goes_before_the_shared_one(tmp_path: Path) -> None:
    dataset = enhanced()
    own = item(PixelMeasuresSequence=[item(PixelSpacing=[3, 4])])
    dataset.PerFrameFunctionalGroupsSequence[1].PixelMeasuresSequence = own.PixelMeasuresSequence
    assert [plane.pixel_spacing for plane in planes(dataset, tmp_path)] == [(0.5, 0.25), (3, 4), (0.5, 0.25)]


def test_frames_in_any_order_become_a_volume_in_the_order_of_their_positions(tmp_path: Path) -> None:
    order = [2, 0, 3, 1]
    dataset = enhanced([(0, 0, 2.5 * place) for place in order])
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], pattern(4, 6, 5)[np.argsort(order)])
    assert image.spacing_mm == (2.5, 0.5, 0.25)


@pytest.mark.parametrize(
    ("keyword", "values", "note"),
    [
        ("EffectiveEchoTime", (5, 9), ""),
        ("DiffusionBValue", (0, 1000), ""),
        ("TemporalPositionIndex", (1, 2), ""),
        ("FrameAcquisitionNumber", (1, 2), "separated by AcquisitionNumber"),
        ("NominalCardiacTriggerDelayTime", (0, 400), "separated by TriggerTime"),
        ("ComplexImageComponent", ("MAGNITUDE", "PHASE"), "separated by ComplexImageComponent"),
        ("FrameType", (["ORIGINAL", "M"], ["ORIGINAL", "P"]), "separated by ImageType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_frames_at_one_position_are_split_by_what_distinguishes_them(
    tmp_path: Path, keyword: str, values: Sequence[Any], note: str
) -> None:
    elements: dict[str, Any] = {f"frame_{keyword}": [values[index % 2] for index in range(6)]}
    dataset = enhanced([UPWARDS[index // 2] for index in range(6)], **elements)
    images = read_images(save(dataset, tmp_path / "a.dcm"))
    assert [image.facts.source.rsplit("#")[-1] for image in images] == ["volume/0", "volume/1"]
    for number, image in enumerate(images):
        np.testing.assert_array_equal(image.pixels[0], pattern(6, 6, 5)[number::2])
        assert note in " ".join(image.facts.notes)


def test_a_volume_of_a_file_is_read_on_its_own(tmp_path: Path) -> None:
    dataset = enhanced(UPWARDS * 2, frame_TemporalPositionIndex=[1] * 3 + [2] * 3)
    first, second = scan(save(dataset, tmp_path / "a.dcm")).series
    assert (first.item, second.item) == ("volume/0", "volume/1")
    assert first.files == second.files == (tmp_path / "a.dcm",)


def test_frames_that_nothing_distinguishes_are_refused(tmp_path: Path) -> None:
    assert refusal(save(enhanced(UPWARDS * 2), tmp_path / "a.dcm")).code == "series-positions"


def test_a_missing_frame_is_refused(tmp_path: Path) -> None:
    dataset = enhanced([(0, 0, 2.5 * place) for place in (0, 1, 3, 4)])
    assert refusal(save(dataset, tmp_path / "a.dcm")).code == "series-gap"


def test_each_frame_has_its_own_slope(tmp_path: Path) -> None:
    dataset = enhanced(frame_RescaleSlope=[1, 2, 0.5], frame_RescaleIntercept=[0, -5, 7])
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    expected = pattern(3, 6, 5) * np.reshape([1, 2, 0.5], (3, 1, 1)) + np.reshape([0, -5, 7], (3, 1, 1))
    np.testing.assert_array_equal(image.pixels[0], expected)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_groups_that_do_not_match_the_frames_are_refused(tmp_path: Path, count: int) -> None:
    dataset = enhanced()
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    dataset.PerFrameFunctionalGroupsSequence = (groups * 2)[:count]
    assert refusal(save(dataset, tmp_path / "a.dcm")).code == "dicom-header"


def test_frames_without_positions_are_refused(tmp_path: Path) -> None:
    dataset = enhanced()
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        del groups.PlanePositionSequence
    assert refusal(save(dataset, tmp_path / "a.dcm")).code == "series-geometry"


def test_frames_without_any_groups_are_a_cine_and_refused(tmp_path: Path) -> None:
    dataset = enhanced()
    del dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence
    assert refusal(save(dataset, tmp_path / "a.dcm")).code == "dicom-multiframe"


def test_one_frame_is_a_flat_image(tmp_path: Path) -> None:
    (image,) = read_images(save(enhanced(UPWARDS[:1]), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels, pattern(1, 6, 5))
    assert image.affine is None and image.spacing_mm == (0.5, 0.25)


def test_private_sequences_of_a_frame_count_for_nothing(tmp_path: Path) -> None:
    """Philips keeps a classic header of its own in each frame, with other positions and slopes."""
    dataset = enhanced(frame_RescaleSlope=[1, 1, 1], frame_RescaleIntercept=[0, 0, 0])
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        own = item(ImagePositionPatient=[0, 0, 99], RescaleSlope=7, EchoTime=3)
        groups.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [own])
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], pattern(3, 6, 5))


# Mosaics


@pytest.mark.parametrize("count", [1, 4, 7, 9, 10])
def test_the_tiles_of_a_mosaic_lie_where_the_first_one_and_the_normal_say(tmp_path: Path, count: int) -> None:
    dataset = build_mosaic(pattern(count, 8, 6), (-10, -20, 30), SAGITTAL, gap=3.0)
    found = planes(dataset, tmp_path)
    assert len(found) == count and {(plane.rows, plane.columns) for plane in found} == {(8, 6)}
    normal = np.cross(SAGITTAL[:3], SAGITTAL[3:])
    expected = [np.array([-10, -20, 30]) + 3.0 * index * normal for index in range(count)]
    np.testing.assert_allclose([plane.position for plane in found], expected, atol=1e-5)


def test_a_mosaic_is_cut_into_its_tiles(tmp_path: Path) -> None:
    (image,) = read_images(save(build_mosaic(pattern(7, 8, 6)), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], pattern(7, 8, 6))
    assert image.spacing_mm == pytest.approx((2.5, 0.5, 0.25))


def test_tiles_that_run_against_the_normal_are_turned_over(tmp_path: Path) -> None:
    (image,) = read_images(save(build_mosaic(pattern(7, 8, 6), downwards=True), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], pattern(7, 8, 6)[::-1])


def test_the_tiles_of_newer_scanners_are_counted_by_another_element(tmp_path: Path) -> None:
    dataset = build_mosaic(pattern(7, 8, 6))
    del dataset[0x00291010]
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 7)
    (image,) = read_images(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], pattern(7, 8, 6))


def no_header(dataset: Dataset) -> None:
    del dataset[0x00291010]


def no_tiles(dataset: Dataset) -> None:
    dataset[0x00291010].value = csa_header(0, (0, 0, 1))


def other_grid(dataset: Dataset) -> None:
    dataset[0x00291010].value = csa_header(17, (0, 0, 1))


def damaged_header(dataset: Dataset) -> None:
    dataset[0x00291010].value = csa_header(7, (0, 0, 1))[:60]


MOSAIC_FAULTS: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "no header": (no_header, "dicom-mosaic"),
    "no tiles": (no_tiles, "dicom-mosaic"),
    "tiles that do not fit": (other_grid, "dicom-mosaic"),
    "a damaged header": (damaged_header, "dicom-header"),
    "no position": (lambda dataset: dataset.pop("ImagePositionPatient"), "dicom-mosaic"),
    "no orientation": (lambda dataset: dataset.pop("ImageOrientationPatient"), "dicom-mosaic"),
    "no spacing": (lambda dataset: dataset.pop("PixelSpacing"), "dicom-mosaic"),
    "no distance of slices": (lambda dataset: dataset.pop("SpacingBetweenSlices"), "dicom-mosaic"),
}


@pytest.mark.parametrize(("edit", "code"), MOSAIC_FAULTS.values(), ids=MOSAIC_FAULTS)
def test_a_mosaic_that_does_not_say_how_it_is_laid_out_is_refused(
    tmp_path: Path, edit: Callable[[Dataset], object], code: str
) -> None:
    dataset = build_mosaic(pattern(7, 8, 6))
    edit(dataset)
    assert refusal(save(dataset, tmp_path / "a.dcm")).code == code


def test_the_error_of_a_file_names_it(tmp_path: Path) -> None:
    dataset = enhanced()
    dataset.PerFrameFunctionalGroupsSequence = []
    with pytest.raises(ReadError) as caught:
        planes(dataset, tmp_path)
    assert caught.value.where == str(tmp_path / "in" / "a.dcm")
