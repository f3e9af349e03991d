"""Slice encoders: a 2D pretrained backbone over the slices of a volume (after Gupta 2021).

The feature map (N, F, D, h, w) keeps the slices apart; the head pools them by attention that knows each
slice's place.
"""

import torch
from torch import Tensor, nn

from medtl.models.backbone import BackboneEntry
from medtl.models.derived import Groups, lifted


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


def slice_encoder(planar: BackboneEntry) -> BackboneEntry:
    """Return the entry of the slice encoder over a 2D backbone; it takes the 2D backbone's weights."""
    family = f"slice encoder over {planar.family}"
    return lifted(planar, f"slices_{planar.name}", family, per_slice, "slice-attention")


def per_slice(groups: Groups) -> Groups:
    """Return the groups as they work slice by slice."""
    return {name: PerSlice(group) for name, group in groups.items()}
