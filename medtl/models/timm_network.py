"""Networks of timm as chains of layer groups: which children in which order, and how published files fit.

Most families are a table of names; see resnet.py. What timm states of a network (input size, mean, std, stem,
classifier, licence) is taken from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from medtl.models.backbone import Backbone, BackboneEntry, SizeRule, Standardise, WeightsRequest
from medtl.models.published import timm_imagenet
from medtl.models.weights import KnownWeights, StateDict, sum_input_kernels

Groups = Callable[[Any], Mapping[str, nn.Module]]

# One cell of the feature map at stride 32.
ONE_CELL = SizeRule(smallest=32)


@dataclass(frozen=True)
class TimmNetwork:
    """A network of timm, by name and tag, and how it becomes a backbone.

    groups: from the network to its layer groups, stem first. head: children, and prefixes of published tensor
    names, that belong to the head beside timm's classifier; they are left out. rename: from published tensor
    names to timm's. options: for timm's constructor. normalise: from the number of channels to the module;
    timm's mean and std by default.
    """

    timm_name: str
    groups: Groups
    head: tuple[str, ...] = ()
    rename: Callable[[StateDict], StateDict] = dict
    options: Mapping[str, Any] = field(default_factory=dict)
    saliency_group: int | None = None
    normalise: Callable[[int], nn.Module] | None = None

    @property
    def config(self) -> Any:
        """What timm states of the network."""
        return timm.get_pretrained_cfg(self.timm_name)

    def create(self, in_channels: int) -> Any:
        """Return the network, untrained and without its head."""
        net = timm.create_model(self.timm_name, num_classes=0, in_chans=in_channels, **self.options)
        for child in self.head:
            if hasattr(net, child):
                setattr(net, child, nn.Identity())
        return net

    def adapt(self, state: StateDict, in_channels: int) -> StateDict:
        """Rename published tensors, drop the head's, and fit the stem to the input channels."""
        dropped = tuple(f"{name}." for name in (*self.head, self.config.classifier))
        kept = {key: value for key, value in self.rename(state).items() if not key.startswith(dropped)}
        return sum_input_kernels(kept, f"{self.config.first_conv}.weight", in_channels)


def build_timm(network: TimmNetwork, in_channels: int, request: WeightsRequest) -> Backbone:
    """Build a network of timm with the weights that are asked for."""
    net = network.create(in_channels)
    loaded = request.load_into(net, partial(network.adapt, in_channels=in_channels))
    statistics = partial(Standardise, network.config.mean, network.config.std)
    return Backbone(
        request.backbone,
        network.groups(net),
        spatial_dims=2,
        in_channels=in_channels,
        num_features=net.num_features,
        normalise=(network.normalise or statistics)(in_channels),
        weights=loaded,
        saliency_group=network.saliency_group,
    )


def timm_entry(
    name: str,
    family: str,
    network: TimmNetwork,
    known_weights: tuple[KnownWeights, ...] | None = None,
    sizes: SizeRule = ONE_CELL,
) -> BackboneEntry:
    """Return the registry's line of a network of timm, whose weights are timm's own where none are named."""
    known = (timm_imagenet(network.timm_name),) if known_weights is None else known_weights
    return BackboneEntry(
        name, family, 2, network.config.input_size[1:], known, partial(build_timm, network), sizes
    )


def children(**groups: str) -> Groups:
    """Return a chain by name: children(stem="conv1 bn1", layer1="layer1") names children in their order."""

    def take(net: Any) -> dict[str, nn.Module]:
        return {
            name: in_sequence([net.get_submodule(path) for path in paths.split()])
            for name, paths in groups.items()
        }

    return take


def in_sequence(modules: list[nn.Module]) -> nn.Module:
    """Return modules as one: itself, or a Sequential of several."""
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def split_after(modules: nn.Sequential, kind: type[nn.Module], prefix: str) -> dict[str, nn.Module]:
    """Split a sequence into groups prefix1, prefix2, ..., each of which ends in a module of `kind`."""
    groups: list[list[nn.Module]] = [[]]
    for module in modules:
        if groups[-1] and isinstance(groups[-1][-1], kind):
            groups.append([])
        groups[-1].append(module)
    return {f"{prefix}{index}": in_sequence(group) for index, group in enumerate(groups, 1)}


def rename_by_position(state: StateDict, timm_name: str) -> StateDict:
    """Give tensors timm's names where a file lists the same tensors in the same order under other names."""
    with torch.device("meta"):
        published = timm.create_model(timm_name).state_dict()
    names = [key for key in published if not key.endswith("num_batches_tracked")]
    if names[0] in state:
        return state
    tensors = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    if [tensor.shape for tensor in tensors] != [published[name].shape for name in names]:
        raise KeyError(names[0])
    return dict(zip(names, tensors, strict=True))


def rename_by_parts(state: StateDict, parts: Mapping[str, str]) -> StateDict:
    """Replace parts of tensor names, one after the other."""
    renamed = {}
    for key, value in state.items():
        for published, ours in parts.items():
            key = key.replace(published, ours)
        renamed[key] = value
    return renamed
