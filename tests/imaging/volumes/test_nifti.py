"""NIfTI files: read exactly, or refused by name."""

import gzip
import hashlib
import struct
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medtl.data.naming import source_name
from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images, read_series, scan
from medtl.imaging.series import Reading
from medtl.imaging.volumes import volume_file
from tests.imaging.conftest import pattern, refusal
from tests.waiting import slowness

OBLIQUE = np.array(
    [[-1.8, 0.6, 0.0, 40.0], [0.8, 1.35, 0.0, -30.0], [0.0, 0.0, 3.0, 12.0], [0.0, 0.0, 0.0, 1.0]]
)


def read_one(path: Path) -> Image:
    (image,) = read_images(path)
    return image


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "b.nii"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image], ids=["NIfTI-1", "NIfTI-2"])
def test_pixels_and_affine_come_back(make_nifti: Callable, name: str, kind: Any) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    image = read_one(make_nifti(values, OBLIQUE, name, kind=kind))
    np.testing.assert_array_equal(image.pixels, values[None])
    assert image.pixels.dtype == np.float32 and image.pixels.flags.c_contiguous
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert image.spacing_mm == pytest.approx(np.linalg.norm(OBLIQUE[:3, :3], axis=0), abs=1e-5)
    assert image.facts.format == "nifti" and image.facts.bits == 16


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int32", "uint32", "float32", "float64", ">i2", ">f4"]
)
def test_every_real_type_is_read(make_nifti: Callable, dtype: str) -> None:
    values = pattern(4, 5, 6, dtype=dtype, top=100)
    np.testing.assert_array_equal(read_one(make_nifti(values)).pixels[0], values.astype(np.float32))


def test_slope_and_intercept_are_applied(make_nifti: Callable) -> None:
    path = make_nifti(edit=lambda header: header.set_slope_inter(0.5, -7), name="scaled.nii")
    stored = nibabel.load(path).dataobj.get_unscaled()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(read_one(path).pixels[0], stored * 0.5 - 7)


def test_extensions_swapped_are_read_by_content(make_nifti: Callable, tmp_path: Path) -> None:
    plain, packed = make_nifti(name="a.nii"), make_nifti(name="b.nii.gz")
    expected = read_one(plain).pixels
    (tmp_path / "packed.nii").write_bytes(packed.read_bytes())
    (tmp_path / "plain.nii.gz").write_bytes(plain.read_bytes())
    for name in ("packed.nii", "plain.nii.gz"):
        np.testing.assert_array_equal(read_one(tmp_path / name).pixels, expected)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 1, 1)])
def test_a_single_slice_stays_a_volume_of_one_slice(make_nifti: Callable, shape: tuple) -> None:
    image = read_one(make_nifti(pattern(*shape, dtype="int16")))
    assert image.pixels.shape == (1, 4, 5, 1) and image.affine is not None


def test_one_time_point_is_squeezed(make_nifti: Callable) -> None:
    assert read_one(make_nifti(pattern(4, 5, 6, 1, dtype="int16"))).pixels.shape == (1, 4, 5, 6)


def test_the_qform_is_used_where_there_is_no_sform(make_nifti: Callable) -> None:
    def only_qform(header: Any) -> None:
        header.set_qform(np.diag([3.0, 3.0, 4.0, 1.0]), code=1)
        header.set_sform(None, code=0)

    image = read_one(make_nifti(edit=only_qform))
    assert image.spacing_mm == pytest.approx((3, 3, 4))


@pytest.mark.parametrize("handedness", [1, -1])
def test_a_turned_qform_equals_nibabel(make_nifti: Callable, handedness: int) -> None:
    path = make_nifti(edit=quaternion(handedness, 0.1, -0.3, 0.6))
    reference = nibabel.load(path).affine  # type: ignore[attr-defined]
    assert np.sign(np.linalg.det(reference)) == handedness
    np.testing.assert_allclose(read_one(path).affine, reference, atol=1e-6)


def test_a_qform_without_handedness_is_right_handed(make_nifti: Callable) -> None:
    expected = read_one(make_nifti(edit=quaternion(1, 0.1, -0.3, 0.6))).affine
    np.testing.assert_array_equal(read_one(make_nifti(edit=quaternion(0, 0.1, -0.3, 0.6))).affine, expected)


def test_the_sform_comes_first_where_both_say_nearly_the_same(make_nifti: Callable) -> None:
    def nearly(header: Any) -> None:
        header.set_qform(np.diag([2.05, 1.5, 3.0, 1.0]), code=1)

    path = make_nifti(edit=nearly)
    np.testing.assert_array_equal(read_one(path).affine, nibabel.load(path).affine)  # type: ignore[attr-defined]
    assert read_one(path).spacing_mm == (2.0, 1.5, 3.0)


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)])
def test_lengths_become_millimetres(make_nifti: Callable, unit: str, mm: float) -> None:
    image = read_one(make_nifti(edit=lambda header: header.set_xyzt_units(unit)))
    assert len(image.facts.notes) == (mm != 1)
    assert image.spacing_mm == pytest.approx((2 * mm, 1.5 * mm, 3 * mm))


@pytest.mark.parametrize("slope", [0, np.nan])
def test_no_slope_leaves_values_as_they_are_stored(make_nifti: Callable, slope: float) -> None:
    def edit(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = slope, 9

    np.testing.assert_array_equal(read_one(make_nifti(edit=edit)).pixels[0], pattern(4, 5, 6, dtype="int16"))


def long_quaternion(longer: float, sform_code: int) -> Callable[[Any], None]:
    """Turn by nearly 180 degrees, with a quaternion that is longer than 1."""

    def edit(header: Any) -> None:
        header["qform_code"], header["sform_code"] = 1, sform_code
        header["pixdim"][:4] = 1, 2, 1.5, 3
        header["quatern_b"], header["quatern_c"] = 0, 0.0005
        header["quatern_d"] = np.sqrt((1 + longer) ** 2 - 0.0005**2)
        header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = 10, 11, -12

    return edit


@pytest.mark.parametrize("longer", [1e-8, 3e-7, 5e-7, 1e-6, 4e-6])
def test_a_quaternion_that_rounding_made_longer_than_1_is_one_of_length_1(
    make_nifti: Callable, longer: float
) -> None:
    image = read_one(make_nifti(edit=long_quaternion(longer, 0)))
    # half a turn about (0, 0.0005, 1), as ITK and FSL read it, with w = 0
    b, c, d = np.array([0, 0.0005, np.sqrt(1 - 0.0005**2)])
    turn = np.array(
        [
            [b * b - c * c - d * d, 2 * b * c, 2 * b * d],
            [2 * b * c, c * c - b * b - d * d, 2 * c * d],
            [2 * b * d, 2 * c * d, d * d - b * b - c * c],
        ]
    )
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = turn * [2, 1.5, 3], [10, 11, -12]
    np.testing.assert_allclose(image.affine, expected, atol=0.002)  # w is lost: up to 3e-4 of a voxel
    assert len(image.facts.notes) == (longer > 2e-7)


@pytest.mark.parametrize("longer", [3e-7, 5e-7, 1e-3, 0.5, np.nan])
@pytest.mark.parametrize("code", [1, 2])
def test_beside_a_valid_sform_an_invalid_quaternion_does_not_count(
    make_nifti: Callable, longer: float, code: int
) -> None:
    sform = np.diag([-2.0, -1.5, 3.0, 1.0])
    sform[:3, 3] = 10, 11, -12
    path = make_nifti(affine=sform, edit=long_quaternion(longer, code))
    image = read_one(path)
    np.testing.assert_array_equal(image.affine, sform)
    assert [note for note in image.facts.notes if "qform is invalid" in note] or longer < 1e-4


@pytest.mark.parametrize("longer", [1e-4, 1e-3])
def test_a_quaternion_that_is_longer_than_rounding_makes_it_is_refused(
    make_nifti: Callable, longer: float
) -> None:
    error = refusal(make_nifti(edit=long_quaternion(longer, 0)))
    assert (error.code, error.reason) == ("nifti-affine", "has an invalid qform")


@pytest.mark.parametrize("codes", [(2, 1), (4, 1), (1, 2), (3, 4), (5, 1)], ids=str)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image], ids=["NIfTI-1", "NIfTI-2"])
def test_the_sform_counts_where_the_qform_names_another_space(
    make_nifti: Callable, codes: tuple[int, int], kind: Any
) -> None:
    moved = np.diag([-2.0, -2, 3, 1])
    moved[:3, 3] = 8, 5, 3

    def edit(header: Any) -> None:
        header["sform_code"] = codes[0]
        header.set_qform(moved, code=codes[1])

    path = make_nifti(affine=OBLIQUE, edit=edit, kind=kind)
    image = read_one(path)
    np.testing.assert_allclose(image.affine, nibabel.load(path).affine)  # type: ignore[attr-defined]
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    (note,) = image.facts.notes
    assert note.startswith("placed by its sform (") and note.endswith(" mm away")


@pytest.mark.parametrize("pixdim", [-1.5, 0.0, np.nan])
def test_sizes_that_are_none_do_not_count_beside_an_sform(make_nifti: Callable, pixdim: float) -> None:
    def edit(header: Any) -> None:
        header["qform_code"], header["pixdim"][2] = 1, pixdim

    image = read_one(make_nifti(affine=OBLIQUE, edit=edit))
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert image.facts.notes == ("its qform is invalid: read by its sform",)


@pytest.mark.parametrize("pixdim", [-1.5, 0.0, np.nan, np.inf])
def test_without_an_sform_sizes_that_are_none_are_refused(make_nifti: Callable, pixdim: float) -> None:
    def edit(header: Any) -> None:
        quaternion(1, 0.1, -0.3, 0.6)(header)
        header["pixdim"][2] = pixdim

    assert refusal(make_nifti(edit=edit)).code == "nifti-affine"


def test_the_third_size_of_a_flat_file_does_not_matter(make_nifti: Callable) -> None:
    def edit(header: Any) -> None:
        quaternion(1, 0, 0, 0)(header)
        header["pixdim"][3] = 0

    image = read_one(make_nifti(pattern(4, 5, dtype="int16"), edit=edit))
    assert image.spacing_mm == pytest.approx((2, 1.5, 1))


def test_a_singular_sform_is_refused_with_a_fix_that_works(make_nifti: Callable) -> None:
    def edit(header: Any) -> None:
        header.set_qform(np.diag([2.0, 1.5, 3.0, 1.0]), code=1)
        header["srow_y"] = 0

    error = refusal(make_nifti(edit=edit))
    assert error.code == "nifti-affine" and error.fix.endswith("set its code to 0 beside a qform")

    def fixed(header: Any) -> None:
        edit(header)
        header["sform_code"] = 0

    assert read_one(make_nifti(edit=fixed)).spacing_mm == pytest.approx((2, 1.5, 3))


def no_forms(header: Any) -> None:
    header.set_sform(None, code=0)
    header.set_qform(None, code=0)


def conflict(header: Any) -> None:
    header.set_qform(np.diag([2.0, 1.5, 3.5, 1.0]), code=int(header["sform_code"]))


def set_field(keyword: str, value: Any) -> Callable[[Any], None]:
    def edit(header: Any) -> None:
        header[keyword] = value

    return edit


def quaternion(handedness: float, b: float, c: float, d: float) -> Callable[[Any], None]:
    """Leave the qform alone to say where the volume lies, turned by a quaternion."""

    def edit(header: Any) -> None:
        header["sform_code"], header["qform_code"] = 0, 1
        header["pixdim"][:4] = handedness, 2, 1.5, 3
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = b, c, d

    return edit


def scaling(slope: float, inter: float) -> Callable[[Any], None]:
    def edit(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = slope, inter

    return edit


REFUSED_HEADERS = {
    "no forms": (no_forms, "nifti-affine"),
    "invalid quaternion": (quaternion(1, 0.9, 0.9, 0.9), "nifti-affine"),
    "NaN quaternion": (quaternion(1, np.nan, 0, 0), "nifti-affine"),
    "unknown handedness": (quaternion(2, 0, 0, 0), "nifti-affine"),
    "no size": (set_field("srow_y", [0, 0, 0, 5]), "nifti-affine"),
    "slope without intercept": (scaling(2, np.nan), "nifti-header"),
    "infinite slope": (scaling(np.inf, 0), "nifti-header"),
    "another number of bits": (set_field("bitpix", 8), "nifti-header"),
    "forms in conflict": (conflict, "nifti-affine"),
    "singular": (set_field("srow_z", [0, 0, 0, 0]), "nifti-affine"),
    "NaN affine": (set_field("srow_x", [np.nan, 0, 0, 0]), "nifti-affine"),
    "unknown space": (set_field("sform_code", 91), "nifti-affine"),
    "unknown unit": (set_field("xyzt_units", 7), "nifti-header"),
}


@pytest.mark.parametrize(("edit", "code"), REFUSED_HEADERS.values(), ids=REFUSED_HEADERS)
def test_a_header_that_does_not_say_where_the_volume_lies_is_refused(
    make_nifti: Callable, edit: Callable, code: str
) -> None:
    assert refusal(make_nifti(edit=edit)).code == code


PATCHES = {
    "no dimensions": (40, b"\0" * 16, "nifti-header"),
    "negative dimension": (42, (-4).to_bytes(2, "little", signed=True), "nifti-header"),
    "dimensions that lie": (42, b"\xff\x7f" * 3, "nifti-too-large"),
    "unknown type": (70, b"\x99\x09", "nifti-header"),
    "pixels at 0": (108, np.float32(0).tobytes(), "nifti-header"),
    "pixels at NaN": (108, np.float32(np.nan).tobytes(), "nifti-header"),
    "pixels far away": (108, np.float32(1e9).tobytes(), "nifti-header"),
    "pixels in another file": (344, b"ni1\0", "nifti-pair"),
}


@pytest.mark.parametrize(("place", "value", "code"), PATCHES.values(), ids=PATCHES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_header_that_contradicts_itself_is_refused(
    make_nifti: Callable, place: int, value: bytes, code: str, packed: bool
) -> None:
    path = make_nifti(name="a.nii")
    data = bytearray(path.read_bytes())
    data[place : place + len(value)] = value
    path.write_bytes(gzip.compress(data) if packed else data)
    assert refusal(path).code == code


@pytest.mark.parametrize("dtype", ["complex64", "rgb"])
def test_complex_and_colour_are_refused(make_nifti: Callable, dtype: str) -> None:
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    values = np.zeros((4, 5, 6), rgb if dtype == "rgb" else dtype)
    assert refusal(make_nifti(values)).code == "nifti-type"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_numbers_of_32_bits_are_refused(
    make_nifti: Callable, value: float
) -> None:
    values = np.ones((4, 5, 6), np.float64)
    values[1, 2, 3] = value
    assert refusal(make_nifti(values)).code == "nifti-not-finite"


FILLED = Reading(fill_nan=True)


@pytest.mark.parametrize("dtype", ["float32", ">f4", "float64"])
@pytest.mark.parametrize("lowest", [-3.0, 7.0])
def test_nan_become_the_lowest_value_where_the_recipe_says_so(
    make_nifti: Callable, dtype: str, lowest: float
) -> None:
    values = (pattern(4, 5, 6, dtype="float32") + 100).astype(dtype)
    values[0], values[1, 1, 1] = np.nan, lowest
    path = make_nifti(values)
    error = refusal(path)
    assert (error.code, error.reason) == ("nifti-not-finite", "has NaN values")
    assert error.fix.endswith("or set preprocessing.fill_nan=true")
    (series,) = scan(path, reading=FILLED).series
    image = read_series(series)
    np.testing.assert_array_equal(image.pixels[0], np.where(np.isnan(values), lowest, values))
    assert image.facts.notes == ("30 NaN were given the lowest value",)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
def test_infinite_values_are_no_background(make_nifti: Callable, value: float) -> None:
    values = np.ones((4, 5, 6), np.float64)
    values[0], values[1, 2, 3] = np.nan, value
    path = make_nifti(values)
    with pytest.raises(ReadError, match=r"infinite or immense.*: mask them$"):
        read_series(scan(path, reading=FILLED).series[0])
    assert "fill_nan" not in refusal(path).fix


def test_a_volume_of_nan_alone_is_refused(make_nifti: Callable) -> None:
    values = np.ones((4, 5, 6, 2), np.float32)
    values[..., 1] = np.nan
    first, second = scan(make_nifti(values), reading=FILLED).series
    assert read_series(first).pixels.min() == 1
    with pytest.raises(ReadError, match="has NaN alone"):
        read_series(second)


@pytest.mark.parametrize("dtype", ["int32", ">i4", "uint32", "int64", "uint64", "float64"])
def test_whole_numbers_that_float32_rounds_are_noted(make_nifti: Callable, dtype: str) -> None:
    values, kind = pattern(4, 5, 6, dtype="int16").astype(dtype), partial(nibabel.Nifti1Image, dtype=dtype)
    values[1, 2, 3] = 2**24
    assert read_one(make_nifti(values, kind=kind)).facts.notes == ()
    values[1, 2, 3] = 2**24 + 2
    assert read_one(make_nifti(values, kind=kind)).facts.notes == (), "an even one is exact"
    values[1, 2, 3] = 2**24 + 1
    image = read_one(make_nifti(values, kind=kind))
    assert image.facts.notes == ("values beyond 2^24 were rounded to the 24 bits of float32",)


AS_CHANNELS = Reading(volumes_as_channels=True)


def read_channels(path: Path) -> Image:
    (series,) = scan(path, reading=AS_CHANNELS).series
    assert series.item is None
    return read_series(series)


@pytest.mark.parametrize("name", ["brats.nii", "brats.nii.gz"])
@pytest.mark.parametrize(
    ("shape", "intent"),
    [
        ((4, 5, 6, 3), 0),
        ((4, 5, 1, 2), 0),
        ((4, 5, 6, 3), 1007),
        ((4, 5, 6, 1, 3), 1007),
        ((4, 5, 6, 1, 3), 0),
    ],
    ids=str,
)
def test_volumes_become_channels_where_the_recipe_says_so(
    make_nifti: Callable, name: str, shape: tuple[int, ...], intent: int
) -> None:
    values = pattern(*shape, dtype="int16")
    path = make_nifti(values, OBLIQUE, name, edit=set_field("intent_code", intent))
    image = read_channels(path)
    np.testing.assert_array_equal(image.pixels, np.moveaxis(values, -1, 0).reshape(-1, *shape[:3]))
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert image.facts.stacked and image.facts.notes == () and image.pixels.flags.c_contiguous
    assert image.facts.source == str(path)


@pytest.mark.parametrize("alpha", [False, True], ids=["RGB24", "RGBA32"])
def test_colours_become_channels_where_the_recipe_says_so(make_nifti: Callable, alpha: bool) -> None:
    values = pattern(4, 5, 6, 4 if alpha else 3, dtype="uint8", top=255)
    packed = values.view([(name, "u1") for name in "RGBA"[: values.shape[-1]]])[..., 0]
    path = make_nifti(packed)
    assert refusal(path).code == "nifti-type"
    image = read_channels(path)
    np.testing.assert_array_equal(image.pixels, np.moveaxis(values[..., :3], -1, 0))
    assert (image.facts.photometric, image.facts.stacked) == ("RGB", False)


def test_channels_of_immense_number_are_refused_by_the_header(make_nifti: Callable) -> None:
    path = make_nifti(name="a.nii")
    path.write_bytes(lie(path.read_bytes(), 512, 512, 512, 100))
    (error,) = scan(path, reading=AS_CHANNELS).refusals
    assert error.code == "nifti-too-large"


def test_nan_of_a_channel_become_its_own_lowest_value(make_nifti: Callable) -> None:
    values = np.arange(240, dtype=np.float32).reshape(4, 5, 6, 2)
    values[0] = np.nan
    reading = Reading(fill_nan=True, volumes_as_channels=True)
    image = read_series(scan(make_nifti(values), reading=reading).series[0])
    assert image.pixels[:, 0].max(axis=(1, 2)).tolist() == [60, 61]


@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image], ids=["NIfTI-1", "NIfTI-2"])
def test_a_4d_file_is_split_into_its_volumes(make_nifti: Callable, name: str, kind: Any) -> None:
    values = pattern(4, 5, 6, 3, dtype="int16")
    path = make_nifti(values, OBLIQUE, name, kind=kind)
    series = scan(path).series
    assert [source_name(one, path) for one in series] == [f"{name}#volume/{number}" for number in range(3)]
    assert {one.path for one in series} == {path} == {one.files[0] for one in series}
    for number, image in enumerate(read_images(path)):
        np.testing.assert_array_equal(image.pixels, values[None, ..., number])
        np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
        assert image.pixels.flags.c_contiguous and len(image.spacing_mm or ()) == 3
        assert image.facts.source == f"{path}#volume/{number}"
        assert image.facts.notes == ("one of 3 volumes of its file",)
        assert image.facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_slices_over_time_become_volumes_of_one_slice(make_nifti: Callable) -> None:
    values = pattern(4, 5, 1, 3, dtype="int16")
    images = read_images(make_nifti(values))
    np.testing.assert_array_equal([image.pixels[0] for image in images], np.moveaxis(values, -1, 0))


def test_each_volume_is_scaled(make_nifti: Callable) -> None:
    values = pattern(4, 5, 6, 3, dtype="int16")
    path = make_nifti(values, edit=lambda header: header.set_slope_inter(0.3, -7))
    expected = (values * float(np.float32(0.3)) - 7).astype(np.float32)
    for number, image in enumerate(read_images(path)):
        np.testing.assert_array_equal(image.pixels[0], expected[..., number])


@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
def test_one_volume_takes_the_memory_of_one_volume(
    make_nifti: Callable, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_file, "MOST_CACHED_BYTES", 0)
    series = scan(make_nifti(pattern(32, 32, 32, 40, dtype="int16"), name=name)).series
    tracemalloc.start()
    image = read_series(series[20])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # stored and converted, a check and a piece of the stream: all volumes would take 40 times as much
    assert image.pixels.nbytes < peak < 4 * image.pixels.nbytes


@pytest.fixture
def inflations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are inflated from here on."""
    seen: list[str] = []
    whole = volume_file.inflate

    def inflate(raw: Any, header: Any, path: Path) -> Any:
        seen.append(path.name)
        return whole(raw, header, path)

    monkeypatch.setattr(volume_file, "inflate", inflate)
    monkeypatch.setattr(volume_file, "_last", None)
    return seen


def test_a_4d_file_is_inflated_once_for_all_its_volumes(make_nifti: Callable, inflations: list[str]) -> None:
    values = pattern(4, 5, 6, 8, dtype="int16")
    images = read_images(make_nifti(values, name="bold.nii.gz"))
    np.testing.assert_array_equal([image.pixels[0] for image in images], np.moveaxis(values, -1, 0))
    assert inflations == ["bold.nii.gz"] and volume_file._last is None, "dropped behind the last volume"


def test_a_large_4d_file_is_not_kept(
    make_nifti: Callable, inflations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = pattern(4, 5, 6, 3, dtype="int16")
    monkeypatch.setattr(volume_file, "MOST_CACHED_BYTES", values.nbytes - 1)
    assert len(read_images(make_nifti(values))) == 3 and len(inflations) == 3 and volume_file._last is None


def test_a_4d_file_that_was_rewritten_is_inflated_again(make_nifti: Callable, inflations: list[str]) -> None:
    series = scan(make_nifti(pattern(4, 5, 6, 3, dtype="int16"))).series
    read_series(series[0])
    other = pattern(4, 5, 6, 3, dtype="int16", seed=1)
    make_nifti(other)
    np.testing.assert_array_equal(read_series(series[1]).pixels[0], other[..., 1])
    assert len(inflations) == 2


def test_threads_that_want_the_same_file_inflate_it_once(make_nifti: Callable, inflations: list[str]) -> None:
    values = pattern(20, 20, 20, 12, dtype="int16")
    series = scan(make_nifti(values)).series
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(read_series, series[:-1]))
    np.testing.assert_array_equal([image.pixels[0] for image in images], np.moveaxis(values, -1, 0)[:-1])
    assert len(inflations) == 1


def test_a_value_that_is_not_finite_refuses_its_volume_alone(make_nifti: Callable) -> None:
    values = np.ones((4, 5, 6, 3), np.float32)
    values[1, 2, 3, 1] = np.nan
    path = make_nifti(values)
    refusals: list[ReadError] = []
    assert len(read_images(path, refusals=refusals)) == 2
    assert [(error.code, error.where) for error in refusals] == [("nifti-not-finite", f"{path}#volume/1")]


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_damage_behind_a_volume_refuses_that_volume_too(make_nifti: Callable, kept: float) -> None:
    path = make_nifti(pattern(9, 9, 9, 4, dtype="int16"))
    series, data = scan(path).series, path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    for one in series:
        with pytest.raises(ReadError, match="nifti-truncated"):
            read_series(one)


def test_a_file_that_changed_since_it_was_listed_is_refused(make_nifti: Callable) -> None:
    *_, last = scan(make_nifti(pattern(4, 5, 6, 3, dtype="int16"))).series
    make_nifti(pattern(4, 5, 6, 2, dtype="int16"))
    with pytest.raises(ReadError, match="has changed since it was listed"):
        read_series(last)


def vectors(header: Any) -> None:
    header["intent_code"] = 1007


@pytest.mark.parametrize(
    ("shape", "edit"),
    [((4, 5, 6, 1, 3), None), ((4, 5, 6, 2, 1, 2), None), ((4, 5, 6, 3), vectors)],
    ids=["vector", "sixth axis", "vector in the fourth axis"],
)
def test_several_values_in_a_voxel_are_refused(
    make_nifti: Callable, shape: tuple[int, ...], edit: Callable | None
) -> None:
    assert refusal(make_nifti(pattern(*shape, dtype="int16"), edit=edit)).code == "nifti-dimensions"


IMPOSTORS = {
    "HTML page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "run `git lfs pull`",
    ),
    "gzip of text": (gzip.compress(b"volume " * 200), "gzip of something else"),
}


@pytest.mark.parametrize(("content", "named"), IMPOSTORS.values(), ids=IMPOSTORS)
@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
def test_what_is_only_named_like_nifti_is_refused_with_what_it_is(
    tmp_path: Path, name: str, content: bytes, named: str
) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path)
    assert error.code == "file-unknown" and named in str(error)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_truncated_file_is_refused_by_name(make_nifti: Callable, name: str, kept: float) -> None:
    path = make_nifti(pattern(9, 9, 9, dtype="int16"), name=name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    error = refusal(path)
    assert error.code in ("nifti-truncated", "file-unknown") and error.where == str(path)


def test_a_corrupted_gzip_payload_is_never_read(make_nifti: Callable) -> None:
    path = make_nifti(pattern(9, 9, 9, dtype="int16"))
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(200):
        place, bit = generator.integers(10, len(data)), generator.integers(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
        with pytest.raises(ReadError):
            read_images(path)


def test_a_few_bytes_behind_the_pixels_are_noted(make_nifti: Callable) -> None:
    path = make_nifti(name="a.nii")
    expected = read_one(path).pixels
    path.write_bytes(path.read_bytes() + b"\1" * 20)
    image = read_one(path)
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.facts.notes == ("20 bytes follow its pixels",)


def test_gzip_in_several_members_and_padded_is_read(make_nifti: Callable) -> None:
    path = make_nifti(pattern(9, 9, 9, dtype="int16"), name="a.nii")
    expected, data = read_one(path).pixels, path.read_bytes()
    members = [gzip.compress(data[place : place + 600]) for place in range(0, len(data), 600)]
    path.write_bytes(b"".join(members) + b"\0" * 512)
    np.testing.assert_array_equal(read_one(path).pixels, expected)


def lie(data: bytes, *extents: int) -> bytes:
    """Let the header of a NIfTI-1 file announce other dimensions."""
    return data[:40] + struct.pack("<8h", len(extents), *extents, *[1] * (7 - len(extents))) + data[56:]


def gzip_of_zeros(head: bytes, count: int) -> bytes:
    """Compress zeros behind a head. A member of them, repeated, costs the test nothing."""
    return gzip.compress(head) + gzip.compress(bytes(2**24)) * (count // 2**24)


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "small-header.nii.gz": lambda data: gzip.compress(data + bytes(2**27), compresslevel=1),
    "small-header-before-8-GiB.nii.gz": lambda data: gzip_of_zeros(data, 2**33),
    "announces-262-MB-before-4-GiB.nii.gz": lambda data: gzip_of_zeros(lie(data, 640, 640, 320), 2**32),
    "announces-and-holds.nii.gz": lambda data: gzip_of_zeros(lie(data, 1000, 1000, 250), 2**29),
    "announces-volumes.nii.gz": lambda data: gzip_of_zeros(lie(data, 512, 512, 100, 100), 2**33),
    "announces-too-much.nii.gz": lambda data: gzip_of_zeros(lie(data, 1000, 1000, 250, 32000), 2**26),
    "announces-too-many-voxels.nii": lambda data: lie(data, 32767, 32767, 32767),
    "holds-little.nii.gz": lambda data: gzip_of_zeros(lie(data, 600, 600, 300), 2**27),
    "holds-nothing.nii.gz": lambda data: gzip.compress(lie(data, 600, 600, 300, 30)),
    "plain.nii": lambda data: lie(data, 600, 600, 600, 10),
    "members.nii.gz": lambda data: gzip.compress(lie(data, 256, 256, 64)) + gzip.compress(b"") * 2**18,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_two_seconds_and_512_mb(make_nifti: Callable, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BOMBS[name](make_nifti(name="a.nii").read_bytes()))
    started = time.process_time()  # other work on the machine is not the bomb's
    tracemalloc.start()
    error = refusal(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.code in ("nifti-too-large", "nifti-truncated")
    assert time.process_time() - started < 2 * slowness(time.process_time)
    assert peak < 2**29
    assert kept < 2**20  # the refusal, which is collected, does not hold on to what was inflated


@pytest.mark.shared
def test_a_real_volume_equals_nibabel(shared_data: Path) -> None:
    found = scan(shared_data / "hippocampus-mri" / "images")
    assert not found.refusals and len(found.series) == 130
    path = found.series[0].path
    reference = nibabel.load(path)
    image = read_one(path)
    np.testing.assert_array_equal(image.pixels[0], reference.get_fdata(dtype=np.float32))  # type: ignore[attr-defined]
    np.testing.assert_allclose(image.affine, reference.affine)  # type: ignore[attr-defined]
