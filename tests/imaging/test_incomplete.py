"""A damaged file is refused with the series that it belongs to, or by itself; no other series is (0029)."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medtl.errors import ReadError
from medtl.imaging.incomplete import DOUBT
from medtl.imaging.reader import read_images, scan

Series = Callable[..., list[Path]]


@pytest.fixture
def flat(make_series: Series, tmp_path: Path) -> dict[int, list[Path]]:
    """Return the files of six patients with a series of three slices each, all in one folder."""
    return {patient: make_series(patient, folder="flat") for patient in range(6)}


def codes(folder: Path) -> list[tuple[str, str]]:
    """Return the code and the name of each refusal of a folder."""
    return [(error.code, Path(error.where).name) for error in scan(folder).refusals]


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def cut_header(path: Path) -> None:
    """Cut a file before it names its series."""
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\x20\x00\x0d\x00UI")])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def misname_rows(path: Path) -> None:
    """Give the rows an unknown value representation: the series is named before them."""
    path.write_bytes(path.read_bytes().replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00QQ"))


NAMING: dict[str, tuple[Callable[[Path], object], str]] = {
    "pixels cut short": (lambda path: cut(path, 0.97), "dicom-truncated"),
    "header cut behind the series": (lambda path: cut(path, 0.85), "dicom-truncated"),
    "rows that cannot be parsed": (misname_rows, "dicom-header"),
}


def cut_at(mark: bytes, more: int) -> Callable[[Path], object]:
    """Return what cuts a file so many bytes behind a mark in its header."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: data.index(mark) + more])

    return damage


NAMELESS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no bytes": (lambda path: path.write_bytes(b""), "file-empty"),
    "header cut before the series": (cut_header, "dicom-truncated"),
    "garbage": (lambda path: path.write_bytes(b"\1\2\3" * 99), "file-unknown"),
    "text": (lambda path: path.write_text("404: not found"), "file-unknown"),
    "zeros": (zero, "file-unknown"),
    "cut behind the magic": (cut_at(b"DICM", 4), "dicom-truncated"),
    "cut in the meta group": (cut_at(b"DICM", 40), "dicom-truncated"),
    "cut behind the meta group": (cut_at(b"\x08\x00\x16\x00UI", 0), "dicom-truncated"),
    "cut within the SOP class": (cut_at(b"\x08\x00\x16\x00UI", 20), "dicom-truncated"),
    "cut within the series UID": (cut_at(b"\x20\x00\x0d\x00UI", 8 + 20), "dicom-truncated"),
    "cut before the end of the series UID": (cut_at(b"\x20\x00\x0e\x00UI", 8 + 20), "dicom-truncated"),
}


@pytest.mark.parametrize(("damage", "code"), NAMING.values(), ids=NAMING)
def test_in_a_flat_folder_the_series_that_a_damaged_file_names_is_refused_alone(
    flat: dict[int, list[Path]], damage: Callable[[Path], object], code: str
) -> None:
    damage(flat[2][1])
    found = scan(flat[0][0].parent)
    (refused,) = found.refusals
    assert (refused.code, Path(refused.where)) == (code, min(flat[2][0], flat[2][2]))
    assert f"a slice may be missing: {flat[2][1].name}" in refused.reason
    assert len(found.series) == 5 and not any(one.notes for one in found.series)


@pytest.mark.parametrize(("damage", "code"), NAMELESS.values(), ids=NAMELESS)
def test_in_a_flat_folder_a_damaged_file_that_names_no_series_is_refused_alone(
    flat: dict[int, list[Path]], damage: Callable[[Path], object], code: str
) -> None:
    damage(flat[2][1])
    found = scan(flat[0][0].parent)
    # Without its middle slice the series has a gap, which is found.
    kept = {(code, flat[2][1].name)}
    assert kept <= {(error.code, Path(error.where).name) for error in found.refusals}
    assert len(found.series) >= 5
    assert all(one.notes == (DOUBT,) for one in found.series)


@pytest.mark.parametrize(("damage", "code"), [*NAMING.values(), *NAMELESS.values()], ids=[*NAMING, *NAMELESS])
def test_in_a_folder_of_its_own_a_series_is_refused_with_its_damaged_file(
    make_series: Series, tmp_path: Path, damage: Callable[[Path], object], code: str
) -> None:
    sound = make_series(1, folder="all/1")
    damage(make_series(2, folder="all/2")[0])
    found = scan(tmp_path / "all")
    assert [one.path for one in found.series] == [sound[0].parent] and found.series[0].notes == ()
    (refused,) = found.refusals
    assert (refused.code, Path(refused.where)) == (code, tmp_path / "all/2")
    assert "a slice may be missing" in refused.reason and refused.fix


def test_single_slices_of_many_patients_do_not_answer_for_one_another(
    make_series: Series, tmp_path: Path
) -> None:
    paths = [make_series(patient, instances=1, folder="in")[0] for patient in range(20)]
    cut(paths[7], 0.97)
    refusals: list[ReadError] = []
    images = read_images(tmp_path / "in", refusals=refusals)
    assert len(images) == 19
    assert [(error.code, error.where) for error in refusals] == [("dicom-truncated", str(paths[7]))]
    assert "slice" not in refusals[0].reason


def test_a_slice_in_another_folder_is_missing_all_the_same(make_series: Series, tmp_path: Path) -> None:
    paths = make_series(instances=4, folder="in/a")
    (tmp_path / "in/b").mkdir()
    moved = paths[3].rename(tmp_path / "in/b" / paths[3].name)
    cut(moved, 0.97)
    assert codes(tmp_path / "in") == [("dicom-truncated", "a")]


def test_several_damaged_slices_are_one_row_that_counts_them(make_series: Series, tmp_path: Path) -> None:
    paths = make_series(instances=6, folder="in")
    for path in paths[2:4]:
        cut(path, 0.97)
    (refused,) = scan(tmp_path / "in").refusals
    assert "1 of 2 damaged files" in refused.reason


def test_both_echoes_of_a_series_are_refused(make_series: Series, tmp_path: Path) -> None:
    def echo(k: int, dataset: object) -> None:
        dataset.EchoTime, dataset.ImagePositionPatient = 1 + k % 2, [0, 0, 3.0 * (k // 2)]  # type: ignore[attr-defined]

    paths = make_series(instances=8, folder="in", change=echo)
    paths[6].write_bytes(b"")
    found = scan(tmp_path / "in")
    assert found.series == () and [error.code for error in found.refusals] == ["file-empty"] * 2


def test_a_damaged_radiograph_refuses_no_other_of_its_series(
    make_radiograph: Callable, tmp_path: Path
) -> None:
    for number in range(3):
        make_radiograph(name=f"in/{number}.dcm", SOPInstanceUID=f"1.2.{number}")
    cut(tmp_path / "in/1.dcm", 0.9)
    assert len(scan(tmp_path / "in").series) == 2 and codes(tmp_path / "in") == [("dicom-truncated", "1.dcm")]


def test_a_text_file_in_the_list_is_no_missing_slice(make_series: Series, tmp_path: Path) -> None:
    paths = make_series(instances=3)
    for name in ("notes.txt", "labels.csv", "README"):
        (tmp_path / "mr" / name).write_text("notes")
        paths.append(tmp_path / "mr" / name)
    refusals: list[ReadError] = []
    (image,) = read_images(paths, refusals=refusals)
    assert image.pixels.shape == (1, 3, 6, 5) and image.facts.notes == ()
    assert {Path(error.where).name: error.code for error in refusals} == dict.fromkeys(
        ("notes.txt", "labels.csv", "README"), "file-unknown"
    )
    assert not any("slice" in error.reason for error in refusals)


def test_a_slice_without_ending_that_became_zeros_is_missing(make_series: Series, tmp_path: Path) -> None:
    paths = make_series(instances=4, folder="in")
    named = [path.rename(path.with_name(f"IM{number}")) for number, path in enumerate(paths)]
    zero(named[3])
    assert codes(tmp_path / "in") == [("file-unknown", "in")]
    named[3].write_text("a note without an ending")
    assert scan(tmp_path / "in").left_out == {"files of other formats": 1}


def test_counts_add_up(flat: dict[int, list[Path]], make_radiograph: Callable, tmp_path: Path) -> None:
    cut(flat[0][0], 0.97)
    flat[1][0].write_bytes(b"")
    make_radiograph(name="flat/cr.dcm", SOPInstanceUID="1.2")
    (tmp_path / "flat/notes.txt").write_text("notes")
    found = scan(tmp_path / "flat")
    named = sum(len(one.files) for one in found.series)
    torn = sum("a slice may be missing" in error.reason for error in found.refusals)
    # A series that lacks a slice is one row for its three files.
    assert named + 3 * torn + (len(found.refusals) - torn) + found.skipped == 6 * 3 + 2


def test_series_without_uids_are_known_by_their_folders(make_series: Series, tmp_path: Path) -> None:
    blank = {"SeriesInstanceUID": None, "StudyInstanceUID": None, "PatientID": None}
    for folder in ("in/a", "in/b"):
        make_series(instances=3, folder=folder, **blank)
    damaged = make_series(instances=4, folder="in/c", **blank)[3]
    cut(damaged, 0.97)
    assert codes(tmp_path / "in") == [("dicom-truncated", "c")]
    assert len(scan(tmp_path / "in").series) == 2


def test_pixels_are_those_of_the_clean_folder(flat: dict[int, list[Path]]) -> None:
    folder = flat[0][0].parent
    clean = {image.facts.patient_key: image.pixels for image in read_images(folder)}
    cut(flat[3][0], 0.97)
    refusals: list[ReadError] = []
    left = read_images(folder, refusals=refusals)
    assert len(left) == 5 and len(refusals) == 1
    for image in left:
        np.testing.assert_array_equal(image.pixels, clean[image.facts.patient_key])


def test_garbage_among_slices_without_endings_is_a_missing_slice(make_series: Series, tmp_path: Path) -> None:
    for number, path in enumerate(make_series(instances=5)):
        path.rename(path.with_name(f"1.2.{number}"))
    (path.parent / "1.2.5").write_bytes(np.random.default_rng(0).bytes(9000))
    (row,) = codes(path.parent)
    assert row == ("file-unknown", path.parent.name)


@pytest.mark.parametrize("target", ["absent", "../outside.dcm"])
def test_a_link_that_is_not_followed_leaves_a_note_on_slices(
    target: str, make_series: Series, tmp_path: Path
) -> None:
    paths = make_series(instances=5)
    shutil.copy(paths[4], paths[0].parents[1] / "outside.dcm")
    paths[4].unlink()
    paths[4].symlink_to(target)
    (one,) = scan(paths[0].parent).series
    assert len(one.files) == 4 and one.notes == (DOUBT,)


def test_a_damaged_archive_leaves_a_note_on_slices_in_the_one_beside_it(
    make_series: Series, tmp_path: Path
) -> None:
    paths = make_series(instances=6)
    place = tmp_path / "zips"
    place.mkdir()
    for name, part in (("1.zip", paths[:3]), ("2.zip", paths[3:])):
        with zipfile.ZipFile(place / name, "w") as archive:
            for path in part:
                archive.write(path, path.name)
    (whole,) = scan(place).series
    assert len(whole.files) == 6 and not whole.notes
    (place / "2.zip").write_bytes((place / "2.zip").read_bytes()[:-100])
    found = scan(place)
    assert [error.code for error in found.refusals] == ["archive-damaged"]
    assert [(len(one.files), one.notes) for one in found.series] == [(3, (DOUBT,))]
