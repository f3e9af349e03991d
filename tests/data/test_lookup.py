"""A path or a UID leads to the one series that it names, or to the reason why it names none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medtl.core.ids import hash_identifier
from medtl.data.labels import LabelRowsError
from medtl.data.manifest import load_manifest
from medtl.data.naming import Folder, NoSeriesError
from medtl.data.task import Manifest, TaskConfig
from medtl.errors import ReadError
from medtl.imaging.reader import read_series, scan
from medtl.imaging.series import Scan, Series
from tests.imaging.conftest import AXIAL, build_enhanced, fixed_uid, pattern, save


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
    return Folder(tmp_path, Scan(series, ()))


def problem_of(find: Callable[[str], Series], cell: str) -> str:
    """Return why a cell names no series."""
    with pytest.raises(NoSeriesError) as caught:
        find(cell)
    return str(caught.value)


def test_a_series_is_found_by_folder_and_by_uid(dicom_folder: Folder) -> None:
    first, second, third = dicom_folder.scanned.series
    assert dicom_folder.find_path("a/t1") is first
    assert dicom_folder.find_path("b") is third
    assert dicom_folder.find_uid("1.1.2") is second
    assert dicom_folder.find_uid("1.2") is third


def test_a_study_of_several_series_or_an_unknown_uid_is_a_problem(dicom_folder: Folder) -> None:
    assert problem_of(dicom_folder.find_uid, "1.1") == "the UID holds 2 series: name one of them"
    assert problem_of(dicom_folder.find_uid, "9.9") == "no readable series has this UID"
    assert problem_of(dicom_folder.find_path, "a") == "a holds 2 series: name one of them"


def test_one_slice_of_a_volume_does_not_stand_for_it(dicom_folder: Folder) -> None:
    expected = "a/t1/1.dcm is one of 3 files of a series: name its folder"
    assert problem_of(dicom_folder.find_path, "a/t1/1.dcm") == expected


def test_a_folder_with_a_refused_series_beside_a_readable_one_is_a_problem(tmp_path: Path) -> None:
    series = make_series(tmp_path, "a/t1")
    (tmp_path / "a" / "bad").mkdir()
    refused = ReadError("file-empty", "has no bytes", where=tmp_path / "a" / "bad")
    folder = Folder(tmp_path, Scan((series,), (refused,)))
    expected = "a holds 1 readable and 1 refused series: name one of them"
    assert problem_of(folder.find_path, "a") == expected
    assert folder.find_path("a/t1") is series
    with pytest.raises(ReadError) as caught:
        folder.find_path("a/bad")
    assert caught.value is refused


@pytest.fixture
def bold(make_nifti: Callable, tmp_path: Path) -> np.ndarray:
    """Write bold.nii.gz, which holds these three volumes (4, 5, 6, 3), and t1.nii.gz beside it."""
    values = pattern(4, 5, 6, 3, dtype="int16")
    make_nifti(values, name="bold.nii.gz")
    make_nifti(name="t1.nii.gz")
    return values


def load(data: Path, *rows: str) -> Manifest:
    """Read a table of paths, of which every second one is labelled b."""
    table = (data if data.is_dir() else data.parent) / "labels.csv"
    table.write_text("\n".join(["path,label", *(f"{row},{'ab'[n % 2]}" for n, row in enumerate(rows))]))
    return load_manifest(data, table, TaskConfig())


def problems_of(data: Path, *rows: str) -> tuple[str, ...]:
    with pytest.raises(LabelRowsError) as caught:
        load(data, *rows)
    return caught.value.problems


def test_a_table_may_name_volumes_of_a_4d_file(bold: np.ndarray, tmp_path: Path) -> None:
    manifest = load(tmp_path, "bold.nii.gz#volume/2", "t1.nii.gz", "bold.nii.gz#volume/0")
    assert [sample.series.item for sample in manifest.samples] == ["volume/2", None, "volume/0"]
    np.testing.assert_array_equal(read_series(manifest.samples[0].series).pixels[0], bold[..., 2])
    assert manifest.samples[2].sample_id == "s" + hash_identifier("bold.nii.gz#volume/0", length=10)
    assert "1 images or series of the folder are not in the table" in manifest.notes


def test_volumes_of_a_file_that_is_the_data_itself_are_named_alone(bold: np.ndarray, tmp_path: Path) -> None:
    manifest = load(tmp_path / "bold.nii.gz", "volume/1", "bold.nii.gz#volume/2")
    assert [sample.series.item for sample in manifest.samples] == ["volume/1", "volume/2"]


def test_a_table_may_name_volumes_of_a_dicom_file(tmp_path: Path) -> None:
    planes = pattern(6, 6, 5)
    positions = [(0.0, 0.0, 2.5 * (number % 3)) for number in range(6)]
    dataset = build_enhanced(planes, positions, AXIAL, frame_TemporalPositionIndex=[1, 1, 1, 2, 2, 2])
    save(dataset, tmp_path / "study" / "perfusion.dcm")
    first, second = load(tmp_path, "study/perfusion.dcm#volume/1", "study/perfusion.dcm#volume/0").samples
    np.testing.assert_array_equal(read_series(first.series).pixels[0], planes[3:])
    np.testing.assert_array_equal(read_series(second.series).pixels[0], planes[:3])
    several = "holds 2 series: name one as study/perfusion.dcm#volume/0"
    for cell in ("study/perfusion.dcm", "study"):
        assert f"row 2: {cell} {several}" in problems_of(tmp_path, cell, "study/perfusion.dcm#volume/1")
    folder = Folder(tmp_path, scan(tmp_path))
    by_path = "name one by path, as study/perfusion.dcm#volume/0"
    assert problem_of(folder.find_uid, fixed_uid("series")) == f"the UID holds 2 series: {by_path}"


@pytest.mark.parametrize(
    "spelling", ["./bold.nii.gz#volume/1", "sub/../bold.nii.gz#volume/1", "{root}/bold.nii.gz#volume/1"]
)
def test_the_path_before_an_item_may_be_spelled_like_any_other(
    bold: np.ndarray, tmp_path: Path, spelling: str
) -> None:
    manifest = load(tmp_path, spelling.format(root=tmp_path), "t1.nii.gz")
    assert manifest.samples[0].series.item == "volume/1"


def test_a_path_with_backslashes_may_have_an_item(make_nifti: Callable, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    make_nifti(pattern(4, 5, 6, 2, dtype="int16"), name="sub/bold.nii.gz")
    manifest = load(tmp_path, "sub\\bold.nii.gz#volume/1", "sub/bold.nii.gz#volume/0")
    assert [sample.series.item for sample in manifest.samples] == ["volume/1", "volume/0"]


def test_a_hash_sign_in_the_name_of_a_file_is_not_an_item(make_nifti: Callable, tmp_path: Path) -> None:
    make_nifti(name="visit#2.nii")
    make_nifti(pattern(4, 5, 6, 2, dtype="int16"), name="visit#3.nii")
    first, second = load(tmp_path, "visit#2.nii", "visit#3.nii#volume/1").samples
    assert (first.series.item, second.series.item) == (None, "volume/1")


UNKNOWN_ITEMS = {
    "bold.nii.gz": "bold.nii.gz holds 3 series: name one as bold.nii.gz#volume/0",
    "bold.nii.gz#volume/3": "bold.nii.gz has no item 'volume/3': name it as bold.nii.gz#volume/0",
    "bold.nii.gz#": "bold.nii.gz has no item '': name it as bold.nii.gz#volume/0",
    "t1.nii.gz#volume/0": "t1.nii.gz has no item 'volume/0': name it as t1.nii.gz",
    "old/bold.nii.gz#volume/0": "old/bold.nii.gz does not exist (did you mean bold.nii.gz?)",
    "../bold.nii.gz#volume/0": "../bold.nii.gz#volume/0 leads out of the folder",
    "notes.txt#volume/0": "notes.txt holds no image that can be read",
    "sub#volume/0": "sub is no file: leave #volume/0 out",
}


@pytest.mark.parametrize(("cell", "text"), UNKNOWN_ITEMS.items(), ids=UNKNOWN_ITEMS)
def test_an_item_that_is_not_there_is_a_problem_that_says_how_to_name_one(
    bold: np.ndarray, make_nifti: Callable, tmp_path: Path, cell: str, text: str
) -> None:
    (tmp_path / "sub").mkdir()
    make_nifti(name="sub/t2.nii.gz")
    (tmp_path / "notes.txt").write_text("x")
    assert f"row 2: {text}" in problems_of(tmp_path, cell, "t1.nii.gz", "bold.nii.gz#volume/0")


def test_a_volume_that_two_rows_name_is_a_problem(bold: np.ndarray, tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "bold.nii.gz#volume/1", "t1.nii.gz", "./bold.nii.gz#volume/1")
    assert problem == "row 4: duplicate of row 2 for ./bold.nii.gz#volume/1"


def test_an_item_of_a_refused_file_is_refused_with_it(bold: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"<html>")
    manifest = load(tmp_path, "bold.nii.gz#volume/1", "t1.nii.gz", "bad.nii.gz#volume/0")
    assert [error.code for error in manifest.refusals] == ["file-unknown"]
    assert len(manifest.samples) == 2
