"""NIfTI files: read exactly, or refused by name."""

import gzip
import hashlib
import struct
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medtl.data.naming import source_name
from medtl.errors import ReadError
from medtl.imaging import nifti
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images, read_series, scan
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
    assert image.spacing_mm == pytest.approx((2 * mm, 1.5 * mm, 3 * mm))


@pytest.mark.parametrize("slope", [0, np.nan])
def test_no_slope_leaves_values_as_they_are_stored(make_nifti: Callable, slope: float) -> None:
    def edit(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = slope, 9

    np.testing.assert_array_equal(read_one(make_nifti(edit=edit)).pixels[0], pattern(4, 5, 6, dtype="int16"))


def no_forms(header: Any) -> None:
    header.set_sform(None, code=0)
    header.set_qform(None, code=0)


def conflict(header: Any) -> None:
    header.set_qform(np.diag([2.0, 1.5, 3.5, 1.0]), code=1)


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
    monkeypatch.setattr(nifti, "MOST_CACHED_BYTES", 0)
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
    whole = nifti.inflate

    def inflate(raw: Any, header: Any, path: Path) -> Any:
        seen.append(path.name)
        return whole(raw, header, path)

    monkeypatch.setattr(nifti, "inflate", inflate)
    monkeypatch.setattr(nifti, "_last", None)
    return seen


def test_a_4d_file_is_inflated_once_for_all_its_volumes(make_nifti: Callable, inflations: list[str]) -> None:
    values = pattern(4, 5, 6, 8, dtype="int16")
    images = read_images(make_nifti(values, name="bold.nii.gz"))
    np.testing.assert_array_equal([image.pixels[0] for image in images], np.moveaxis(values, -1, 0))
    assert inflations == ["bold.nii.gz"] and nifti._last is None, "dropped behind the last volume"


def test_a_large_4d_file_is_not_kept(
    make_nifti: Callable, inflations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = pattern(4, 5, 6, 3, dtype="int16")
    monkeypatch.setattr(nifti, "MOST_CACHED_BYTES", values.nbytes - 1)
    assert len(read_images(make_nifti(values))) == 3 and len(inflations) == 3 and nifti._last is None


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
