"""Heatmaps: on the grid in 2D and 3D, equal to MONAI's where both are defined, better than chance."""

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM
from torch import nn

from medtl.imaging.manifest import Task
from medtl.learning.backbones.backbone import Backbone, Standardise
from medtl.learning.classifier import Classifier
from medtl.prediction.faithfulness import localise
from medtl.prediction.saliency import METHODS


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(("backbone", "size"), [("tiny", (48, 40)), ("tiny3d", (8, 32, 32))])
def test_heatmap_is_on_the_image_grid(make_classifier, method, backbone, size):
    classifier = make_classifier(backbone=backbone)
    heatmap = METHODS[method](classifier, torch.rand(1, 1, *size), 1)
    assert heatmap.shape == size and heatmap.dtype == np.float32
    assert heatmap.min() >= 0 and heatmap.max() in (0.0, 1.0)


@pytest.mark.parametrize("method", list(METHODS))
def test_nothing_is_left_behind(make_classifier, method):
    classifier = make_classifier()
    METHODS[method](classifier, torch.rand(1, 1, 32, 32), 0)
    assert not any(module._forward_hooks or module._backward_hooks for module in classifier.modules())
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_grad_cam_equals_monai_where_a_class_has_one_logit(make_classifier):
    """In a multilabel task the log-odds of a class are its logit, which is what MONAI explains."""
    classifier = make_classifier(Task("multilabel", ("a", "b"))).eval()
    image = torch.rand(1, 1, 32, 32)
    theirs = GradCAM(nn_module=classifier, target_layers="backbone.groups.top", postprocessing=lambda x: x)
    theirs = theirs(image, class_idx=1)[0, 0].detach()
    theirs = (theirs - theirs.min()) / (theirs.max() - theirs.min())
    ours = METHODS["grad-cam"](classifier, image, 1)
    ours = (ours - ours.min()) / (ours.max() - ours.min())
    assert np.corrcoef(ours.ravel(), np.asarray(theirs).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("size", [(48, 48), (8, 32, 32)])
def test_planted_lesions_are_found_better_than_by_chance(method, size):
    generator = np.random.default_rng(0)
    images, masks = plant_lesions(generator, 48, size)
    classifier = train_plain_network(images, np.arange(48) % 2, len(size))
    images, masks = plant_lesions(generator, 12, size)
    found = [localise(METHODS[method](classifier, images[i : i + 1], 1), masks[i]) for i in range(1, 12, 2)]
    assert np.median([f.gain for f in found]) > 3


def plant_lesions(generator, count, size):
    """Return noise in which every second image has a bright block somewhere, and the blocks' masks."""
    images = torch.from_numpy(generator.random((count, 1, *size), dtype=np.float32)) * 0.4
    masks = np.zeros((count, *size))
    for i in range(1, count, 2):
        corner = [int(generator.integers(0, extent - extent // 4)) for extent in size]
        block = tuple(slice(c, c + extent // 4) for c, extent in zip(corner, size, strict=True))
        images[(i, 0, *block)] += 0.6
        masks[(i, *block)] = 1
    return images, masks


def train_plain_network(images, targets, dims):
    torch.manual_seed(0)
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    groups = {
        "stem": nn.Sequential(conv(1, 8, 3, stride=2, padding=1), nn.ReLU()),
        "top": nn.Sequential(conv(8, 8, 3, padding=1), nn.ReLU()),
    }
    normalise = Standardise((0.5,), (0.5,), 1)
    backbone = Backbone(
        "plain", groups, spatial_dims=dims, in_channels=1, num_features=8, normalise=normalise, weights=None
    )
    classifier = Classifier(backbone, Task("binary", ("normal", "lesion")), dropout=0.0)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.02)
    for _ in range(60):
        loss = nn.functional.cross_entropy(classifier(images), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    return classifier


def test_localisation_of_a_perfect_and_a_flat_map():
    mask = np.zeros((10, 10))
    mask[:2, :5] = 1
    perfect, flat = localise(mask.astype(np.float32), mask), localise(np.ones((10, 10), np.float32), mask)
    assert (perfect.energy, perfect.gain, perfect.hit) == (1.0, pytest.approx(10), True)
    assert flat.gain == pytest.approx(1)


def test_localisation_of_nothing_is_no_number():
    with pytest.raises(ValueError, match="empty"):
        localise(np.zeros((4, 4), np.float32), np.ones((4, 4)))
    with pytest.raises(ValueError, match="different grids"):
        localise(np.ones((4, 4), np.float32), np.ones((4, 5)))
