"""NIfTI files: read exactly, or refused by name."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medtl.errors import ReadError
from medtl.imaging import read_images
from medtl.imaging.image import Image
from medtl.imaging.series import scan
from tests.imaging.conftest import pattern, refusal

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


def test_metres_become_millimetres(make_nifti: Callable) -> None:
    image = read_one(make_nifti(edit=lambda header: header.set_xyzt_units("meter")))
    assert image.spacing_mm == pytest.approx((2000, 1500, 3000))


def no_forms(header: Any) -> None:
    header.set_sform(None, code=0)
    header.set_qform(None, code=0)


def conflict(header: Any) -> None:
    header.set_qform(np.diag([2.0, 1.5, 3.5, 1.0]), code=1)


def set_field(keyword: str, value: Any) -> Callable[[Any], None]:
    def edit(header: Any) -> None:
        header[keyword] = value

    return edit


REFUSED_HEADERS = {
    "no forms": (no_forms, "nifti-affine"),
    "forms in conflict": (conflict, "nifti-affine"),
    "singular": (set_field("srow_z", [0, 0, 0, 0]), "nifti-affine"),
    "NaN affine": (set_field("srow_x", [np.nan, 0, 0, 0]), "nifti-affine"),
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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(make_nifti: Callable, value: float) -> None:
    values = np.ones((4, 5, 6), np.float32)
    values[1, 2, 3] = value
    assert refusal(make_nifti(values)).code == "nifti-not-finite"


def test_several_time_points_are_refused(make_nifti: Callable) -> None:
    assert refusal(make_nifti(pattern(4, 5, 6, 2, dtype="int16"))).code == "nifti-dimensions"


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


def test_a_gzip_bomb_is_refused_without_inflating_it(make_nifti: Callable) -> None:
    path = make_nifti(name="a.nii")
    path.write_bytes(gzip.compress(path.read_bytes() + b"\0" * 2**26, compresslevel=1))
    assert refusal(path).code == "nifti-too-large"


@pytest.mark.parametrize("seed", range(40))
def test_mutated_headers_are_read_or_refused_but_never_crash(make_nifti: Callable, seed: int) -> None:
    path = make_nifti(name="a.nii")
    generator = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in generator.integers(4, 352, size=8):
        data[place] = generator.integers(256)
    path.write_bytes(data)
    refusals: list[ReadError] = []
    assert len(read_images(path, refusals=refusals)) + len(refusals) == 1


@pytest.mark.shared
def test_a_real_volume_equals_nibabel(shared_data: Path) -> None:
    found = scan(shared_data / "hippocampus-mri" / "images")
    assert not found.refusals and len(found.series) == 130
    path = found.series[0].path
    reference = nibabel.load(path)
    image = read_one(path)
    np.testing.assert_array_equal(image.pixels[0], reference.get_fdata(dtype=np.float32))  # type: ignore[attr-defined]
    np.testing.assert_allclose(image.affine, reference.affine)  # type: ignore[attr-defined]
