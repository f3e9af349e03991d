"""Headers that are read straight from their bytes say what pydicom says, and the rest is left to pydicom."""

import random
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_files
from pydicom.sequence import Sequence
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
)

from medtl.errors import ReadError
from medtl.imaging.dicom import fast_header as dicom_walk
from medtl.imaging.dicom.fast_header import walk_header
from medtl.imaging.dicom.frames import planes_of
from medtl.imaging.dicom.header import read_header
from medtl.imaging.dicom.instance import Instance
from medtl.imaging.reader import scan
from tests.imaging.conftest import build_dataset, pattern

MUTATIONS = 1000


def parsed(path: Path) -> list[Instance] | str:
    """Return the planes of a file as pydicom parses it, or the code of its refusal."""
    try:
        return planes_of(read_header(path))
    except ReadError as error:
        return error.code


def walked(path: Path) -> list[Instance] | str | None:
    """Return what walk_header makes of a file, in the same terms; None where it leaves it to pydicom."""
    try:
        plane = walk_header(path)
    except ReadError as error:
        return error.code
    return None if plane is None else [plane]


def nested(depth: int, undefined: bool) -> Sequence:
    """Return a sequence of two items, in which Rows and a further sequence stand."""
    items = []
    for number in range(2):
        item = Dataset()
        item.Rows, item.PatientID = 7, f"nested {number}"
        if depth:
            item.ReferencedImageSequence = nested(depth - 1, undefined)
            item["ReferencedImageSequence"].is_undefined_length = undefined
        item.is_undefined_length_sequence_item = undefined
        items.append(item)
    return Sequence(items)


def write(path: Path, undefined: bool = False, syntax: str | None = None, **elements: object) -> Path:
    """Write an MR slice with nested sequences before and behind what is needed of its header."""
    dataset = build_dataset(
        pattern(6, 5),
        MRImageStorage,
        **{
            "BitsStored": 12,
            "ImagePositionPatient": [1.5, -2.25, 30],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "EchoTime": "12.5",
            "DiffusionBValue": 1000.0,
            "PixelPaddingValue": 0,
            "WindowCenter": [40, 50],
            "WindowWidth": [400, 350],
            "RescaleSlope": "",
            **elements,
        },
    )
    for keyword in ("ReferencedImageSequence", "RequestAttributesSequence"):
        setattr(dataset, keyword, nested(2, undefined))
        dataset[keyword].is_undefined_length = undefined
    if syntax is not None:
        dataset.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    if syntax == ImplicitVRLittleEndian:
        dataset["PixelPaddingValue"].VR = "US"
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_a_plain_header_is_walked_and_says_the_same(
    undefined: bool, syntax: str | None, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.dcm", undefined, syntax)
    plane = walk_header(path)
    assert plane is not None and [plane] == parsed(path)
    assert (plane.rows, plane.columns, plane.position) == (6, 5, (1.5, -2.25, 30.0))
    assert plane.padding == (0.0, 0.0) and plane.contrast == ("12.5", "", "1000.0")


@pytest.mark.parametrize(
    "elements",
    [
        {"PixelRepresentation": 1, "PixelPaddingValue": -5, "PixelPaddingRangeLimit": -9},
        {"PixelRepresentation": 0, "PixelPaddingValue": 65535},
        {"ImageType": "", "Modality": None, "PatientID": "", "NumberOfFrames": 1},
        {"EchoTime": None, "DiffusionBValue": None, "FlipAngle": "90", "ViewPosition": "AP"},
        {"DiffusionGradientOrientation": [0.0, 1.0, 0.0], "PatientID": "M\u00fcller"},
        {"SOPClassUID": None},
    ],
)
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_every_kind_of_value_is_decoded_as_pydicom_does(
    elements: dict[str, object], syntax: str | None, tmp_path: Path
) -> None:
    dataset = build_dataset(
        pattern(6, 5, dtype="int16", top=100), MRImageStorage, **{"BitsStored": 16, **elements}
    )
    dataset.SpecificCharacterSet = "ISO_IR 192"
    if syntax:
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.preamble = bytes(128)
    dataset.save_as(tmp_path / "a.dcm")
    plane = walk_header(tmp_path / "a.dcm")
    assert plane is not None and [plane] == parsed(tmp_path / "a.dcm")


def test_a_file_of_two_kinds_is_refused_alone(make_radiograph: Callable[..., Path], tmp_path: Path) -> None:
    sound = make_radiograph(name="sound.dcm")
    dataset = pydicom.dcmread(sound)
    dataset.SOPClassUID = [dataset.SOPClassUID, "1.2"]
    dataset.save_as(tmp_path / "two.dcm")
    found = scan([sound, tmp_path / "two.dcm"])
    assert [one.path for one in found.series] == [sound]
    assert [error.code for error in found.refusals] == ["dicom-header"]


def test_compressed_pixels_have_no_place(make_radiograph: Callable[..., Path]) -> None:
    plane = walk_header(make_radiograph(pattern(70, 64), syntax=JPEG2000Lossless))
    assert plane is not None and plane.place is None


def test_a_long_header_is_read_in_further_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.dcm", undefined=True, ImageComments="x" * 9000)
    whole = walk_header(path)
    monkeypatch.setattr(dicom_walk, "WINDOWS", (300, 2000, 20_000))
    assert whole is not None and walk_header(path) == whole
    monkeypatch.setattr(dicom_walk, "WINDOWS", (300, 2000))
    assert walk_header(path) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[132:],  # no preamble
        lambda data: b"MZ" + data[2:],
        lambda data: data[:-1],
        lambda data: data[:400],
        lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"),
        lambda data: data.replace(b"\x28\0\x11\0US", b"\x28\0\x0f\0US"),  # tags out of order
        lambda data: data.replace(b"\x28\0\x11\0US", b"\x28\0\x11\0QQ"),
        lambda data: data.replace(b"\xe0\x7f\x10\0OW", b"\xe0\x7f\x20\0OW"),
    ],
)
def test_what_is_not_plain_is_left_to_pydicom(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm")
    path.write_bytes(change(path.read_bytes()))
    assert walk_header(path) is None


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_are_left_to_pydicom(syntax: str, tmp_path: Path) -> None:
    dataset = build_dataset(pattern(6, 5), ComputedRadiographyImageStorage)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(
        tmp_path / "a.dcm",
        little_endian=syntax != ExplicitVRBigEndian,
        implicit_vr=False,
        enforce_file_format=True,
    )
    assert walk_header(tmp_path / "a.dcm") is None and isinstance(parsed(tmp_path / "a.dcm"), list)


def test_pydicoms_own_files_give_the_same_instance() -> None:
    files = sorted({Path(name) for name in get_testdata_files()})
    counted = 0
    for path in files:
        if not path.is_file():
            continue
        found = walked(path)
        if found is not None:
            assert found == parsed(path), path.name
            counted += 1
    assert counted > 50


@pytest.mark.parametrize("undefined", [False, True])
def test_a_mutated_header_is_never_read_otherwise_than_by_pydicom(undefined: bool, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.dcm", undefined).read_bytes()
    path, walks = tmp_path / "a.dcm", 0
    for number in range(MUTATIONS):
        path.write_bytes(_mutated(whole, random.Random(number)))
        found = walked(path)
        if found is not None:
            walks += 1
            assert repr(found) == repr(parsed(path)), number
    assert MUTATIONS / 20 < walks < MUTATIONS


def _mutated(data: bytes, random_: random.Random) -> bytes:
    """Flip, overwrite, cut out or repeat some bytes of a file."""
    changed = bytearray(data)
    for _ in range(random_.randint(1, 3)):
        at, size = random_.randrange(132, len(changed)), random_.choice((1, 1, 2, 4, 8))
        kind = random_.randrange(4)
        if kind == 0:
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            changed[at : at + size] = random_.choice((b"\xff", b"\0", b"\xfe\xff", b"SQ", b"UN")) * size
        elif kind == 2:
            del changed[at : at + size]
        else:
            changed[at:at] = changed[at : at + size]
    return bytes(changed)
