"""medtl prepare: a dataset to keep and to move, from which training comes to what the folder itself gives."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from medtl.core.staging import journal_line
from medtl.data import prepared as preparing
from medtl.training.checkpoint import load_checkpoint
from tests.cli import jobs
from tests.cli.conftest import Trained
from tests.waiting import PATIENCE

PREPARING = ("preprocessing.size=[32,32]", "backbone.name=tiny", "backbone.weights=null")
PREPARING_3D = ("preprocessing.size=[8,16,16]", "backbone.name=tiny3d", "backbone.weights=null")


def prepare(
    data: Path, out: Path, *more: str | Path, modality: str = "xray", overrides: tuple[str, ...] = PREPARING
) -> Result:
    """Run `medtl prepare` with what the tiny recipe says of preparing."""
    given = [part for override in overrides for part in ("--set", override)]
    return jobs.medtl("prepare", data, "--modality", modality, "--out", out, *given, *more)


@pytest.fixture
def own_studies(tmp_path: Path) -> Path:
    """A folder of PNGs with labels, to be changed."""
    return jobs.write_images(tmp_path / "studies")


@pytest.fixture
def dataset(studies: Path, tmp_path: Path) -> Path:
    """The dataset of the folder of PNGs."""
    assert prepare(studies, tmp_path / "dataset").exit_code == 0
    return tmp_path / "dataset"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files that are decoded from here on."""
    seen: list[str] = []
    read_series = preparing.read_series

    def read(series):
        seen.append(series.path.name)
        return read_series(series)

    monkeypatch.setattr(preparing, "read_series", read)
    yield seen


def results(run: Path) -> tuple[str, str, dict]:
    """Return what a run came to: its split, the hash of its weights, its metrics but for seconds."""
    metrics = json.loads((run / "metrics.json").read_text())
    metrics.pop("seconds")
    return (run / "splits.csv").read_text(), load_checkpoint(run).sha256, metrics


def move_away(dataset: Path, source: Path, elsewhere: Path) -> Path:
    """Move a dataset to where its source, the home and the salt of this machine are absent."""
    shutil.move(dataset, elsewhere)
    shutil.rmtree(source)
    return elsewhere


@pytest.mark.parametrize("kind", ["patients named", "patients of DICOM", "no patients"])
def test_a_moved_dataset_trains_to_the_same_bits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = kind == "patients of DICOM"
    source = (jobs.write_volumes if three else jobs.write_images)(tmp_path / "source")
    if kind == "no patients":
        _drop_column(source / "labels.csv", "patient_id")
    modality, overrides = ("mri", jobs.SETTINGS_3D) if three else ("xray", ())
    direct = jobs.train(source, tmp_path / "direct", modality=modality, overrides=overrides)
    found = prepare(
        source, tmp_path / "kept", modality=modality, overrides=PREPARING_3D if three else PREPARING
    )
    assert (direct.exit_code, found.exit_code) == (0, 0), found.output
    moved = move_away(tmp_path / "kept", source, tmp_path / "moved")
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "other home"))
    monkeypatch.setenv("MEDTL_SALT", "other")
    again = jobs.train(moved, tmp_path / "again", modality=modality, overrides=overrides)
    assert again.exit_code == 0, again.output
    assert results(tmp_path / "again") == results(tmp_path / "direct")
    assert _notes(again) == _notes(direct) != []


def _notes(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("  note")]


def _drop_column(table: Path, name: str) -> None:
    rows = jobs.read_rows(table)
    jobs.write_labels(table.parent, [{key: row[key] for key in row if key != name} for row in rows])


def test_it_evaluates_as_the_folder_does(
    trained: Trained, dataset: Path, studies: Path, tmp_path: Path
) -> None:
    for name, data in (("folder", studies), ("dataset", dataset)):
        result = jobs.medtl("evaluate", trained.run, "--data", data, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    one, other = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("folder", "dataset")
    )
    assert one == other


def test_it_says_what_there_is(studies: Path, tmp_path: Path) -> None:
    result = prepare(studies, tmp_path / "out")
    assert "24 samples of 12 patients (normal 12, lesion 12), 1 x 32 x 32" in result.stdout
    assert "24 decoded" in result.stdout and str(tmp_path / "out") in result.stdout
    found = json.loads(prepare(studies, tmp_path / "out", "--json").stdout)
    assert found["decoded"] == 0 and found["counts"] == {"normal": 12, "lesion": 12}
    assert found["bytes"] > 24 * 32 * 32 * 2


def test_an_unchanged_folder_costs_the_scan_alone(
    own_studies: Path, tmp_path: Path, reads: list[str]
) -> None:
    prepare(own_studies, tmp_path / "out")
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in (tmp_path / "out").iterdir()}
    assert len(reads) == 24
    reads.clear()
    result = prepare(own_studies, tmp_path / "out")
    assert reads == [] and "nothing has changed" in result.stdout
    for name in ("pixels.u16", "prepared.json"):
        assert (tmp_path / "out" / name).stat().st_ino == before[name][0]
    assert (tmp_path / "out/dataset.json").read_bytes() == before["dataset.json"][1]


def test_new_labels_decode_nothing(own_studies: Path, tmp_path: Path, reads: list[str]) -> None:
    prepare(own_studies, tmp_path / "out")
    reads.clear()
    rows = [{**row, "label": "ill" if row["label"] == "lesion" else "well"} for row in _rows(own_studies)]
    jobs.write_labels(own_studies, rows)
    result = prepare(own_studies, tmp_path / "out")
    assert reads == [] and "(ill 12, well 12)" in result.stdout


def _rows(folder: Path) -> list[dict[str, str]]:
    return jobs.read_rows(folder / "labels.csv")


def test_a_changed_file_or_recipe_prepares_anew(own_studies: Path, tmp_path: Path, reads: list[str]) -> None:
    prepare(own_studies, tmp_path / "out")
    jobs.write_png(own_studies / "images/000.png", jobs.draw(99, 1))
    assert "24 decoded" in prepare(own_studies, tmp_path / "out").stdout
    other = (*PREPARING, "preprocessing.percentiles=[1,99]")
    assert "24 decoded" in prepare(own_studies, tmp_path / "out", overrides=other).stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("preprocessing.percentiles=[1,99]", "preprocessing.percentiles=[0.5,99.5]"),
        ("preprocessing.size=[48,48]", "preprocessing.size=[32,32]"),
        ("preprocessing.modalities=null", "preprocessing.modalities="),
        ("task.label_column=finding", "task.label_column=label"),
        ("task.patient_column=subject", "task.patient_column=patient_id"),
        ("task.kind=multilabel", "task.kind=binary"),
    ],
)
def test_another_recipe_is_refused_by_the_key_that_differs(
    override: str, name: str, dataset: Path, tmp_path: Path
) -> None:
    result = jobs.train(dataset, tmp_path / "run", overrides=(override,))
    if override == "preprocessing.modalities=null" and "modalities" not in result.stderr:
        pytest.skip("the recipe of this modality lets every modality in")
    assert jobs.fault(result) == "dataset-recipe" and name in result.stderr


def test_another_label_table_is_refused_and_its_own_is_taken(
    dataset: Path, studies: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("path,label\na.png,x\n")
    assert jobs.fault(jobs.train(dataset, tmp_path / "run", "--labels", other)) == "label-table"
    assert jobs.train(dataset, tmp_path / "run", "--labels", studies / "labels.csv").exit_code == 0


def test_refused_inputs_are_told_by_code_and_stay_refused(tmp_path: Path) -> None:
    data = jobs.write_images(tmp_path / "data", count=28)
    (data / "images/026.png").write_bytes((data / "images/026.png").read_bytes()[:-40])
    (data / "images/027.png").write_bytes(b"")
    for _ in range(2):
        result = prepare(data, tmp_path / "out")
        assert result.exit_code == 3 and "26 samples" in result.stdout
        assert "refused: [raster-damaged]" in result.stderr and "refused: [file-empty]" in result.stderr
    moved = move_away(tmp_path / "out", data, tmp_path / "moved")
    result = jobs.train(moved, tmp_path / "run")
    assert result.exit_code == 3 and len(jobs.read_rows(tmp_path / "run/splits.csv")) == 26
    assert "refused: [raster-damaged]" in result.stderr and "refused: [file-empty]" in result.stderr
    assert "026.png" not in result.stderr and str(data) not in result.stderr


def test_nothing_in_a_dataset_tells_who_the_patients_are(volumes: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(volumes, tmp_path / "canary source"))
    rows = [
        {**row, "patient_id": f"CANARY-{number}", "study_id": f"canary {number}", "Date of birth": "19771231"}
        | {"site": "north", "mrn": f"canary{number}"}
        for number, row in enumerate(_rows(source))
    ]
    jobs.write_labels(source, rows)
    (source / "case11/IM003.dcm").write_bytes((source / "case11/IM003.dcm").read_bytes()[:-100])
    result = prepare(source, tmp_path / "out", modality="mri", overrides=PREPARING_3D)
    assert result.exit_code == 3
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"dataset.json", "prepared.json", "pixels.u16"}
    for path in files:
        content = path.read_bytes().lower()
        for word in (b"canary", b"kim", b"19771231", b"20010911", b"1.2.826", b"case1", b"im003", b"/"):
            if path.suffix == ".json":
                assert word not in content, (path.name, word)
    record = json.loads((tmp_path / "out/dataset.json").read_text())
    assert {tuple(sample["attributes"].items()) for sample in record["samples"]} == {(("site", "north"),)}
    assert any("Date of birth" in note for note in record["notes"])
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0


def test_a_folder_with_other_files_is_left_alone(studies: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    result = prepare(studies, tmp_path / "mine")
    assert jobs.fault(result) == "output-unwritable" and "thesis.txt" in result.stderr
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_the_source_itself_is_no_place(own_studies: Path) -> None:
    assert jobs.fault(prepare(own_studies, own_studies)) == "output-unwritable"
    assert len(list((own_studies / "images").iterdir())) == 24


def test_a_file_is_no_place(studies: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert jobs.fault(prepare(studies, tmp_path / "file")) == "output-unwritable"


def test_a_dataset_is_not_prepared_again(dataset: Path, tmp_path: Path) -> None:
    assert jobs.fault(prepare(dataset, tmp_path / "again")) == "dataset-recipe"


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", ["pixels cut", "pixels gone", "pixel flipped", "header gone", "json", "key", "version"]
)
def test_a_damaged_dataset_is_refused_by_name(damage: str, dataset: Path, tmp_path: Path) -> None:
    pixels, record = dataset / "pixels.u16", dataset / "dataset.json"
    if damage == "pixels cut":
        pixels.write_bytes(pixels.read_bytes()[:-2])
    elif damage == "pixel flipped":
        flip_a_bit(pixels)
    elif damage.endswith("gone"):
        (pixels if damage == "pixels gone" else dataset / "prepared.json").unlink()
    elif damage == "json":
        record.write_text(record.read_text()[:-20])
    else:
        content = json.loads(record.read_text())
        record.write_text(json.dumps({**content, damage: 2 if damage == "version" else "0"}, indent=2))
    assert jobs.fault(jobs.train(dataset, tmp_path / "run")) == "dataset-damaged"


@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit])
def test_a_damaged_dataset_is_mended_by_preparing_again(
    damage: Callable[[Path], None], studies: Path, dataset: Path
) -> None:
    damage(dataset / "pixels.u16")
    assert "24 decoded" in prepare(studies, dataset).stdout
    assert "nothing has changed" in prepare(studies, dataset).stdout


def test_another_dataset_json_makes_no_dataset(own_studies: Path, tmp_path: Path) -> None:
    (own_studies / "dataset.json").write_text('{"name": "Hippocampus", "modality": {"0": "MRI"}}')
    assert prepare(own_studies, tmp_path / "out").exit_code == 0


def test_nothing_readable_is_one_line(tmp_path: Path) -> None:
    jobs.write_png(tmp_path / "data/a.png", np.zeros((9, 9), np.uint8))
    jobs.write_png(tmp_path / "data/b.png", np.zeros((9, 9), np.uint8))
    jobs.write_labels(tmp_path / "data", [{"path": "a.png", "label": "x"}, {"path": "b.png", "label": "y"}])
    result = prepare(tmp_path / "data", tmp_path / "out", modality="mri", overrides=PREPARING_3D)
    assert jobs.fault(result) == "split-empty"
    assert not list(tmp_path.glob("*out*")), "no empty dataset"


def test_a_recipe_that_nothing_fits_costs_no_dataset(studies: Path, dataset: Path) -> None:
    before = (dataset / "pixels.u16").stat().st_ino
    result = prepare(studies, dataset, modality="mri", overrides=PREPARING_3D)
    assert jobs.fault(result) == "split-empty"
    assert (dataset / "pixels.u16").stat().st_ino == before and (dataset / "dataset.json").is_file()


def test_a_modality_or_a_recipe_is_needed(studies: Path, tmp_path: Path) -> None:
    result = jobs.medtl("prepare", studies, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "--modality" in result.stderr


def test_killed_and_run_again_it_comes_to_the_same_bytes(
    own_studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    assert prepare(own_studies, tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "journal_line", _lines_until(10))
        process = multiprocessing.get_context("fork").Process(
            target=prepare, args=(own_studies, tmp_path / "out")
        )
        process.start()
        process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL and list(tmp_path.glob(".preparing-*"))
    reads.clear()
    assert prepare(own_studies, tmp_path / "out").exit_code == 0
    assert len(reads) == 24 - 9
    for name in ("pixels.u16", "prepared.json", "dataset.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.glob(".preparing-*"))


def _lines_until(count: int) -> Callable[[Any], bytes]:
    """Return a journal_line that ends this process, as the system would, at that many samples."""
    done: list[None] = []

    def line(entry: Any) -> bytes:
        done.append(None)
        if len(done) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return journal_line(entry)

    return line


def test_an_archive_and_findings_are_kept_too(tmp_path: Path) -> None:
    """A MedMNIST archive brings labels and split; here each image has any of two findings."""
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 16), ("val", 8), ("test", 4)):
        arrays[f"{part}_images"] = rng.integers(0, 255, (count, 28, 28)).astype(np.uint8)
        arrays[f"{part}_labels"] = np.array([[row % 2, row // 2 % 2] for row in range(count)], np.uint8)
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source/a.npz", **arrays)
    direct = jobs.train(tmp_path / "source", tmp_path / "direct")
    assert prepare(tmp_path / "source", tmp_path / "kept").exit_code == 0
    moved = move_away(tmp_path / "kept", tmp_path / "source", tmp_path / "moved")
    again = jobs.train(moved, tmp_path / "again")
    assert (direct.exit_code, again.exit_code) == (0, 0), again.output
    assert results(tmp_path / "again") == results(tmp_path / "direct")
