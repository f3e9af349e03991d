"""Backbones made of planar ones: trained again by others on other images, or lifted to volumes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from medtl.models.backbone import Backbone, BackboneEntry, Pooling, Standardise, WeightsRequest
from medtl.models.weights import KnownWeights, StateDict

Groups = dict[str, nn.Module]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std


def retrained(
    planar: BackboneEntry,
    publisher: str,
    known: tuple[KnownWeights, ...],
    translate: Callable[[StateDict], StateDict],
    statistics: Statistics,
    **changes: Any,
) -> BackboneEntry:
    """Return the entry of a planar backbone with a publisher's weights.

    translate: from published tensors to those that the planar backbone's own files have; it raises ValueError
    where a file is not the publisher's. changes: what else the entry has of its own.
    """
    return replace(
        planar,
        name=f"{publisher.lower()}_{planar.name}",
        family=f"{planar.family}, {publisher}",
        known_weights=known,
        build=partial(build_retrained, planar, translate, statistics),
        **changes,
    )


def build_retrained(
    planar: BackboneEntry,
    translate: Callable[[StateDict], StateDict],
    statistics: Statistics,
    in_channels: int,
    request: WeightsRequest,
) -> Backbone:
    """Build the planar backbone with the publisher's weights and input statistics."""
    backbone = planar.build(in_channels, replace(request, translate=translate))
    backbone.normalise = Standardise(*statistics, in_channels)
    return backbone


def lifted(
    planar: BackboneEntry, name: str, family: str, lift: Callable[[Groups], Groups], pooling: Pooling = "mean"
) -> BackboneEntry:
    """Return the entry of a volume backbone that takes the planar one's weights.

    lift: from the planar layer groups to those that take volumes.
    """
    return replace(
        planar,
        name=name,
        family=family,
        spatial_dims=3,
        input_size=(24, *planar.input_size),
        build=partial(build_lifted, planar, lift, pooling),
    )


def build_lifted(
    planar: BackboneEntry,
    lift: Callable[[Groups], Groups],
    pooling: Pooling,
    in_channels: int,
    request: WeightsRequest,
) -> Backbone:
    """Build the planar backbone with its weights, and lift it group by group."""
    flat = planar.build(in_channels, request)
    return Backbone(
        request.backbone,
        lift(dict(flat.groups.items())),
        spatial_dims=3,
        in_channels=in_channels,
        num_features=flat.num_features,
        normalise=flat.normalise,
        weights=flat.weights,
        pooling=pooling,
        saliency_group=flat.saliency_group,
    )
