"""medtl explain: maps on the grids of their images, tables, and an audit in words."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

from medtl.imaging.reader import read_images
from tests.cli import jobs
from tests.cli.conftest import Trained


@pytest.mark.parametrize("name", ["trained", "trained_3d"])
def test_each_study_gets_a_map_on_its_grid_and_a_picture(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data, run = request.getfixturevalue(name)
    result = jobs.medtl("explain", run, data, "--out", tmp_path, "--method", "grad-cam++")
    assert result.exit_code == 0, result.output
    rows = jobs.read_rows(tmp_path / "explain.csv")
    assert len(rows) == len(jobs.read_rows(data / "labels.csv"))
    row = rows[0]
    image = read_images(data / row["source"])[0]
    if name == "trained_3d":
        written = nibabel.load(tmp_path / row["map"])
        heatmap = np.asarray(written.dataobj)
        np.testing.assert_allclose(written.affine, image.affine, atol=1e-4)
    else:
        heatmap = np.load(tmp_path / row["map"])["heatmap"]
    assert heatmap.shape == image.pixels.shape[1:]
    assert heatmap.min() >= 0 and heatmap.max() <= 1
    with Picture.open(tmp_path / row["picture"]) as picture:
        assert picture.mode == "RGB" and min(picture.size) > 1


def test_an_audit_says_in_words_what_the_maps_are_worth(trained: Trained, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for row in jobs.read_rows(trained.data / "labels.csv"):
        path = trained.data / row["path"]
        if path.is_file():
            mask = np.zeros(read_images(path)[0].pixels.shape[1:], np.uint8)
            mask[:8, :8] = 255
            Picture.fromarray(mask).save(masks / f"{path.stem}.png")
    options = (
        "--audit",
        "--masks",
        masks,
        "--audit-images",
        "3",
        "--method",
        "grad-cam",
        "--method",
        "eigen-cam",
    )
    out = tmp_path / "out"
    result = jobs.medtl("explain", trained.run, trained.data, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert "grad-cam: passed " in result.stdout and "eigen-cam: passed " in result.stdout
    table = result.stdout.split("\n\n")[1].splitlines()
    assert "pointing" in table[0] and max(map(len, table)) <= 80
    content = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in content["methods"]] == ["grad-cam", "eigen-cam"]
    checks = {row["check"] for row in jobs.read_rows(out / "audit.csv")}
    assert {"deletion", "insertion", "randomisation", "stability"} <= checks


def test_a_mask_on_another_grid_is_refused_by_name(trained: Trained, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for row in jobs.read_rows(trained.data / "labels.csv"):
        Picture.fromarray(np.full((5, 7), 255, np.uint8)).save(masks / f"{Path(row['path']).stem}.png")
    result = jobs.medtl("explain", trained.run, trained.data, "--out", tmp_path, "--audit", "--masks", masks)
    assert result.exit_code == 1 and "[mask-grid]" in result.stderr and "5x7" in result.stderr


@pytest.mark.parametrize(
    ("method", "said"), [("attention-rollout", "does not suit tiny"), ("gradcam", "is no saliency method")]
)
def test_a_method_that_is_no_use_is_refused_in_one_line(
    method: str, said: str, trained: Trained, tmp_path: Path
) -> None:
    result = jobs.medtl("explain", trained.run, trained.data, "--out", tmp_path, "--method", method)
    assert result.exit_code == 1 and "[saliency-method]" in result.stderr and said in result.stderr
    assert not (tmp_path / "explain.csv").exists()


def test_what_cannot_be_read_is_a_refused_row(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    readable = next(trained.data / row["path"] for row in jobs.read_rows(trained.data / "labels.csv"))
    shutil.copy(readable, folder)
    (folder / "cut.png").write_bytes(readable.read_bytes()[:60])
    result = jobs.medtl("explain", trained.run, folder, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 3 and "refused: [" in result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert sorted(row["status"] for row in rows) == ["refused", "scored"]


def test_masks_without_an_audit_are_a_usage_error(trained: Trained, tmp_path: Path) -> None:
    result = jobs.medtl("explain", trained.run, trained.data, "--out", tmp_path, "--masks", tmp_path)
    assert result.exit_code == 2 and "--audit" in result.stderr
