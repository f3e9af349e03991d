"""Copies are told by their bytes or elements; each file is read a few times, however many there are."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from medtl.errors import ReadError
from medtl.imaging.dicom import contents
from medtl.imaging.reader import read_series, scan
from tests.imaging.conftest import fixed_uid, pattern, save

SAME = {"SOPInstanceUID": fixed_uid("same")}


def copies(folder: Path) -> tuple[int, int]:
    """Return how many series a folder has, and how many copies were left out."""
    found = scan(folder)
    assert not found.refusals
    return len(found.series), found.skipped


def test_exact_copies_are_told_however_many(make_radiograph: Callable[..., Path], tmp_path: Path) -> None:
    content = make_radiograph(name="in/a.dcm").read_bytes()
    for number in range(5):
        (tmp_path / f"in/b{number}.dcm").write_bytes(content)
    assert copies(tmp_path / "in") == (1, 5)


def test_a_copy_may_be_encoded_otherwise(make_radiograph: Callable[..., Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(make_radiograph(name="in/a.dcm"))
    dataset.file_meta.ImplementationVersionName = "OTHER"
    save(dataset, tmp_path / "in/b.dcm")
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    save(dataset, tmp_path / "in/c.dcm")
    (tmp_path / "in/d.dcm").write_bytes((tmp_path / "in/c.dcm").read_bytes())
    assert copies(tmp_path / "in") == (1, 3)


def test_other_content_under_one_identifier_is_no_copy(
    make_radiograph: Callable[..., Path], tmp_path: Path
) -> None:
    for number in range(4):
        make_radiograph(pattern(12, 10, seed=number // 2), f"in/{number}.dcm", **SAME)
    assert copies(tmp_path / "in") == (2, 2)


def test_what_cannot_be_parsed_to_its_end_is_no_copy_and_ends_no_scan(
    make_radiograph: Callable[..., Path], tmp_path: Path
) -> None:
    """Its header says all that a scan needs; behind its pixel data, an element is cut short."""
    whole = make_radiograph(name="in/a.dcm", **SAME).read_bytes()
    make_radiograph(name="in/sound.dcm")
    (tmp_path / "in/b.dcm").write_bytes(whole + b"\xfc\xff\xfc\xffSQ\0\0\x08\0\0\0\xfe\xff\0\xe0\x7f\0\0\0")
    (tmp_path / "in/c.dcm").write_bytes(whole + b"\x09\0\x01\0QQ\0\0\x08\0\0\0rubbish")
    found = scan(tmp_path / "in")
    assert {"a", "sound"} <= {one.path.stem for one in found.series}
    for series in found.series:
        try:
            read_series(series)
        except ReadError as error:
            assert error.code == "dicom-header"


def test_a_body_that_fails_ends_no_scan(
    make_radiograph: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise ReadError("dicom-truncated", "ends early", where=path, fix="copy it again")

    for number in range(3):
        make_radiograph(pattern(12, 10, seed=number), f"in/{number}.dcm", **SAME)
    monkeypatch.setattr(contents, "read_dataset", refuse)
    assert copies(tmp_path / "in") == (3, 0)


def test_the_original_is_read_once_for_all_of_its_copies(
    make_radiograph: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_radiograph(name="in/0.dcm").read_bytes()
    for number in range(1, 20):
        (tmp_path / f"in/{number}.dcm").write_bytes(content)
    reads = []
    read = contents.read_bytes
    monkeypatch.setattr(contents, "read_bytes", lambda path: reads.append(path) or read(path))
    assert copies(tmp_path / "in") == (1, 19)
    assert len(reads) == 1


def test_a_file_that_changes_between_scans_is_compared_as_it_is(
    make_radiograph: Callable[..., Path], tmp_path: Path
) -> None:
    content = make_radiograph(pattern(12, 10, seed=1), "in/a.dcm", **SAME).read_bytes()
    (tmp_path / "in/b.dcm").write_bytes(content)
    assert copies(tmp_path / "in") == (1, 1)
    make_radiograph(pattern(12, 10, seed=2), "in/a.dcm", **SAME)
    assert copies(tmp_path / "in") == (2, 0)


def test_many_files_of_one_identifier_are_not_compared_with_one_another(
    make_radiograph: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where all identifiers were replaced by one: work grows with the files, not with their pairs."""
    for number in range(30):
        make_radiograph(pattern(12, 10, seed=number), f"in/{number:02d}.dcm", **SAME)
    parses = []
    read = contents.read_dataset
    monkeypatch.setattr(contents, "read_dataset", lambda path, data: parses.append(path) or read(path, data))
    assert copies(tmp_path / "in") == (30, 0)
    assert len(parses) == 30


def test_a_deflated_copy_is_told(make_radiograph: Callable[..., Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(make_radiograph(name="in/a.dcm"))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    (tmp_path / "in/b.dcm").write_bytes(buffer.getvalue())
    assert copies(tmp_path / "in") == (1, 1)
