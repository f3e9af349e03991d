"""A saliency method is one function and one line in METHODS: every command that explains then knows it."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from torch import Tensor

from medtl.explain import METHODS, Method
from medtl.models.classifier import Classifier
from tests.cli import jobs


def brightness(classifier: Classifier, image: Tensor, target: int) -> np.ndarray:
    """Return the image itself: a map that asks the network nothing."""
    return (image[0].mean(dim=0) / image.max()).numpy()


def is_flat(classifier: Classifier) -> bool:
    """Say whether the network takes images, not volumes."""
    return classifier.backbone.spatial_dims == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a few images of radiographs."""
    folder = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch, jobs.tiny_backbones_registered():
        patch.setenv("MEDTL_HOME", str(folder / "home"))
        patch.setenv("MEDTL_SALT", "test")
        result = jobs.train(jobs.write_images(folder / "data"), folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two radiographs, the second with a bright block."""
    for row in range(2):
        jobs.write_radiograph(
            tmp_path / "in" / f"{row}.dcm", row, SOPInstanceUID=f"1.2.826.0.1.{row + 1}", StudyDate="20010911"
        )
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Register the toy method."""
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MEDTL_SALT", "test")
    monkeypatch.setitem(METHODS, "brightness", Method("Brightness of the image", brightness, is_flat))


def medtl(*arguments: str | Path) -> None:
    """Run a command of which all inputs are good."""
    with jobs.tiny_backbones_registered():
        result = jobs.medtl(*arguments)
    assert result.exit_code == 0, result.output


def test_explain_writes_its_maps(run: Path, studies: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    medtl("explain", run, studies, "--out", out, "--method", "brightness")
    rows = jobs.read_rows(out / "explain.csv")
    assert [row["method"] for row in rows] == ["brightness"] * 2
    for row in rows:
        assert (out / row["map"]).is_file() and (out / row["picture"]).is_file()


def test_an_audit_checks_it_beside_the_others(run: Path, studies: Path, tmp_path: Path) -> None:
    medtl("explain", run, studies, "--out", tmp_path / "out", "--audit")
    content = json.loads((tmp_path / "out/audit.json").read_text(encoding="utf-8"))
    audited = {row["method"]: row for row in content["methods"]}
    assert set(audited) == set(METHODS) - {"attention-rollout"}
    assert audited["brightness"]["checks"]["randomisation"]["value"] == pytest.approx(1)


def test_pages_show_its_display_name(run: Path, studies: Path, tmp_path: Path) -> None:
    medtl("report", run, studies, "--out", tmp_path / "out", "--method", "brightness")
    pages = list((tmp_path / "out/studies").glob("*.html"))
    assert len(pages) == 2
    assert all("Brightness of the image" in page.read_text(encoding="utf-8") for page in pages)


def test_results_for_the_pacs_carry_it(run: Path, studies: Path, tmp_path: Path) -> None:
    medtl("results", run, studies, "--out", tmp_path / "out", "--method", "brightness")
    overlays = [dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
    assert any("Brightness of the image" in str(overlay) for overlay in overlays)


def test_it_is_refused_for_a_network_that_it_does_not_suit(
    run: Path, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "brightness", Method("Brightness", brightness, lambda classifier: False))
    with jobs.tiny_backbones_registered():
        result = jobs.medtl("explain", run, studies, "--out", tmp_path / "out", "--method", "brightness")
    assert jobs.fault(result) == "saliency-method" and "does not suit tiny" in result.stderr
