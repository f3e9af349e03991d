"""medtl export: each format in a folder that stands for itself."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medtl.imaging.preprocessing import prepare_image
from medtl.imaging.reader import read_images
from medtl.inference.predictor import predict
from medtl.training.checkpoint import load_checkpoint
from tests.cli import jobs
from tests.cli.conftest import Trained


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 2D run as a MONAI bundle."""
    out = tmp_path_factory.mktemp("bundles") / "lesions"
    with jobs.tiny_backbones_registered():
        result = jobs.medtl("export", trained.run, "--to", "monai-bundle", "--out", out)
    assert result.exit_code == 0, result.output
    return out


def prepared_and_expected(trained: Trained, count: int = 3) -> tuple[torch.Tensor, np.ndarray]:
    """Return prepared images (N, C, H, W), and the probabilities that medtl gives them."""
    checkpoint = load_checkpoint(trained.run)
    files = [trained.data / row["path"] for row in jobs.read_rows(trained.data / "labels.csv")[:count]]
    pixels = [prepare_image(read_images(file)[0], checkpoint.preprocessing).pixels for file in files]
    images = torch.from_numpy(np.stack(pixels))
    return images, predict(checkpoint, images)


def test_onnx_gives_the_probabilities_of_the_run(trained: Trained, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="medtl[export] is not installed")
    result = jobs.medtl("export", trained.run, "--to", "onnx", "--out", tmp_path)
    assert result.exit_code == 0 and result.stdout.strip().endswith("model.onnx"), result.output
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.json", "README.md"}
    images, expected = prepared_and_expected(trained)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_allclose(
        session.run(["probabilities"], {"image": images.numpy()})[0], expected, atol=1e-5
    )


def test_a_program_of_torch_gives_the_probabilities_of_the_run(trained: Trained, tmp_path: Path) -> None:
    result = jobs.medtl("export", trained.run, "--to", "torch", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    images, expected = prepared_and_expected(trained)
    _, probabilities = torch.export.load(tmp_path / "model.pt2").module()(images)
    np.testing.assert_allclose(probabilities.detach().numpy(), expected, atol=1e-5)


def test_a_volume_model_can_leave_too(trained_3d: Trained, tmp_path: Path) -> None:
    assert jobs.medtl("export", trained_3d.run, "--to", "torch", "--out", tmp_path).exit_code == 0
    said = json.loads((tmp_path / "model.json").read_text())
    assert said["input"]["image"]["shape"] == ["batch", 1, 8, 16, 16]


def test_what_must_travel_with_the_model_does(trained: Trained, tmp_path: Path) -> None:
    jobs.medtl("export", trained.run, "--to", "torch", "--out", tmp_path)
    said, header = json.loads((tmp_path / "model.json").read_text()), load_checkpoint(trained.run).header
    assert said["task"] == {"kind": "binary", "classes": list(header.classes)}
    assert list(said["thresholds"].values()) == list(header.thresholds)
    assert (said["calibration"] is None) == (header.calibration is None)
    assert said["preprocessing"]["size"] == list(header.preprocessing.size) and said["preprocessing"]["steps"]
    assert said["licences"]["pretrained weights"] and said["model_sha256"] == header.tensors["model"].sha256
    card = (tmp_path / "README.md").read_text()
    for words in ("Research use only", "AUROC", "interval", "## Preprocessing", "Limits"):
        assert words in card


def test_monai_loads_the_bundle_as_its_own(
    bundle: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monai.bundle import ConfigParser, load, verify_net_in_out

    images, expected = prepared_and_expected(trained)
    parser = ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    parser.read_meta(bundle / "configs/metadata.json")
    parser["bundle_root"] = str(bundle)
    monkeypatch.chdir(bundle)  # where MONAI's own commands look for a bundle's files
    loaded = load(bundle.name, bundle_dir=bundle.parent, workflow_type="inference", device="cpu")
    for network in (parser.get_parsed_content("network"), loaded):
        found = network.eval()(images).detach().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    verify_net_in_out(
        net_id="network_def",
        config_file=str(bundle / "configs/inference.json"),
        meta_file=str(bundle / "configs/metadata.json"),
        device="cpu",
        bundle_root=str(bundle),
    )


def test_the_bundle_runs_in_a_folder_of_its_own(bundle: Path, trained: Trained, tmp_path: Path) -> None:
    from monai.bundle import ConfigWorkflow

    moved = Path(shutil.copytree(bundle, tmp_path / "moved"))
    images, expected = prepared_and_expected(trained)
    (moved / "data").mkdir()
    for number, image in enumerate(images):
        np.save(moved / f"data/{number}.npy", image.numpy())
    workflow = ConfigWorkflow(
        config_file=str(moved / "configs/inference.json"),
        meta_file=str(moved / "configs/metadata.json"),
        logging_file=False,
        workflow_type="inference",
        bundle_root=str(moved),
    )
    workflow.initialize()
    workflow.run()
    lines = (moved / "probabilities.csv").read_text().splitlines()
    assert lines[0] == "normal,lesion"
    found = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_bundle_says_what_monai_asks_for(bundle: Path) -> None:
    said = json.loads((bundle / "configs/metadata.json").read_text())
    assert {
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "task",
        "description",
    } <= said.keys()
    formats = said["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == [32, 32]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "normal", "1": "lesion"}
    assert said["medtl"]["thresholds"].keys() == {"lesion"}
    assert "Apache-2.0" in (bundle / "LICENSE").read_text()
    assert "# tiny: normal vs lesion" in (bundle / "docs/README.md").read_text()
    assert torch.load(bundle / "models/model.pt", weights_only=True)


def test_a_run_that_cannot_be_exported_is_one_line(trained: Trained, own_run: Path, tmp_path: Path) -> None:
    arguments = ["--to", "torch", "--out", tmp_path / "out"]
    assert jobs.fault(jobs.medtl("export", tmp_path, *arguments)) == "run-missing"
    header = own_run / "checkpoints/best/checkpoint.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "thresholds": None}))
    assert jobs.fault(jobs.medtl("export", own_run, *arguments)) == "run-unfinished"
    (tmp_path / "file").write_text("")
    result = jobs.medtl("export", trained.run, "--to", "torch", "--out", tmp_path / "file")
    assert jobs.fault(result) == "output-unwritable"
    assert jobs.medtl("export", trained.run, "--to", "tflite", "--out", tmp_path).exit_code == 2
    assert not (tmp_path / "out").exists()
