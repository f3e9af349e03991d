"""The feature map that class activation methods weigh, and how it moves the score."""

from typing import NamedTuple

import torch
from torch import Tensor

from medtl.learning.classifier import Classifier
from medtl.learning.features import place_images
from medtl.prediction.saliency.score import evaluating, log_odds


class FeatureMap(NamedTuple):
    """activation (1, F, *grid), the gradient of the class's log-odds there, and the axes that are pooled.

    Channels are weighed over the axes that the classifier pools: a slice encoder weighs each slice by itself.
    """

    activation: Tensor
    gradient: Tensor
    axes: tuple[int, ...]


def feature_map(classifier: Classifier, image: Tensor, target: int) -> FeatureMap:
    """Return the output of the layer groups up to the saliency group, and its gradient, without any hook.

    The maps of transformers need no reshaping: their groups lay tokens back on their grid.
    """
    backbone = classifier.backbone
    with evaluating(classifier):
        with torch.no_grad():
            activation = backbone.prefix(backbone.saliency_group, place_images(image, classifier))
        with torch.enable_grad():
            activation = activation.detach().requires_grad_()
            score = log_odds(classifier, classifier(activation, start=backbone.saliency_group), target).sum()
            (gradient,) = torch.autograd.grad(score, activation)
    first = 3 if backbone.pooling == "slice-attention" else 2
    return FeatureMap(activation.detach(), gradient, tuple(range(first, activation.ndim)))
