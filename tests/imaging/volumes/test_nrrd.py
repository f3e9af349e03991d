"""NRRD: read as ITK reads sound files, or refused by name."""

import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images, read_series, scan
from medtl.imaging.series import Reading
from tests.imaging.conftest import pattern, refusal

TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
NAMES = {
    "uint8": "unsigned char",
    "int8": "signed char",
    "uint16": "ushort",
    "int16": "short int",
    "uint32": "uint32_t",
    "int32": "int",
    "uint64": "unsigned long long int",
    "int64": "longlong",
    "float32": "float",
    "float64": "double",
}
DIRECTIONS = ((-1.8, 0.8, 0.1), (0.6, 1.35, -0.2), (0.1, 0.3, 3.0))
ORIGIN = (40.0, -30.0, 12.5)
# (x, y, z) of a space -> RAS+
SIGNS = {
    "left-posterior-superior": (-1, -1, 1),
    "LPS": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "RAS": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
}


def build(values: np.ndarray, encoding: str = "raw", **changes: str | None) -> bytes:
    """Return a file of values, first axis fastest; changes override fields, None leaves one out."""
    dtype = values.dtype
    vectors = [f"({','.join(map(str, one))})" for one in DIRECTIONS]
    fields: dict[str, str | None] = {
        "type": NAMES[dtype.newbyteorder("=").name],
        "dimension": str(values.ndim),
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, values.shape)),
        "space directions": " ".join(vectors + ["none"] * (values.ndim - 3)),
        "kinds": " ".join(["domain"] * 3 + ["list"] * (values.ndim - 3)),
        "endian": "big" if dtype.byteorder == ">" else "little",
        "encoding": encoding,
        "space origin": f"({','.join(map(str, ORIGIN))})",
        **{name.replace("_", " "): value for name, value in changes.items()},
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    data = values.tobytes(order="F")
    packed = gzip.compress(data, mtime=0) if encoding == "gzip" else data
    return "\n".join(["NRRD0004", "# a comment", *lines, "key:=value", "", ""]).encode() + packed


def write(folder: Path, content: bytes, name: str = "a.nrrd") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def read_one(path: Path) -> Image:
    (image,) = read_images(path)
    return image


def read_channels(path: Path) -> Image:
    (series,) = scan(path, reading=Reading(volumes_as_channels=True)).series
    return read_series(series)


def expected_affine(space: str = "LPS") -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.transpose(DIRECTIONS), ORIGIN
    return np.diag([*SIGNS[space], 1]) @ affine


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_is_read_as_it_was_written(tmp_path: Path, dtype: str, order: str, encoding: str) -> None:
    values = pattern(4, 5, 6, dtype=dtype, top=100).astype(np.dtype(dtype).newbyteorder(order))
    path = write(tmp_path, build(values, encoding))
    image = read_one(path)
    np.testing.assert_array_equal(image.pixels[0], values)
    by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))
    np.testing.assert_array_equal(image.pixels[0], by_itk.transpose())
    np.testing.assert_allclose(image.affine, expected_affine(), atol=1e-6)
    assert (image.facts.format, image.facts.notes) == ("nrrd", ())
    assert image.facts.decoder.startswith("SimpleITK ")


@pytest.mark.parametrize("space", SIGNS)
def test_an_oblique_volume_lies_where_its_space_says(tmp_path: Path, space: str) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    image = read_one(write(tmp_path, build(values, space=space)))
    np.testing.assert_allclose(image.affine, expected_affine(space), atol=1e-6)
    assert image.spacing_mm == pytest.approx(np.linalg.norm(DIRECTIONS, axis=1))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_what_itk_writes_is_read(tmp_path: Path, suffix: str, compressed: bool) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    image = SimpleITK.GetImageFromArray(values.transpose())
    image.SetSpacing((2, 1.5, 3))
    image.SetOrigin((10, 11, -12))
    SimpleITK.WriteImage(image, tmp_path / f"a{suffix}", useCompression=compressed)
    found = scan(tmp_path)
    assert (len(found.series), found.skipped, found.refusals) == (1, 0, ())
    read = read_one(tmp_path)
    np.testing.assert_array_equal(read.pixels[0], values)
    np.testing.assert_allclose(
        read.affine, [[-2, 0, 0, -10], [0, -1.5, 0, -11], [0, 0, 3, -12], [0, 0, 0, 1]]
    )


def test_windows_line_ends_and_capitals_are_read(tmp_path: Path) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    head, _, data = build(values).partition(b"\n\n")
    head = head.replace(b"type:", b"Type:").replace(b"\n", b"\r\n")
    np.testing.assert_array_equal(read_one(write(tmp_path, head + b"\r\n\r\n" + data)).pixels[0], values)


def test_volumes_behind_one_another_are_volumes(tmp_path: Path) -> None:
    values = pattern(4, 5, 6, 3, dtype="int16")
    path = write(tmp_path, build(values, "gzip"))
    images = read_images(path)
    np.testing.assert_array_equal([image.pixels[0] for image in images], np.moveaxis(values, -1, 0))
    np.testing.assert_allclose(images[2].affine, expected_affine(), atol=1e-6)
    np.testing.assert_array_equal(read_channels(path).pixels, np.moveaxis(values, -1, 0))


@pytest.mark.parametrize("kind", ["vector", "list"])
def test_values_of_a_voxel_become_channels_where_the_recipe_says_so(tmp_path: Path, kind: str) -> None:
    values = pattern(2, 4, 5, 6, dtype="int16")
    vectors = " ".join(f"({','.join(map(str, one))})" for one in DIRECTIONS)
    changes = {"space_directions": f"none {vectors}", "kinds": f"{kind} domain domain domain"}
    path = write(tmp_path, build(values, **changes))
    assert refusal(path).code == "volume-dimensions"
    image = read_channels(path)
    np.testing.assert_array_equal(image.pixels, values)
    np.testing.assert_allclose(image.affine, expected_affine(), atol=1e-6)
    assert image.facts.stacked


def test_colours_become_channels_where_the_recipe_says_so(tmp_path: Path) -> None:
    values = pattern(3, 4, 5, 6, dtype="uint8", top=255)
    vectors = " ".join(f"({','.join(map(str, one))})" for one in DIRECTIONS)
    changes = {"space_directions": f"none {vectors}", "kinds": "RGB-color domain domain domain"}
    path = write(tmp_path, build(values, **changes))
    assert refusal(path).code == "volume-type"
    image = read_channels(path)
    np.testing.assert_array_equal(image.pixels, values)
    assert (image.facts.photometric, image.facts.stacked) == ("RGB", False)


def test_a_flat_file_is_a_projection(tmp_path: Path) -> None:
    values = pattern(5, 4, dtype="uint16")
    changes = {"space": None, "space_directions": None, "space_origin": None, "kinds": None}
    image = read_one(write(tmp_path, build(values, spacings="0.2 0.1", **changes)))
    np.testing.assert_array_equal(image.pixels[0], values.transpose())
    assert image.affine is None and image.spacing_mm == pytest.approx((0.1, 0.2))


def test_an_origin_that_is_not_stated_is_noted(tmp_path: Path) -> None:
    image = read_one(write(tmp_path, build(pattern(4, 5, 6), space_origin=None)))
    assert image.affine is not None and not image.affine[:3, 3].any()
    assert image.facts.notes == ("its origin is not stated: taken for 0",)


def test_a_flat_file_without_spacings_has_none(tmp_path: Path) -> None:
    changes = {"space": None, "space_directions": None, "space_origin": None, "kinds": None}
    assert read_one(write(tmp_path, build(pattern(5, 4), **changes))).spacing_mm is None


@pytest.mark.parametrize(("skip", "before"), [("7", 7), ("-1", 7), ("0", 0)])
def test_pixels_beside_the_header_may_have_a_head_of_their_own(
    tmp_path: Path, skip: str, before: int
) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    head, _, data = build(values, byte_skip=skip, data_file="a.raw").partition(b"\n\n")
    write(tmp_path, bytes(before) + data, "a.raw")
    path = write(tmp_path, head + b"\n", "a.nhdr")
    np.testing.assert_array_equal(read_one(path).pixels[0], values)
    assert scan(tmp_path).skipped == 0


FAULTS: dict[str, tuple[dict[str, str | None], str]] = {
    "no space": ({"space": None, "space_dimension": "3"}, "volume-affine"),
    "an unknown space": ({"space": "scanner-xyz"}, "volume-affine"),
    "no directions": ({"space_directions": None, "spacings": "1 1 1"}, "volume-dimensions"),
    "a flattened axis": ({"space_directions": "(1,0,0) (2,0,0) (0,0,1)"}, "volume-affine"),
    "NaN in a direction": ({"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"}, "volume-header"),
    "a direction that is no number": ({"space_directions": "(1,0,0) (0,1.-2,0) (0,0,1)"}, "volume-header"),
    "an origin of two numbers": ({"space_origin": "(1,2)"}, "volume-header"),
    "metres": ({"space_units": '"m" "m" "m"'}, "volume-affine"),
    "other sizes": ({"sizes": "4 5 7"}, "volume-truncated"),
    "sizes of 0": ({"sizes": "4 0 6"}, "volume-header"),
    "negative sizes": ({"sizes": "4 -5 6"}, "volume-header"),
    "immense sizes": ({"sizes": "65536 65536 65536"}, "volume-too-large"),
    "another dimension": ({"dimension": "4"}, "volume-header"),
    "an unknown type": ({"type": "quad"}, "volume-type"),
    "blocks": ({"type": "block"}, "volume-type"),
    "no type": ({"type": None}, "volume-type"),
    "no order of bytes": ({"endian": None}, "volume-header"),
    "text": ({"encoding": "ascii"}, "volume-type"),
    "bzip2": ({"encoding": "bzip2"}, "volume-type"),
    "lines skipped": ({"line_skip": "3"}, "volume-header"),
    "another folder": ({"data_file": "../a.raw"}, "volume-pair"),
    "an absolute path": ({"data_file": "/etc/passwd"}, "volume-pair"),
    "a Windows path": ({"data_file": "C:\\a.raw"}, "volume-pair"),
    "a pattern": ({"data_file": "a%03d.raw 1 3 1"}, "volume-pair"),
    "a list": ({"data_file": "LIST"}, "volume-pair"),
    "a file that is not there": ({"data_file": "b.raw"}, "volume-pair"),
}


@pytest.mark.parametrize(("changes", "code"), FAULTS.values(), ids=FAULTS)
def test_what_would_not_be_read_exactly_is_refused(
    tmp_path: Path, changes: dict[str, str | None], code: str
) -> None:
    path = write(tmp_path / "in", build(pattern(4, 5, 6, dtype="int16"), **changes))
    error = refusal(tmp_path / "in")
    assert (error.code, error.where) == (code, str(path))


def test_a_field_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    content = build(pattern(4, 5, 6, dtype="int16")).replace(b"# a comment", b"sizes: 6 5 4")
    assert refusal(write(tmp_path, content)).code == "volume-header"


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_a_truncated_file_is_refused(tmp_path: Path, encoding: str, kept: float) -> None:
    content = build(pattern(9, 9, 9, dtype="int16"), encoding)
    path = write(tmp_path, content[: int(len(content) * kept)])
    assert refusal(path).code in ("volume-truncated", "volume-header", "volume-affine")


def test_a_corrupted_gzip_payload_is_never_read(tmp_path: Path) -> None:
    content = build(pattern(9, 9, 9, dtype="int16"), "gzip")
    first = re.search(rb"\n\n", content).end() + 10  # type: ignore[union-attr]
    generator = np.random.default_rng(0)
    for _ in range(100):
        place, bit = generator.integers(first, len(content)), generator.integers(8)
        damaged = content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]
        with pytest.raises(ReadError):
            read_images(write(tmp_path, damaged))


BOMBS: dict[str, Callable[[], bytes]] = {
    "a gzip of zeros": lambda: build(pattern(4, 5, 6), "gzip") + gzip.compress(bytes(2**26)),
    "that its header announces": lambda: (
        build(pattern(4, 5, 6), "gzip", sizes="1024 1024 255").partition(b"\n\n")[0]
        + b"\n\n"
        + zlib.compress(bytes(2**26))
    ),
}


@pytest.mark.parametrize("build_bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused(tmp_path: Path, build_bomb: Callable[[], bytes]) -> None:
    assert refusal(write(tmp_path, build_bomb())).code == "volume-too-large"
