"""Batch norm goes into convolutions where that computes the same, and stays where it does not."""

import pytest
import torch
from torch import nn

from medtl.data.task import Task
from medtl.models.classifier import Classifier
from medtl.models.folding import fold_batch_norm, fold_groups

from .test_backbones import ENTRIES, images


@pytest.fixture(autouse=True)
def without_gradients():
    """Nothing here learns."""
    with torch.inference_mode():
        yield


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def trained(network: nn.Module) -> nn.Module:
    """Give batch norm statistics and scales that are not those it is born with."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return network


class SumBeforeNorm(nn.Module):
    """What the convolution gives is used beside the batch norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class SharedNorm(SumBeforeNorm):
    """One batch norm at two places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.norm(self.conv(x)))


class WeightInUse(nn.Conv2d):
    """A convolution that does not use its weight as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight / self.weight.std(), self.bias)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_is_folded_in_2d_and_3d(dims):
    conv, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
    network = trained(nn.Sequential(conv(1, 4, 3, bias=False), norm(4), nn.ReLU(), conv(4, 2, 1), norm(2)))
    x = torch.rand(2, 1, *(9,) * dims)
    folded = fold_batch_norm(network, x)
    assert norms(folded) == 0 and norms(network) == 2 and network.training and not folded.training
    assert torch.allclose(folded(x), network.eval()(x), atol=1e-6)


@pytest.mark.parametrize(
    "network",
    [SumBeforeNorm(), SharedNorm(), nn.Sequential(WeightInUse(1, 4, 3, bias=False), nn.BatchNorm2d(4))],
    ids=["used twice", "shared", "another weight"],
)
def test_what_would_compute_something_else_is_not_folded(network):
    trained(network)
    x = torch.rand(2, 1, 9, 9)
    kept = fold_batch_norm(network, x)
    assert norms(kept) == 1
    assert torch.equal(kept(x), network.eval()(x))


class FirstHalf(nn.Sequential):
    """Runs the first two of its modules."""

    def forward(self, x):
        return self[1](self[0](x))


def test_what_is_not_asked_for_stays():
    network = trained(FirstHalf(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    assert norms(fold_batch_norm(network, torch.rand(2, 1, 9, 9))) == 1


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("efficientnet_lite0", 1.0),
        ("resnet18", 1.0),
        ("mobilenet_v3_small", 1.0),
        ("densenet121", 0.45),  # most of its batch norm comes before the convolution
        ("slices_efficientnet_lite0", 1.0),
        ("medicalnet_resnet10", 1.0),
    ],
)
def test_families_are_folded_and_compute_the_same(name, least):
    entry = ENTRIES[name]
    torch.manual_seed(0)
    classifier = trained(Classifier(entry(weights=None, in_channels=1), Task("binary", ("no", "yes"))))
    x = images(entry)
    folded = fold_groups(classifier, (1, *x.shape[1:]))
    assert norms(folded) <= (1 - least) * norms(classifier)
    classifier.eval()
    for stop in range(1, classifier.head_step + 1):
        expected = classifier.run(x, 0, stop)
        assert (folded.run(x, 0, stop) - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert all(parameter.requires_grad for parameter in classifier.backbone.parameters())


def test_groups_that_are_not_run_are_neither_run_nor_folded():
    entry = ENTRIES["resnet18"]
    classifier = trained(Classifier(entry(weights=None, in_channels=1), Task("binary", ("no", "yes"))))
    x, ran = images(entry), []
    for name, group in classifier.backbone.groups.items():
        group.register_forward_hook(lambda *_, name=name: ran.append(name))
    names = list(classifier.backbone.groups)
    folded = fold_groups(classifier, (1, *x.shape[1:]), 2)
    assert set(ran) == set(names[:2])
    whole = fold_groups(classifier, (1, *x.shape[1:]))
    assert torch.equal(folded.run(x, 0, 2), whole.run(x, 0, 2)), "the same bits, however deep is folded"
    assert [norms(folded.backbone.groups[name]) > 0 for name in names[1:4]] == [False, True, True]


def test_without_batch_norm_a_network_is_copied():
    entry = ENTRIES["vit_tiny"]
    classifier = Classifier(entry(weights=None, in_channels=1), Task("binary", ("no", "yes")))
    x = images(entry)
    assert torch.equal(fold_groups(classifier, (1, *x.shape[1:]))(x), classifier.eval()(x))
