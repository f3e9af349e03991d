"""Strategies against class imbalance: how samples are drawn and how their losses are weighed.

IMBALANCE[name](task, targets) -> strategy. One class and one line here for each.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medtl.imaging.manifest import Task


class NoCorrection:
    """Plain cross-entropy over samples as they come; binary cross-entropy for each class in multilabel."""

    def __init__(self, task: Task, targets: NDArray) -> None:
        self.task = task
        self.class_weights = torch.ones(len(task.classes))
        self.sampling_weights: NDArray[np.float64] | None = None

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits (N, K) for targets (N,), or (N, K) with NaN where not labelled."""
        if self.task.kind == "multilabel":
            return self._mean_over_labelled(logits, targets)
        losses = self._modulated(F.cross_entropy(logits, targets, reduction="none"))
        weights = self.class_weights.to(logits)[targets]
        return (losses * weights).sum() / weights.sum()

    def _mean_over_labelled(self, logits: Tensor, targets: Tensor) -> Tensor:
        labelled = ~torch.isnan(targets)
        filled = torch.where(labelled, targets, 0.0).to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, filled, reduction="none")
        positive = self.class_weights.to(logits).expand_as(filled)
        weights = torch.where(filled > 0.5, positive, 1.0) * labelled
        return (self._modulated(losses) * weights).sum() / weights.sum().clamp(min=1)

    def _modulated(self, losses: Tensor) -> Tensor:
        return losses


class ClassWeighted(NoCorrection):
    """Losses weighed by the inverse class frequency; in multilabel the positives by negatives/positives."""

    def __init__(self, task: Task, targets: NDArray) -> None:
        super().__init__(task, targets)
        positives = class_counts(task, targets)
        if task.kind == "multilabel":
            labelled = (~np.isnan(targets)).sum(axis=0)
            weights = (labelled - positives) / np.maximum(positives, 1)
        else:
            weights = positives.sum() / (len(positives) * np.maximum(positives, 1))
        self.class_weights = torch.tensor(weights, dtype=torch.float32)


class BalancedSampler(NoCorrection):
    """Samples drawn with replacement so that each class comes equally often; the loss is plain.

    In multilabel a sample is drawn by the rarest of its classes.
    """

    def __init__(self, task: Task, targets: NDArray) -> None:
        super().__init__(task, targets)
        rarity = 1.0 / np.maximum(class_counts(task, targets), 1)
        if task.kind == "multilabel":
            negative = 1.0 / max(1, int((np.nan_to_num(targets).sum(axis=1) == 0).sum()))
            weights = np.maximum((np.nan_to_num(targets) * rarity).max(axis=1), negative)
        else:
            weights = rarity[targets]
        self.sampling_weights = weights / weights.sum()


class Focal(NoCorrection):
    """Focal loss: (1 - p)^2 times the cross-entropy, p the probability given to the truth (Lin 2017)."""

    gamma = 2.0

    def _modulated(self, losses: Tensor) -> Tensor:
        return (1 - torch.exp(-losses)) ** self.gamma * losses


IMBALANCE: dict[str, Callable[[Task, NDArray], NoCorrection]] = {
    "none": NoCorrection,
    "class-weighted": ClassWeighted,
    "balanced-sampler": BalancedSampler,
    "focal": Focal,
}


def class_counts(task: Task, targets: NDArray) -> NDArray[np.int64]:
    """Return how many samples have each class, (K,)."""
    if task.kind == "multilabel":
        return np.nansum(targets, axis=0).astype(np.int64)
    return np.bincount(targets, minlength=len(task.classes))
