"""TABLE -> LISTING: what is known of every backbone, read from catalogue.json without torch.

`python -m benchmarks.backbones --table` writes the table from the code; a test compares the two.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from medtl.models.weight_files import KnownWeights, locate

CATALOGUE = Path(__file__).parent / "backbones" / "catalogue.json"

# What benchmarks/backbones.py measured: {"machine", "backbones": {name: {"input", "forward", "train"}}}.
SPEEDS = Path(__file__).parent / "backbones" / "speeds.json"

# What the page says before its tables.
INTRODUCTION = """# Backbones

Written by `medtl backbones --markdown` from what `medtl backbones --json` says; do not edit it by hand.

Every line is a name for `backbone.name` in a recipe. A backbone is a chain of layer groups, stem first, that
freezing and unfreezing count; Grad-CAM weighs the map that comes out of the group named here. Images go in as
[0, 1] and are standardised by the backbone itself. One input channel gives what three equal channels gave.
Nothing is downloaded by itself: put a file at the name given here into the weights folder, or give its path.
Top-1 is on ImageNet-1k, where the publisher's package states it.

Images a second, forward and in training of everything, are medians measured in 32 bits on {machine}
([benchmarks/backbones.py](../benchmarks/backbones.py)): planar networks at the size given here, volumes at
32 x 112 x 112. A slice encoder costs its planar network once a slice.
"""

BACKBONE_COLUMNS = (
    *("backbone", "parameters", "features", "input", "sides", "mean", "std"),
    *("forward / train, images/s", "Grad-CAM after", "groups"),
)
WEIGHTS_COLUMNS = ("backbone", "weights", "file", "from", "licence", "top-1")


class BackboneConfig(BaseModel, extra="forbid", frozen=True):
    """Which backbone, and which weights it starts from: a known name, a file, or null for random ones."""

    name: str = "efficientnet_lite0"
    weights: str | None = "imagenet"


@dataclass(frozen=True)
class SizeRule:
    """Which heights and widths a network takes: at least `smallest` pixels, and a multiple of `multiple`."""

    smallest: int = 1
    multiple: int = 1

    def problem(self, size: Sequence[int]) -> str | None:
        """Return what is wrong with an image size (..., H, W), or None where the network takes it."""
        plane = tuple(size)[-2:]
        if all(side >= self.smallest and side % self.multiple == 0 for side in plane):
            return None
        steps = f" in steps of {self.multiple}" if self.multiple > 1 else ""
        return f"takes {self.smallest} pixels a side or more{steps}, not {'x'.join(map(str, plane))}"


@dataclass(frozen=True)
class KnownBackbone:
    """What is known of a backbone before it is built; the registry's entries have these fields, too."""

    name: str
    spatial_dims: int
    input_size: tuple[int, ...]
    sizes: SizeRule


def known_backbones() -> Mapping[str, KnownBackbone]:
    """Return every backbone by its name: of the registry where it is loaded, otherwise of the table."""
    registry: Any = sys.modules.get("medtl.models.backbones")
    if registry is not None:
        entries: Mapping[str, KnownBackbone] = registry.BACKBONES
        return entries
    return {
        row["name"]: KnownBackbone(
            row["name"],
            row["spatial_dims"],
            tuple(row["input_size"]),
            SizeRule(row["smallest_side"], row["side_multiple"]),
        )
        for row in read_table()
    }


def read_table() -> list[dict[str, Any]]:
    """Return the rows of catalogue.json."""
    rows: list[dict[str, Any]] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return rows


def describe_backbones() -> list[dict[str, Any]]:
    """Return what there is to know of each backbone, under the names of the command contract.

    A backbone that was registered from Python, and is not in the table, is built on torch's meta device.
    """
    rows = read_table()
    listed = {row["name"] for row in rows}
    registry = sys.modules.get("medtl.models.backbones")
    rows += [
        entry.describe()
        for name, entry in (registry.BACKBONES if registry else {}).items()
        if name not in listed
    ]
    speeds = measured_speeds()["backbones"]
    return [
        {
            **row,
            "weights": [_describe_weights(weights) for weights in row["weights"]],
            "images_per_second": speeds.get(row["name"]),
        }
        for row in rows
    ]


def measured_speeds() -> dict[str, Any]:
    """Return what was measured of each backbone, and on which machine."""
    speeds: dict[str, Any] = json.loads(SPEEDS.read_text(encoding="utf-8"))
    return speeds


def _describe_weights(row: Mapping[str, Any]) -> dict[str, Any]:
    known = KnownWeights(**{key: value for key, value in row.items() if key != "top1"})
    shown = ("name", "file", "sha256", "licence", "source", "top1")
    return {**{key: row[key] for key in shown}, "present": locate(known) is not None}


def backbones_page() -> str:
    """Return docs/backbones.md: what does not depend on the machine, one table for each family."""
    rows = describe_backbones()
    families = dict.fromkeys(row["family"] for row in rows)
    sections = [_family_section(name, [row for row in rows if row["family"] == name]) for name in families]
    introduction = INTRODUCTION.format(machine=measured_speeds()["machine"])
    return "\n".join([introduction, *sections])


def _family_section(family: str, rows: list[dict[str, Any]]) -> str:
    tables = [_table(BACKBONE_COLUMNS, [_backbone_cells(row) for row in rows])]
    weights = [_weights_cells(row["name"], known) for row in rows for known in row["weights"]]
    if weights:
        tables.append(_table(WEIGHTS_COLUMNS, weights))
    return "\n".join([f"## {family[0].upper()}{family[1:]}", "", *tables])


def _weights_cells(backbone: str, known: dict[str, Any]) -> tuple[str, ...]:
    top1 = "" if known["top1"] is None else f"{known['top1']:.1f} %"
    names = f"`{backbone}`", f"`{known['name']}`", f"`{known['file']}`"
    return (*names, known["source"], known["licence"], top1)


def _backbone_cells(row: dict[str, Any]) -> tuple[str, ...]:
    step = f", steps of {row['side_multiple']}" if row["side_multiple"] > 1 else ""
    groups, speed = row["layer_groups"], row["images_per_second"]
    shown = groups if len(groups) <= 9 else [*groups[:2], "...", *groups[-2:]]
    return (
        f"`{row['name']}`",
        f"{row['parameters'] / 1e6:.1f} M",
        str(row["features"]),
        " x ".join(map(str, row["input_size"])),
        f"{row['smallest_side']} or more{step}",
        _numbers(row["mean"]),
        _numbers(row["std"]),
        f"{speed['forward']:.2g} / {speed['train']:.2g}" if speed else "",
        row["saliency_group"],
        f"{len(groups)}: {', '.join(shown)}",
    )


def _numbers(values: list[float] | None) -> str:
    if values is None:
        return "each image's own"
    return ", ".join(f"{value:g}" for value in values[: 1 if len(set(values)) == 1 else None])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
