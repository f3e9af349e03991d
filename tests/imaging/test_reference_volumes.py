"""Reference volumes: medtl reads what dcm2niix, an independent program, makes of the same files."""

import gzip
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from pydicom import Dataset

from medtl.imaging.image import Image
from medtl.imaging.reader import read_images
from tests.imaging.conftest import AXIAL, build_enhanced, build_grid, build_mosaic, pattern, save
from tests.waiting import PATIENCE

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
PLANES = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL}
# Rows and columns in mm, then the distance of slices.
SPACINGS = {"isotropic": (1.0, 1.0, 1.0), "thick": (0.5, 0.5, 6.5), "of three lengths": (0.9375, 0.7, 2.4)}
ANGLES = {"tilted": (0.0, 12.0, 0.0), "turned": (31.0, 0.0, -8.0), "oblique": (23.0, -17.0, 38.0)}

Orientation = tuple[float, ...]


def turn(orientation: Sequence[float], angles: Sequence[float]) -> Orientation:
    """Rotate row and column cosines by angles in degrees about x, y and z, in this order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        turned = np.eye(3)
        one, other = [index for index in range(3) if index != axis]
        turned[one, one] = turned[other, other] = np.cos(angle)
        turned[other, one], turned[one, other] = np.sin(angle), -np.sin(angle)
        matrix = turned @ matrix
    cosines = np.concatenate([matrix @ orientation[:3], matrix @ orientation[3:]])
    return tuple(round(float(value), 8) for value in cosines)


ORIENTATIONS: dict[str, Orientation] = {
    **PLANES,
    **{f"{name} {plane}": turn(PLANES[plane], angles) for plane in PLANES for name, angles in ANGLES.items()},
}


@pytest.fixture(scope="module")
def dcm2niix() -> str:
    """Return the path of the program, or skip where it is not installed."""
    package = pytest.importorskip("dcm2niix", reason="dcm2niix, the oracle for series, is not installed")
    return str(package.bin)


@pytest.fixture
def convert(dcm2niix: str, tmp_path: Path) -> Callable[[Path], list[SpatialImage]]:
    """Return a converter of a folder of DICOM files into three-dimensional volumes, by dcm2niix."""

    def run(folder: Path) -> list[SpatialImage]:
        out = tmp_path / "converted"
        out.mkdir()
        command = [dcm2niix, "-z", "n", "-b", "n", "-f", "%s_%t_%e", "-o", str(out), str(folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        return [part for path in sorted(out.glob("*.nii")) for part in split_times(nibabel.load(path))]

    return run


def split_times(volume: Any) -> list[SpatialImage]:
    """Return the time points of a volume as volumes of their own."""
    return nibabel.four_to_three(volume) if volume.ndim == 4 else [volume]


def canonical(voxels: NDArray, affine: NDArray | None) -> tuple[NDArray, NDArray]:
    """Turn a volume so that its axes point right, to the front and up, as nearly as they do."""
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.asarray(voxels, np.float32), affine))
    return turned.get_fdata(dtype=np.float32), turned.affine


def assert_equal(images: Sequence[Image], references: Sequence[SpatialImage], count: int) -> None:
    """Find for each image the one reference with the same voxels, at the same place within 0.01 mm."""
    assert (len(images), len(references)) == (count, count)
    left = [canonical(one.get_fdata(dtype=np.float32), one.affine) for one in references]
    for image in images:
        voxels, affine = canonical(image.pixels[0], image.affine)
        same = [index for index, (other, _) in enumerate(left) if np.array_equal(other, voxels)]
        assert len(same) == 1, (
            f"{len(same)} references of {len(left)} have the voxels of {image.facts.source}"
        )
        _, expected = left.pop(same[0])
        np.testing.assert_allclose(affine, expected, atol=0.01)


# Series of files


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_a_series_of_any_angle_and_spacing(
    make_series: Callable, convert: Callable, orientation: Orientation, spacing: tuple[float, ...]
) -> None:
    paths = make_series(
        instances=5,
        orientation=orientation,
        origin=(-71.25, 13.5, 42.125),
        gap=spacing[2],
        PixelSpacing=list(spacing[:2]),
        SliceThickness=spacing[2],
    )
    assert_equal(read_images(paths[0].parent), convert(paths[0].parent), 1)


@pytest.mark.parametrize("seed", range(3))
def test_names_and_instance_numbers_in_any_order(make_series: Callable, convert: Callable, seed: int) -> None:
    numbers = np.random.default_rng(seed).permutation(9)

    def scramble(k: int, dataset: Dataset) -> None:
        dataset.InstanceNumber = int(numbers[k]) + 1

    paths = make_series(instances=9, change=scramble, orientation=ORIENTATIONS["oblique axial"])
    for path, number in zip(paths, numbers[::-1], strict=True):
        path.rename(path.with_name(f"IM{number:04d}"))
    assert_equal(read_images(paths[0].parent), convert(paths[0].parent), 1)


@pytest.mark.parametrize(
    ("slopes", "intercepts"),
    [([0.25] * 5, [-100] * 5), ([1, 2, 0.5, 4, 8], [0] * 5), ([1, 2, 3, 4, 5], [-8, 0, 16, 24, -32])],
    ids=["one slope", "a slope per slice", "slope and intercept per slice"],
)
def test_rescaled_values(make_series: Callable, convert: Callable, slopes: list, intercepts: list) -> None:
    def rescale(k: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slopes[k], intercepts[k]

    paths = make_series(instances=5, change=rescale)
    assert_equal(read_images(paths[0].parent), convert(paths[0].parent), 1)


@pytest.mark.parametrize("count", [2, 3])
def test_echoes(make_series: Callable, convert: Callable, count: int) -> None:
    def echo(k: int, dataset: Dataset) -> None:
        dataset.EchoTime, dataset.EchoNumbers = 5.0 + k % count, 1 + k % count
        dataset.ImagePositionPatient = [0, 0, 3.0 * (k // count)]

    paths = make_series(instances=4 * count, change=echo)
    assert_equal(read_images(paths[0].parent), convert(paths[0].parent), count)


@pytest.mark.parametrize("keyword", ["TemporalPositionIdentifier", "AcquisitionNumber"])
def test_a_dynamic_series(make_series: Callable, convert: Callable, keyword: str) -> None:
    times, slices = 4, 3

    def moment(k: int, dataset: Dataset) -> None:
        setattr(dataset, keyword, 1 + k // slices)
        dataset.ImagePositionPatient = [0, 0, 3.0 * (k % slices)]
        dataset.InstanceNumber = k + 1
        dataset.AcquisitionTime = dataset.ContentTime = f"1200{k // slices:02d}"

    paths = make_series(instances=times * slices, change=moment)
    assert_equal(read_images(paths[0].parent), convert(paths[0].parent), times)


@pytest.mark.parametrize("by_position", [True, False], ids=["position after position", "time after time"])
def test_time_points_that_only_numbers_tell_apart(
    make_series: Callable, convert: Callable, by_position: bool
) -> None:
    """As GE scanners write functional series."""
    times, slices = 4, 5

    def moment(k: int, dataset: Dataset) -> None:
        time, place = divmod(k, slices)
        dataset.ImagePositionPatient = [0, 0, 3.0 * place]
        dataset.InstanceNumber = 1 + (k if by_position else place * times + time)
        dataset.NumberOfTemporalPositions, dataset.Manufacturer = times, "GE MEDICAL SYSTEMS"

    paths = make_series(instances=times * slices, change=moment)
    assert_equal(read_images(paths[0].parent), convert(paths[0].parent), times)


# Several planes in one file


def positions_along(orientation: Orientation, count: int, gap: float = 2.5) -> list[NDArray]:
    """Return the positions of planes along the normal of an orientation."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [np.array([-30.0, 12.5, 7.25]) + index * gap * normal for index in range(count)]


@pytest.mark.parametrize("name", ["axial", "sagittal", "coronal", "oblique axial", "turned sagittal"])
def test_an_enhanced_image(tmp_path: Path, convert: Callable, name: str) -> None:
    orientation = ORIENTATIONS[name]
    dataset = build_enhanced(pattern(5, 6, 7), positions_along(orientation, 5), orientation)
    save(dataset, tmp_path / "in" / "a.dcm")
    assert_equal(read_images(tmp_path / "in"), convert(tmp_path / "in"), 1)


def test_an_enhanced_image_with_time_points(tmp_path: Path, convert: Callable) -> None:
    positions = positions_along(AXIAL, 4) * 3
    times = [1 + index // 4 for index in range(12)]
    dataset = build_enhanced(pattern(12, 6, 7), positions, AXIAL, frame_TemporalPositionIndex=times)
    for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        content = groups.FrameContentSequence[0]
        content.DimensionIndexValues = [index % 4 + 1, times[index]]
        content.InStackPositionNumber = index % 4 + 1
    save(dataset, tmp_path / "in" / "a.dcm")
    assert_equal(read_images(tmp_path / "in"), convert(tmp_path / "in"), 3)


@pytest.mark.parametrize("downwards", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("name", ["axial", "sagittal", "coronal", "oblique axial", "tilted coronal"])
def test_a_mosaic(tmp_path: Path, convert: Callable, name: str, downwards: bool) -> None:
    dataset = build_mosaic(
        pattern(11, 10, 8),
        orientation=ORIENTATIONS[name],
        gap=3.25,
        downwards=downwards,
        PixelSpacing=[2.0, 1.5],
        InstanceNumber=1,
    )
    save(dataset, tmp_path / "in" / "a.dcm")
    assert_equal(read_images(tmp_path / "in"), convert(tmp_path / "in"), 1)


def test_mosaics_of_one_dynamic_series(tmp_path: Path, convert: Callable) -> None:
    for time in range(3):
        dataset = build_mosaic(
            pattern(4, 8, 8, seed=time), InstanceNumber=time + 1, AcquisitionNumber=time + 1
        )
        dataset.AcquisitionTime = dataset.ContentTime = f"12000{time}"
        save(dataset, tmp_path / "in" / f"{time}.dcm")
    assert_equal(read_images(tmp_path / "in"), convert(tmp_path / "in"), 3)


@pytest.mark.parametrize("downwards", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("name", ["axial", "sagittal", "coronal", "oblique axial", "tilted coronal"])
def test_a_united_imaging_grid(tmp_path: Path, convert: Callable, name: str, downwards: bool) -> None:
    dataset = build_grid(
        pattern(11, 16, 18),
        orientation=ORIENTATIONS[name],
        gap=3.25,
        downwards=downwards,
        PixelSpacing=[2.0, 1.5],
        InstanceNumber=1,
    )
    save(dataset, tmp_path / "in" / "a.dcm")
    assert_equal(read_images(tmp_path / "in"), convert(tmp_path / "in"), 1)


@pytest.mark.parametrize("count", [2, 3, 6, 12, 20, 27])
def test_a_united_imaging_grid_of_any_number_of_tiles(tmp_path: Path, convert: Callable, count: int) -> None:
    save(build_grid(pattern(count, 16, 18), InstanceNumber=1), tmp_path / "in" / "a.dcm")
    assert_equal(read_images(tmp_path / "in"), convert(tmp_path / "in"), 1)


def test_united_imaging_grids_of_one_dynamic_series(tmp_path: Path, convert: Callable) -> None:
    for time in range(3):
        dataset = build_grid(
            pattern(6, 16, 18, seed=time), InstanceNumber=time + 1, AcquisitionNumber=time + 1
        )
        dataset.AcquisitionTime = dataset.ContentTime = f"12000{time}"
        save(dataset, tmp_path / "in" / f"{time}.dcm")
    assert_equal(read_images(tmp_path / "in"), convert(tmp_path / "in"), 3)


# Files of scanners


def unpack(name: str, folder: Path) -> Path:
    """Write one of nibabel's own test files, inflated, into a folder."""
    source = Path(nibabel.__file__).parent / "nicom" / "tests" / "data" / f"{name}.gz"
    if not source.is_file():
        pytest.skip(f"nibabel was installed without its test file {source.name}")
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(gzip.decompress(source.read_bytes()))
    return path


@pytest.mark.parametrize("name", ["siemens_dwi_0.dcm", "siemens_dwi_1000.dcm"])
def test_a_mosaic_of_a_scanner(tmp_path: Path, convert: Callable, name: str) -> None:
    folder = unpack(name, tmp_path / "in").parent
    assert_equal(read_images(folder), convert(folder), 1)


def test_an_enhanced_image_of_a_scanner_lies_where_its_positions_say(tmp_path: Path) -> None:
    """Compared with its own header: dcm2niix puts the origin of this file 0.53 mm elsewhere."""
    path = unpack("philips_mprage.dcm", tmp_path / "in")
    (image,) = read_images(path)
    dataset = pydicom.dcmread(path)
    planes = {
        tuple(float(v) for v in groups.PlanePositionSequence[0].ImagePositionPatient): stored
        for groups, stored in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True)
    }
    assert image.affine is not None and image.pixels.shape[1] == len(planes)
    slope, intercept = _transformation(dataset)
    for number, plane in enumerate(image.pixels[0]):
        place = (image.affine @ [number, 0, 0, 1])[:3] * [-1, -1, 1]
        (position,) = [one for one in planes if np.linalg.norm(np.subtract(one, place)) < 0.01]
        np.testing.assert_array_equal(plane, (planes[position] * slope + intercept).astype(np.float32))


def _transformation(dataset: Dataset) -> tuple[float, float]:
    item: Any = dataset.PerFrameFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    return float(item.RescaleSlope), float(item.RescaleIntercept)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["11-T1post-18670", "36468-FLAIRreg-58706"])
def test_a_real_series(shared_data: Path, tmp_path: Path, convert: Callable, name: str) -> None:
    shutil.copytree(shared_data / "brain-mri-dicom" / name, tmp_path / "in")
    assert_equal(read_images(tmp_path / "in"), convert(tmp_path / "in"), 1)


# The one known difference


@pytest.mark.parametrize("precise", [False, True], ids=["displayed", "precise"])
def test_philips_volumes_have_the_displayed_values(
    make_series: Callable, dcm2niix: str, tmp_path: Path, precise: bool
) -> None:
    """dcm2niix divides by the slope and by a private scale slope, unless it is asked not to."""
    slope, scale = 1.5, 0.02

    def make_philips(number: int, dataset: Dataset) -> None:
        dataset.Manufacturer, dataset.RescaleSlope, dataset.RescaleIntercept = "Philips", slope, 0
        block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", scale)

    (folder,) = {path.parent for path in make_series(instances=4, change=make_philips)}
    (image,) = read_images(folder)
    choice = ["-p", "y" if precise else "n"]
    command = [dcm2niix, *choice, "-z", "n", "-b", "n", "-f", "a", "-o", str(tmp_path), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    reference: Any = nibabel.load(tmp_path / "a.nii")
    expected, _ = canonical(reference.get_fdata(), reference.affine)
    voxels, _ = canonical(image.pixels[0], image.affine)
    factor = slope * scale if precise else 1
    np.testing.assert_allclose(voxels, expected * factor, rtol=1e-5)
