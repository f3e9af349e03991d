"""Exported programs give what the classifier gives: every family of backbones, every way to calibrate."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medtl.config import sample_data
from medtl.data.task import Task
from medtl.errors import CheckpointError
from medtl.evaluation.calibration import Calibration, Steps, to_probabilities
from medtl.imaging.augmentation import AugmentationConfig
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.imaging.reader import read_images
from medtl.inference.contract import contract
from medtl.inference.export import (
    Calibrated,
    Portable,
    example_images,
    largest_difference,
    write_onnx,
    write_program,
)
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.training.checkpoint import Checkpoint, CheckpointHeader, TensorFile, describe_classifier

# Tracing takes seconds a network: a few run in every test run, a small one of each family with -m long.
QUICK = ("tiny", "tiny3d", "resnet18", "alexnet", "convnext_atto")
LONG = (
    *("efficientnet_lite0", "densenet121", "inception_v3", "xception", "vgg11_bn", "swin_tiny", "vit_tiny"),
    *("xception41", "radimagenet_resnet50", "resnet18d", "inflated_resnet18", "inflated_centre_resnet18"),
    *("mobilenet_v2", "mobilenet_v3_small", "medicalnet_resnet10"),
    *("slices_mobilenet_v3_small", "slices_vit_tiny", "slices_densenet121"),
)
BINARY, KINDS = Task("binary", ("normal", "lesion")), ("binary", "multiclass", "multilabel")


def make_checkpoint(
    backbone: str = "tiny", task: Task = BINARY, calibration: Calibration | None = None, side: int = 0
) -> Checkpoint:
    """Return an untrained checkpoint, at nearly the smallest size that the backbone takes."""
    torch.manual_seed(0)
    entry = BACKBONES[backbone]
    side = side or max(entry.sizes.smallest, 32)
    plane = (side, side + entry.sizes.multiple)
    classifier = Classifier(entry(), task).eval()
    header = CheckpointHeader(
        **describe_classifier(classifier, 0.2),
        preprocessing=PreprocessingConfig(size=plane if entry.spatial_dims == 2 else (4, *plane)),
        augmentation=AugmentationConfig(),
        schedule=(),
        thresholds=(0.3,) * (1 if task.kind == "binary" else len(task.classes)),
        calibration=calibration,
        tensors={"model": TensorFile(file="model.safetensors", sha256="ab" * 32)},
    )
    return Checkpoint(classifier, header, Path("run"))


def run_onnx(path: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return tuple(session.run(["logits", "probabilities"], {"image": images}))


@torch.no_grad()
def run_program(path: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, probabilities = torch.export.load(path).module()(torch.from_numpy(images))
    return logits.numpy(), probabilities.numpy()


WRITERS: dict[str, Callable] = {
    "onnx": lambda path, checkpoint: write_onnx(path, checkpoint, contract(checkpoint)),
    "pt2": write_program,
}
RUNNERS = {"onnx": run_onnx, "pt2": run_program}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_logits_agree_with_the_classifier_whatever_the_batch(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="medtl[export] is not installed")
    checkpoint = make_checkpoint(name)
    path = tmp_path / f"model.{kind}"
    WRITERS[kind](path, checkpoint)
    for count in (1, 5):
        images = example_images(checkpoint, count)
        with torch.no_grad():
            expected = checkpoint.classifier(torch.from_numpy(images)).numpy()
        logits, probabilities = RUNNERS[kind](path, images)
        # Untrained networks may give logits of millions: there the last bits are more than that.
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-5)
        np.testing.assert_allclose(probabilities, to_probabilities(expected, "binary"), atol=1e-4)


def test_onnx_runtime_and_torch_agree_on_radiographs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="medtl[export] is not installed")
    checkpoint = make_checkpoint("resnet18", side=96)
    files = sorted((sample_data("xray") / "images").glob("*.dcm"))[:4]
    images = np.stack([prepare_image(read_images(f)[0], checkpoint.preprocessing).pixels for f in files])
    write_onnx(tmp_path / "model.onnx", checkpoint, contract(checkpoint))
    with torch.no_grad():
        expected = checkpoint.classifier(torch.from_numpy(images)).numpy()
    assert np.ptp(expected) > 1e-2
    np.testing.assert_allclose(run_onnx(tmp_path / "model.onnx", images)[0], expected, atol=1e-4)


STEPS = Steps(x=(0.1, 0.25, 0.6, 0.9), y=(0.0, 0.2, 0.2, 0.97))
FLAT = Steps(x=(0.0, 1.0), y=(0.0, 0.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["none", "temperature", "isotonic", "flat"])
def test_probabilities_are_calibrated_as_the_checkpoint_says(kind: str, method: str) -> None:
    columns = {"binary": 1, "multiclass": 3, "multilabel": 3}[kind]
    temperatures = (0.7, 2.0, 1.3) if kind == "multilabel" else (2.5,)
    calibration = {
        "none": None,
        "temperature": Calibration(method="temperature", temperatures=temperatures),
        "isotonic": Calibration(method="isotonic", steps=(STEPS,) * columns),
        "flat": Calibration(method="isotonic", steps=(FLAT,) * columns),
    }[method]
    logits = np.random.default_rng(0).normal(size=(200, 2 if kind == "binary" else 3)).astype(np.float32) * 4
    found = Calibrated(kind, calibration)(torch.from_numpy(logits)).numpy()  # type: ignore[arg-type]
    expected = to_probabilities(logits, kind, calibration)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_isotonic_calibration_travels_in_the_files(tmp_path: Path) -> None:
    task = Task("multiclass", ("a", "b", "c"))
    checkpoint = make_checkpoint(task=task, calibration=Calibration(method="isotonic", steps=(STEPS,) * 3))
    images = example_images(checkpoint, 4)
    for kind, write in WRITERS.items():
        write(tmp_path / f"model.{kind}", checkpoint)
        logits, probabilities = RUNNERS[kind](tmp_path / f"model.{kind}", images)
        expected = to_probabilities(logits, "multiclass", checkpoint.header.calibration)
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_a_program_of_probabilities_alone_has_one_output(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    program = write_program(tmp_path / "model.pt2", checkpoint, alone=True)
    images = torch.from_numpy(example_images(checkpoint, 2))
    found = torch.export.load(tmp_path / "model.pt2").module()(images)
    expected = Portable(checkpoint.classifier, None)(images)[1]
    torch.testing.assert_close(found, expected)
    assert program.state_dict.keys()


def test_what_onnx_needs_to_be_used_is_in_the_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="medtl[export] is not installed")
    checkpoint = make_checkpoint()
    WRITERS["onnx"](tmp_path / "model.onnx", checkpoint)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["task"]) == {"kind": "binary", "classes": ["normal", "lesion"]}
    assert json.loads(said["thresholds"]) == {"lesion": 0.3}
    assert json.loads(said["preprocessing"])["size"] == [32, 33]
    assert json.loads(said["licences"])["medtl"] == "Apache-2.0" and "Research use only" in said["use"]
    (batch, *rest) = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param == "batch" and [dim.dim_value for dim in rest] == [1, 32, 33]


class Stubborn(torch.nn.Module):
    """Does what no tracer can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x


@pytest.mark.parametrize("kind", WRITERS)
def test_a_backbone_that_cannot_be_written_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    checkpoint.classifier.backbone.groups["top"].append(Stubborn())
    with pytest.raises(CheckpointError, match=r"\[export-unsupported\].*tiny"):
        WRITERS[kind](tmp_path / "model", checkpoint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "added", "apart"), [(0.5, 0.01, 0.01), (-50.0, 0.01, 0.0002), (0.5, float("nan"), float("nan"))]
)
def test_a_difference_is_a_share_of_the_largest_output_and_no_nan_is_lost(
    value: float, added: float, apart: float
) -> None:
    def right(images: np.ndarray) -> list[np.ndarray]:
        return [np.zeros((len(images), 2)), np.full((len(images), 2), value)]

    def run(images: np.ndarray) -> list[np.ndarray]:
        first, second = right(images)
        second[-1, 0] += added
        return [first, second]

    assert largest_difference(make_checkpoint(), run, right) == pytest.approx(apart, nan_ok=True)


def test_a_program_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtl.inference.export.to_probabilities", lambda logits, *_: logits * 0 + 0.123)
    with pytest.raises(CheckpointError, match=r"\[export-differs\]"):
        write_program(tmp_path / "model.pt2", make_checkpoint())
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: object, **named: object) -> object:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return real(name, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CheckpointError, match=r"\[extra-missing\].*needs onnxruntime"):
        write_onnx(tmp_path / "model.onnx", make_checkpoint(), {})


@pytest.mark.parametrize("kind", WRITERS)
def test_weights_that_are_no_numbers_are_not_exported(kind: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    with torch.no_grad():
        checkpoint.classifier.head.linear.bias.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(CheckpointError) as caught:
        WRITERS[kind](tmp_path / "model", checkpoint)
    assert caught.value.code == "export-differs" and not list(tmp_path.iterdir())
