"""Explain one prediction: a heatmap, on the image's own grid, of what raised the score of a class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medtl.data.task import Task
from medtl.explain import METHODS
from medtl.imaging.image import Image
from medtl.imaging.preprocessing import PreparedImage, to_image_grid
from medtl.training.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Explanation:
    """What raised the score of `target_class`: float32 (*spatial) of the Image, in [0, 1]."""

    target_class: str
    method: str
    heatmap: NDArray[np.float32]


def explain(
    checkpoint: Checkpoint,
    image: Image,
    prepared: PreparedImage,
    probabilities: tuple[float, ...],
    method: str = "grad-cam",
) -> Explanation:
    """Explain one class of a prediction (target_of), on the grid of the Image.

    method: one that check_method accepts.
    """
    task = checkpoint.task
    target = target_of(task, probabilities)
    heatmap = METHODS[method](checkpoint.classifier, torch.from_numpy(prepared.pixels)[None], target)
    on_image = np.clip(to_image_grid(heatmap, prepared, image), 0.0, 1.0)
    return Explanation(task.classes[target], method, on_image)


def target_of(task: Task, probabilities: Sequence[float]) -> int:
    """Return the class to explain: the most probable one; in a binary task always the positive one."""
    return len(task.classes) - 1 if task.kind == "binary" else int(np.argmax(probabilities))
