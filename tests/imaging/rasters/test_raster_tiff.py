"""TIFF files, written byte by byte: every kind of value is read as written, or refused by what it is."""

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from medtl.imaging.image import ROUNDED, Image
from medtl.imaging.reader import read_images, read_series, scan
from medtl.imaging.series import Reading
from tests.imaging.conftest import pattern, refusal
from tests.imaging.rasters.tiff_files import Page, build_tiff

SHAPE = (21, 19)
COMPRESSIONS = {"none": 1, "LZW": 5, "deflate": 8, "PackBits": 32773}


def read_one(path: Path) -> Image:
    (image,) = read_images(path)
    return image


def write(folder: Path, *pages: Page, order: str = "<", big: bool = False) -> Path:
    path = folder / "a.tif"
    path.write_bytes(build_tiff(*pages, order=order, big=big))
    return path


def numbers(dtype: str, *shape: int) -> np.ndarray:
    """Return values over the whole range of a type."""
    generator = np.random.default_rng(7)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return generator.normal(size=shape).astype(kind)
    limits = np.iinfo(kind)
    return generator.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


@pytest.mark.parametrize("tile", [0, 16], ids=["strips", "tiles"])
@pytest.mark.parametrize("compression", COMPRESSIONS.values(), ids=COMPRESSIONS)
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i1", "i2", "u4", "i4", "f4"])
def test_grey_of_every_type_is_as_written_or_refused(
    tmp_path: Path, dtype: str, order: str, compression: int, tile: int
) -> None:
    values = numbers(dtype, *SHAPE)
    path = write(tmp_path, Page(values, compression=compression, tile=tile), order=order)
    if order == ">" and (dtype == "u4" or (compression != 1 and dtype in ("i2", "i4", "f4"))):
        error = refusal(path)
        assert error.code == "raster-colour" and "little-endian" in error.fix
        return
    image = read_one(path)
    np.testing.assert_array_equal(image.pixels[0], values.astype(np.float32))
    rounded = (ROUNDED,) if dtype in ("u4", "i4") else ()
    assert image.facts.notes == rounded and image.facts.bits == values.dtype.itemsize * 8
    assert image.spacing_mm is None and image.affine is None


@pytest.mark.parametrize("fill_order", [1, 2])
@pytest.mark.parametrize(("bits", "step"), [(1, 255), (2, 85), (4, 17), (12, 1)])
@pytest.mark.parametrize("compression", [1, 5])
def test_packed_grey_is_stretched_to_eight_bits_or_as_written(
    tmp_path: Path, bits: int, step: int, compression: int, fill_order: int
) -> None:
    values = pattern(*SHAPE, top=2**bits - 1)
    page = Page(values, bits=bits, compression=compression, fill_order=fill_order)
    path = write(tmp_path, page)
    if bits == 12 and fill_order == 2:
        assert refusal(path).code == "raster-colour"
        return
    np.testing.assert_array_equal(read_one(path).pixels[0], values * step)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 5])
@pytest.mark.parametrize(("bits", "top", "step"), [(1, 1, 255), (4, 15, 17), (8, 255, 1), (16, 65535, 1)])
def test_larger_is_brighter_where_the_smallest_value_is_white(
    tmp_path: Path, bits: int, top: int, step: int, compression: int, order: str
) -> None:
    values = pattern(*SHAPE, dtype="uint8" if bits == 8 else "uint16", top=top)
    packed = bits if bits < 8 else 0
    page = Page(values, bits=packed, photometric=0, compression=compression)
    image = read_one(write(tmp_path, page, order=order))
    np.testing.assert_array_equal(image.pixels[0], (top - values) * step)
    assert image.facts.notes == ("inverted from MinIsWhite",) and image.facts.photometric == "MinIsWhite"


def test_pixels_that_look_like_a_tag_stay_when_grey_is_inverted(tmp_path: Path) -> None:
    tag = struct.pack("<HHLH", 262, 3, 1, 0)
    values = np.frombuffer(tag * 4, "<u2").reshape(4, 5)
    np.testing.assert_array_equal(
        read_one(write(tmp_path, Page(values, photometric=0))).pixels[0], 65535.0 - values
    )


@pytest.mark.parametrize("dtype", ["i2", "u4", "f4"])
def test_inverted_values_of_no_known_range_are_refused(tmp_path: Path, dtype: str) -> None:
    error = refusal(write(tmp_path, Page(numbers(dtype, *SHAPE), photometric=0)))
    assert error.code == "raster-colour" and "MinIsWhite" in error.reason


@pytest.mark.parametrize(
    ("compression", "predictor", "planar", "tile"),
    [*itertools.product((1,), (1,), (1, 2), (0, 16)), *itertools.product((5, 8), (1, 2), (1, 2), (0, 16))],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_colour_is_as_written(
    tmp_path: Path, order: str, compression: int, predictor: int, planar: int, tile: int
) -> None:
    values = numbers("u1", *SHAPE, 3)
    page = Page(values, compression=compression, predictor=predictor, planar=planar, tile=tile)
    image = read_one(write(tmp_path, page, order=order))
    np.testing.assert_array_equal(image.pixels, np.moveaxis(values, -1, 0))
    assert image.facts.notes == () and image.facts.photometric == "RGB"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [5, 8])
def test_a_predictor_of_sixteen_bits_is_undone(tmp_path: Path, compression: int, order: str) -> None:
    values = numbers("u2", *SHAPE)
    path = write(tmp_path, Page(values, compression=compression, predictor=2), order=order)
    np.testing.assert_array_equal(read_one(path).pixels[0], values)


@pytest.mark.parametrize("extra", [0, 1, 2], ids=["unspecified", "premultiplied", "straight"])
def test_alpha_is_dropped_with_a_note(tmp_path: Path, extra: int) -> None:
    values = numbers("u1", *SHAPE, 4)
    if extra == 1:
        values[..., 3] = 255
    image = read_one(write(tmp_path, Page(values, tags={338: extra})))
    np.testing.assert_array_equal(image.pixels, np.moveaxis(values[..., :3], -1, 0))
    assert image.facts.notes == ("alpha dropped",)


def test_colour_that_transparency_has_changed_is_refused(tmp_path: Path) -> None:
    values = np.minimum(numbers("u1", *SHAPE, 4), 200)
    error = refusal(write(tmp_path, Page(values, tags={338: 1})))
    assert error.code == "raster-colour" and "transparency" in error.fix


def test_grey_with_alpha_is_grey(tmp_path: Path) -> None:
    values = numbers("u1", *SHAPE, 2)
    image = read_one(write(tmp_path, Page(values, photometric=1, tags={338: 2})))
    np.testing.assert_array_equal(image.pixels[0], values[..., 0])
    assert image.facts.notes == ("alpha dropped",)


def test_a_palette_becomes_colour_with_a_note(tmp_path: Path) -> None:
    values, table = numbers("u1", *SHAPE), numbers("u2", 3, 256)
    tags = {320: tuple(int(value) for value in table.ravel())}
    image = read_one(write(tmp_path, Page(values, photometric=3, tags=tags)))
    np.testing.assert_array_equal(image.pixels, (table >> 8)[:, values])
    assert image.facts.notes == ("palette converted to RGB",)


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_fax_is_black_and_white(tmp_path: Path, compression: str) -> None:
    values = pattern(40, 36, dtype="uint8", top=1).astype(bool)
    PillowImage.fromarray(values).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_one(tmp_path / "a.tif").pixels[0], values * 255)


@pytest.mark.parametrize("shape", [(40, 36), (40, 36, 3)], ids=["grey", "colour"])
def test_jpeg_in_tiff_equals_pillow(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.tif"
    PillowImage.fromarray(pattern(*shape, dtype="uint8", top=255)).save(path, compression="jpeg")
    with PillowImage.open(path) as picture:
        expected = np.asarray(picture)
    pixels = read_one(path).pixels
    np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1).reshape(shape), expected)


TURNS = {
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.T,
    6: lambda values: np.rot90(values, -1),
    7: lambda values: values[::-1, ::-1].T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("compression", [1, 5])
def test_the_orientation_is_applied(tmp_path: Path, orientation: int, compression: int) -> None:
    values = numbers("u2", *SHAPE)
    image = read_one(write(tmp_path, Page(values, compression=compression, tags={274: orientation})))
    np.testing.assert_array_equal(image.pixels[0], TURNS[orientation](values))
    assert image.facts.notes == ("turned by its TIFF orientation",)


@pytest.mark.parametrize(("order", "readable"), [("<", True), (">", False)])
def test_bigtiff_is_read_where_pillow_reads_it(tmp_path: Path, order: str, readable: bool) -> None:
    values = numbers("u2", *SHAPE)
    path = write(tmp_path, Page(values, photometric=0), order=order, big=True)
    if readable:
        np.testing.assert_array_equal(read_one(path).pixels[0], 65535 - values)
    else:
        assert refusal(path).code == "raster-colour"


def test_resolution_is_not_taken_for_millimetres(tmp_path: Path) -> None:
    PillowImage.fromarray(numbers("u2", *SHAPE)).save(tmp_path / "a.tif", dpi=(300, 300))
    assert read_one(tmp_path / "a.tif").spacing_mm is None


@pytest.mark.parametrize("dtype", ["f2", "f8", "u8"])
def test_types_that_pillow_does_not_read_are_named(tmp_path: Path, dtype: str) -> None:
    error = refusal(write(tmp_path, Page(numbers(dtype, *SHAPE))))
    assert error.code == "raster-colour" and f"{np.dtype(dtype).itemsize * 8}-bit" in error.reason


@pytest.mark.parametrize("bits", [10, 14])
def test_odd_depths_are_named(tmp_path: Path, bits: int) -> None:
    error = refusal(write(tmp_path, Page(pattern(*SHAPE, top=1000), bits=bits)))
    assert error.code == "raster-colour" and f"{bits}-bit" in error.reason


@pytest.mark.parametrize("samples", [3, 4])
def test_sixteen_bits_of_colour_are_refused_since_pillow_would_cut_them(tmp_path: Path, samples: int) -> None:
    error = refusal(write(tmp_path, Page(numbers("u2", *SHAPE, samples))))
    assert error.code == "raster-colour" and f"{samples} x 16-bit" in error.reason


@pytest.mark.parametrize("compression", [6, 34712, 50000])
def test_other_compressions_are_named(tmp_path: Path, compression: int) -> None:
    error = refusal(write(tmp_path, Page(numbers("u1", *SHAPE), tags={259: compression})))
    assert error.code == "raster-colour" and str(compression) in error.reason


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    values = numbers("f4", *SHAPE)
    values[3, 4] = value
    path = write(tmp_path, Page(values))
    error = refusal(path)
    assert error.code == "raster-not-finite" and ("fill_nan=true" in error.fix) == np.isnan(value)
    if np.isnan(value):
        (series,) = scan(path, reading=Reading(fill_nan=True)).series
        expected = np.where(np.isnan(values), np.nanmin(values), values)
        np.testing.assert_array_equal(read_series(series).pixels[0], expected)


def test_several_pages_are_refused(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, Page(numbers("u2", *SHAPE)), Page(numbers("u2", *SHAPE))))
    assert error.code == "raster-frames" and "2 pages" in error.reason


@pytest.mark.parametrize(("text", "name"), [("Aperio Image Library", "SVS"), ("<OME/>", "OME-TIFF")])
def test_slides_are_named(tmp_path: Path, text: str, name: str) -> None:
    page = Page(numbers("u1", *SHAPE, 3), tags={270: text})
    error = refusal(write(tmp_path, page, page))
    assert error.code == "raster-frames" and name in error.reason


@pytest.mark.parametrize(("images", "stored"), [(3, 3), (3, 1), (1, 1)])
def test_a_stack_of_one_directory_is_refused_where_the_file_holds_it(
    tmp_path: Path, images: int, stored: int
) -> None:
    values = numbers("u2", *SHAPE)
    path = write(tmp_path, Page(values, tags={270: f"ImageJ=1.53k\nimages={images}\nslices={images}\n"}))
    path.write_bytes(path.read_bytes() + values.tobytes() * (stored - 1))
    if stored > 1:
        error = refusal(path)
        assert error.code == "raster-frames" and "several pages" in error.reason
    else:
        np.testing.assert_array_equal(read_one(path).pixels[0], values)


def test_a_description_of_another_type_is_harmless(tmp_path: Path) -> None:
    values = numbers("u2", *SHAPE)
    path = write(tmp_path, Page(values, tags={270: (40000,) * 9}))
    np.testing.assert_array_equal(read_one(path).pixels[0], values)


def test_a_smaller_version_behind_the_image_is_left_out_with_a_note(tmp_path: Path) -> None:
    values = numbers("u2", *SHAPE)
    image = read_one(write(tmp_path, Page(values), Page(values[::2, ::2], tags={254: 1})))
    np.testing.assert_array_equal(image.pixels[0], values)
    assert image.facts.notes == ("smaller versions left out",)


def test_a_file_that_begins_with_a_preview_is_refused(tmp_path: Path) -> None:
    values = numbers("u2", *SHAPE)
    path = write(tmp_path, Page(values[::2, ::2], tags={254: 1}), Page(values))
    assert refusal(path).code == "raster-frames"


@pytest.mark.parametrize("compression", [1, 5])
@pytest.mark.parametrize("layout", [{"strip": 5}, {"tile": 16}], ids=["strips", "tiles"])
def test_missing_parts_are_noticed(tmp_path: Path, layout: dict[str, int], compression: int) -> None:
    page = Page(numbers("u2", *SHAPE), compression=compression, drop_parts=2, **layout)  # type: ignore[arg-type]
    assert refusal(write(tmp_path, page)).code == "raster-damaged"


@pytest.mark.parametrize("compression", COMPRESSIONS.values(), ids=COMPRESSIONS)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, compression: int, kept: float) -> None:
    path = write(tmp_path, Page(numbers("u2", 64, 64), compression=compression, tile=16))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert refusal(path).code == "raster-damaged"


def test_directories_in_a_circle_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, Page(numbers("u2", *SHAPE)))
    data = bytearray(path.read_bytes())
    (count,) = struct.unpack_from("<H", data, 8)
    struct.pack_into("<L", data, 10 + 12 * count, 8)
    path.write_bytes(data)
    assert refusal(path).code == "raster-damaged"


def test_what_libtiff_prints_stays_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, Page(numbers("u2", 64, 64), compression=5))
    data = path.read_bytes()
    path.write_bytes(data.replace(data[4000:4100], bytes(100)))
    refusal(path)
    assert capfd.readouterr() == ("", "")
