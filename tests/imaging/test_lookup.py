"""A path or a UID leads to the one series that it names, or to the reason why it names none."""

from pathlib import Path

import pytest

from medtl.errors import ReadError
from medtl.imaging.deidentify import hash_identifier
from medtl.imaging.lookup import Folder, Problem
from medtl.imaging.series import Scan, Series


def make_series(root: Path, name: str, files: int = 3, **keys: str) -> Series:
    """A DICOM series that has the folder `name` to itself."""
    paths = tuple(root / name / f"{index}.dcm" for index in range(files))
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    hashed = {key: hash_identifier(value) for key, value in keys.items()}
    return Series(root / name, paths, "dicom", **hashed)  # type: ignore[arg-type]


@pytest.fixture
def dicom_folder(tmp_path: Path) -> Folder:
    """Patient A has a study of two series, patient B a study of one."""
    series = (
        make_series(tmp_path, "a/t1", patient_key="A", study_key="1.1", series_key="1.1.1"),
        make_series(tmp_path, "a/t2", patient_key="A", study_key="1.1", series_key="1.1.2"),
        make_series(tmp_path, "b/t1", patient_key="B", study_key="1.2", series_key="1.2.1"),
    )
    return Folder(tmp_path, Scan(series, (), 0))


def test_a_series_is_found_by_folder_and_by_uid(dicom_folder: Folder) -> None:
    first, second, third = dicom_folder.found.series
    assert dicom_folder.find_path("a/t1") is first
    assert dicom_folder.find_path("b") is third
    assert dicom_folder.find_uid("1.1.2") is second
    assert dicom_folder.find_uid("1.2") is third


def test_a_study_of_several_series_or_an_unknown_uid_is_a_problem(dicom_folder: Folder) -> None:
    assert dicom_folder.find_uid("1.1") == Problem("the UID holds 2 series: name one of them")
    assert dicom_folder.find_uid("9.9") == Problem("no readable series has this UID")
    assert dicom_folder.find_path("a") == Problem("a holds 2 series: name one of them")


def test_one_slice_of_a_volume_does_not_stand_for_it(dicom_folder: Folder) -> None:
    expected = Problem("a/t1/1.dcm is one of 3 files of a series: name its folder")
    assert dicom_folder.find_path("a/t1/1.dcm") == expected


def test_a_folder_with_a_refused_series_beside_a_readable_one_is_a_problem(tmp_path: Path) -> None:
    series = make_series(tmp_path, "a/t1")
    (tmp_path / "a" / "bad").mkdir()
    refused = ReadError("file-empty", "has no bytes", where=tmp_path / "a" / "bad")
    folder = Folder(tmp_path, Scan((series,), (refused,), 0))
    assert folder.find_path("a") == Problem("a holds 1 readable and 1 refused series: name one of them")
    assert folder.find_path("a/t1") is series
    assert folder.find_path("a/bad") is refused
