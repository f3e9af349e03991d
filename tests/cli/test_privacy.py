"""R12: what a folder says of patients is in nothing that medtl writes or prints, but where a user put it.

Tables of a scored folder name its files (source), since they are its user's own; objects for the PACS hold
the patient of their study. All else tells nothing: pages, runs, datasets, caches, logs, exports.
"""

import gzip
import io
import json
import sqlite3
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest
from click.testing import Result
from PIL import Image, PngImagePlugin

from tests.cli import canaries, jobs
from tests.cli.canaries import COLUMN, EVERY, HEADER, PLACE, TABLE, found_in, words_in
from tests.cli.conftest import Trained

# Where the names of the scored files are the point: they tell the user which row is which file.
TABLES_OF_FILES = {
    *(f"scores/scores.{name}" for name in ("csv", "jsonl", "parquet", "json")),
    *("scores/journal.sqlite", "explain/explain.csv", "results/results.csv"),
}


class Tour(NamedTuple):
    """All that every command wrote, below one folder, and what each of them printed."""

    written: Path
    printed: dict[str, Result]


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    """Every command that reads studies or a run, on a folder full of canaries, with the user's own salt."""
    folder = canaries.write_folder(tmp_path_factory.mktemp("in"))
    root, printed = tmp_path_factory.mktemp("written"), {}
    with pytest.MonkeyPatch.context() as patch, jobs.tiny_backbones_registered():
        patch.setenv("MEDTL_HOME", str(root / "home"))
        patch.delenv("MEDTL_SALT", raising=False)
        (root / "temporary").mkdir()
        patch.setattr(tempfile, "tempdir", str(root / "temporary"))
        patch.setenv("TMPDIR", str(root / "temporary"))
        for name, arguments in _commands(folder, root).items():
            printed[name] = jobs.medtl(*arguments)
    return Tour(root, printed)


def _commands(folder: Path, root: Path) -> dict[str, list[str | Path]]:
    tiny, run, data = jobs.settings(), root / "run", ["--modality", "xray", "--data", folder]
    formats = [part for name in ("csv", "jsonl", "parquet") for part in ("--format", name)]
    exports = {
        f"export {to}": ["export", run, "--to", to, "--out", root / to]
        for to in ("onnx", "torch", "monai-bundle")
    }
    return {
        "inspect": ["inspect", folder, "--html", root / "inspect"],
        "inspect --headers-only": ["inspect", folder, "--headers-only"],
        "prepare": ["prepare", folder, "--modality", "xray", "--out", root / "dataset", *tiny],
        "train": ["train", *data, "--out", run, *tiny],
        "train from scratch": ["train", *data, "--out", root / "scratch", *tiny, "--set", "schedule=scratch"],
        "train a dataset": ["train", *data[:3], root / "dataset", "--out", root / "other", *tiny],
        "tune": ["tune", *data, "--out", root / "study", "--trials", "1", *tiny],
        "evaluate": ["evaluate", run, "--data", folder, "--part", "all", "--out", root / "evaluation"],
        "compare": ["compare", run, root / "scratch", "--out", root / "comparison"],
        "score": ["score", run, folder, "--out", root / "scores", *formats],
        "explain": ["explain", run, folder, "--audit", "--audit-images", "2", "--out", root / "explain"],
        "report": ["report", run, root / "scores", "--out", root / "report"],
        "report a folder": ["report", run, folder, "--out", root / "pages"],
        **exports,
        "results": ["results", run, folder, "--out", root / "results"],
    }


def test_every_command_of_the_tour_did_its_work(tour: Tour) -> None:
    codes = {name: result.exit_code for name, result in tour.printed.items()}
    whole = {"train a dataset", "compare", "inspect --headers-only", *(n for n in codes if "export" in n)}
    assert set(codes.values()) <= {0, 3}, {
        name: r.output for name, r in tour.printed.items() if r.exit_code == 1
    }
    assert {name for name, code in codes.items() if code == 0} <= whole
    assert len(list((tour.written / "report/studies").glob("*.html"))) == 24


def test_nothing_of_a_header_is_written_but_into_objects_for_the_pacs(tour: Tour) -> None:
    hits = found_in(tour.written, HEADER)
    objects = {name for name in hits if name.startswith(("results/dicom/", "results/fhir/"))}
    assert len(objects) == 3 * 24 and hits.keys() == objects


def test_names_of_objects_tell_nothing_and_fhir_has_ids_alone(tour: Tour) -> None:
    for name, words in found_in(tour.written / "results", HEADER).items():
        assert not words_in([name.encode()], EVERY)
        if name.startswith(
            "fhir/"
        ):  # PatientID, accession number and study UID: what links a report to its study
            assert set(words) <= {"xqtext", "1.2.826.0.1.9911"}
            report = json.loads((tour.written / "results" / name).read_text())["entry"][0]["resource"]
            assert report["subject"].keys() == {"type", "identifier"}


def test_no_cell_of_a_label_table_is_written(tour: Tour) -> None:
    assert found_in(tour.written, TABLE) == {}
    # The dataset says which columns it left out, by name.
    assert found_in(tour.written, COLUMN).keys() == {"dataset/dataset.json"}


def test_names_of_files_are_in_the_tables_of_their_folder_alone(tour: Tour) -> None:
    hits = found_in(tour.written, PLACE)
    assert hits.keys() == TABLES_OF_FILES
    whole_paths = {name for name, words in hits.items() if {"xqhome", "xqfolder"} & set(words)}
    assert whole_paths == {"scores/scores.json"}  # where medtl report finds the folder


def test_nothing_of_a_header_or_a_cell_is_printed(tour: Tour) -> None:
    told = {name: words_in([r.output.encode()], (*HEADER, *TABLE)) for name, r in tour.printed.items()}
    assert not any(told.values()), told


def test_a_log_of_a_run_holds_counts_and_times(tour: Tour) -> None:
    lines = [json.loads(line) for line in (tour.written / "run/log.jsonl").read_text().splitlines()]
    assert {"started", "finished"} <= {line["event"] for line in lines}
    assert {type(value) for line in lines for value in line.values()} <= {str, int, float, bool, type(None)}


def test_the_salt_is_the_users_alone_and_lies_nowhere_else(tour: Tour) -> None:
    salt = tour.written / "home/salt"
    assert salt.stat().st_mode & 0o777 == 0o600 and salt.stat().st_size == 32
    others = [path for path in tour.written.rglob("*") if path.is_file() and path != salt]
    assert not [path for path in others if salt.read_bytes() in path.read_bytes()]


def test_texts_inside_of_volumes_and_pictures_go_no_further(
    trained: Trained, trained_3d: Trained, tmp_path: Path
) -> None:
    said = {
        "PatientName": "Xqname",
        "PatientID": "Xqtext",
        "StudyDate": "19771231",
        "BodyPartExamined": "XQTEXT",
    }
    folder = jobs.write_volume(tmp_path / "volumes/case", 0, 0, **said).parent
    pictures = tmp_path / "pictures"
    text, exif = PngImagePlugin.PngInfo(), Image.Exif()
    text.add_text("Patient", "Xqname", zip=True)
    exif[0x013B] = "Xqname"  # Artist
    image = Image.fromarray(jobs.draw(0, 1))
    pictures.mkdir()
    image.save(pictures / "a.png", pnginfo=text)
    image.save(pictures / "b.jpg", exif=exif)
    volume = nibabel.nifti1.Nifti1Image(jobs.draw(0, 1, (16, 16, 8)), np.diag([2.0, 2.0, 3.0, 1.0]))
    volume.header["descrip"], volume.header["aux_file"] = b"Xqname", b"Xqtext"
    volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Xqtext"))
    nibabel.loadsave.save(volume, folder / "b.nii.gz")
    for run, source in ((trained_3d.run, folder), (trained.run, pictures)):
        out = tmp_path / "out" / source.name
        for command in (["report"], ["explain"], ["score"]):
            result = jobs.medtl(*command, run, source, "--out", out / command[0])
            assert result.exit_code == 0, result.output
            assert not words_in([result.output.encode()], HEADER)
        assert jobs.medtl("inspect", source, "--html", out / "inspect").exit_code == 0
    assert found_in(tmp_path / "out", HEADER) == {}


def test_with_another_salt_a_run_is_not_gone_on_with(
    own_run: Path, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jobs.train(studies, own_run, "--resume").exit_code == 0
    monkeypatch.setenv("MEDTL_SALT", "another")
    assert jobs.fault(jobs.train(studies, own_run, "--resume")) == "run-changed"


def test_the_search_finds_a_word_wherever_it_is_packed(tmp_path: Path) -> None:
    word = b"xqtext"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("member", gzip.compress(word))
    (tmp_path / "a.zip").write_bytes(archive.getvalue())
    (tmp_path / "b.bin").write_bytes(word.decode().upper().encode("utf-16-le"))
    np.savez_compressed(tmp_path / "c.npz", names=np.array(["Xqtext"]))
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "Xqtext", zip=True)
    Image.new("L", (2, 2)).save(tmp_path / "d.png", pnginfo=text)
    with sqlite3.connect(tmp_path / "e.sqlite") as database:
        database.execute("create table t (c text)")
        database.execute("insert into t values ('xqtext')")
    database.close()
    (tmp_path / "xqtext.txt").write_bytes(b"")
    assert set(found_in(tmp_path, ["xqtext"])) == {path.name for path in tmp_path.iterdir()}
