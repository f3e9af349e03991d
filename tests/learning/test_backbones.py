"""The contract that every registered backbone keeps."""

import copy

import pytest
import torch

from medtl.errors import WeightsError
from medtl.imaging.manifest import Task
from medtl.learning.backbones import BACKBONES
from medtl.learning.classifier import Classifier

NAMES = ["efficientnet_lite0", "resnet18", "resnet50", "densenet121"]
NAMES += [
    "slices_efficientnet_lite0",
    "slices_resnet18",
    "slices_resnet50",
    "slices_densenet121",
    "medicalnet_resnet10",
]


def images(backbone, count: int = 2) -> torch.Tensor:
    size = (64, 64) if backbone.spatial_dims == 2 else (4, 64, 64)
    return torch.rand(count, backbone.in_channels, *size, generator=torch.Generator().manual_seed(0))


def test_the_registry_is_the_tested_list():
    assert [name for name in BACKBONES if not name.startswith("tiny")] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_backbone_keeps_the_contract(name):
    torch.manual_seed(0)
    backbone = BACKBONES[name](weights=None, in_channels=1).eval()
    x = images(backbone)
    features = backbone.features(x)
    assert features.shape[:2] == (2, backbone.num_features)
    assert features.ndim == backbone.spatial_dims + 2

    in_groups = [id(p) for group in backbone.groups.values() for p in group.parameters()]
    assert sorted(in_groups) == sorted(id(p) for p in backbone.parameters()), (
        "groups partition the parameters"
    )

    for count in range(len(backbone.groups) + 1):
        assert torch.equal(backbone.suffix(count, backbone.prefix(count, x)), features)

    activation = backbone.prefix(backbone.saliency_group, x).detach().requires_grad_()
    backbone.suffix(backbone.saliency_group, activation).sum().backward()
    assert activation.grad is not None and activation.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "densenet121", "slices_resnet18", "medicalnet_resnet10"]
)
def test_frozen_groups_do_not_move_by_one_bit(name):
    torch.manual_seed(0)
    classifier = Classifier(BACKBONES[name](), Task("binary", ("no", "yes")))
    frozen = len(classifier.backbone.groups) - 1
    classifier.freeze(frozen, batch_norm_follows_data=True)
    before = copy.deepcopy(classifier.backbone.state_dict())
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    classifier.train()
    classifier(images(classifier.backbone)).sum().backward()
    optimizer.step()
    after = classifier.backbone.state_dict()
    inert = [f"groups.{group}." for group in classifier.backbone.layer_groups[:frozen]]
    moved = [key for key in after if not torch.equal(before[key], after[key])]
    assert moved and not any(key.startswith(tuple(inert)) for key in moved)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "slices_efficientnet_lite0"])
def test_three_input_channels(name):
    backbone = BACKBONES[name](weights=None, in_channels=3).eval()
    assert backbone.features(images(backbone)).shape[1] == 1280


def test_wrong_number_of_axes_is_named():
    with pytest.raises(ValueError, match=r"resnet18 takes \(N, 1, H, W\)"):
        BACKBONES["resnet18"]().features(torch.zeros(1, 1, 4, 32, 32))


def test_unknown_weights_name_the_known_ones():
    with pytest.raises(WeightsError, match="imagenet") as caught:
        BACKBONES["resnet18"](weights="imagnet")
    assert caught.value.code == "weights-unknown"


def test_absent_weights_say_file_place_and_licence(own_home):
    with pytest.raises(WeightsError) as caught:
        BACKBONES["resnet50"](weights="imagenet")
    line = str(caught.value)
    assert caught.value.code == "weights-missing"
    assert "resnet50-0676ba61.pth" in line and "BSD-3-Clause" in line
    assert str(own_home / "weights") in caught.value.fix
