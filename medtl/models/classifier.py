"""BACKBONE + TASK -> CLASSIFIER: the backbone, a parameter-free pooling, and a head."""

import math
from collections import OrderedDict
from typing import Self

import torch
from torch import Tensor, nn

from medtl.data.task import Task
from medtl.models.backbones import Backbone


class Classifier(nn.Module):
    """Images (N, C, *spatial) in [0, 1] -> logits (N, classes).

    The network is a chain of steps: the backbone's layer groups 0 to K - 1, pooling at K, the head after it.
    forward(x, start) enters the chain at a step, with the activations that come out of the step before, so
    that a frozen prefix need not be computed twice. The first `frozen` groups are frozen: evaluation mode, no
    gradient, no buffer moves, in train() too.
    """

    def __init__(self, backbone: Backbone, task: Task, dropout: float = 0.2) -> None:
        super().__init__()
        self.backbone = backbone
        self.task = task
        make_head = SliceAttentionHead if backbone.pooling == "slice-attention" else linear_head
        self.head = make_head(backbone.num_features, len(task.classes), dropout)
        self.frozen = 0
        self.batch_norm_follows_data = True

    @property
    def pool_step(self) -> int:
        """The step that pools the feature map: the number of layer groups."""
        return len(self.backbone.groups)

    @property
    def head_step(self) -> int:
        """The step of the head, whose input is the pooled features."""
        return self.pool_step + 1

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Return logits (N, classes) for activations x entering at step `start`."""
        return self.head(self.run(x, start, self.head_step))

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return the activations that enter step `stop`, for x entering at step `start`."""
        x = self.backbone.between(start, min(stop, self.pool_step), x)
        return self.pool(x) if start <= self.pool_step < stop else x

    def pool(self, x: Tensor) -> Tensor:
        """Average a feature map over space: (N, F), or (N, F, D) where the head attends over slices."""
        first = 3 if self.backbone.pooling == "slice-attention" else 2
        return x.mean(dim=tuple(range(first, x.ndim)))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into probabilities: softmax over classes, or a sigmoid for each in multilabel."""
        return logits.sigmoid() if self.task.kind == "multilabel" else logits.softmax(dim=1)

    def freeze(self, groups: int, *, batch_norm_follows_data: bool) -> None:
        """Freeze the first `groups` layer groups, and make the rest trainable.

        Where batch_norm_follows_data is False, unfrozen batch norm keeps its pretrained statistics.
        """
        self.frozen = groups
        self.batch_norm_follows_data = batch_norm_follows_data
        for index, group in enumerate(self.backbone.groups.values()):
            group.requires_grad_(index >= groups)
        super().train(self.training)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for what is frozen. A group that has its mode is left as it is."""
        self.training = self.backbone.training = mode
        self.head.train(mode)
        for index, group in enumerate(self.backbone.groups.values()):
            trains = mode and index >= self.frozen
            if group.training != trains:
                group.train(trains)
            if trains and not self.batch_norm_follows_data:
                for module in group.modules():
                    # Batch norm, and instance norm where it tracks statistics.
                    if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
                        module.eval()
        return self


class Placement:
    """Puts batches where a classifier is: on its device, maps (N, C, *spatial) in the layout of its weights.

    Made once for many batches: a look at all parameters takes as long as a step on pooled features.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.device = next(classifier.parameters()).device
        volumetric = any(parameter.ndim == 5 for parameter in classifier.parameters())
        self._axes = 5 if volumetric else 4
        self.layout = torch.channels_last_3d if volumetric else torch.channels_last

    def __call__(self, x: Tensor) -> Tensor:
        """Return x on the device, in the layout of the weights."""
        x = x.to(self.device, non_blocking=True)
        return x.to(memory_format=self.layout) if x.ndim == self._axes else x


def linear_head(num_features: int, num_classes: int, dropout: float) -> nn.Module:
    """Return dropout and one linear layer over pooled features (N, F)."""
    return nn.Sequential(
        OrderedDict(dropout=nn.Dropout(dropout), linear=nn.Linear(num_features, num_classes))
    )


class SliceAttentionHead(nn.Module):
    """Attention over slices that knows their place, then a linear layer: (N, F, D) -> (N, classes).

    Gated by a small network on each slice's features and its relative position (after Gupta 2021 and
    arXiv 2303.01491). The mean over slices stays beside the attended one, so that extent counts as well.
    """

    def __init__(self, num_features: int, num_classes: int, dropout: float, width: int = 64) -> None:
        super().__init__()
        self.frequencies = 4
        self.score = nn.Sequential(
            nn.Linear(num_features + 2 * self.frequencies, width), nn.Tanh(), nn.Linear(width, 1)
        )
        self.head = linear_head(2 * num_features, num_classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        attended = (x * self.attention(x)).sum(dim=2)
        return self.head(torch.cat([attended, x.mean(dim=2)], dim=1))

    def attention(self, x: Tensor) -> Tensor:
        """Return the weight of each slice, (N, 1, D), summing to 1 over D."""
        slices = x.transpose(1, 2)  # (N, D, F)
        depth = slices.shape[1]
        # Sines and cosines of the relative position of each slice, (D, 2 * frequencies).
        position = (torch.arange(depth) + 0.5) / depth
        angles = math.pi * position[:, None] * 2.0 ** torch.arange(self.frequencies)
        place = torch.cat([angles.sin(), angles.cos()], dim=1).to(slices).expand(slices.shape[0], -1, -1)
        scores: Tensor = self.score(torch.cat([slices, place], dim=2))
        return scores.softmax(dim=1).transpose(1, 2)


def lay_out(classifier: Classifier) -> Classifier:
    """Lay the weights out channels last: convolutions on CPUs and tensor cores are faster so."""
    return classifier.to(memory_format=Placement(classifier).layout)


def place_images(x: Tensor, classifier: Classifier) -> Tensor:
    """Return a batch on the classifier's device, in its layout; Placement does it for many batches."""
    return Placement(classifier)(x)
