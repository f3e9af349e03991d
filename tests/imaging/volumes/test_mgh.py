"""FreeSurfer's MGH: read as nibabel does, or refused by name."""

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medtl.errors import ReadError
from medtl.imaging.image import Image
from medtl.imaging.reader import read_images, read_series, scan
from medtl.imaging.series import Reading
from tests.imaging.conftest import pattern, refusal

OBLIQUE = np.array(
    [[-1.8, 0.6, 0.0, 40.0], [0.8, 1.35, 0.0, -30.0], [0.0, 0.0, 3.0, 12.0], [0.0, 0.0, 0.0, 1.0]]
)
TYPES = ["uint8", "int16", "int32", "float32"]


def write(folder: Path, values: np.ndarray, name: str = "orig.mgz", affine: np.ndarray = OBLIQUE) -> Path:
    """Write MGH or MGZ with nibabel."""
    folder.mkdir(exist_ok=True)
    nibabel.MGHImage(values, affine).to_filename(folder / name)
    return folder / name


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Change what a file holds."""
    data = path.read_bytes()
    path.write_bytes(gzip.compress(edit(gzip.decompress(data))) if path.suffix == ".mgz" else edit(data))


def read_one(path: Path) -> Image:
    (image,) = read_images(path)
    return image


@pytest.mark.parametrize("name", ["orig.mgz", "orig.mgh"])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_equals_nibabel(tmp_path: Path, dtype: str, name: str) -> None:
    values = pattern(4, 5, 6, dtype=dtype, top=100)
    path = write(tmp_path, values, name)
    image, reference = read_one(path), nibabel.load(path)
    np.testing.assert_array_equal(image.pixels[0], reference.get_fdata(dtype=np.float32))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(image.pixels[0], values)
    np.testing.assert_allclose(image.affine, reference.affine)  # type: ignore[attr-defined]
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-4)
    assert image.facts.format == "mgh" and image.facts.notes == ()
    assert image.facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_unsigned_16_bits_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, pattern(4, 5, 6, dtype="int16"), "orig.mgh")
    change(
        path, lambda data: data[:20] + struct.pack(">i", 10) + data[24:284] + b"\xff\xfe" * 120 + data[524:]
    )
    assert (read_one(path).pixels == 0xFFFE).all()


def test_frames_are_volumes_or_channels(tmp_path: Path) -> None:
    values = pattern(4, 5, 6, 3, dtype="int16")
    path = write(tmp_path, values)
    images = read_images(path)
    np.testing.assert_array_equal([image.pixels[0] for image in images], np.moveaxis(values, -1, 0))
    assert [image.facts.source for image in images] == [f"{path}#volume/{number}" for number in range(3)]
    (series,) = scan(path, reading=Reading(volumes_as_channels=True)).series
    np.testing.assert_array_equal(read_series(series).pixels, np.moveaxis(values, -1, 0))


def test_what_freesurfer_writes_behind_the_pixels_is_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path, pattern(4, 5, 6, dtype="int16"))
    change(path, lambda data: data + b"\0\0\0\x03" + bytes(900))
    assert read_one(path).facts.notes == ()


def with_fields(*fields: int) -> Callable[[bytes], bytes]:
    """Write other extents, frames, type, degrees of freedom and flag."""
    return lambda data: data[:4] + struct.pack(">6ih", *fields) + data[30:]


FAULTS = {
    "unplaced": (with_fields(4, 5, 6, 1, 4, 0, 0), "volume-affine"),
    "unknown type": (with_fields(4, 5, 6, 1, 7, 0, 1), "volume-type"),
    "immense": (with_fields(4096, 4096, 4096, 1, 4, 0, 1), "volume-too-large"),
    "immense frames": (with_fields(512, 512, 256, 500, 4, 0, 1), "volume-too-large"),
    "more than there is": (with_fields(9, 5, 6, 1, 4, 0, 1), "volume-truncated"),
    "negative": (with_fields(-4, 5, 6, 1, 4, 0, 1), "file-unknown"),
    "no sizes": (lambda data: data[:30] + bytes(12) + data[42:], "volume-affine"),
    "NaN directions": (lambda data: data[:42] + b"\x7f\xc0\0\0" * 9 + data[78:], "volume-affine"),
    "another version": (lambda data: b"\0\0\0\2" + data[4:], "file-unknown"),
    "far too long": (lambda data: data + bytes(2**21), "volume-too-large"),
    "cut in its pixels": (lambda data: data[:400], "volume-truncated"),
    "cut in its header": (lambda data: data[:200], "file-unknown"),
}


@pytest.mark.parametrize(("edit", "code"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("name", ["orig.mgz", "orig.mgh"])
def test_an_invalid_file_is_refused(tmp_path: Path, edit: Callable, code: str, name: str) -> None:
    path = write(tmp_path / "subject", pattern(4, 5, 6, dtype="int16"), name)
    change(path, edit)
    assert refusal(tmp_path / "subject").code == code


def test_a_corrupted_gzip_payload_is_never_read(tmp_path: Path) -> None:
    path = write(tmp_path, pattern(9, 9, 9, dtype="int16"))
    data, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        place, bit = generator.integers(10, len(data)), generator.integers(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
        with pytest.raises(ReadError):
            read_images(path)
