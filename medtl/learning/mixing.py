"""Mix each batch with itself: mixup (Zhang 2018; on activations, Verma 2019) or cutmix (Yun 2019).

Batches are mixed where the trained part of a stage begins: images where nothing is frozen, otherwise the
activations at the freezing boundary. What a cache holds can so be mixed anew in each step, and training with
and without the cache agrees.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixed batch: x[i] is `share` of sample i and 1 - share of sample partners[i]; so is its loss."""

    x: Tensor
    partners: Tensor
    share: float


def mix(x: Tensor, mixup: float, cutmix: float, generator: np.random.Generator) -> Mixture:
    """Mix a batch (N, C, *spatial) or (N, F) with itself in one drawn order and share.

    mixup, cutmix: the parameter a of the Beta(a, a) distribution of the share, 0 for not at all; where both
    are above 0, each batch takes one of them by the toss of a coin. Cutmix pastes a box of the partner. What
    has no spatial axes, pooled features, has no boxes: there cutmix mixes linearly, as the mean over a map
    with a box from another one does on average.
    """
    boxed = cutmix > 0 and (mixup == 0 or generator.random() < 0.5)
    share = float(generator.beta(cutmix, cutmix) if boxed else generator.beta(mixup, mixup))
    partners = torch.from_numpy(generator.permutation(len(x))).to(x.device)
    if boxed and x.ndim > 2:
        return _paste(x, partners, share, generator)
    return Mixture(torch.lerp(x[partners], x, share), partners, share)


def _paste(x: Tensor, partners: Tensor, share: float, generator: np.random.Generator) -> Mixture:
    """Paste a box of the partner: 1 - share of the volume, less what lies beyond the edge."""
    spatial = x.shape[2:]
    side = (1 - share) ** (1 / len(spatial))
    box = tuple(_interval(extent, side, generator) for extent in spatial)
    mixed = x.clone()
    mixed[:, :, *box] = x[partners][:, :, *box]
    pasted = np.prod([part.stop - part.start for part in box]) / np.prod(spatial)
    return Mixture(mixed, partners, 1 - float(pasted))


def _interval(extent: int, side: float, generator: np.random.Generator) -> slice:
    length, centre = int(extent * side), int(generator.integers(extent))
    return slice(max(0, centre - length // 2), min(extent, centre + length - length // 2))
