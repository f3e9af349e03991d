"""A file is whole or absent."""

import csv

import pytest

from medtl.core.files import read_json, replacing, write_csv, write_json
from medtl.errors import OutputError


def test_a_write_that_fails_leaves_the_former_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_table_has_no_formulas_and_keeps_what_is_no_text(tmp_path):
    cells = ["=1+1", "+a", "-a", "@a", "\ta", "\rb\nc", "a=1", "a,b", "scan\udcff"]
    write_csv(tmp_path / "a.csv", [["name"], *([cell] for cell in cells)])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = [row[0] for row in csv.reader(file)]
    assert rows == ["name", "'=1+1", "'+a", "'-a", "'@a", "'\ta", "'\rb\nc", "a=1", "a,b", "scan\\udcff"]


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        write_json(tmp_path / "file" / "a.json", {})
    assert caught.value.code == "output-unwritable"
