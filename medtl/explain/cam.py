"""Grad-CAM (Selvaraju 2017): the feature map weighed by how much each channel moves the score."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.explain.common import enlarge, evaluating, finish, log_odds
from medtl.models.classifier import Classifier, place_images


def grad_cam(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return what raised the score of class `target`, on the image's grid (*size), 1 at its maximum.

    image: (1, C, *size) prepared. All zero where nothing raised the score.
    """
    activation, gradient, axes = feature_map(classifier, image, target)
    weights = gradient.mean(dim=axes, keepdim=True)
    return finish(enlarge((weights * activation).sum(dim=1, keepdim=True).relu(), image.shape[2:]))


def eigen_cam(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return where the feature map stands out most, on the image's grid (*size), 1 at its maximum.

    The component is that of the centred map. It has no sign of its own: shown is the side that raises the
    score of class `target`. That is all that it knows of the class.
    """
    activation, gradient, _ = feature_map(classifier, image, target)
    places = activation[0].flatten(1).T.double()  # (places, F)
    places = places - places.mean(dim=0)
    _, _, directions = torch.linalg.svd(torch.nan_to_num(places), full_matrices=False)
    towards_class = gradient[0].flatten(1).sum(dim=1).double() @ directions[0]
    cam = (places @ directions[0]) * (1 if towards_class >= 0 else -1)
    return finish(enlarge(cam.relu().view(1, 1, *activation.shape[2:]), image.shape[2:]))


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


def grad_cam_plus(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return what raised the score of class `target`, on the image's grid (*size), 1 at its maximum.

    Equation 19 of the paper, whose exp(score) is a common factor and so drops out. It is made for feature
    maps that are nowhere negative; where another one leaves a weight undefined, that weight is zero.
    """
    activation, gradient, axes = feature_map(classifier, image, target)
    square, cube = gradient**2, gradient**3
    below = 2 * square + activation.sum(dim=axes, keepdim=True) * cube
    share = torch.where(below > 0, square / below.clamp(min=torch.finfo(below.dtype).tiny), 0)
    weights = (share * gradient.relu()).sum(dim=axes, keepdim=True)
    return finish(enlarge((weights * activation).sum(dim=1, keepdim=True).relu(), image.shape[2:]))
