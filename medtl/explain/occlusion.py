"""Occlusion (Zeiler and Fergus 2014): how far the score falls when a box of the image is blurred away."""

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.explain.common import fade, finish, log_odds, logits_of
from medtl.models.classifier import Classifier

# Boxes along each axis, by the number of axes; each is two steps wide. So 81 boxes of an image, a fifth of
# each side, and 125 of a volume, a third of each: more would cost minutes for a volume.
POSITIONS = {2: 9, 3: 5}


def occlusion(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return the mean fall of the score over the boxes that cover a place, on the image's grid (*size)."""
    boxes = boxes_of(image.shape[2:])
    falls = score_falls(classifier, image, target, boxes)
    total, times = np.zeros(image.shape[2:]), np.zeros(image.shape[2:])
    for box, fall in zip(boxes, falls, strict=True):
        total[box] += fall
        times[box] += 1
    return finish(total / times)


def boxes_of(size: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Return boxes that cover a grid, each overlapping its neighbours by half."""
    return list(product(*(_pieces(extent, POSITIONS[len(size)]) for extent in size)))


def score_falls(
    classifier: Classifier, image: Tensor, target: int, boxes: list[tuple[slice, ...]]
) -> NDArray[np.float64]:
    """Return how far the log-odds of class `target` fall when each box is blurred (common.fade)."""
    blurred = fade(image)
    variants = image.repeat(len(boxes), *[1] * (image.ndim - 1))
    for variant, box in zip(variants, boxes, strict=True):
        variant[:, *box] = blurred[0][:, *box]
    logits = logits_of(classifier, torch.cat([image, variants]))
    scores = log_odds(classifier, logits, target).double().cpu().numpy()
    return np.asarray(scores[0] - scores[1:])


def _pieces(extent: int, count: int) -> list[slice]:
    """Return `count` pieces of an axis, each two steps wide; fewer where the axis is short."""
    count = min(count, max(1, extent - 1))
    edges = np.linspace(0, extent, count + 2).round().astype(int)
    return [slice(int(a), int(b)) for a, b in zip(edges[:-2], edges[2:], strict=True)]
