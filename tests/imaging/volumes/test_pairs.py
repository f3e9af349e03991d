"""A header and its pixels in two files, NIfTI and Analyze: read as nibabel does, or refused by name."""

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images, scan
from tests.imaging.conftest import pattern, refusal

OBLIQUE = np.array(
    [[-1.8, 0.6, 0.0, 40.0], [0.8, 1.35, 0.0, -30.0], [0.0, 0.0, 3.0, 12.0], [0.0, 0.0, 0.0, 1.0]]
)
NIFTI = {"NIfTI-1": nibabel.Nifti1Pair, "NIfTI-2": nibabel.Nifti2Pair}
ANALYZE = {
    "Analyze": nibabel.AnalyzeImage,
    "SPM99": nibabel.Spm99AnalyzeImage,
    "SPM2": nibabel.Spm2AnalyzeImage,
}
FLIPPED = np.diag([-2.0, 1.5, 3.0, 1.0])
CONVENTION = "left and right by the convention of Analyze: its first axis points left"


def write(folder: Path, image: Any, gz: bool = False, name: str = "t1") -> Path:
    """Write a pair without SPM's .mat, and return its header."""
    folder.mkdir(exist_ok=True)
    image.to_filename(folder / (f"{name}.img.gz" if gz else f"{name}.img"))
    (folder / f"{name}.mat").unlink(missing_ok=True)
    return folder / (f"{name}.hdr.gz" if gz else f"{name}.hdr")


def analyze(
    values: np.ndarray, kind: Any = nibabel.Spm99AnalyzeImage, edit: Callable = lambda header: None
) -> Any:
    """Return an image with voxels of 2 x 1.5 x 3 mm, and SPM's origin where it has one."""
    header = kind.header_class(endianness="<" if values.dtype.byteorder in "|=<" else ">")
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    header["pixdim"][1:4] = 2, 1.5, 3
    edit(header)
    return kind(values, None, header)


def read_one(path: Path) -> Image:
    (image,) = read_images(path)
    return image


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("kind", NIFTI.values(), ids=NIFTI)
def test_a_nifti_pair_equals_its_single_file(tmp_path: Path, kind: Any, gz: bool) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    header = write(tmp_path / "pair", kind(values, OBLIQUE), gz)
    found = scan(tmp_path / "pair")
    assert found.skipped == 0 and not found.refusals and len(found.series) == 1
    image = read_one(header)
    np.testing.assert_array_equal(image.pixels[0], values)
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    assert (image.facts.format, image.facts.source, image.facts.notes) == ("nifti", str(header), ())
    pixels = header.with_name(header.name.replace(".hdr", ".img"))
    assert image.facts.sha256 == hashlib.sha256(header.read_bytes() + pixels.read_bytes()).hexdigest()


def test_header_and_pixels_may_be_packed_apart(tmp_path: Path) -> None:
    values = pattern(4, 5, 6, 3, dtype="int16")
    header = write(tmp_path, nibabel.Nifti1Pair(values, OBLIQUE))
    pixels = tmp_path / "t1.img"
    (tmp_path / "t1.img.gz").write_bytes(gzip.compress(pixels.read_bytes()))
    pixels.unlink()
    images = read_images(header)
    np.testing.assert_array_equal([image.pixels[0] for image in images], np.moveaxis(values, -1, 0))


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "int32", ">i4", "float32", ">f4", "float64"])
@pytest.mark.parametrize("kind", ANALYZE.values(), ids=ANALYZE)
@pytest.mark.parametrize("gz", [False, True])
def test_analyze_equals_nibabel(tmp_path: Path, kind: Any, dtype: str, gz: bool) -> None:
    values = pattern(4, 5, 6, dtype=dtype, top=100)
    header = write(tmp_path, analyze(values, kind), gz)
    image, reference = read_one(header), nibabel.load(header)
    np.testing.assert_array_equal(image.pixels[0], reference.get_fdata(dtype=np.float32))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(image.pixels[0], values)
    np.testing.assert_allclose(image.affine, reference.affine)  # type: ignore[attr-defined]
    assert image.facts.format == "analyze" and CONVENTION in image.facts.notes


def test_the_origin_of_spm_places_the_volume(tmp_path: Path) -> None:
    def edit(header: Any) -> None:
        header["origin"][:3] = 2, 3, 4

    header = write(tmp_path, analyze(pattern(4, 5, 6, dtype="int16"), edit=edit))
    expected = FLIPPED.copy()
    expected[:3, 3] = 2 * 1, -1.5 * 2, -3 * 3
    np.testing.assert_allclose(read_one(header).affine, expected)
    np.testing.assert_allclose(nibabel.load(header).affine, expected)  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 6, 1)])
def test_flat_and_single_volumes_are_volumes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = pattern(*shape, dtype="int16")
    image = read_one(write(tmp_path, analyze(values)))
    np.testing.assert_array_equal(image.pixels[0], values.reshape((*shape, 1)[:3]))


def test_the_slope_of_spm_is_applied_and_noted(tmp_path: Path) -> None:
    values = pattern(4, 5, 6, dtype="int16")
    header = write(tmp_path, analyze(values))
    data = bytearray(header.read_bytes())
    data[112:116] = np.float32(0.5).tobytes()
    header.write_bytes(data)
    image = read_one(header)
    np.testing.assert_array_equal(image.pixels[0], values * 0.5)
    assert image.facts.notes == (CONVENTION, "scaled as SPM does")


def patched(place: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + value + data[place + len(value) :]


FAULTS = {
    "orient": (patched(252, b"\2"), "volume-affine"),
    "a voxel size of 0": (patched(84, bytes(4)), "volume-affine"),
    "a negative voxel size": (patched(80, np.float32(-2).tobytes()), "volume-affine"),
    "NaN as voxel size": (patched(80, np.float32(np.nan).tobytes()), "volume-affine"),
    "a negative extent": (patched(42, np.int16(-4).tobytes()), "volume-header"),
    "another number of bits": (patched(72, np.int16(8).tobytes()), "volume-header"),
    "colours": (patched(70, np.int16(128).tobytes()), "volume-type"),
    "complex values": (patched(70, np.int16(32).tobytes()), "volume-type"),
    "an unknown type": (patched(70, np.int16(999).tobytes()), "volume-header"),
    "pixels at -1": (patched(108, np.float32(-1).tobytes()), "volume-header"),
    "pixels at NaN": (patched(108, np.float32(np.nan).tobytes()), "volume-header"),
    "immense extents": (patched(42, b"\xff\x7f" * 3), "volume-too-large"),
    "extents of more than there is": (patched(42, b"\x40\0"), "volume-truncated"),
    "a header cut short": (lambda data: data[:300], "file-unknown"),
}


@pytest.mark.parametrize(("edit", "code"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("gz", [False, True])
def test_an_invalid_header_of_analyze_is_refused(tmp_path: Path, edit: Callable, code: str, gz: bool) -> None:
    header = write(tmp_path / "pair", analyze(pattern(4, 5, 6, dtype="int16")), gz)
    data = header.read_bytes()
    header.write_bytes(gzip.compress(edit(gzip.decompress(data))) if gz else edit(data))
    assert refusal(tmp_path / "pair").code == code


@pytest.mark.parametrize(
    "image", [nibabel.Nifti1Pair(pattern(4, 5, 6), OBLIQUE), analyze(pattern(4, 5, 6, dtype="int16"))]
)
def test_pixels_that_are_missing_doubled_cut_or_damaged_are_named(tmp_path: Path, image: Any) -> None:
    family = "nifti" if isinstance(image, nibabel.Nifti1Pair) else "volume"
    header = write(tmp_path / "pair", image)
    pixels = tmp_path / "pair" / "t1.img"
    data = pixels.read_bytes()
    pixels.write_bytes(data[:-1])
    assert refusal(tmp_path / "pair").code == f"{family}-truncated"
    pixels.unlink()
    error = refusal(tmp_path / "pair")
    assert (error.code, error.where) == (f"{family}-pair", str(header)) and "t1.img" in error.reason
    packed = tmp_path / "pair" / "t1.img.gz"
    packed.write_bytes(gzip.compress(data)[:-6] + b"abcdef")
    assert refusal(header).code == f"{family}-damaged"
    pixels.write_bytes(data)
    assert refusal(header).code == f"{family}-pair"


def test_pixels_behind_a_link_out_of_the_folder_are_not_read(tmp_path: Path) -> None:
    header = write(tmp_path / "pair", nibabel.Nifti1Pair(pattern(4, 5, 6), OBLIQUE))
    pixels = tmp_path / "pair" / "t1.img"
    pixels.rename(tmp_path / "secret.img")
    try:
        pixels.symlink_to(tmp_path / "secret.img")
    except OSError:
        pytest.skip("this system makes no links")
    assert refusal(header).code == "nifti-pair"


def test_a_matrix_of_spm_beside_it_is_not_ignored(tmp_path: Path) -> None:
    header = write(tmp_path, analyze(pattern(4, 5, 6, dtype="int16")))
    (tmp_path / "t1.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    error = refusal(header)
    assert error.code == "volume-affine" and "t1.mat" in error.reason


def test_a_damaged_pair_leaves_the_others_readable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, analyze(pattern(4, 5, 6, dtype="int16")), name=name)
    (tmp_path / "a.img").write_bytes(b"short")
    refusals: list[ReadError] = []
    (image,) = read_images(tmp_path, refusals=refusals)
    assert image.facts.source.endswith("b.hdr")
    assert [Path(error.where).name for error in refusals] == ["a.hdr"]
    assert refusals[0].reason.startswith("has its pixels in a.img, which has 5 bytes")
