"""Model-parameter randomisation (Adebayo 2018): a map that survives random weights shows no knowledge.

classifier -> copies whose weights are shuffled from the head down -> how alike the maps remain
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from medtl.imaging.randomness import derive_seed
from medtl.learning.classifier import Classifier
from medtl.prediction.saliency import METHODS

# Of the layer groups: none (the head alone), the upper half, all.
DEPTHS = (0.0, 0.5, 1.0)
SURVIVES = 0.5


@dataclass(frozen=True)
class Randomisation:
    """Rank correlation of a map with those of networks whose weights were shuffled down to each depth.

    depths: the share of the layer groups that were shuffled besides the head.

    passed: with every weight shuffled the correlation is below SURVIVES (0.5), so that less than a quarter of
    the variance of the map's ranks could have been there without any learning.
    """

    depths: tuple[float, ...]
    correlations: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """The map did not survive."""
        return abs(self.correlations[-1]) < SURVIVES


def randomise(classifier: Classifier, depth: float, seed: int = 0) -> Classifier:
    """Return a copy whose head and uppermost share `depth` of layer groups have shuffled weights.

    Shuffling within each tensor takes away what was learnt and keeps the scale of the activations, which
    fresh initial values under trained batch norm statistics would not.
    """
    shuffled = copy.deepcopy(classifier)
    groups = list(shuffled.backbone.groups.values())
    chosen = groups[len(groups) - round(depth * len(groups)) :]
    generator = torch.Generator().manual_seed(derive_seed(seed, "randomise"))
    with torch.no_grad():
        for module in (shuffled.head, *reversed(chosen)):
            for parameter in module.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return shuffled


def cascade(classifier: Classifier, seed: int = 0) -> dict[float, Classifier]:
    """Return the classifier shuffled to each of DEPTHS."""
    return {depth: randomise(classifier, depth, seed) for depth in DEPTHS}


def survive_randomisation(
    shuffled: dict[float, Classifier], image: Tensor, heatmap: NDArray[np.float32], target: int, method: str
) -> Randomisation:
    """Compare a heatmap (*size) with the method's maps of the same image under shuffled weights."""
    maps = [METHODS[method](network, image, target) for network in shuffled.values()]
    return Randomisation(tuple(shuffled), tuple(rank_correlation(heatmap, other) for other in maps))


def rank_correlation(one: NDArray, other: NDArray) -> float:
    """Return Spearman's correlation of two maps; 0 where one of them is flat, as an empty map is."""
    ranks = np.stack([rankdata(one.ravel()), rankdata(other.ravel())])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(ranks, axis=1).prod()
    return float(ranks[0] @ ranks[1] / scale) if scale > 0 else 0.0
