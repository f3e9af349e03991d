"""A network that is only evaluated -> a copy that does the same in fewer operations: no batch norm.

Batch norm that no longer learns is a scale and a shift of each channel, which the convolution before it can
do as well. Nothing is asked of how a network is written: which convolution feeds which batch norm is seen by
running it, and the copy is used only where it computes the same.
"""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights

from medtl.models.classifier import Classifier, Placement

Pair = tuple[str, str]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Of the largest value: the effect of reordering sums in float32, over a hundred layers.
TOLERANCE = 1e-5


@torch.no_grad()
def fold_groups(classifier: Classifier, shape: tuple[int, ...], groups: int | None = None) -> Classifier:
    """Return a copy in evaluation mode, with batch norm folded in each layer group where that is the same.

    shape: of one image, (1, C, *size). groups: how many of the first ones will be run, None is all; others
    stay as they are. Whether a group is folded depends on the weights up to it alone, as the numbers that
    come out of it have to.
    """
    copied = copy.deepcopy(classifier).eval()
    backbone = copied.backbone
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    x = backbone.normalise(Placement(classifier)(image))
    for name, group in list(backbone.groups.items())[:groups]:
        backbone.groups[name] = fold_batch_norm(group, x)
        x = group(x)
    return copied


@torch.no_grad()
def fold_batch_norm(network: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy in evaluation mode, with batch norm folded where that computes the same for an input x.

    What the network does not use for it stays as it is. The copy takes no part in training.
    """
    copied = copy.deepcopy(network).eval()
    pairs, expected = _see(copied, x)
    for convolution, norm in pairs:
        _fold(copied, convolution, norm)
    difference = (copied(x) - expected).abs().max()
    same = difference <= TOLERANCE * expected.abs().max()
    return copied if same else copy.deepcopy(network).eval()


def _see(network: nn.Module, x: Tensor) -> tuple[list[Pair], Tensor]:
    """Return the names of convolutions and of the batch norm that each feeds, and what the network gives."""
    calls: Counter[str] = Counter()
    makers: dict[int, tuple[str, Tensor]] = {}  # of each output; held, so that no other takes its place
    pairs: list[Pair] = []

    def made(name: str, output: Tensor) -> None:
        calls[name] += 1
        makers[id(output)] = name, output

    def took(name: str, given: Tensor) -> None:
        calls[name] += 1
        if id(given) in makers:
            pairs.append((makers[id(given)][0], name))

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: made(name, output))
        for name, module in network.named_modules()
        if isinstance(module, CONVOLUTIONS)
    ] + [
        module.register_forward_pre_hook(lambda _, given, name=name: took(name, given[0]))
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
    ]
    try:
        expected = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(calls[name] == 1 for name in pair)], expected


def _fold(network: nn.Module, convolution: str, norm: str) -> None:
    """Move a batch norm into a convolution, and leave in its place the activation that it may carry."""
    conv: Any = network.get_submodule(convolution)
    bn: Any = network.get_submodule(norm)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    # timm's batch norm has its activation inside
    after = getattr(bn, "act", None)
    parent, _, name = norm.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity() if after is None else after)
