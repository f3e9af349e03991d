"""Grids of United Imaging are cut into slices that lie where their items say; unnamed sheets are refused."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from medtl.imaging.dicom.frames import planes_of
from medtl.imaging.dicom.header import read_header
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images
from tests.imaging.conftest import (
    AXIAL,
    build_dataset,
    build_enhanced,
    build_grid,
    build_mosaic,
    pattern,
    refusal,
    save,
)

OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
COUNT, ITEMS, CREATOR = 0x00651050, 0x00651051, 0x00650010


def read_one(path: Path) -> Image:
    (image,) = read_images(path)
    return image


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 12, 20, 27])
def test_a_grid_is_cut_into_its_tiles_whatever_it_leaves_empty(tmp_path: Path, count: int) -> None:
    image = read_one(save(build_grid(pattern(count, 16, 18)), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], pattern(count, 16, 18))
    assert image.spacing_mm == pytest.approx((2.5, 0.5, 0.25))


@pytest.mark.parametrize("downwards", [False, True])
def test_tiles_lie_where_their_items_say(tmp_path: Path, downwards: bool) -> None:
    dataset = build_grid(pattern(6, 16, 18), (3, -7, 11), OBLIQUE, gap=4.2, downwards=downwards)
    image = read_one(save(dataset, tmp_path / "a.dcm"))
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:]) * (-1 if downwards else 1)
    assert image.affine is not None
    for index in range(6):
        number = 5 - index if downwards else index
        np.testing.assert_array_equal(image.pixels[0, number], pattern(6, 16, 18)[index])
        place = np.array([3, -7, 11]) + index * 4.2 * normal
        np.testing.assert_allclose((image.affine @ [number, 0, 0, 1])[:3], place * [-1, -1, 1], atol=1e-4)


def in_another_block(tmp_path: Path) -> Path:
    return save(build_grid(pattern(6, 16, 18), block=0x1C), tmp_path / "a.dcm")


def implicit(tmp_path: Path) -> Path:
    """Write private elements without their value representations."""
    dataset = build_grid(pattern(6, 16, 18), block=0x12)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return save(dataset, tmp_path / "a.dcm")


def unknown(tmp_path: Path) -> Path:
    """Write the sequence as UN whose content stays explicit."""
    path = save(build_grid(pattern(6, 16, 18)), tmp_path / "a.dcm")
    content = path.read_bytes()
    sound, changed = (b"\x65\x00\x51\x10" + kind for kind in (b"SQ", b"UN"))
    assert content.count(sound) == 1
    path.write_bytes(content.replace(sound, changed))
    return path


def big_endian(tmp_path: Path) -> Path:
    dataset = build_grid(pattern(6, 16, 18))
    dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    path = tmp_path / "a.dcm"
    dataset.save_as(path, little_endian=False, implicit_vr=False, enforce_file_format=True)
    return path


def compressed(tmp_path: Path) -> Path:
    dataset = build_grid(pattern(6, 16, 18))
    dataset.compress(RLELossless, generate_instance_uid=False)
    return save(dataset, tmp_path / "a.dcm")


def without(*tags: int, **elements: object) -> Callable[[Path], Path]:
    def write(tmp_path: Path) -> Path:
        dataset = build_grid(pattern(6, 16, 18), **elements)
        for tag in tags:
            del dataset[tag]
        return save(dataset, tmp_path / "a.dcm")

    return write


READ = {
    "another block": in_another_block,
    "implicit": implicit,
    "unknown representation": unknown,
    "big endian": big_endian,
    "compressed": compressed,
    "no creator": without(CREATOR),
    "no count": without(COUNT),
    "another ImageType": without(ImageType=["ORIGINAL", "PRIMARY"]),
    "another ImageType and a position": without(ImageType=["ORIGINAL"], ImagePositionPatient=[0, 0, 0]),
}


@pytest.mark.parametrize("write", READ.values(), ids=READ)
def test_a_grid_is_read_however_its_private_elements_are_written(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    np.testing.assert_array_equal(read_one(write(tmp_path)).pixels[0], pattern(6, 16, 18))


def test_grids_of_one_series_are_a_volume_each(tmp_path: Path) -> None:
    """They have nothing but their file to tell them apart."""
    for time in range(3):
        save(build_grid(pattern(6, 16, 18, seed=time)), tmp_path / "in" / f"{time}.dcm")
    images = read_images(tmp_path / "in")
    for time, image in enumerate(images):
        np.testing.assert_array_equal(image.pixels[0], pattern(6, 16, 18, seed=time))
        assert image.facts.notes == ("one of 3 parts of its series, separated by file",)


def test_each_tile_has_its_own_slope(tmp_path: Path) -> None:
    dataset = build_grid(pattern(4, 16, 18))
    for index, item in enumerate(dataset[ITEMS].value):
        item.RescaleSlope, item.RescaleIntercept = index + 1, 0
    image = read_one(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], pattern(4, 16, 18) * np.arange(1, 5)[:, None, None])


def lie(dataset: Dataset) -> None:
    dataset[COUNT].value = "7"


def lose_a_position(dataset: Dataset) -> None:
    del dataset[ITEMS].value[2].ImagePositionPatient


GRID_FAULTS: dict[str, Callable[[Dataset], object]] = {
    "no items": lambda dataset: dataset.pop(ITEMS),
    "no private elements": lambda dataset: [dataset.pop(tag) for tag in (ITEMS, COUNT, CREATOR)],
    "another count": lie,
    "a tile without position": lose_a_position,
    "rows that tiles do not fill": lambda dataset: setattr(dataset, "Rows", 31),
    "no private elements, another ImageType": lambda dataset: [
        *(dataset.pop(tag) for tag in (ITEMS, COUNT, CREATOR)),
        setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", "M"]),
    ],
}


@pytest.mark.parametrize("edit", GRID_FAULTS.values(), ids=GRID_FAULTS)
def test_a_grid_that_does_not_say_how_it_is_laid_out_is_refused(
    tmp_path: Path, edit: Callable[[Dataset], object]
) -> None:
    dataset = build_grid(pattern(6, 16, 18))
    edit(dataset)
    error = refusal(save(dataset, tmp_path / "a.dcm"))
    assert error.code == "dicom-mosaic" and "grid" in error.reason


def mr(rows: int = 96, columns: int = 96, **elements: object) -> Dataset:
    return build_dataset(pattern(rows, columns), MRImageStorage, BitsStored=12, **elements)


SHEETS = {
    "an orientation": mr(ImageOrientationPatient=list(AXIAL)),
    "more than a scanner images": mr(PixelSpacing=[7.0, 7.0]),
}
NO_SHEETS = {
    "neither position nor orientation": mr(),
    "a position": mr(ImageOrientationPatient=list(AXIAL), ImagePositionPatient=[0, 0, 0]),
    "a size that no tiles fill": mr(97, 89, ImageOrientationPatient=list(AXIAL)),
    "a size of less than two tiles": mr(20, 24, ImageOrientationPatient=list(AXIAL)),
    "a screen save": mr(
        SOPClassUID=SecondaryCaptureImageStorage, ImageOrientationPatient=list(AXIAL), Modality="MR"
    ),
}


@pytest.mark.parametrize("dataset", SHEETS.values(), ids=SHEETS)
def test_a_lone_mr_image_without_a_position_that_may_be_a_sheet_is_refused(
    tmp_path: Path, dataset: Dataset
) -> None:
    error = refusal(save(dataset, tmp_path / "a.dcm"))
    assert error.code == "dicom-mosaic" and "may be a grid of slices" in error.reason


@pytest.mark.parametrize("dataset", NO_SHEETS.values(), ids=NO_SHEETS)
def test_a_lone_mr_image_that_is_no_sheet_is_a_flat_image(tmp_path: Path, dataset: Dataset) -> None:
    image = read_one(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], dataset.pixel_array)


@pytest.mark.parametrize("lost", [range(5), [4], [2]], ids=["all", "the last", "one between"])
def test_slices_that_lost_their_positions_are_no_sheets_but_refuse_their_series(
    make_series: Callable, lost: Sequence[int]
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.Rows = dataset.Columns = 96
        dataset.PixelData = pattern(96, 96, seed=k).tobytes()
        if k in lost:
            del dataset.ImagePositionPatient

    error = refusal(make_series(instances=5, change=change)[0].parent)
    assert error.code == "series-geometry" and "ImagePositionPatient" in error.reason


def test_a_mosaic_is_known_without_its_word_where_it_has_no_position(tmp_path: Path) -> None:
    dataset = build_mosaic(pattern(7, 16, 16), ImageType=["ORIGINAL", "PRIMARY"])
    del dataset.ImagePositionPatient
    error = refusal(save(dataset, tmp_path / "a.dcm"))
    assert error.code == "dicom-mosaic" and "Siemens" in error.reason


def test_a_mosaic_is_read_whatever_the_block_of_its_header(tmp_path: Path) -> None:
    dataset = build_mosaic(pattern(7, 8, 6))
    content = dataset[0x00291010].value
    del dataset[0x00291010], dataset[0x00290010], dataset[0x00291008]
    dataset.add_new(0x00290013, "LO", "SIEMENS CSA HEADER")
    dataset.add_new(0x00291310, "OB", content)
    image = read_one(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.pixels[0], pattern(7, 8, 6))


def test_frames_that_kept_the_word_mosaic_are_slices(tmp_path: Path) -> None:
    """As Siemens XA exports mosaics: one frame a slice, under the ImageType of the mosaic."""
    places = [(-10.0, -20.0, 2.5 * place) for place in range(4)]
    dataset = build_enhanced(pattern(4, 6, 5), places, AXIAL, ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])
    np.testing.assert_array_equal(read_one(save(dataset, tmp_path / "a.dcm")).pixels[0], pattern(4, 6, 5))


def test_frames_that_are_mosaics_at_one_position_are_refused(tmp_path: Path) -> None:
    dataset = build_enhanced(
        pattern(3, 32, 32),
        [(0, 0, 0)] * 3,
        AXIAL,
        ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"],
        frame_TemporalPositionIndex=[1, 2, 3],
    )
    assert refusal(save(dataset, tmp_path / "a.dcm")).code == "dicom-mosaic"


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_a_plain_header_never_hides_a_grid(tmp_path: Path, syntax: UID | None) -> None:
    dataset = build_grid(pattern(6, 16, 18), ImageType=["ORIGINAL"], ImagePositionPatient=[0, 0, 0])
    if syntax:
        dataset.file_meta.TransferSyntaxUID = syntax
    path = save(dataset, tmp_path / "a.dcm")
    assert len(planes_of(read_header(path))) == 6
    assert read_one(path).pixels.shape == (1, 6, 16, 18)
    assert pydicom.dcmread(path).Rows == 32
