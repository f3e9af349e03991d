"""Stability: does a heatmap stay the same when the image changes by less than anybody can see?"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.imaging.randomness import derive_seed
from medtl.learning.classifier import Classifier
from medtl.prediction.randomisation import rank_correlation
from medtl.prediction.saliency import METHODS

NOISE = 0.02  # standard deviation, of the range of a prepared image: 5 of 255 grey levels
STABLE = 0.7


@dataclass(frozen=True)
class Stability:
    """The median rank correlation of a map with those of the same image under faint noise.

    passed: it is at least STABLE (0.7): half of the variance of the map's ranks, or more, is kept.
    """

    correlation: float
    draws: int

    @property
    def passed(self) -> bool:
        """The map is kept."""
        return self.correlation >= STABLE


def shake(
    classifier: Classifier,
    image: Tensor,
    heatmap: NDArray[np.float32],
    target: int,
    method: str,
    *,
    draws: int = 3,
    seed: int = 0,
) -> Stability:
    """Compare a heatmap (*size) with the method's maps of `draws` noisy copies of the image (1, C, *size)."""
    found = [
        rank_correlation(heatmap, METHODS[method](classifier, _noisy(image, seed, draw), target))
        for draw in range(draws)
    ]
    return Stability(float(np.median(found)), draws)


def _noisy(image: Tensor, seed: int, draw: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "noise", draw))
    noise = torch.randn(image.shape, generator=generator).to(image)
    return (image + NOISE * noise).clamp(0, 1)
