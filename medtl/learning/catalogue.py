"""Describe the backbones as plain data: size, groups, input, and which weights are on this machine."""

from typing import Any

import torch

from medtl.learning.backbones import BACKBONES
from medtl.learning.backbones.backbone import BackboneEntry
from medtl.learning.weights import locate


def describe_backbones() -> list[dict[str, Any]]:
    """Return what there is to know of each backbone, under the names of the command contract."""
    return [_describe(entry) for entry in BACKBONES.values()]


def _describe(entry: BackboneEntry) -> dict[str, Any]:
    with torch.device("meta"):  # shapes without memory
        backbone = entry(weights=None)
    return {
        "name": entry.name,
        "family": entry.family,
        "spatial_dims": entry.spatial_dims,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "layer_groups": list(backbone.layer_groups),
        "input_size": list(entry.input_size),
        "weights": [
            {
                "name": known.name,
                "file": known.file,
                "sha256": known.sha256,
                "licence": known.licence,
                "source": known.source,
                "present": locate(known) is not None,
            }
            for known in entry.known_weights
        ],
    }
