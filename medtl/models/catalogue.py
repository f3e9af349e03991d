"""Describe the backbones as plain data and as a page: size, groups, input, speed, and their weights."""

import json
from pathlib import Path
from typing import Any

import torch

from medtl.models.backbone import Backbone, BackboneEntry, Standardise
from medtl.models.backbones import BACKBONES
from medtl.models.published import imagenet_top1
from medtl.models.weights import KnownWeights, locate

# What benchmarks/backbones.py measured: {"machine", "backbones": {name: {"input", "forward", "train"}}}.
SPEEDS = Path(__file__).parent / "backbones" / "speeds.json"

# What the page says before its tables.
INTRODUCTION = """# Backbones

Written by `medtl backbones --markdown` from what `medtl backbones --json` says; do not edit it by hand.

Every line is a name for `backbone.name` in a recipe. A backbone is a chain of layer groups, stem first, that
freezing and thawing count; Grad-CAM weighs the map that comes out of the group named here. Images go in as
[0, 1] and are standardised by the backbone itself. One input channel gives what three equal channels gave.
Nothing is downloaded by itself: put a file at the name given here into the weights folder, or give its path.
Top-1 is on ImageNet-1k, where the publisher's package states it.

Images a second, forward and in training of everything, are medians measured in 32 bits on {machine}
([benchmarks/backbones.py](../benchmarks/backbones.py)): planar networks at the size given here, volumes at
32 x 112 x 112. A slice encoder costs its planar network once a slice.
"""


def describe_backbones() -> list[dict[str, Any]]:
    """Return what there is to know of each backbone, under the names of the command contract."""
    speeds = measured_speeds()["backbones"]
    return [{**_describe(entry), "images_per_second": speeds.get(entry.name)} for entry in BACKBONES.values()]


def measured_speeds() -> dict[str, Any]:
    """Return what was measured of each backbone, and on which machine."""
    speeds: dict[str, Any] = json.loads(SPEEDS.read_text(encoding="utf-8"))
    return speeds


def _describe(entry: BackboneEntry) -> dict[str, Any]:
    with torch.device("meta"):  # shapes without memory
        backbone = entry(weights=None)
    return {
        "name": entry.name,
        "family": entry.family,
        "spatial_dims": entry.spatial_dims,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "features": backbone.num_features,
        "layer_groups": list(backbone.layer_groups),
        "saliency_group": backbone.layer_groups[backbone.saliency_group - 1],
        "input_size": list(entry.input_size),
        "smallest_side": entry.sizes.smallest,
        "side_multiple": entry.sizes.multiple,
        **_statistics(backbone),
        "weights": [_describe_weights(known) for known in entry.known_weights],
    }


def _statistics(backbone: Backbone) -> dict[str, Any]:
    """Return mean and std as published, or null for both where images are standardised one by one."""
    normalise = backbone.normalise
    if not isinstance(normalise, Standardise):
        return {"mean": None, "std": None}
    mean, std = normalise.published
    return {"mean": list(mean), "std": list(std)}


def _describe_weights(known: KnownWeights) -> dict[str, Any]:
    return {
        "name": known.name,
        "file": known.file,
        "sha256": known.sha256,
        "licence": known.licence,
        "source": known.source,
        "top1": imagenet_top1(known),
        "present": locate(known) is not None,
    }


def backbones_page() -> str:
    """Return docs/backbones.md: what does not depend on the machine, one table for each family."""
    rows = describe_backbones()
    families = dict.fromkeys(row["family"] for row in rows)
    sections = [_family_section(name, [row for row in rows if row["family"] == name]) for name in families]
    introduction = INTRODUCTION.format(machine=measured_speeds()["machine"])
    return "\n".join([introduction, *sections])


def _family_section(family: str, rows: list[dict[str, Any]]) -> str:
    head = (
        "backbone",
        "parameters",
        "features",
        "input",
        "sides",
        "mean",
        "std",
        "forward / train, images/s",
        "Grad-CAM after",
        "groups",
    )
    backbones = [_backbone_cells(row) for row in rows]
    weights = [(f"`{row['name']}`", *_weights_cells(w)) for row in rows for w in row["weights"]]
    tables = [_table(head, backbones)]
    if weights:
        tables.append(_table(("backbone", "weights", "file", "from", "licence", "top-1"), weights))
    return "\n".join([f"## {family[0].upper()}{family[1:]}", "", *tables])


def _backbone_cells(row: dict[str, Any]) -> tuple[str, ...]:
    step = f", steps of {row['side_multiple']}" if row["side_multiple"] > 1 else ""
    return (
        f"`{row['name']}`",
        f"{row['parameters'] / 1e6:.1f} M",
        str(row["features"]),
        " x ".join(map(str, row["input_size"])),
        f"{row['smallest_side']} or more{step}",
        _numbers(row["mean"]),
        _numbers(row["std"]),
        _speed(row["images_per_second"]),
        row["saliency_group"],
        _shortened(row["layer_groups"]),
    )


def _weights_cells(weights: dict[str, Any]) -> tuple[str, ...]:
    top1 = "" if weights["top1"] is None else f"{weights['top1']:.1f} %"
    return f"`{weights['name']}`", f"`{weights['file']}`", weights["source"], weights["licence"], top1


def _numbers(values: list[float] | None) -> str:
    if values is None:
        return "each image's own"
    return ", ".join(f"{value:g}" for value in values[: 1 if len(set(values)) == 1 else None])


def _speed(measured: dict[str, Any] | None) -> str:
    return f"{measured['forward']:.2g} / {measured['train']:.2g}" if measured else ""


def _shortened(groups: list[str]) -> str:
    """Name the groups, or the first and last two of more than nine."""
    shown = groups if len(groups) <= 9 else [*groups[:2], "...", *groups[-2:]]
    return f"{len(groups)}: {', '.join(shown)}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
