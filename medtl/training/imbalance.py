"""Strategies against class imbalance: how samples are drawn and their losses weighted.

IMBALANCE[name](task, targets, **options) -> strategy. One class and one line here for each; its keyword-only
parameters are its options, their defaults the published ones.

What a strategy does to probabilities: `none` leaves them frequencies of the training data. Weights, the
balanced sampler and logit adjustment with tau 1 aim at balanced posteriors instead, the probabilities that
would hold if all classes were equally common: a rare class is overstated, and the calibration error shows it.
Focal loss draws them towards the middle. Thresholds chosen on validation data are right for all of them;
calibrate first to read probabilities as frequencies.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medtl.data.task import Task

Floats = NDArray[np.float64]


class ImbalanceStrategy:
    """Cross-entropy over samples as they come, binary for each class in multilabel: what strategies change.

    class_weights (K,): what a sample's loss counts, by its class; in multilabel what a positive counts where
    a negative counts 1. sampling_weights (N,), summing to 1, are the chances by which the fit draws samples;
    None: each once. They depend on the targets alone, so that all processes of a run draw the same order.
    """

    def __init__(self, task: Task, targets: NDArray) -> None:
        self.task = task
        self.class_weights = torch.ones(len(task.classes))
        self.sampling_weights: Floats | None = None

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the weighted mean loss; 0 where nothing is labelled. See loss_parts."""
        total, normaliser = self.loss_parts(logits, targets, smoothing)
        return total / torch.where(normaliser > 0, normaliser, 1.0)

    def loss_parts(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the sum of weighted losses and the sum of weights, to be added up over processes first.

        logits: (N, K); targets: (N,), or (N, K) with NaN where not labelled. smoothing: the chance by which
        a label is replaced by one of all possible labels (Szegedy 2016): the loss is its expectation, and
        the weight stays that of the given label. torch's own smoothing weighs each possible label by its
        class weight, so that under strong weights the many teach the rare class by mistake.
        """
        logits = self._shifted(logits)
        if self.task.kind == "multilabel":  # labels (N, K) are 0 or 1, losses (N, K, 2) those of 0 and of 1
            labels, known = (targets > 0.5).long(), ~torch.isnan(targets)
            possible = (torch.zeros_like(logits), torch.ones_like(logits))
            losses = torch.stack(
                [F.binary_cross_entropy_with_logits(logits, x, reduction="none") for x in possible], dim=-1
            )
            weights = torch.where(labels == 1, self.class_weights.to(labels.device), 1.0)
        else:
            labels, known = targets, torch.ones_like(targets, dtype=torch.bool)
            losses = -F.log_softmax(logits, dim=1)
            weights = self.class_weights.to(labels.device)[labels]
        losses = self._modulated(losses)
        given = losses.gather(-1, labels[..., None])[..., 0]
        if smoothing:
            given = (1 - smoothing) * given + smoothing * losses.mean(dim=-1)
        weights = weights.to(logits) * known
        return (given * weights).sum(), weights.sum()

    def _shifted(self, logits: Tensor) -> Tensor:
        return logits

    def _modulated(self, losses: Tensor) -> Tensor:
        return losses


class ClassWeighted(ImbalanceStrategy):
    """Losses weighted by the inverse class frequency; in multilabel the positives by negatives/positives.

    The mean is over the weights of a batch, as in torch: in a batch without the rare class the others count
    in full, so that its share of all steps is less than even where batches are small.
    """

    def __init__(self, task: Task, targets: NDArray) -> None:
        super().__init__(task, targets)
        self.class_weights = _relative_weights(task, np.maximum(label_counts(task, targets), 1))


class EffectiveNumber(ImbalanceStrategy):
    """Losses weighted by the inverse effective number of samples, (1 - beta^n) / (1 - beta) (Cui 2019).

    n new samples are worth less the more there are. beta 0 weights nothing, beta towards 1 as class-weighted;
    with hundreds of samples a class, 0.9999 is all but the latter. In multilabel each class is its own
    question, and its positives weigh the effective number of negatives over that of positives.
    """

    def __init__(self, task: Task, targets: NDArray, *, beta: float = 0.9999) -> None:
        super().__init__(task, targets)
        self.class_weights = _effective_weights(task, targets, beta)


class BalancedSampler(ImbalanceStrategy):
    """Samples drawn with replacement so that each class comes equally often; the loss is plain.

    In multilabel a sample is drawn by the rarest of its classes, samples without any by their own number,
    and those of which nothing is known never.
    """

    def __init__(self, task: Task, targets: NDArray) -> None:
        super().__init__(task, targets)
        counts = np.maximum(label_counts(task, targets), 1)
        rarity = 1.0 / (counts[:, 1] if task.kind == "multilabel" else counts)
        if task.kind == "multilabel":
            positive = targets > 0.5
            bare = ~positive.any(axis=1) & ~np.isnan(targets).all(axis=1)
            weights = np.maximum((positive * rarity).max(axis=1), bare / max(1, int(bare.sum())))
        else:
            weights = rarity[targets]
        self.sampling_weights = weights / weights.sum() if weights.any() else None


class Focal(ImbalanceStrategy):
    """Focal loss: (1 - p)^gamma times the cross-entropy, p the probability given to the truth (Lin 2017).

    A smoothed label is discounted label by label: discounted by its given label alone, it would cost nothing
    to be sure of that one, and the smoothing would be undone.
    """

    def __init__(self, task: Task, targets: NDArray, *, gamma: float = 2.0) -> None:
        super().__init__(task, targets)
        self.gamma = gamma

    def _modulated(self, losses: Tensor) -> Tensor:
        # Above 0, where the derivative of a power below 1 is infinite.
        wrong = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
        return wrong**self.gamma * losses


class ClassBalancedFocal(Focal):
    """Focal loss weighted by the inverse effective number of samples (Cui 2019)."""

    def __init__(self, task: Task, targets: NDArray, *, beta: float = 0.9999, gamma: float = 2.0) -> None:
        super().__init__(task, targets, gamma=gamma)
        self.class_weights = _effective_weights(task, targets, beta)


class LogitAdjustment(ImbalanceStrategy):
    """Cross-entropy of the logits plus tau times the log of the class priors (Menon 2021).

    The prior is in the loss and not in the model, whose logits so become those of balanced classes. In
    multilabel the log-odds of each class's prior among its labelled samples is added.
    """

    def __init__(self, task: Task, targets: NDArray, *, tau: float = 1.0) -> None:
        super().__init__(task, targets)
        counts = np.maximum(label_counts(task, targets), 1)
        odds = counts[:, 1] / counts[:, 0] if task.kind == "multilabel" else counts / counts.sum()
        self.shift = torch.tensor(tau * np.log(odds), dtype=torch.float32)

    def _shifted(self, logits: Tensor) -> Tensor:
        return logits + self.shift.to(logits)


IMBALANCE: dict[str, Callable[..., ImbalanceStrategy]] = {
    "none": ImbalanceStrategy,
    "class-weighted": ClassWeighted,
    "effective-number": EffectiveNumber,
    "balanced-sampler": BalancedSampler,
    "focal": Focal,
    "class-balanced-focal": ClassBalancedFocal,
    "logit-adjustment": LogitAdjustment,
}


def label_counts(task: Task, targets: NDArray) -> NDArray[np.int64]:
    """Return how many samples have each label: (K,), or (K, 2) negatives and positives in multilabel."""
    if task.kind == "multilabel":
        return np.stack([(targets <= 0.5).sum(axis=0), (targets > 0.5).sum(axis=0)], axis=1)
    return np.bincount(targets, minlength=len(task.classes))


def _effective_weights(task: Task, targets: NDArray, beta: float) -> Tensor:
    counts = np.maximum(label_counts(task, targets), 1)
    return _relative_weights(task, (1 - beta**counts) / (1 - beta))


def _relative_weights(task: Task, numbers: Floats | NDArray[np.int64]) -> Tensor:
    """Return weights inverse to the numbers of samples (K,), or negatives over positives of (K, 2).

    Those of classes have the mean 1 over the numbers, so that a weighted sum is as large as a plain one.
    """
    if task.kind == "multilabel":
        weights = numbers[:, 0] / numbers[:, 1]
    else:
        weights = numbers.sum() / (len(numbers) * numbers)
    return torch.tensor(weights, dtype=torch.float32)
