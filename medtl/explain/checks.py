"""Deletion and insertion (Petsiuk 2018): does the score hang on what a heatmap marks?

heatmap -> the order of the pixels, most salient first -> the probability while they go, or come back
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from medtl.core.seeds import derive_seed, make_generator
from medtl.explain import METHODS
from medtl.explain.common import batches, evaluating, fade
from medtl.models.classifier import Classifier, place_images

# Shares of the image that are taken away; finer at the start, since lesions are small.
FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 1.0)

# Of the layer groups: none (the head alone), the upper half, all.
DEPTHS = (0.0, 0.5, 1.0)
SURVIVES = 0.5
NOISE = 0.02  # standard deviation, of the range of a prepared image: 5 of 255 grey levels
STABLE = 0.7


@dataclass(frozen=True)
class Curve:
    """The probability of the class (0 to 1) when a share of the image has been treated."""

    fractions: tuple[float, ...]
    probabilities: tuple[float, ...]

    @property
    def area(self) -> float:
        """The area under the curve: the mean probability on the way."""
        return float(np.trapezoid(self.probabilities, self.fractions))


@dataclass(frozen=True)
class Deletion:
    """A heatmap's curves, and the mean areas of random maps of the same smoothness on the same image.

    passed: the map's order does better than random order in both: the probability falls sooner when pixels
    are deleted, and rises sooner when they are inserted.
    """

    deletion: Curve
    insertion: Curve
    random_deletion: float
    random_insertion: float

    @property
    def deletion_gain(self) -> float:
        """How much smaller than chance the area under the deletion curve is: above 0 is better."""
        return self.random_deletion - self.deletion.area

    @property
    def insertion_gain(self) -> float:
        """How much larger than chance the area under the insertion curve is: above 0 is better."""
        return self.insertion.area - self.random_insertion

    @property
    def passed(self) -> bool:
        """Better than random order in both."""
        return self.deletion_gain > 0 and self.insertion_gain > 0


def delete_and_insert(
    classifier: Classifier,
    image: Tensor,
    heatmap: NDArray[np.float32],
    target: int,
    *,
    draws: int = 2,
    seed: int = 0,
) -> Deletion:
    """Measure both curves of a heatmap (*size) for the probability of class `target`.

    image: (1, C, *size) prepared. What is deleted is replaced by the blurred image (saliency.score.fade);
    insertion starts from it. Pixels of the same heat, as the zeros of most maps, go in a random order that
    the seed gives. draws: random maps to compare with.
    """
    deletion, insertion = _curves(classifier, image, heatmap, target, seed)
    chance = [
        _curves(classifier, image, random_map(heatmap, seed, draw), target, seed) for draw in range(draws)
    ]
    return Deletion(
        deletion,
        insertion,
        float(np.mean([down.area for down, _ in chance])),
        float(np.mean([up.area for _, up in chance])),
    )


def random_map(heatmap: NDArray[np.float32], seed: int, draw: int) -> NDArray[np.float64]:
    """Return a random map as smooth as the heatmap: its power spectrum, with the phases of noise.

    The surrogate of Theiler 1992, so the autocorrelation is the heatmap's own.
    """
    noise = make_generator(seed, "random-map", draw).standard_normal(heatmap.shape)
    phases = np.exp(1j * np.angle(np.fft.fftn(noise)))
    surrogate: NDArray[np.float64] = np.fft.ifftn(np.abs(np.fft.fftn(heatmap)) * phases).real
    return surrogate


def _curves(
    classifier: Classifier, image: Tensor, heatmap: NDArray, target: int, seed: int
) -> tuple[Curve, Curve]:
    rank = _ranks(heatmap, seed)
    blurred = fade(image)
    marked = torch.stack([torch.from_numpy(rank < share * rank.size) for share in FRACTIONS])[:, None]
    deleted, inserted = torch.where(marked, blurred, image), torch.where(marked[1:-1], image, blurred)
    found = _probabilities(classifier, torch.cat([deleted, inserted]), target)
    falling, rising = found[: len(FRACTIONS)], found[len(FRACTIONS) :]
    # Insertion begins where deletion ends, and ends where it begins.
    return Curve(FRACTIONS, tuple(falling)), Curve(FRACTIONS, (falling[-1], *rising, falling[0]))


def _ranks(heatmap: NDArray, seed: int) -> NDArray[np.int64]:
    """Return each pixel's place in the order, 0 for the most salient."""
    ties = make_generator(seed, "ties").random(heatmap.size)
    order = np.lexsort((ties, -heatmap.ravel()))
    rank = np.empty(heatmap.size, dtype=np.int64)
    rank[order] = np.arange(heatmap.size)
    return rank.reshape(heatmap.shape)


def _probabilities(classifier: Classifier, images: Tensor, target: int) -> list[float]:
    with torch.inference_mode(), evaluating(classifier):
        logits = torch.cat([classifier(place_images(x, classifier)) for x in batches(images)])
        found: list[float] = classifier.probabilities(logits.double())[:, target].tolist()
    return found


@dataclass(frozen=True)
class Localisation:
    """How much of a heatmap's energy falls on a mask.

    energy: the share of the heatmap's sum inside the mask. chance: the share of the image that the mask
    covers, which is what a map that knows nothing would reach. hit: whether the maximum lies in the mask (the
    pointing game).
    """

    energy: float
    chance: float
    hit: bool

    @property
    def gain(self) -> float:
        """Energy over chance: 1 is what a map that knows nothing reaches."""
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
