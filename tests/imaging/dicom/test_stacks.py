"""What was rounded or jittered is one volume, what is missing is refused, what is uneven is resampled."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage

from medtl.errors import ReadError
from medtl.imaging.dicom.resampling import even_grid
from medtl.imaging.image import Image
from medtl.imaging.inspection import inspect_header
from medtl.imaging.reader import read_images, read_series, scan
from medtl.imaging.series import Reading, Scan
from tests.imaging.conftest import AXIAL, build_dataset, fixed_uid, pattern, refusal, save

Change = Callable[[int, Dataset], object]
Vector = Sequence[float]
SAGITTAL = (0, 1, 0, 0, 0, -1)
JITTER_NOTE = "its slices differ in orientation by up to 0.011 degrees: the median counts"
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
UNEVEN = Reading(resample_uneven=True)


def read_one(folder: Path) -> Image:
    (image,) = read_images(folder)
    return image


def along(values: Sequence[float], orientation: Vector = AXIAL, digits: int = 6) -> Change:
    """Put slices so far along the normal, with coordinates of so many digits."""
    normal = np.cross(orientation[:3], orientation[3:])

    def change(k: int, dataset: Dataset) -> None:
        place = np.array([-10.03, -20.07, 30.01]) + values[k] * normal
        dataset.ImagePositionPatient = [round(float(v), digits) for v in place]

    return change


# Orientations


def jitter(*turned: int, by: float = 2e-4) -> Change:
    def change(k: int, dataset: Dataset) -> None:
        if k in turned:
            dataset.ImageOrientationPatient = [1 - by**2 / 2, by, 0, -by, 1 - by**2 / 2, 0]

    return change


@pytest.mark.parametrize("turned", [range(1, 12, 2), [5], [0], [11]], ids=["half", "one", "first", "last"])
def test_slices_turned_by_a_hundredth_of_a_degree_are_one_volume(
    make_series: Callable, turned: Sequence[int]
) -> None:
    image = read_one(make_series(instances=12, change=jitter(*turned))[0].parent)
    np.testing.assert_array_equal(image.pixels[0], np.stack([pattern(6, 5, seed=k) for k in range(12)]))
    assert image.facts.notes == (
        "its slices differ in orientation by up to 0.011 degrees: the median counts",
    )
    assert image.affine is not None
    expected = np.array([[0, 0, -0.25, 10], [0, -0.5, 0, 20], [2.5, 0, 0, 30], [0, 0, 0, 1]])
    np.testing.assert_allclose(image.affine, expected, atol=1e-4)


def test_orientations_that_move_a_pixel_are_two_volumes(make_series: Callable) -> None:
    """Turned by a degree, which on a matrix of 512 is nine pixels."""
    images = read_images(make_series(instances=6, change=jitter(3, 4, 5, by=0.0175))[0].parent)
    assert [image.pixels.shape[1] for image in images] == [3, 3]


def large(k: int, dataset: Dataset) -> None:
    dataset.Rows = dataset.Columns = 512
    dataset.PixelData = pattern(512, 512, seed=k).tobytes()
    dataset.PixelSpacing = [0.7, 0.7]


@pytest.mark.parametrize("by", [2e-4, 9e-4])
def test_what_a_turn_does_to_the_corner_decides(make_series: Callable, by: float) -> None:
    """Turned by 9e-4, the far corner of 512 pixels is 0.33 of one from where half of the turn has it."""

    def change(k: int, dataset: Dataset) -> None:
        large(k, dataset)
        jitter(1, 3, by=by)(k, dataset)

    (series,) = scan(make_series(instances=4, change=change)[0].parent).series
    assert len(series.files) == 4 and "differ in orientation" in series.notes[0]


@pytest.mark.parametrize("turned", [(5,), (0,), (11,), range(1, 12, 2)], ids=["one", "first", "last", "half"])
@pytest.mark.parametrize("by", [4e-3, 0.0175])
def test_slices_turned_among_others_are_refused_by_name(
    make_series: Callable, turned: Sequence[int], by: float
) -> None:
    """Nothing is missing, and half a volume is none."""
    error = refusal(make_series(instances=12, change=jitter(*turned, by=by))[0].parent)
    turn = np.degrees(by) / (1 if len(turned) == 1 else 2)
    assert error.code == "series-geometry" and f"turned by {turn:.2f} degrees" in error.reason


def test_a_slice_of_quite_another_orientation_is_an_image_of_its_own(make_series: Callable) -> None:
    def change(k: int, dataset: Dataset) -> None:
        if k == 5:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    images = read_images(make_series(instances=6, change=change)[0].parent)
    assert sorted(image.pixels.ndim for image in images) == [3, 4]


def test_a_lone_slice_that_is_hardly_turned_but_far_away_is_an_image_of_its_own(
    make_series: Callable,
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        if k == 11:
            jitter(11, by=0.026)(k, dataset)
            dataset.ImagePositionPatient = [0, 0, 90]

    images = read_images(make_series(instances=12, change=change)[0].parent)
    assert [image.pixels.shape[1] for image in images] == [11, 6]


def test_moments_that_only_a_small_turn_distinguishes_stay_apart(make_series: Callable) -> None:
    """A scanner that follows the patient's head turns each time point a little."""

    def change(k: int, dataset: Dataset) -> None:
        jitter(3, 4, 5, by=3e-4)(k, dataset)
        dataset.ImagePositionPatient = [0, 0, 2.5 * (k % 3) + 0.03 * (k // 3)]

    images = read_images(make_series(instances=6, change=change)[0].parent)
    assert [image.pixels.shape[1] for image in images] == [3, 3]


# Rounded positions


@pytest.mark.parametrize(
    "orientation", [AXIAL, (0, 1, 0, 0, 0, -1), OBLIQUE], ids=["axial", "sagittal", "oblique"]
)
@pytest.mark.parametrize(
    ("spacing", "digits"),
    [(1.25, 1), (0.625, 1), (0.33, 1), (0.6258, 2), (0.0871, 2), (5.05, 1)],
)
@pytest.mark.parametrize("count", [4, 16, 61])
def test_positions_rounded_to_a_decimal_are_one_even_volume(
    make_series: Callable, orientation: Vector, spacing: float, digits: int, count: int
) -> None:
    values = [spacing * k for k in range(count)]
    folder = make_series(instances=count, orientation=orientation, change=along(values, orientation, digits))[
        0
    ].parent
    image = read_one(folder)
    assert image.spacing_mm is not None and image.affine is not None
    decimal = 10.0**-digits
    assert image.spacing_mm[0] == pytest.approx(spacing, abs=2 * decimal / (count - 1))
    normal = np.cross(orientation[:3], orientation[3:]) * [-1, -1, 1]
    step = image.affine[:3, 0] / image.spacing_mm[0]
    assert np.degrees(np.arccos(min(1, float(step @ normal)))) < 0.3 or spacing < 0.1


def test_a_rounded_volume_says_so(make_series: Callable) -> None:
    folder = make_series(instances=16, change=along([1.25 * k for k in range(16)], digits=1))[0].parent
    assert read_one(folder).facts.notes == ("positions are rounded to 0.1 mm: the mean spacing counts",)


@pytest.mark.parametrize(
    ("spacing", "digits"), [(1.25, 1), (0.625, 1), (0.3, 1), (2.5, 0), (1.0, 0), (0.5, 0), (0.05, 2)]
)
@pytest.mark.parametrize("count", [4, 7, 30])
@pytest.mark.parametrize("missing", [(1,), (2,), (-2,), (1, 2)])
def test_rounding_never_hides_a_missing_slice(
    make_series: Callable, spacing: float, digits: int, count: int, missing: tuple[int, ...]
) -> None:
    numbers = [
        k for k in range(count + len(missing)) if k not in {m % (count + len(missing)) for m in missing}
    ]
    change = along([spacing * k for k in numbers], digits=digits)
    error = refusal(make_series(instances=count, change=change)[0].parent)
    assert error.code in ("series-gap", "series-irregular", "series-positions")


@pytest.mark.parametrize(
    "values",
    [
        [0, 2.4, 5.3, 7.5, 10.4],
        [0, 1.25, 2.5, 3.9, 5.0],
        [0, 3, 6, 11, 14],
        [0, 1, 2, 4, 5, 6, 7, 9],
        [0, 3, 7],
        [0, 5, 10, 15, 21],
    ],
    ids=str,
)
def test_uneven_positions_of_few_digits_are_refused(make_series: Callable, values: Sequence[float]) -> None:
    folder = make_series(instances=len(values), change=along(values, digits=2))[0].parent
    assert refusal(folder).code in ("series-irregular", "series-gap")


@pytest.mark.parametrize(
    "values", [[0, 2, 3, 5, 6, 8], [0, 2, 3, 4, 6, 8, 9, 10, 12]], ids=["rounded up", "rounded to even"]
)
def test_gaps_that_alternate_throughout_are_uneven_and_not_missing(
    make_series: Callable, values: Sequence[float]
) -> None:
    error = refusal(make_series(instances=len(values), change=along(values))[0].parent)
    assert error.code == "series-irregular" and "1.000 to 2.000 mm apart" in error.reason
    assert error.fix.startswith("resample it")


@pytest.mark.parametrize("lost", [(20,), (5, 7), (1, 2, 5, 8, 9, 13)], ids=["one", "two", "many"])
@pytest.mark.parametrize("normal", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_numbers_that_leave_slices_out_at_wide_gaps_say_that_they_are_missing(
    make_series: Callable, lost: tuple[int, ...], normal: Vector
) -> None:
    kept = [k for k in range(30) if k not in lost]
    place = along([1.5 * k for k in kept], normal, digits=1)

    def change(k: int, dataset: Dataset) -> None:
        place(k, dataset)
        dataset.ImageOrientationPatient, dataset.InstanceNumber = list(normal), kept[k] + 1

    folder = make_series(instances=len(kept), change=change)[0].parent
    for reading in (Reading(), UNEVEN):
        (refused,) = scan(folder, reading=reading).refusals
        assert refused.code == "series-gap", refused


def test_a_tilted_stack_of_every_second_slice_is_not_resampled(make_series: Callable) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [0, 0.35 * k, 2.0 * k]
        dataset.InstanceNumber, dataset.SpacingBetweenSlices, dataset.SliceThickness = 2 * k + 1, 1, 1

    folder = make_series(instances=8, change=change)[0].parent
    assert refusal(folder).code == "series-tilted"
    (refused,) = scan(folder, reading=UNEVEN).refusals
    assert refused.code == "series-gap" and "the header says 1.000" in refused.reason


def test_gaps_that_vary_are_resampled_and_missing_slices_are_not(make_series: Callable) -> None:
    def read(folder: str, gaps: Sequence[float]) -> Scan:
        positions = np.cumsum([0, *gaps]).tolist()
        files = make_series(instances=len(positions), change=along(positions), folder=folder)
        return scan(files[0].parent, reading=UNEVEN)

    assert len(read("varied", [2, 2, 3, 3, 2.5, 4, 2, 2, 3, 5]).series) == 1
    (refused,) = read("missing", [2, 2, 2.2, 2, 5, 2, 2, 2]).refusals
    assert refused.code == "series-irregular" and "some may be missing between" in refused.reason
    assert "not resampled" in refused.fix


def test_a_zigzag_is_no_gantry_tilt(make_series: Callable) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [0.5 * (k % 2), 0, 2.5 * k]

    error = refusal(make_series(instances=6, change=change)[0].parent)
    assert error.code == "series-irregular" and "beside a straight line" in error.reason


def test_positions_rounded_across_the_slice_are_on_a_line(make_series: Callable) -> None:
    """A stack along a slanted normal, whose coordinates have one decimal, is not sheared by it."""
    slanted = (0.99862953, 0.0, 0.05233596, 0.0, 1.0, 0.0)
    folder = make_series(
        instances=5, orientation=slanted, change=along([0.9 * k for k in range(5)], slanted, 1)
    )[0].parent
    assert read_one(folder).pixels.shape == (1, 5, 6, 5)


# Declared spacing


def numbered(step: int | None, **elements: object) -> Change:
    def change(k: int, dataset: Dataset) -> None:
        dataset.InstanceNumber = None if step is None else 1 + step * k
        dataset.SpacingBetweenSlices = dataset.SliceThickness = 1.25
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize(
    "kind",
    [
        ["DERIVED", "SECONDARY", "MPR"],
        ["DERIVED", "PRIMARY", "PROJECTION IMAGE", "MIP"],
        ["ORIGINAL", "PRIMARY", "MPR"],
    ],
)
def test_a_computed_series_may_keep_the_spacing_of_its_source(make_series: Callable, kind: list[str]) -> None:
    image = read_one(make_series(instances=5, change=numbered(1, ImageType=kind))[0].parent)
    assert image.spacing_mm is not None and image.spacing_mm[0] == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (1, ["ORIGINAL", "PRIMARY"]),
        (2, ["ORIGINAL", "PRIMARY"]),
        (2, ["DERIVED", "SECONDARY", "MPR"]),
        (None, ["DERIVED", "SECONDARY", "MPR"]),
    ],
)
def test_every_second_slice_that_is_lost_is_missed(
    make_series: Callable, step: int | None, kind: list[str]
) -> None:
    assert (
        refusal(make_series(instances=5, change=numbered(step, ImageType=kind))[0].parent).code
        == "series-gap"
    )


# Resampling


def phantom(places: NDArray) -> NDArray:
    """Return the values of a smooth object at places (..., 3) in LPS mm."""
    x, y, z = np.moveaxis(places, -1, 0)
    return 500 + 300 * np.sin(x / 23) + 200 * np.cos(y / 31 + 0.3) + 150 * np.sin(z / 29)


def write(folder: Path, places: Sequence[Vector], orientation: Vector = AXIAL, **elements: object) -> Path:
    """Write slices (60, 50) of the phantom, in steps of 0.1, whose first pixels lie at places (LPS mm)."""
    row, column = np.array(orientation, float).reshape(2, 3)
    down, right = np.mgrid[:60, :50][..., None]
    for k, place in enumerate(places):
        values = phantom(np.array(place) + down * 1.5 * column + right * 1.2 * row)
        dataset = build_dataset(
            np.round(values * 10).astype("uint16"),
            CTImageStorage,
            **{
                "Modality": "CT",
                "PixelSpacing": [1.5, 1.2],
                "ImageOrientationPatient": list(orientation),
                "ImagePositionPatient": [round(float(v), 6) for v in place],
                "SOPInstanceUID": fixed_uid(folder, k),
                "RescaleSlope": 0.1,
                "RescaleIntercept": 0,
                **elements,
            },
        )
        save(dataset, folder / f"{k:02d}.dcm")
    return folder


MIXED = [0, 2.5, 5, 7.5, 10, 15, 20, 25, 30, 35]
STACKS: dict[str, tuple[list[Vector], Vector, str]] = {
    "thin, then thick": ([(-10, -20, z) for z in MIXED], AXIAL, "series-irregular"),
    "irregular": ([(-10, -20, z) for z in (0, 2.4, 5.3, 7.5, 10.4, 12.5)], AXIAL, "series-irregular"),
    "tilted": ([(-10, -20 + 0.8 * k, 3 * k) for k in range(12)], AXIAL, "series-tilted"),
    "tilted the other way": ([(-10, -20 - 0.8 * k, 3 * k) for k in range(12)], AXIAL, "series-tilted"),
    "tilted coronal": ([(-10 + k, 3 * k, 20) for k in range(12)], (1, 0, 0, 0, 0, -1), "series-tilted"),
    "tilted and uneven": ([(-10, -20 - 0.4 * z, z) for z in MIXED], AXIAL, "series-irregular"),
    "one beside": ([(-10, -20 + 2 * (k == 3), 3 * k) for k in range(6)], AXIAL, "series-irregular"),
    "oblique": (
        [tuple(np.array([3, -7, 11]) + z * np.cross(OBLIQUE[:3], OBLIQUE[3:])) for z in MIXED],
        OBLIQUE,
        "series-irregular",
    ),
}


@pytest.mark.parametrize(("places", "orientation", "code"), STACKS.values(), ids=STACKS)
def test_a_stack_that_is_not_even_is_refused_or_resampled_where_it_lies(
    tmp_path: Path, places: list[Vector], orientation: Vector, code: str
) -> None:
    """Compared with the phantom itself; linear interpolation over 5 mm is off by up to 0.9."""
    folder = write(tmp_path / "ct", places, orientation)
    error = refusal(folder)
    assert error.code == code and error.fix.endswith("set preprocessing.resample_uneven=true")
    (series,) = scan(folder, reading=UNEVEN).series
    image = read_series(series)
    assert image.affine is not None and image.spacing_mm is not None
    grid = np.stack(np.meshgrid(*map(np.arange, image.pixels.shape[1:]), indexing="ij"), -1)
    expected = phantom((grid @ image.affine[:3, :3].T + image.affine[:3, 3]) * [-1, -1, 1])
    inside = image.pixels[0] > image.pixels.min()
    assert inside.mean() > 0.75
    np.testing.assert_allclose(image.pixels[0][inside], expected[inside], atol=1.0)
    np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :3], axis=0), image.spacing_mm, atol=1e-6)
    assert any(note.startswith("resampled to an even") for note in image.facts.notes)
    assert inspect_header(series).matrix == image.pixels.shape[1:]
    assert inspect_header(series).spacing_mm == image.spacing_mm


@pytest.mark.parametrize("name", ["irregular", "tilted", "one beside"])
def test_the_fix_is_never_cut_off(tmp_path: Path, name: str) -> None:
    """As it would be behind two file names that are UIDs."""
    folder = write(tmp_path / "ct", STACKS[name][0])
    for path in folder.iterdir():
        path.rename(folder / f"1.2.826.0.1.3680043.8.498.{'7' * 39}.{path.name}")
    assert str(refusal(folder)).endswith("set preprocessing.resample_uneven=true")


def test_slices_on_the_grid_keep_every_value(tmp_path: Path) -> None:
    folder = write(tmp_path / "ct", [(-10, -20, z) for z in MIXED])
    exact = [read_images(path)[0].pixels[0] for path in sorted(folder.iterdir())]
    image = read_series(scan(folder, reading=UNEVEN).series[0])
    assert image.spacing_mm == pytest.approx((2.5, 1.5, 1.2)) and image.pixels.shape == (1, 15, 60, 50)
    for number, one in zip((0, 1, 2, 3, 4, 6, 8, 10, 12, 14), exact, strict=True):
        np.testing.assert_array_equal(image.pixels[0, number], one)
    np.testing.assert_allclose(image.pixels[0, 5], (exact[4] + exact[5]) / 2, rtol=1e-6)


def test_an_even_stack_is_the_same_with_the_option(make_series: Callable) -> None:
    folder = make_series(instances=5)[0].parent
    exact, asked = (read_series(scan(folder, reading=one).series[0]) for one in (Reading(), UNEVEN))
    np.testing.assert_array_equal(asked.pixels, exact.pixels)
    np.testing.assert_array_equal(asked.affine, exact.affine)
    assert asked.facts.notes == exact.facts.notes == ()


@pytest.mark.parametrize(
    "values",
    [(0, 3, 6, 12, 15, 18), (0, 3, 6, 15, 18), (0, 2.4, 5.3, 12.0, 14.2), (0, 3, 6, 6, 9)],
    ids=["a missing slice", "two missing slices", "a gap of more than two", "two at one position"],
)
def test_missing_slices_are_never_interpolated(tmp_path: Path, values: Sequence[float]) -> None:
    folder = write(tmp_path / "ct", [(-10, -20, z) for z in values])
    found = scan(folder, reading=UNEVEN)
    assert not found.series
    assert found.refusals == scan(folder).refusals or str(found.refusals[0]) == str(scan(folder).refusals[0])
    assert "resample_uneven" not in found.refusals[0].fix


def test_padding_is_not_blended_with_its_neighbours(tmp_path: Path) -> None:
    folder = write(tmp_path / "ct", STACKS["tilted"][0], PixelPaddingValue=0)
    for path in folder.iterdir():
        dataset = dcmread(path)
        values = dataset.pixel_array.copy()
        values[:20] = 0
        dataset.PixelData = values.tobytes()
        save(dataset, path)
    image = read_series(scan(folder, reading=UNEVEN).series[0])
    lowest = min(phantom_values(folder))
    assert image.facts.padding is None and image.pixels.min() == pytest.approx(lowest)


def phantom_values(folder: Path) -> list[float]:
    """Return the lowest value of each slice without its padding."""
    return [
        float(image.pixels[image.pixels > 0].min())
        for path in folder.iterdir()
        for image in read_images(path)
    ]


def test_a_grid_is_no_finer_than_half_the_usual_gap() -> None:
    grid = even_grid(np.array([0, 0.03, 5, 10, 15.0]), np.zeros((5, 2)), 6, 5)
    assert grid.step_mm == pytest.approx(2.5, rel=0.01) and grid.shape == (7, 6, 5)


def test_a_resampled_volume_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "ct", STACKS["tilted"][0])
    monkeypatch.setattr("medtl.imaging.dicom.reader.MOST_VALUES", 12 * 60 * 50)
    (error,) = scan(folder, reading=UNEVEN).refusals
    assert error.code == "dicom-too-large" and isinstance(error, ReadError)
