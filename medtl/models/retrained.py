"""Planar backbones that others trained again: their files, their tensor names, their input statistics."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from medtl.models.backbone import Backbone, BackboneEntry, Standardise, WeightsRequest
from medtl.models.weights import KnownWeights, StateDict

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
