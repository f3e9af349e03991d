"""Deletion and insertion (Petsiuk 2018): does the score hang on what a heatmap marks?

heatmap -> the order of the pixels, most salient first -> the probability while they go, or come back
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.imaging.randomness import make_generator
from medtl.learning.classifier import Classifier
from medtl.learning.features import place_images
from medtl.prediction.saliency.score import batches, evaluating, fade

# Shares of the image that are taken away; finer at the start, since lesions are small.
FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 1.0)


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
