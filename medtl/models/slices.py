"""Slice encoders: a 2D pretrained backbone over the slices of a volume (after Gupta 2021)."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from medtl.models.backbone import Backbone, BackboneEntry, WeightsRequest


class PerSlice(nn.Module):
    """Apply a 2D module to each slice: (N, C, D, H, W) -> (N, c, D, h, w)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        depth = x.shape[2]
        slices = x.transpose(1, 2).flatten(0, 1)  # (N * D, C, H, W)
        slices = slices.contiguous(memory_format=torch.channels_last)
        return self.module(slices).unflatten(0, (-1, depth)).transpose(1, 2)


def build_slice_encoder(planar: BackboneEntry, in_channels: int, request: WeightsRequest) -> Backbone:
    """Build a volume backbone whose groups are those of `planar`, slice by slice.

    The feature map (N, F, D, h, w) keeps the slices apart; the head pools them by attention that knows each
    slice's place.
    """
    encoder = planar.build(in_channels, request)
    return Backbone(
        request.backbone,
        {name: PerSlice(group) for name, group in encoder.groups.items()},
        spatial_dims=3,
        in_channels=in_channels,
        num_features=encoder.num_features,
        normalise=encoder.normalise,
        weights=encoder.weights,
        pooling="slice-attention",
        saliency_group=encoder.saliency_group,
    )


def slice_encoder(planar: BackboneEntry) -> BackboneEntry:
    """Return the entry of the slice encoder over a 2D backbone; it takes the 2D backbone's weights."""
    return replace(
        planar,
        name=f"slices_{planar.name}",
        family=f"slice encoder over {planar.family}",
        spatial_dims=3,
        input_size=(24, *planar.input_size),
        build=partial(build_slice_encoder, planar),
    )
