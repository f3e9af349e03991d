"""Files without meta information are known for DICOM, and read as their bytes say."""

import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ComputedRadiographyImageStorage, RLELossless

from medtl.imaging import dicom
from medtl.imaging.reader import read_images, scan
from tests.imaging.conftest import build_dataset, pattern, refusal

NOTE = "names no transfer syntax: its bytes say which"
ENCODINGS = {"implicit": (True, True), "explicit": (False, True), "big endian": (False, False)}


def bare(dataset: Dataset, implicit: bool = False, little_endian: bool = True) -> bytes:
    """Return a data set without preamble and meta group."""
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, little_endian
    if not little_endian:
        dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
    write_dataset(stream, dataset)
    return stream.getvalue()


def radiograph(**elements: object) -> Dataset:
    return build_dataset(pattern(12, 10), ComputedRadiographyImageStorage, BitsStored=12, **elements)


@pytest.mark.parametrize("preamble", [b"", bytes(128) + b"DICM"], ids=["bare", "behind a preamble"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_data_set_without_meta_group_is_read(tmp_path: Path, encoding: str, preamble: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(preamble + bare(radiograph(), *ENCODINGS[encoding]))
    (image,) = read_images(path)
    np.testing.assert_array_equal(image.pixels[0], pattern(12, 10))
    assert image.facts.notes == (NOTE,)


def test_a_meta_group_without_transfer_syntax_is_read_as_the_bytes_say(tmp_path: Path) -> None:
    for name, (implicit, _) in list(ENCODINGS.items())[:2]:
        dataset = radiograph()
        del dataset.file_meta.TransferSyntaxUID
        buffer = BytesIO()
        dataset.save_as(buffer, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        (tmp_path / name).write_bytes(buffer.getvalue())
        (image,) = read_images(tmp_path / name)
        np.testing.assert_array_equal(image.pixels[0], pattern(12, 10))


def test_a_bare_series_is_one_volume(make_series: Callable[..., list[Path]]) -> None:
    paths = make_series()
    for path in paths:
        path.write_bytes(bare(pydicom.dcmread(path), implicit=True))
    (image,) = read_images(paths[0].parent)
    np.testing.assert_array_equal(image.pixels[0], np.stack([pattern(6, 5, seed=k) for k in range(3)]))


def test_compressed_pixels_need_a_transfer_syntax(tmp_path: Path) -> None:
    dataset = build_dataset(pattern(64, 64), ComputedRadiographyImageStorage, BitsStored=12)
    dataset.compress(RLELossless)
    path = tmp_path / "a.dcm"
    path.write_bytes(bare(dataset))
    error = refusal(path)
    assert error.code == "dicom-transfer-syntax" and "compressed" in error.reason


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_bare_file_that_is_cut_is_refused(tmp_path: Path, kept: float) -> None:
    content = bare(radiograph(ImageComments="x" * 900))
    path = tmp_path / "a.dcm"
    path.write_bytes(content[: int(len(content) * kept)])
    assert refusal(path).code in ("dicom-truncated", "dicom-header")


@pytest.mark.parametrize(
    "elements",
    [{}, {"SpecificCharacterSet": ""}, {"ImageType": ["DERIVED", "SECONDARY", "MPR", "X" * 16] * 3}],
    ids=["short", "an empty one first", "a long one first"],
)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_data_set_is_recognised_whatever_its_first_elements(
    elements: dict[str, object], encoding: str
) -> None:
    content = bare(radiograph(**elements), *ENCODINGS[encoding])
    assert dicom.recognises(Path("a"), content[:1024])


def test_other_content_is_not_taken_for_a_data_set() -> None:
    source = random.Random(0)
    for _ in range(20_000):
        assert not dicom.recognises(Path("a"), b"\x08\x00" + source.randbytes(400))
    texts = (b"\x08\x00 a text that begins so", b"PNG\r\n", b"\x5c\x01\x00\x00", b"\x00\x08", b"\x08\x00\x05")
    assert not any(dicom.recognises(Path("a"), text + bytes(400)) for text in texts)


@pytest.mark.parametrize("frames", ["0", ""])
def test_a_number_of_frames_that_is_zero_or_empty_is_one(
    make_radiograph: Callable[..., Path], frames: str
) -> None:
    (image,) = read_images(make_radiograph(NumberOfFrames=frames))
    np.testing.assert_array_equal(image.pixels[0], pattern(12, 10))


def test_a_number_of_frames_that_is_zero_beside_several_frames_is_refused(
    make_radiograph: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = pydicom.dcmread(make_radiograph(NumberOfFrames=0))
    dataset.PixelData = dataset.PixelData * 2
    dataset.save_as(tmp_path / "two.dcm")
    assert refusal(tmp_path / "two.dcm").code == "dicom-pixels"


@pytest.mark.parametrize("number", ["9" * 60, "9" * 5000, "-99999999999999999999", "1.5", "one", ""])
def test_an_instance_number_of_any_kind_is_read_over(
    make_series: Callable[..., list[Path]], number: str
) -> None:
    paths = make_series(InstanceNumber=None, AcquisitionNumber=None)
    for path in paths:
        dataset = pydicom.dcmread(path)
        content = bare(dataset)
        element = b"\x20\x00\x13\x00IS" + (len(number) + len(number) % 2).to_bytes(2, "little")
        element += number.encode() + b" " * (len(number) % 2)
        at = content.index(b"\x20\x00\x32\x00DS")
        path.write_bytes(content[:at] + element + content[at:])
    (image,) = read_images(paths[0].parent)
    assert image.pixels.shape == (1, 3, 6, 5)
    assert len(scan(paths[0].parent).series) == 1
