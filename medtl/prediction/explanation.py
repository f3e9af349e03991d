"""Explain one prediction: a heatmap, on the image's own grid, of what raised the score of a class."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medtl.imaging.image import Image
from medtl.imaging.preprocessing import PreparedImage, to_image_grid
from medtl.learning.checkpoint import Checkpoint
from medtl.prediction.saliency import METHODS


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
    """Explain the most probable class; in a binary task always the positive one."""
    task = checkpoint.task
    target = len(task.classes) - 1 if task.kind == "binary" else int(np.argmax(probabilities))
    heatmap = METHODS[method](checkpoint.classifier, torch.from_numpy(prepared.pixels)[None], target)
    on_image = np.clip(to_image_grid(heatmap, prepared, image), 0.0, 1.0)
    return Explanation(task.classes[target], method, on_image)
