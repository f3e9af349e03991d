"""A format is one file and one line: with a toy format in FORMATS every command reads its files."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from medtl.errors import ReadError
from medtl.imaging.reader import FORMATS, read_images
from tests.cli import jobs

TOY = '''
"""TOY FILES -> IMAGES: the word TOY, two bytes of size, then rows of bytes."""

import hashlib

import numpy as np

from medtl.errors import ReadError
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.series import EXACT, Series, scan_each

NAME, TITLE, KIND, SUFFIXES = "toy", "Toy", "image", (".toy",)


def recognises(path, head):
    return head.startswith(b"TOY")


def scan(files, workers=None, reading=EXACT):
    return scan_each(lambda path: [Series(path, (path,), NAME)], files, workers)


def read(series):
    data = series.path.read_bytes()
    rows, columns = data[3:5]
    if len(data) != 5 + rows * columns:
        raise ReadError("file-unreadable", "is incomplete", where=series.path, fix="copy it again")
    pixels = np.frombuffer(data, np.uint8, offset=5).reshape(1, rows, columns)
    facts = ImageFacts(str(series.path), NAME, decoder="toy 1", sha256=hashlib.sha256(data).hexdigest())
    return Image(pixels.astype(np.float32), None, None, facts)
'''


def write_toy(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"TOY" + bytes(pixels.shape) + pixels.tobytes())
    return path


@pytest.fixture(autouse=True)
def toy_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file, and one line in FORMATS."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "toy_format.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setitem(FORMATS, "toy", importlib.import_module("toy_format"))  # type: ignore[arg-type]


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A labelled folder of toy images, two of each patient."""
    rows = []
    for row in range(24):
        kind = row // 2 % 2
        path = write_toy(tmp_path / "studies" / f"{row:03d}.toy", jobs.draw(row, kind))
        rows.append({"path": path.name, "label": ("normal", "lesion")[kind], "patient_id": f"P{row // 2}"})
    jobs.write_labels(tmp_path / "studies", rows)
    return tmp_path / "studies"


def test_its_images_are_read(tmp_path: Path) -> None:
    pixels = jobs.draw(3, 1)
    (image,) = read_images(write_toy(tmp_path / "a.toy", pixels))
    np.testing.assert_array_equal(image.pixels, pixels[None])


def test_a_file_that_is_named_as_one_and_is_none_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path / "in" / "a.toy", jobs.draw(0, 0))
    (tmp_path / "in" / "b.toy").write_bytes(b"of another kind")
    (tmp_path / "in" / "c.txt").write_bytes(b"of another kind")
    refusals: list[ReadError] = []
    assert len(read_images(tmp_path / "in", refusals=refusals)) == 1
    (refusal,) = refusals
    assert Path(refusal.where).name == "b.toy" and "Toy" in refusal.reason


def test_inspect_prepare_train_and_score_take_it(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "home"))
    inspected = jobs.medtl("inspect", studies, "--html", tmp_path / "sheet", "--json")
    (group,) = json.loads(inspected.stdout)["groups"]
    assert (group["format"], group["kind"], group["count"]) == ("toy", "image", 24), inspected.output
    with jobs.tiny_backbones_registered():
        prepare = ("prepare", studies, "--modality", "xray", "--out", tmp_path / "dataset")
        prepared = jobs.medtl(*prepare, *jobs.settings())
        assert prepared.exit_code == 0, prepared.output
        trained = jobs.train(tmp_path / "dataset", tmp_path / "run")
        assert trained.exit_code == 0, trained.output
        scored = jobs.medtl("score", tmp_path / "run", studies, "--out", tmp_path / "scores")
    assert scored.exit_code == 0, scored.output
    rows = jobs.read_rows(tmp_path / "scores" / "scores.csv")
    assert len(rows) == 24 and {row["status"] for row in rows} == {"scored"}
