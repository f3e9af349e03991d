"""Explanations: the right class, on the image's own grid, at the right place in 2D and 3D."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medtl.data.task import Task
from medtl.explain import METHODS, Method
from medtl.explain.explanation import explain
from medtl.imaging.augmentation import AugmentationConfig
from medtl.imaging.image import Image, ImageFacts
from medtl.imaging.preprocessing import PreprocessingConfig, prepare_image
from medtl.models.classifier import Classifier
from medtl.training.checkpoint import Checkpoint, CheckpointHeader, describe_classifier

BINARY = Task("binary", ("normal", "lesion"))
SIZES = {2: (32, 32), 3: (16, 24, 24)}


@pytest.fixture
def make_checkpoint(make_classifier: Callable, tmp_path: Path) -> Callable[..., Checkpoint]:
    """Return a builder of a checkpoint for images of 2 or 3 axes."""

    def build(dims: int = 2, task: Task = BINARY) -> Checkpoint:
        classifier = make_classifier(task, backbone="tiny" if dims == 2 else "tiny3d").eval()
        header = CheckpointHeader(
            **describe_classifier(classifier, 0.2),
            preprocessing=PreprocessingConfig(size=SIZES[dims]),
            augmentation=AugmentationConfig(),
            schedule=(),
        )
        return Checkpoint(classifier, header, tmp_path)

    return build


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Add the method `echo`, whose map is the prepared image; return the targets that it is asked for."""
    targets: list[int] = []

    def echo(classifier: Classifier, image: Tensor, target: int) -> np.ndarray:
        targets.append(target)
        return image[0, 0].numpy()

    monkeypatch.setitem(METHODS, "echo", Method("Echo", echo))
    return targets


def blob(shape: tuple[int, ...], centre: tuple[float, ...], width: float) -> np.ndarray:
    """Return a smooth bright blob, 1 at its centre."""
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    distance = sum((axis - at) ** 2 for axis, at in zip(grid, centre, strict=True))
    return np.exp(-distance / (2 * width**2)).astype(np.float32)


def image_of(pixels: np.ndarray, affine: np.ndarray | None = None) -> Image:
    """Return an Image of one channel."""
    return Image(pixels[None].astype(np.float32), affine, None, ImageFacts("test", "test"))


IMAGES = {
    "wide": (blob((40, 90), (10, 70), 6), None),
    "tall": (blob((90, 40), (70, 10), 6), None),
    "small": (blob((12, 9), (3, 6), 2), None),
    "volume": (blob((20, 30, 26), (5, 21, 8), 4), np.diag([1.0, 1.0, 1.0, 1.0])),
    "sagittal": (
        blob((26, 30, 20), (8, 21, 5), 4),
        np.array([[0, 0, 2.0, 3], [-1, 0, 0, 5], [0, -1, 0, 7], [0, 0, 0, 1]]),
    ),
    "flipped": (blob((30, 26, 12), (21, 8, 3), 3), np.diag([-1.5, 1.0, -3.0, 1.0])),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_map_lies_over_what_it_was_made_from(
    name: str, make_checkpoint: Callable[..., Checkpoint], asked: list[int]
) -> None:
    pixels, affine = IMAGES[name]
    checkpoint, image = make_checkpoint(pixels.ndim), image_of(pixels, affine)
    prepared = prepare_image(image, checkpoint.preprocessing)
    heatmap = explain(checkpoint, image, prepared, (0.5, 0.5), "echo").heatmap
    assert heatmap.shape == pixels.shape and heatmap.dtype == np.float32
    assert np.corrcoef(heatmap.ravel(), pixels.ravel())[0, 1] > 0.97
    peak, truth = (np.array(np.unravel_index(grid.argmax(), grid.shape)) for grid in (heatmap, pixels))
    assert np.abs(peak - truth).max() <= 3


@pytest.mark.parametrize("dims", [2, 3])
def test_grad_cam_is_a_map_from_0_to_1_on_the_image(
    dims: int, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    checkpoint = make_checkpoint(dims)
    shape = (40, 50, 30)[:dims]
    image = image_of(blob(shape, (20, 30, 12)[:dims], 6), None if dims == 2 else np.eye(4))
    prepared = prepare_image(image, checkpoint.preprocessing)
    before = [parameter.clone() for parameter in checkpoint.classifier.parameters()]
    explanation = explain(checkpoint, image, prepared, (0.3, 0.7))
    assert explanation.heatmap.shape == shape and explanation.method == "grad-cam"
    assert explanation.heatmap.min() >= 0 and explanation.heatmap.max() <= 1
    after = list(checkpoint.classifier.parameters())
    assert all((a == b).all() and b.grad is None for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("task", "probabilities", "target", "name"),
    [
        (Task("binary", ("normal", "lesion")), (0.9, 0.1), 1, "lesion"),
        (Task("binary", ("normal", "lesion")), (0.1, 0.9), 1, "lesion"),
        (Task("multiclass", ("a", "b", "c")), (0.2, 0.5, 0.3), 1, "b"),
        (Task("multiclass", ("a", "b", "c")), (0.6, 0.1, 0.3), 0, "a"),
        (Task("multilabel", ("a", "b")), (0.6, 0.7), 1, "b"),
    ],
)
def test_the_class_that_is_explained(
    task: Task,
    probabilities: tuple[float, ...],
    target: int,
    name: str,
    make_checkpoint: Callable[..., Checkpoint],
    asked: list[int],
) -> None:
    checkpoint, image = make_checkpoint(2, task), image_of(blob((32, 32), (8, 8), 4))
    prepared = prepare_image(image, checkpoint.preprocessing)
    explanation = explain(checkpoint, image, prepared, probabilities, "echo")
    assert asked == [target] and explanation.target_class == name


def test_the_two_sides_of_a_binary_score_are_not_raised_by_the_same(
    make_checkpoint: Callable[..., Checkpoint],
) -> None:
    checkpoint, image = make_checkpoint(), image_of(blob((32, 32), (8, 20), 4))
    prepared = prepare_image(image, checkpoint.preprocessing)
    pixels = torch.from_numpy(prepared.pixels)[None]
    positive, negative = (METHODS["grad-cam"](checkpoint.classifier, pixels, target) for target in (1, 0))
    assert positive.shape == negative.shape == (32, 32)
    assert ((positive > 0) & (negative > 0)).mean() < 0.5
