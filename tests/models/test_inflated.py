"""Inflated backbones: equal slices give what the 2D network gives on the slice; the contract holds in 3D."""

import copy

import pytest
import torch
from torch import nn

from medtl.data.task import Task
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.models.inflated import inflate

PLANAR = ("efficientnet_lite0", "resnet18", "resnet50", "densenet121")


def twins(name: str, planar: str):
    """Return an inflated backbone and its planar one with the same random weights and statistics."""
    built = []
    for entry in (BACKBONES[name], BACKBONES[planar]):
        torch.manual_seed(0)
        built.append(entry().eval())
    solid, flat = built
    for layer, other in zip(norms(solid), norms(flat), strict=True):
        generator = torch.Generator().manual_seed(layer.num_features)
        statistics = torch.rand(2, layer.num_features, generator=generator)
        for norm in (layer, other):
            norm.running_mean.copy_(statistics[0] - 0.5)
            norm.running_var.copy_(0.5 + statistics[1])
    return solid, flat


def norms(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("planar", PLANAR)
@pytest.mark.parametrize("prefix", ["inflated", "inflated_centre"])
def test_equal_slices_give_what_the_planar_network_gives(planar: str, prefix: str) -> None:
    """At every depth, the ends of the volume included, since the end slices are repeated."""
    solid, flat = twins(f"{prefix}_{planar}", planar)
    image = torch.rand(1, 1, 70, 67, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = flat.features(image)
        found = solid.features(image[:, :, None].expand(-1, -1, 9, -1, -1))
    assert float(expected.std()) > 0
    tolerance = 1e-4 * float(expected.abs().max())
    assert float((found - expected[:, :, None]).abs().max()) < tolerance


def test_a_single_slice_is_a_volume() -> None:
    solid, flat = twins("inflated_densenet121", "densenet121")
    image = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = flat.features(image), solid.features(image[:, :, None])
    assert torch.allclose(found[:, :, 0], expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("planar", PLANAR)
def test_depth_is_not_shrunk_faster_than_the_plane(planar: str) -> None:
    solid, _ = twins(f"inflated_{planar}", planar)
    with torch.no_grad():
        grid = solid.features(torch.rand(1, 1, 33, 33, 33)).shape[2:]
    assert grid[0] >= grid[1] == grid[2]


def test_the_stem_keeps_every_slice() -> None:
    solid, _ = twins("inflated_resnet18", "resnet18")
    with torch.no_grad():
        assert solid.between(0, 1, torch.rand(1, 1, 7, 64, 64)).shape[2:] == (7, 16, 16)


def test_repeated_kernels_mix_slices_and_centred_ones_start_without() -> None:
    """The stem of a centred backbone sees one slice, that of a repeated one its neighbours."""
    for prefix, mixes in (("inflated", True), ("inflated_centre", False)):
        solid, _ = twins(f"{prefix}_resnet18", "resnet18")
        x = torch.rand(1, 1, 9, 32, 32, generator=torch.Generator().manual_seed(0))
        other = x.clone()
        other[:, :, 5] = 0.0
        with torch.no_grad():
            moved = (solid.between(0, 1, x) - solid.between(0, 1, other)).abs().amax((0, 1, 3, 4)) > 0
        assert bool(moved[5])
        assert bool(moved[4] and moved[6]) is mixes


def test_a_centred_kernel_learns_its_neighbours() -> None:
    solid, _ = twins("inflated_centre_resnet18", "resnet18")
    solid.features(torch.rand(1, 1, 9, 32, 32)).sum().backward()
    kernel = solid.groups["stem"][0].layer.weight
    assert not kernel[:, :, 0].any()
    assert float(kernel.grad[:, :, 0].abs().sum()) > 0


@pytest.mark.parametrize("name", ["inflated_resnet18", "inflated_densenet121", "inflated_efficientnet_lite0"])
def test_the_contract_of_backbones(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name]().eval()
    ordered = [id(p) for group in backbone.groups.values() for p in group.parameters()]
    assert ordered == [id(p) for p in backbone.parameters()]
    x = torch.rand(2, 1, 5, 40, 40)
    features = backbone.features(x)
    assert features.shape[:2] == (2, backbone.num_features)
    for count in range(len(backbone.groups) + 1):
        assert torch.equal(
            backbone.between(count, len(backbone.groups), backbone.between(0, count, x)), features
        )
    activation = backbone.between(0, backbone.saliency_group, x).detach().requires_grad_()
    backbone.between(backbone.saliency_group, len(backbone.groups), activation).sum().backward()
    assert activation.grad is not None and float(activation.grad.abs().sum()) > 0


@pytest.mark.parametrize("frozen", [1, 4])
def test_frozen_groups_do_not_move_by_one_bit(frozen: int) -> None:
    torch.manual_seed(0)
    classifier = Classifier(BACKBONES["inflated_densenet121"](), Task("binary", ("no", "yes")))
    classifier.freeze(frozen, batch_norm_follows_data=True)
    before = copy.deepcopy(classifier.backbone.state_dict())
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    classifier.train()
    classifier(torch.rand(2, 1, 4, 64, 64)).sum().backward()
    optimizer.step()
    after = classifier.backbone.state_dict()
    moved = {key.split(".")[1] for key in after if not torch.equal(before[key], after[key])}
    assert moved == set(classifier.backbone.layer_groups[frozen:])


def test_published_weights_are_inflated(tmp_path) -> None:
    """A 2D file gives the 3D backbone, and its kernels sum to the 2D ones over depth."""
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    backbone = BACKBONES["inflated_resnet18"](tmp_path / "resnet18.pth", in_channels=3)
    kernel = backbone.groups["stem"][0].layer.weight
    assert kernel.shape == (64, 3, 7, 7, 7)
    assert torch.allclose(kernel.sum(2), net.conv1.weight, atol=1e-6)
    assert backbone.weights is not None and backbone.weights.path == "resnet18.pth"


def test_a_layer_without_a_known_inflation_is_named() -> None:
    with pytest.raises(TypeError, match="PixelShuffle"):
        inflate(nn.Sequential(nn.Conv2d(1, 4, 1), nn.PixelShuffle(2)), "repeat", keep_depth=True)
