"""Checks of one heatmap: deletion and insertion, randomised weights, noise, and a mask where there is one.

Deletion and insertion (Petsiuk 2018) ask whether the score depends on what the heatmap marks. Randomised
weights (Adebayo 2018) ask whether the heatmap depends on what was learnt.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from medtl.core.ids import derive_seed, make_generator
from medtl.explain import METHODS
from medtl.explain.common import fade, logits_of
from medtl.models.classifier import Classifier

# Shares of the image that are deleted; finer at the start, since lesions are small.
FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 1.0)

# A map with this rank correlation, or more, to one of shuffled weights survives randomisation: a quarter of
# the variance of its ranks did not need any learning.
SURVIVES = 0.5
# A map with less than this rank correlation to one under noise is unstable: less than half of the variance
# of its ranks is left.
STABLE = 0.7
NOISE = 0.02  # standard deviation, of the range of a prepared image: 5 of 255 grey levels


@dataclass(frozen=True)
class Deletion:
    """How the probability of a class changes when the most salient pixels are deleted, or inserted.

    deletion, insertion: the probability (0 to 1) at each of FRACTIONS. The gains compare with a random map of
    the same smoothness: how much smaller the area under the deletion curve is, and how much larger the area
    under the insertion curve; above 0 is better.
    """

    deletion: tuple[float, ...]
    insertion: tuple[float, ...]
    deletion_gain: float
    insertion_gain: float


def delete_and_insert(
    classifier: Classifier, image: Tensor, heatmap: NDArray, target: int, *, seed: int = 0
) -> Deletion:
    """Measure both curves of a heatmap (*size) for the probability of class `target`.

    image: (1, C, *size) prepared. Deleted pixels are replaced by those of the blurred image (common.fade),
    from which insertion starts. Ties, such as the zeros of most maps, are broken at random by the seed.
    """
    chance = random_map(heatmap, make_generator(seed, "random-map", 0))
    curves = [
        curve
        for ranked in (heatmap, chance)
        for curve in _curves(classifier, image, ranked, target, make_generator(seed, "ties"))
    ]
    deletion, insertion, by_chance, in_by_chance = (float(np.trapezoid(curve, FRACTIONS)) for curve in curves)
    return Deletion(curves[0], curves[1], by_chance - deletion, insertion - in_by_chance)


def random_map(heatmap: NDArray, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return a random map as smooth as the heatmap: its power spectrum, with the phases of noise.

    The surrogate of Theiler 1992, so the autocorrelation is the heatmap's own.
    """
    phases = np.exp(1j * np.angle(np.fft.fftn(generator.standard_normal(heatmap.shape))))
    surrogate: NDArray[np.float64] = np.fft.ifftn(np.abs(np.fft.fftn(heatmap)) * phases).real
    return surrogate


def _curves(
    classifier: Classifier, image: Tensor, heatmap: NDArray, target: int, generator: np.random.Generator
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    order = np.lexsort((generator.random(heatmap.size), -heatmap.ravel()))  # the most salient pixel first
    rank = np.argsort(order).reshape(heatmap.shape)
    blurred = fade(image)
    marked = torch.stack([torch.from_numpy(rank < share * rank.size) for share in FRACTIONS])[:, None]
    deleted, inserted = torch.where(marked, blurred, image), torch.where(marked[1:-1], image, blurred)
    logits = logits_of(classifier, torch.cat([deleted, inserted])).double()
    probabilities: list[float] = classifier.probabilities(logits)[:, target].tolist()
    falling, rising = probabilities[: len(FRACTIONS)], probabilities[len(FRACTIONS) :]
    # Insertion starts where deletion ends, and ends where deletion starts.
    return tuple(falling), (falling[-1], *rising, falling[0])


@dataclass(frozen=True)
class Localisation:
    """How much of a heatmap's energy falls on a mask.

    energy: the share of the heatmap's sum inside the mask. chance: the share of the image that the mask
    covers, which is what a uniform map reaches. hit: the maximum lies in the mask (the pointing game).
    """

    energy: float
    chance: float
    hit: bool

    @property
    def gain(self) -> float:
        """Energy over chance: 1 for a uniform map."""
        return self.energy / self.chance


def localise(heatmap: NDArray[np.float32], mask: NDArray) -> Localisation:
    """Compare a heatmap with a mask on the same grid.

    Raises ValueError where the grids differ, the mask is empty, or the heatmap is zero everywhere.
    """
    inside = mask > 0
    if heatmap.shape != inside.shape:
        raise ValueError(f"heatmap {heatmap.shape} and mask {inside.shape} are on different grids")
    if not inside.any() or not heatmap.sum() > 0:
        raise ValueError("the mask or the heatmap is empty")
    peak = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    energy = float(heatmap[inside].sum() / heatmap.sum())
    return Localisation(energy, float(inside.mean()), bool(inside[peak]))


def randomise(classifier: Classifier, seed: int = 0) -> Classifier:
    """Return a copy whose weights are shuffled within each tensor.

    That removes what was learnt and keeps the scale of the activations, which fresh initial values under
    trained batch norm statistics would not.
    """
    shuffled = copy.deepcopy(classifier)
    groups = list(shuffled.backbone.groups.values())
    generator = torch.Generator().manual_seed(derive_seed(seed, "randomise"))
    with torch.no_grad():
        for module in (shuffled.head, *reversed(groups)):
            for parameter in module.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return shuffled


def rank_correlation(one: NDArray, other: NDArray) -> float:
    """Return Spearman's correlation of two maps; 0 where one of them is flat, as an empty map is."""
    ranks = np.stack([rankdata(one.ravel()), rankdata(other.ravel())])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(ranks, axis=1).prod()
    return float(ranks[0] @ ranks[1] / scale) if scale > 0 else 0.0


def noise_correlation(
    classifier: Classifier, image: Tensor, heatmap: NDArray, target: int, method: str, *, draws: int = 3
) -> float:
    """Return the median rank correlation of a heatmap (*size) with those of noisy copies of its image.

    image: (1, C, *size) prepared. draws: how many copies.
    """
    correlations = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(derive_seed(0, "noise", draw))
        noise = torch.randn(image.shape, generator=generator).to(image)
        noisy = (image + NOISE * noise).clamp(0, 1)
        correlations.append(rank_correlation(heatmap, METHODS[method](classifier, noisy, target)))
    return float(np.median(correlations))
