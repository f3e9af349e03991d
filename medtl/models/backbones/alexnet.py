"""AlexNet backbone (Krizhevsky 2014, "one weird trick"), which is torchvision's."""

from typing import Any

import torch
from torch import nn
from torchvision.models import AlexNet_Weights, alexnet

from medtl.models.backbone import Backbone, BackboneEntry, SizeRule, Standardise, WeightsRequest
from medtl.models.published import torchvision_imagenet
from medtl.models.weights import StateDict, sum_input_kernels

# What torchvision states of the input that its file was trained on.
PRESET: Any = AlexNet_Weights.IMAGENET1K_V1.transforms()


def build_alexnet(in_channels: int, request: WeightsRequest) -> Backbone:
    """Build AlexNet's five convolutions, each with the activation and pooling that follow it."""
    with torch.device("meta"):  # the dense layers, 58 of 61 million parameters, never get memory
        features: Any = alexnet().features
        stem = features[0]
        features[0] = nn.Conv2d(in_channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding)
    features.to_empty(device=torch.get_default_device())
    starts = [index for index, module in enumerate(features) if isinstance(module, nn.Conv2d)]
    for start in starts:
        features[start].reset_parameters()

    def adapt(state: StateDict) -> StateDict:
        convolutions = {
            key.removeprefix("features."): value
            for key, value in state.items()
            if not key.startswith("classifier.")
        }
        return sum_input_kernels(convolutions, "0.weight", in_channels)

    loaded = request.load_into(features, adapt)
    spans = zip(starts, [*starts[1:], len(features)], strict=True)
    return Backbone(
        request.backbone,
        {f"conv{number}": features[start:stop] for number, (start, stop) in enumerate(spans, 1)},
        spatial_dims=2,
        in_channels=in_channels,
        num_features=features[starts[-1]].out_channels,
        normalise=Standardise(tuple(PRESET.mean), tuple(PRESET.std), in_channels),
        weights=loaded,
    )


ALEXNET = BackboneEntry(
    "alexnet",
    "AlexNet",
    2,
    (PRESET.crop_size[0],) * 2,
    torchvision_imagenet("alexnet"),
    build_alexnet,
    SizeRule(smallest=63),  # as torchvision states; smaller images have nothing left to pool
)
ENTRIES = (ALEXNET,)
