"""The contact sheet: whole, inert, bounded, and in true proportions."""

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from medtl.errors import OutputError
from medtl.report import html
from medtl.report.contact_sheet import (
    PAGE_NAME,
    THUMBNAIL_SIDE,
    ContactSheet,
    Tile,
    make_thumbnail,
    write_contact_sheet,
)
from medtl.report.findings import Refusal
from tests.report.pages import Page, check_page

PAYLOAD = "<script>alert(1)</script>"


def picture(thumbnail: dict) -> np.ndarray:
    """Decode a thumbnail."""
    data = base64.b64decode(thumbnail["source"].partition(",")[2])
    return np.asarray(PillowImage.open(io.BytesIO(data)))


def make_tile(sample_id: str = "s1", **changes: Any) -> Tile:
    """Return a tile of a grey gradient."""
    thumbnail = make_thumbnail(np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20), None)
    return Tile(
        **{
            "sample_id": sample_id,
            "group": "CR images (DICOM)",
            "matrix": "20 x 20",
            "spacing": "",
            "thumbnail": thumbnail,
            **changes,
        }
    )


def make_sheet(*tiles: Tile, **changes: Any) -> ContactSheet:
    """Return a sheet of tiles."""
    groups = {tile.group: {"Matrix": tile.matrix} for tile in tiles}
    fields = {
        "facts": {"Images": "1"},
        "groups": groups,
        "tiles": tiles,
        "refusals": [],
        "images": len(tiles),
    }
    return ContactSheet(**{**fields, **changes})


def write(out: Path, sheet: ContactSheet) -> Page:
    """Write a sheet, check it as every page is checked, and parse it."""
    path = write_contact_sheet(out, sheet)
    assert path == out / PAGE_NAME
    page = Page(path.read_text(encoding="utf-8"))
    check_page(page, path)
    return page


def test_a_tile_says_what_its_image_is(tmp_path: Path) -> None:
    tile = make_tile(spacing="0.5 x 0.25 mm", problems=("constant pixels",), notes=("alpha dropped",))
    words = write(tmp_path, make_sheet(tile)).words
    for text in ("s1", "CR images (DICOM)", "20 x 20", "0.5 x 0.25 mm", "constant pixels", "alpha dropped"):
        assert text in words


def test_pictures_are_lazy_and_inside_the_page(tmp_path: Path) -> None:
    page = write(tmp_path, make_sheet(make_tile("s1"), make_tile("s2")))
    assert page.values("img", "loading") == ["lazy", "lazy"]
    assert [path.name for path in tmp_path.iterdir()] == [PAGE_NAME]


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [
        ((20, 10), None, (80, 160)),
        ((20, 10), (1.0, 2.0), (160, 160)),
        ((400, 800), (0.5, 0.5), (160, 80)),
        ((3, 10, 20), (9.0, 2.0, 1.0), (160, 160)),
        ((1, 1), None, (160, 160)),
        ((1000, 1), None, (1, 160)),
    ],
)
def test_thumbnails_have_true_proportions(
    shape: tuple[int, ...], spacing: tuple[float, ...] | None, size: tuple[int, int]
) -> None:
    thumbnail = make_thumbnail(np.zeros(shape, np.float32), spacing)
    assert (thumbnail["width"], thumbnail["height"]) == size
    assert picture(thumbnail).shape == size[::-1]
    assert max(size) == THUMBNAIL_SIDE


def test_a_volume_shows_its_middle_slice() -> None:
    volume = np.zeros((5, 8, 8), np.float32)
    volume[2] = 1.0
    assert picture(make_thumbnail(volume, None)).mean() > 250


def test_an_image_that_is_withheld_is_not_in_the_page(tmp_path: Path) -> None:
    tile = make_tile(thumbnail=None, withheld="it may name the patient", problems=("burned-in text",))
    page = write(tmp_path, make_sheet(tile))
    assert not page.values("img", "src")
    assert "not shown: it may name the patient" in page.words


def test_what_is_not_shown_is_counted(tmp_path: Path) -> None:
    words = write(tmp_path, make_sheet(make_tile(), make_tile("s2"), images=5000)).words
    assert "2 of 5,000 images are shown" in words and "4,998 are not shown" in words
    assert "not shown" not in write(tmp_path, make_sheet(make_tile())).words


def test_tiles_can_be_filtered_by_modality_and_remark(tmp_path: Path) -> None:
    odd = make_tile("s2", group="MR volumes (DICOM)", problems=("constant pixels",), notes=("alpha dropped",))
    page = write(tmp_path, make_sheet(make_tile("s1", notes=("alpha dropped",)), odd))
    assert page.values("article", "data-group") == ["0", "1"]
    first, second = (set(text.split()) for text in page.values("article", "data-remarks"))
    assert "problem" in second and "problem" not in first and len(first & second) == 1
    assert {"0", "1", "problem", ""} == set(page.values("option", "value"))
    assert "any problem (1)" in page.words and "alpha dropped (2)" in page.words


def test_the_refused_are_listed(tmp_path: Path) -> None:
    refusal = Refusal(
        "s9", "dicom-truncated", "the DICOM file ends before its pixel data do", "copy it again"
    )
    page = write(tmp_path, make_sheet(refusals=[refusal]))
    for text in ("Refused: 1", "s9", "dicom-truncated", refusal.reason, "copy it again", "No image could be"):
        assert text in page.words
    assert page.values("details", "open") == [""]
    assert not write(tmp_path, make_sheet(refusals=[refusal] * 40)).values("details", "open")


def test_markup_in_any_field_is_inert(tmp_path: Path) -> None:
    fields = ("sample_id", "group", "matrix", "spacing")
    tile = make_tile(**dict.fromkeys(fields, PAYLOAD), problems=(PAYLOAD,), notes=(PAYLOAD,))
    sheet = make_sheet(tile, make_tile(thumbnail=None, withheld=PAYLOAD), refusals=[Refusal(*[PAYLOAD] * 4)])
    facts = {PAYLOAD: PAYLOAD}
    page = write(tmp_path, replace(sheet, facts=facts, groups={PAYLOAD: facts}))
    assert PAYLOAD not in page.text and "&lt;script&gt;" in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_the_script_cannot_end_early_nor_ask_a_network() -> None:
    source = html._source("contact_sheet.js")
    assert "</" not in source and "<!--" not in source
    assert not re.search(r"://|fetch|XMLHttp|import\b|eval", source)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        write_contact_sheet(tmp_path / "file", make_sheet(make_tile()))
    assert caught.value.code == "output-unwritable"


def test_the_sheet_needs_no_torch() -> None:
    code = "import sys, medtl.report.contact_sheet; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
