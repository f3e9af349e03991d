"""A folder of zip archives is trained on, scored and reported like the folder of folders that was packed."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.cli import jobs
from tests.cli.conftest import Trained


@pytest.fixture(scope="session")
def zipped(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a zip archive for each series, and a table that names the archives."""
    folder = tmp_path_factory.mktemp("zipped")
    for case in sorted(path for path in volumes.iterdir() if path.is_dir()):
        with zipfile.ZipFile(folder / f"{case.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(case.iterdir()):
                archive.write(path, path.name)
    rows = [
        {**row, "path": f"{Path(row['path']).parts[0]}.zip"} for row in jobs.read_rows(volumes / "labels.csv")
    ]
    jobs.write_labels(folder, rows)
    return folder


def scores(run: Path, folder: Path, out: Path, *more: str) -> dict[str, tuple[str, ...]]:
    """Score a folder, all of which must be scored; return the probabilities by the name of the case."""
    result = jobs.medtl("score", run, folder, "--out", out, *more)
    assert result.exit_code == 0, result.output
    rows = jobs.read_rows(out / "scores.csv")
    assert all(row["source"].startswith("case") for row in rows)
    return {row["source"].removesuffix(".zip"): (row["p_normal"], row["p_lesion"]) for row in rows}


def test_scores_are_those_of_the_unpacked_folder(
    trained_3d: Trained, volumes: Path, zipped: Path, tmp_path: Path
) -> None:
    loose = scores(trained_3d.run, volumes, tmp_path / "loose")
    assert len(loose) == 12
    assert scores(trained_3d.run, zipped, tmp_path / "zipped") == loose
    assert scores(trained_3d.run, zipped, tmp_path / "workers", "--workers", "2") == loose


def test_rows_are_kept_until_an_archive_changes(trained_3d: Trained, zipped: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("case00.zip", "case01.zip"):
        shutil.copy(zipped / name, folder / name)
    first = scores(trained_3d.run, folder, out)
    os.utime(folder / "case01.zip", (1, 1))  # other times and the same bytes
    kept = jobs.medtl("score", trained_3d.run, folder, "--out", out)
    assert "2 rows were already there" in kept.output
    shutil.copy(zipped / "case02.zip", folder / "case00.zip")
    again = scores(trained_3d.run, folder, out)
    other = scores(trained_3d.run, zipped, tmp_path / "all")["case02"]
    assert again == {"case00": other, "case01": first["case01"]} and other != first["case00"]


def test_one_archive_is_scored_by_its_name(trained_3d: Trained, zipped: Path, tmp_path: Path) -> None:
    result = jobs.medtl("score", trained_3d.run, zipped / "case00.zip", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (row,) = jobs.read_rows(tmp_path / "out/scores.csv")
    assert (row["source"], row["status"]) == ("case00.zip", "scored")


def test_training_finds_the_archives_of_the_table(trained_3d: Trained, zipped: Path, tmp_path: Path) -> None:
    with jobs.tiny_backbones_registered():
        done = jobs.train(zipped, tmp_path / "run", overrides=jobs.SETTINGS_3D, modality="mri")
    assert done.exit_code == 0, done.output
    evaluated = jobs.medtl("evaluate", trained_3d.run, "--data", zipped, "--out", tmp_path / "out")
    assert evaluated.exit_code == 0, evaluated.output


@pytest.mark.parametrize("command", ["explain", "report", "results --kind sr --kind sc"])
def test_pages_and_objects_are_written_from_archives(
    command: str, trained_3d: Trained, zipped: Path, tmp_path: Path
) -> None:
    name, *options = command.split()
    (tmp_path / "in").mkdir()
    shutil.copy(zipped / "case01.zip", tmp_path / "in/case01.zip")
    done = jobs.medtl(name, trained_3d.run, tmp_path / "in", "--out", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) >= 2
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["case01.zip"]


def test_inspect_counts_what_an_archive_holds(zipped: Path) -> None:
    done = jobs.medtl("inspect", zipped, "--json")
    assert done.exit_code == 0, done.output
    outcome = json.loads(done.stdout)
    assert (outcome["volumes"], outcome["refused"]) == (12, [])


def test_links_that_were_not_followed_are_printed_and_in_the_json(trained: Trained, tmp_path: Path) -> None:
    jobs.write_png(tmp_path / "in/a.png", jobs.draw(0, 0))
    jobs.write_png(tmp_path / "elsewhere/b.png", jobs.draw(1, 1))
    (tmp_path / "in/train").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    scored = jobs.medtl("score", trained.run, tmp_path / "in", "--out", tmp_path / "out")
    assert scored.exit_code == 0, scored.output
    assert "1 skipped (links that lead out of the folder)" in scored.output
    facts = json.loads((tmp_path / "out/scores.json").read_text())
    assert facts["left_out"] == {"links that lead out of the folder": 1}
    assert "links that lead out of the folder" in jobs.medtl("inspect", tmp_path / "in").output
    inspected = json.loads(jobs.medtl("inspect", tmp_path / "in", "--json").stdout)
    assert inspected["skipped"] == {"links that lead out of the folder": 1}
