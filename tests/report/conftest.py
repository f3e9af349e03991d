"""Findings and cards that tests change one field of."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medtl.report.findings import ModelCard, StageRow, StudyFinding

HISTORY = [
    {"stage": "head", "train_loss": 0.7, "val_loss": 0.6, "val_auroc": 0.7},
    {"stage": "head", "train_loss": 0.5, "val_loss": 0.5, "val_auroc": 0.8},
    {"stage": "all", "train_loss": 0.3, "val_loss": 0.4, "val_auroc": 0.9},
]


def make_finding(sample_id: str = "s1", shape: tuple[int, ...] = (20, 16), **changes: Any) -> StudyFinding:
    """Return a finding of a gradient with a bright spot, explained by that spot.

    heatmap and method make its one map.
    """
    image = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    heatmap = np.zeros(shape, np.float32)
    heatmap[tuple(side // 4 for side in shape)] = 1.0
    fields: dict[str, Any] = {
        "image": image,
        "window": (0.0, 1.0),
        "spacing_mm": (2.0,) * len(shape),
        "target_class": "opacity",
        "probabilities": {"normal": 0.2, "opacity": 0.8},
        "predicted": ("opacity",),
        "label": ("normal",),
        "facts": {"Modality": "CR"},
        "notes": ("The polarity was inverted.",),
    }
    heatmap, method = changes.pop("heatmap", heatmap), changes.pop("method", "Grad-CAM")
    fields["maps"] = {} if heatmap is None else {method: heatmap}
    return StudyFinding(sample_id, **(fields | changes))


def make_card(**changes: Any) -> ModelCard:
    """Return a card with every part filled but the history, whose curves take time."""
    fields: dict[str, Any] = {
        "title": "Chest radiographs",
        "kind": "binary",
        "classes": ("normal", "opacity"),
        "sections": {"Data": {"Training studies": "120"}, "Weights": {"Licence": "Apache-2.0"}},
        "metrics": {"auroc": (0.93, 0.88, 0.97), "accuracy": (0.9, 0.85, 0.94)},
        "stages": (StageRow("head", "head", 2, 12.5, True), StageRow("all", "all groups", 1, 300.0, False)),
        "limits": ("Trained on adults only.",),
        "citation": "medtl",
    }
    return ModelCard(**(fields | changes))


@pytest.fixture
def finding() -> Callable[..., StudyFinding]:
    return make_finding


@pytest.fixture
def card() -> Callable[..., ModelCard]:
    return make_card


@pytest.fixture
def history() -> list[dict[str, object]]:
    return HISTORY
