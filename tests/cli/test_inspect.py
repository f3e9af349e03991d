"""medtl inspect: what is in a folder and what is wrong with it, without saying who is in it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from medtl.cli import main
from medtl.data.naming import sample_key
from medtl.imaging.image import ImageWarning
from medtl.imaging.inspection import Inspection
from medtl.report.contact_sheet import PAGE_NAME, Tile
from medtl.workflows import inspect as inspect_run
from medtl.workflows.inspect import TilePicker
from tests.cli import jobs
from tests.report.pages import Page, check_page

CANARIES = ("canary", "kim", "19771231", "20010911", "1.2.826.0", "1977-12-31", "2001-09-11")
PAYLOAD = "<img src=x>"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Radiographs, an MR series and PNGs; a constant, a burned-in, a damaged and two other files."""
    folder = tmp_path_factory.mktemp("mixed") / "Canary^Kim 19771231"
    jobs.write_radiograph(folder / "a.dcm", 0, BodyPartExamined="CHEST", ViewPosition="PA")
    jobs.write_radiograph(folder / "b.dcm", 1, BodyPartExamined=PAYLOAD, BurnedInAnnotation="YES")
    jobs.write_volume(folder / "mr", 3, 1, BodyPartExamined="HEAD")
    jobs.write_png(folder / "png/flat.png", np.full((30, 20), 7, np.uint8))
    jobs.write_png(folder / "png/plain.png", jobs.draw(1, 1))
    damaged = jobs.write_png(folder / "png/cut.png", jobs.draw(2, 1))
    damaged.write_bytes(damaged.read_bytes()[:-60])
    (folder / "notes.txt").write_text("Canary^Kim")
    (folder / "empty.dcm").write_bytes(b"")
    return folder


def inspect_json(folder: Path, *more: str | Path) -> dict[str, Any]:
    """Return the document that --json prints."""
    return json.loads(jobs.medtl("inspect", folder, "--json", *more).stdout)


def test_a_mixed_folder_is_told_in_full(mixed: Path) -> None:
    result = jobs.medtl("inspect", mixed)
    assert result.exit_code == 3
    for text in (
        "CR images (DICOM)",
        "MR volumes (DICOM)",
        "Images (PNG, JPEG, TIFF, BMP, WebP)",
        "CHEST (1)",
        "8 x 16 x 16 (1)",
        "Explicit VR Little Endian",
        "1  has burned-in annotation",
        "1  files of other formats (.txt)",
        "[image-constant] png/flat.png: every pixel has the same value",
        "[raster-damaged] png/cut.png: is corrupt or incomplete: copy it again from its source",
        "[file-empty] empty.dcm: has no bytes: copy it again from its source",
    ):
        assert text in result.stdout, text
    assert "Traceback" not in result.output


def test_only_the_title_goes_to_stderr(mixed: Path) -> None:
    assert jobs.medtl("inspect", mixed).stderr.strip() == f"medtl inspect · {mixed}"


@pytest.mark.parametrize("columns", [80, 140])
def test_the_tables_fit_the_terminal(columns: int, mixed: Path) -> None:
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, ["inspect", str(mixed)])
    tables = [line for line in result.stdout.splitlines() if not line.startswith("  [")]
    assert max(map(len, tables)) <= columns


def test_json_is_one_document_of_what_is_printed(mixed: Path) -> None:
    found = inspect_json(mixed)
    assert (found["images"], found["volumes"], found["items"]) == (4, 1, 0)
    assert (found["studies"], found["series"], found["patients"], found["unidentified"]) == (3, 3, 2, 2)
    assert found["refused_codes"] == {"file-empty": 1, "raster-damaged": 1}
    assert {(one["code"], one["source"]) for one in found["refused"]} == {
        ("raster-damaged", "png/cut.png"),
        ("file-empty", "empty.dcm"),
    }
    assert [(one["code"], one["source"]) for one in found["warnings"]] == [("image-constant", "png/flat.png")]
    assert found["skipped"] == {"files of other formats (.txt)": 1}
    assert found["pixels_read"] is True and found["page"] is None
    (radiographs,) = [group for group in found["groups"] if group["modality"] == "CR"]
    assert radiographs["count"] == 2 and radiographs["extremes"] == [0.0, 250.0]


def test_a_page_shows_each_image_under_its_salted_id(mixed: Path, tmp_path: Path) -> None:
    result = jobs.medtl("inspect", mixed, "--html", tmp_path / "out")
    assert result.exit_code == 3 and str(tmp_path / "out" / PAGE_NAME) in result.stdout
    page = Page((tmp_path / "out" / PAGE_NAME).read_text(encoding="utf-8"))
    check_page(page, tmp_path / "out" / PAGE_NAME)
    for source in ("a.dcm", "b.dcm", "png/flat.png", "png/plain.png", "png/cut.png", "empty.dcm"):
        assert sample_key(source) in page.words
    assert "constant pixels" in page.words and "burned-in text" in page.words
    assert len(page.values("img", "src")) == 4, "the one with burned-in annotation is withheld"


def test_neither_page_nor_output_tells_who_the_patients_are(mixed: Path, tmp_path: Path) -> None:
    result = jobs.medtl("inspect", mixed, "--html", tmp_path)
    page = (tmp_path / PAGE_NAME).read_text(encoding="utf-8")
    document = jobs.medtl("inspect", mixed, "--json").stdout
    for text in (page, result.stdout.replace(str(tmp_path), ""), document):
        found = re.sub(r"data:image/[^\"]+", "", text).lower()
        assert not [word for word in CANARIES if word in found]
        assert PAYLOAD not in text
    assert ".dcm" not in page and ".png" not in page


def test_headers_only_reads_no_pixels(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr(inspect_run, "read_series", fail)
    result = jobs.medtl("inspect", mixed, "--headers-only")
    assert result.exit_code == 3 and "No pixels were read" in result.stdout
    assert "CHEST (1)" in result.stdout and "8 x 16 x 16 (1)" in result.stdout
    found = inspect_json(mixed, "--headers-only")
    assert found["pixels_read"] is False and found["warnings"] == []
    assert all(group["extremes"] is None for group in found["groups"])


def test_a_page_needs_pixels(mixed: Path, tmp_path: Path) -> None:
    result = jobs.medtl("inspect", mixed, "--headers-only", "--html", tmp_path)
    assert result.exit_code == 2 and "--headers-only" in result.stderr


def test_a_sound_folder_ends_with_zero(studies: Path) -> None:
    result = jobs.medtl("inspect", studies)
    assert result.exit_code == 0 and "Refused" not in result.stdout
    assert "no patient ids" in result.stdout


@pytest.mark.parametrize("options", [(), ("--json",), ("--headers-only",)])
def test_a_missing_folder_is_one_line(options: tuple[str, ...], tmp_path: Path) -> None:
    result = jobs.medtl("inspect", tmp_path / "absent", *options)
    assert jobs.fault(result) == "file-missing" and result.stdout == ""


def test_a_folder_without_images_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert jobs.fault(jobs.medtl("inspect", tmp_path)) == "folder-empty"


def test_a_page_that_cannot_be_written_is_one_line(studies: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert jobs.fault(jobs.medtl("inspect", studies, "--html", tmp_path / "file")) == "output-unwritable"


def test_a_single_file_can_be_inspected(mixed: Path) -> None:
    result = jobs.medtl("inspect", mixed / "a.dcm")
    assert result.exit_code == 0 and "CR images (DICOM)" in result.stdout


def test_a_folder_of_which_nothing_can_be_read_is_told_all_the_same(mixed: Path, tmp_path: Path) -> None:
    shutil.copy(mixed / "png/cut.png", tmp_path / "cut.png")
    result = jobs.medtl("inspect", tmp_path, "--html", tmp_path / "out")
    assert result.exit_code == 3 and "[raster-damaged] cut.png" in result.stdout
    assert "No image could be read" in (tmp_path / "out" / PAGE_NAME).read_text()


def test_control_characters_of_a_name_do_not_reach_the_terminal(mixed: Path, tmp_path: Path) -> None:
    shutil.copy(mixed / "png/cut.png", tmp_path / "a\x1b[31m\n.png")
    result = jobs.medtl("inspect", tmp_path)
    assert "\x1b" not in result.stdout and "[raster-damaged] a?[31m?.png: " in result.stdout


def test_many_problems_of_a_kind_do_not_hide_others(mixed: Path, tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number:02d}.dcm").write_bytes(b"")
    shutil.copy(mixed / "png/cut.png", tmp_path / "z.png")
    result = jobs.medtl("inspect", tmp_path)
    assert result.stdout.count("[file-empty]") == 20 and "and 40 more" in result.stdout
    assert "60  file-empty" in result.stdout and "[raster-damaged] z.png" in result.stdout
    assert len(inspect_json(tmp_path)["refused"]) == 61


def pick(flags: str, most: int) -> str:
    """Return the numbers of the images that a picker keeps of a folder; "!" has a problem."""
    picker = TilePicker(len(flags), most)
    odd = ImageWarning("image-constant", "every pixel has the same value")
    for number, flag in enumerate(flags):
        inspection = Inspection("raster", "image", warning=odd if flag == "!" else None)
        problems = ("constant pixels",) if flag == "!" else ()
        if picker.picks(number, inspection):
            picker.add(number, Tile(str(number), "", "", "", None, problems=problems))
    return "".join(tile.sample_id for tile in picker.tiles())


@pytest.mark.parametrize(
    ("flags", "most", "kept"),
    [
        ("....", 9, "0123"),
        ("........", 4, "0246"),
        (".......!", 4, "0247"),
        ("!!!!!!!!", 4, "0123"),
        (".!!!!!..", 4, "1234"),
        ("", 4, ""),
    ],
)
def test_the_sheet_shows_problems_first_and_the_rest_evenly(flags: str, most: int, kept: str) -> None:
    assert pick(flags, most) == kept
