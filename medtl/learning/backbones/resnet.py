"""ResNet-18 and ResNet-50 backbones (timm), which load the ImageNet files of torchvision."""

from functools import partial
from typing import Any

import timm
from torch import nn

from medtl.learning.backbones.backbone import Backbone, BackboneEntry, Standardise, WeightsRequest
from medtl.learning.weights import KnownWeights, StateDict, sum_input_kernels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_resnet(timm_name: str, in_channels: int, request: WeightsRequest) -> Backbone:
    """Build a ResNet: stem and four stages; stride 32."""
    net: Any = timm.create_model(timm_name, num_classes=0, in_chans=in_channels)
    loaded = request.load_into(net, partial(_adapt, in_channels=in_channels))
    stages = {f"layer{index}": getattr(net, f"layer{index}") for index in (1, 2, 3, 4)}
    return Backbone(
        request.backbone,
        {"stem": nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool), **stages},
        spatial_dims=2,
        in_channels=in_channels,
        num_features=net.num_features,
        normalise=Standardise(IMAGENET_MEAN, IMAGENET_STD, in_channels),
        weights=loaded,
    )


def _adapt(state: StateDict, in_channels: int) -> StateDict:
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    return sum_input_kernels(headless, "conv1.weight", in_channels)


def torchvision_imagenet(file: str) -> KnownWeights:
    """Describe an ImageNet file of torchvision, whose name ends in the first 8 digits of its SHA-256."""
    digest = file.removesuffix(".pth").rsplit("-", 1)[1]
    return KnownWeights("imagenet", file, digest, "BSD-3-Clause", "ImageNet-1k, torchvision")


RESNET18 = BackboneEntry(
    "resnet18",
    "ResNet",
    2,
    (224, 224),
    (torchvision_imagenet("resnet18-f37072fd.pth"),),
    partial(build_resnet, "resnet18"),
)
RESNET50 = BackboneEntry(
    "resnet50",
    "ResNet",
    2,
    (224, 224),
    (torchvision_imagenet("resnet50-0676ba61.pth"),),
    partial(build_resnet, "resnet50"),
)
