"""DenseNet-121 backbone (timm), which loads the ImageNet file of torchvision."""

import re
from typing import Any

import timm
from torch import nn

from medtl.learning.backbones.backbone import Backbone, BackboneEntry, Standardise, WeightsRequest
from medtl.learning.backbones.resnet import IMAGENET_MEAN, IMAGENET_STD, torchvision_imagenet
from medtl.learning.weights import StateDict, sum_input_kernels


def build_densenet121(in_channels: int, request: WeightsRequest) -> Backbone:
    """Build DenseNet-121: stem, four dense blocks with their transitions, final norm; 1024 features."""
    net: Any = timm.create_model("densenet121", num_classes=0, in_chans=in_channels)
    loaded = request.load_into(net, lambda state: _adapt(state, in_channels))
    return Backbone(
        request.backbone,
        _groups(net.features),
        spatial_dims=2,
        in_channels=in_channels,
        num_features=net.num_features,
        normalise=Standardise(IMAGENET_MEAN, IMAGENET_STD, in_channels),
        weights=loaded,
    )


def _groups(features: Any) -> dict[str, nn.Module]:
    blocks = {
        f"denseblock{i}": nn.Sequential(
            getattr(features, f"denseblock{i}"), getattr(features, f"transition{i}")
        )
        for i in (1, 2, 3)
    }
    stem = nn.Sequential(features.conv0, features.norm0, features.pool0)
    return {"stem": stem, **blocks, "denseblock4": features.denseblock4, "final": features.norm5}


def _adapt(state: StateDict, in_channels: int) -> StateDict:
    """Drop the head and rename the early releases' `norm.1` to `norm1`."""
    renamed = {
        re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key): value
        for key, value in state.items()
        if not key.startswith("classifier.")
    }
    return sum_input_kernels(renamed, "features.conv0.weight", in_channels)


DENSENET121 = BackboneEntry(
    "densenet121",
    "DenseNet",
    2,
    (224, 224),
    (torchvision_imagenet("densenet121-a639ec97.pth"),),
    build_densenet121,
)
