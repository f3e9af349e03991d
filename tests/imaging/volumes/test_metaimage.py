"""MetaImage: read as ITK reads sound files, or refused by name."""

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images, read_series, scan
from medtl.imaging.series import Reading
from medtl.imaging.volumes import itk_header
from tests.imaging.conftest import pattern, refusal

TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
CODES = ("UCHAR", "CHAR", "USHORT", "SHORT", "UINT", "INT", "ULONG_LONG", "LONG_LONG", "FLOAT", "DOUBLE")
NAMES = dict(zip(TYPES, CODES))
# columns: where the axes of the file point, turned about two axes
TURN = np.array([[0.8, -0.6, 0.0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])
SPACING = (2.0, 1.5, 3.0)
ORIGIN = (10.0, 11.0, -12.0)
AFFINE = np.diag([-1.0, -1, 1, 1]) @ np.block(
    [[TURN * SPACING, np.reshape(ORIGIN, (3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]
)


def build(values: np.ndarray, compressed: bool = False, **changes: str | None) -> tuple[bytes, bytes]:
    """Return header and pixels, first axis fastest; changes override fields, None leaves one out."""
    dtype, data = values.dtype, values.tobytes(order="F")
    data = zlib.compress(data) if compressed else data
    axes = values.ndim
    turn = np.eye(axes)
    turn[: min(axes, 3), : min(axes, 3)] = TURN if axes > 2 else np.eye(2)
    fields: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": str(axes),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": str(dtype.byteorder == ">"),
        "CompressedData": str(compressed),
        "CompressedDataSize": str(len(data)) if compressed else None,
        "TransformMatrix": " ".join(map(str, turn.T.ravel())),
        "Offset": " ".join(map(str, (*ORIGIN, 0)[:axes])),
        "ElementSpacing": " ".join(map(str, (*SPACING, 1)[:axes])),
        "DimSize": " ".join(map(str, values.shape)),
        "ElementType": f"MET_{NAMES[dtype.newbyteorder('=').name]}",
        "ElementDataFile": "LOCAL",
    }
    fields = {**{k: v for k, v in fields.items() if k not in changes and k != "ElementDataFile"}, **changes}
    fields.setdefault("ElementDataFile", "LOCAL")
    lines = [f"{name} = {value}" for name, value in fields.items() if value is not None]
    return ("\n".join(lines) + "\n").encode(), data


def write(folder: Path, content: bytes, name: str = "a.mha") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def read_one(path: Path) -> Image:
    (image,) = read_images(path)
    return image


def read_channels(path: Path) -> Image:
    (series,) = scan(path, reading=Reading(volumes_as_channels=True)).series
    return read_series(series)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_is_read_as_it_was_written(
    tmp_path: Path, dtype: str, order: str, compressed: bool
) -> None:
    values = pattern(4, 5, 6, dtype=dtype, top=100).astype(np.dtype(dtype).newbyteorder(order))
    path = write(tmp_path, b"".join(build(values, compressed)))
    image = read_one(path)
    np.testing.assert_array_equal(image.pixels[0], values)
    by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))
    np.testing.assert_array_equal(image.pixels[0], by_itk.transpose())
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert (image.facts.format, image.facts.notes) == ("metaimage", ())


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_what_itk_writes_is_read(tmp_path: Path, suffix: str, compressed: bool) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    image = SimpleITK.GetImageFromArray(values.transpose())
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(TURN.ravel())
    SimpleITK.WriteImage(image, tmp_path / f"a{suffix}", useCompression=compressed)
    found = scan(tmp_path)
    assert (len(found.series), found.skipped, found.refusals) == (1, 0, ())
    read = read_one(tmp_path)
    np.testing.assert_array_equal(read.pixels[0], values)
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-6)
    assert read.spacing_mm == pytest.approx(SPACING)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_fourth_axis_counts_volumes(tmp_path: Path, compressed: bool) -> None:
    values = pattern(4, 5, 6, 3, dtype="int16")
    path = write(tmp_path, b"".join(build(values, compressed)))
    images = read_images(path)
    np.testing.assert_array_equal([image.pixels[0] for image in images], np.moveaxis(values, -1, 0))
    np.testing.assert_allclose(images[1].affine, AFFINE, atol=1e-6)
    np.testing.assert_array_equal(read_channels(path).pixels, np.moveaxis(values, -1, 0))


def test_values_of_a_voxel_become_channels_where_the_recipe_says_so(tmp_path: Path) -> None:
    values = pattern(4, 5, 6, 2, dtype="int16")
    image = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0, 3), isVector=True)
    SimpleITK.WriteImage(image, tmp_path / "a.mha")
    assert refusal(tmp_path).code == "volume-dimensions"
    read = read_channels(tmp_path / "a.mha")
    np.testing.assert_array_equal(read.pixels, np.moveaxis(values, -1, 0))
    assert read.facts.stacked


def test_a_flat_file_is_a_projection(tmp_path: Path) -> None:
    values = pattern(5, 4, dtype="uint16")
    image = read_one(write(tmp_path, b"".join(build(values, ElementSpacing="0.2 0.1"))))
    np.testing.assert_array_equal(image.pixels[0], values.transpose())
    assert image.affine is None and image.spacing_mm == pytest.approx((0.1, 0.2))


@pytest.mark.parametrize(("size", "before"), [("7", 7), ("-1", 7), ("0", 0)])
def test_pixels_beside_the_header_may_have_a_head_of_their_own(
    tmp_path: Path, size: str, before: int
) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    head, data = build(values, HeaderSize=size, ElementDataFile="a.raw")
    write(tmp_path, bytes(before) + data, "a.raw")
    np.testing.assert_array_equal(read_one(write(tmp_path, head, "a.mhd")).pixels[0], values)
    assert scan(tmp_path).skipped == 0


def test_places_that_are_not_stated_are_noted(tmp_path: Path) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    image = read_one(write(tmp_path, b"".join(build(values, TransformMatrix=None, Offset=None))))
    np.testing.assert_allclose(image.affine, np.diag([-2, -1.5, 3, 1]))
    assert image.facts.notes == (itk_header.ORIGIN, itk_header.DIRECTIONS)


def test_a_flat_file_without_spacing_has_none(tmp_path: Path) -> None:
    image = read_one(write(tmp_path, b"".join(build(pattern(5, 4), ElementSpacing=None))))
    assert image.spacing_mm is None


def test_an_order_of_bytes_that_is_not_stated_is_noted(tmp_path: Path) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    image = read_one(write(tmp_path, b"".join(build(values, BinaryDataByteOrderMSB=None))))
    np.testing.assert_array_equal(image.pixels[0], values)
    assert image.facts.notes == ("its order of bytes is not stated: taken for little endian",)


FAULTS: dict[str, tuple[dict[str, str | None], str]] = {
    "a flattened axis": ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "volume-affine"),
    "a spacing of 0": ({"ElementSpacing": "1 0 1"}, "volume-affine"),
    "NaN as spacing": ({"ElementSpacing": "1 nan 1"}, "volume-header"),
    "no spacing": ({"ElementSpacing": None}, "volume-affine"),
    "an origin that is no number": ({"Offset": "1 0.-8 2"}, "volume-header"),
    "too few directions": ({"TransformMatrix": "1 0 0 0 1 0"}, "volume-header"),
    "another unit": ({"DistanceUnits": "um"}, "volume-affine"),
    "other sizes": ({"DimSize": "4 5 7"}, "volume-truncated"),
    "sizes of 0": ({"DimSize": "4 0 6"}, "volume-header"),
    "negative sizes": ({"DimSize": "4 -5 6"}, "volume-header"),
    "immense sizes": ({"DimSize": "65536 65536 65536"}, "volume-too-large"),
    "another number of axes": ({"NDims": "4"}, "volume-header"),
    "five axes": ({"NDims": "5", "DimSize": "4 5 6 1 1"}, "volume-dimensions"),
    "an unknown type": ({"ElementType": "MET_STRING"}, "volume-type"),
    "no type": ({"ElementType": None}, "volume-type"),
    "text": ({"BinaryData": "False"}, "volume-type"),
    "a scale": ({"ElementToIntensityFunctionSlope": "2"}, "volume-type"),
    "two orders of bytes": ({"ElementByteOrderMSB": "True"}, "volume-header"),
    "no channel": ({"ElementNumberOfChannels": "0"}, "volume-header"),
    "another folder": ({"ElementDataFile": "../a.raw"}, "volume-pair"),
    "an absolute path": ({"ElementDataFile": "/etc/passwd"}, "volume-pair"),
    "a Windows path": ({"ElementDataFile": "C:\\a.raw"}, "volume-pair"),
    "a pattern": ({"ElementDataFile": "a%03d.raw 1 3 1"}, "volume-pair"),
    "a list": ({"ElementDataFile": "LIST"}, "volume-pair"),
    "a file that is not there": ({"ElementDataFile": "b.raw"}, "volume-pair"),
}


@pytest.mark.parametrize(("changes", "code"), FAULTS.values(), ids=FAULTS)
def test_what_would_not_be_read_exactly_is_refused(
    tmp_path: Path, changes: dict[str, str | None], code: str
) -> None:
    path = write(tmp_path / "in", b"".join(build(pattern(4, 5, 6, dtype="int16"), **changes)))
    error = refusal(tmp_path / "in")
    assert (error.code, error.where) == (code, str(path))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_refused(tmp_path: Path, compressed: bool, kept: float) -> None:
    content = b"".join(build(pattern(9, 9, 9, dtype="int16"), compressed))
    path = write(tmp_path, content[: int(len(content) * kept)])
    assert refusal(path).code in ("volume-truncated", "volume-header")


def test_a_corrupted_payload_is_never_read(tmp_path: Path) -> None:
    head, data = build(pattern(9, 9, 9, dtype="int16"), compressed=True)
    generator = np.random.default_rng(0)
    for _ in range(100):
        place, bit = generator.integers(2, len(data)), generator.integers(8)
        damaged = head + data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
        with pytest.raises(ReadError):
            read_images(write(tmp_path, damaged))


def test_a_bomb_that_its_header_announces_is_refused(tmp_path: Path) -> None:
    head, _ = build(pattern(4, 5, 6, dtype="int16"), compressed=True, DimSize="1024 1024 255")
    assert refusal(write(tmp_path, head + zlib.compress(bytes(2**26)))).code == "volume-too-large"


def test_a_process_of_itk_that_dies_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, sys; print(flush=True); sys.stdin.buffer.readline(); os.abort()"
    path = write(tmp_path, b"".join(build(pattern(4, 5, 6, dtype="int16"))))
    with monkeypatch.context() as patch:
        patch.setattr(itk_header, "CHILD", (sys.executable, "-c", script))
        assert refusal(path).code == "volume-decoder"
    assert read_one(path).pixels.shape == (1, 4, 5, 6)


def test_a_header_that_names_itself_as_its_pixels_is_refused(tmp_path: Path) -> None:
    head, _ = build(pattern(4, 5, 6, dtype="uint8"), ElementDataFile="./a.mhd")
    assert refusal(write(tmp_path, head, "a.mhd")).reason == "names itself as its pixels"
