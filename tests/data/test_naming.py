"""A name is a path in the folder, an id is its salted hash, and both are the same wherever they are made."""

from pathlib import Path

import pytest

from medtl.data.naming import check_names, refused_name, relative_name, sample_key, source_name
from medtl.errors import ReadError
from medtl.imaging.series import Series


def make_series(path: Path, item: str | None = None) -> Series:
    return Series(path, (path,), "png", item=item)


def test_a_series_is_named_by_its_path_in_the_folder_and_its_item(tmp_path: Path) -> None:
    assert source_name(make_series(tmp_path / "a" / "b.png"), tmp_path) == "a/b.png"
    assert source_name(make_series(tmp_path / "set.npz", "train/1"), tmp_path) == "set.npz#train/1"


def test_a_root_that_is_itself_the_series_has_a_name_that_nothing_below_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = tmp_path / "x.png", tmp_path / "t1"
    file.touch()
    folder.mkdir()
    assert source_name(make_series(file), file) == "x.png"
    assert source_name(make_series(folder), folder) == f"./{folder.name}"
    assert source_name(make_series(folder / "t1"), folder) == "t1"
    monkeypatch.chdir(folder)
    assert source_name(make_series(Path()), Path()) == f"./{Path().absolute().name}"


def test_two_series_of_one_name_are_refused(tmp_path: Path) -> None:
    item, file = make_series(tmp_path / "a", "b"), make_series(tmp_path / "a#b")
    check_names([item, make_series(tmp_path / "a")], tmp_path)
    with pytest.raises(ReadError) as caught:
        check_names([item, file], tmp_path)
    assert caught.value.code == "name-repeated" and caught.value.where == str(file.path)


def test_a_refused_input_is_named_as_if_it_had_been_read(tmp_path: Path) -> None:
    root = tmp_path / "two  spaces"
    root.mkdir()
    series = make_series(root / "a" / "b.png")
    error = ReadError("file-empty", "has no bytes", where=series.path)
    assert refused_name(error, root) == source_name(series, root) == "a/b.png"


def test_a_relative_and_an_absolute_path_have_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        relative_name(Path("d/a.png"), tmp_path / "d")
        == relative_name(tmp_path / "d/a.png", Path("d"))
        == "a.png"
    )
    assert relative_name(tmp_path / "other/a.png", Path("d")) == (tmp_path / "other/a.png").as_posix()


def test_a_file_name_that_is_no_text_has_a_name_and_an_id(tmp_path: Path) -> None:
    name = source_name(make_series(tmp_path / "scan\udcff.png"), tmp_path)
    assert name == "scan\\udcff.png"
    assert sample_key(name) != sample_key("scan.png")
