"""Class activation maps: Grad-CAM (Selvaraju 2017), Grad-CAM++ (Chattopadhay 2018), Eigen-CAM (Muhammad).

image -> feature map of the saliency group, and the score's gradient there -> channels summed to one map

Each takes a prepared image (1, C, *size), and returns what raised the score of class `target` on the image's
grid (*size), 1 at its maximum, all zero where nothing did.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.explain.common import enlarge, evaluating, finish, log_odds
from medtl.models.classifier import Classifier, place_images


def grad_cam(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return the channels weighed by the mean of their gradient."""
    activation, gradient, axes = feature_map(classifier, image, target)
    return _weighed(activation, gradient.mean(dim=axes, keepdim=True), image)


def grad_cam_plus(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return the channels weighed by their positive gradients, each by equation 19 of the paper.

    Its exp(score) is a common factor and cancels. It is made for feature maps that are nowhere negative;
    where another one leaves a weight undefined, that weight is zero.
    """
    activation, gradient, axes = feature_map(classifier, image, target)
    square, cube = gradient**2, gradient**3
    below = 2 * square + activation.sum(dim=axes, keepdim=True) * cube
    share = torch.where(below > 0, square / below.clamp(min=torch.finfo(below.dtype).tiny), 0)
    return _weighed(activation, (share * gradient.relu()).sum(dim=axes, keepdim=True), image)


def eigen_cam(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return the first principal component of the centred feature map.

    A component has no sign: shown is the side that raises the score, which is all that it knows of the class.
    """
    activation, gradient, _ = feature_map(classifier, image, target)
    places = activation[0].flatten(1).T.double()  # (places, F)
    places = places - places.mean(dim=0)
    _, _, directions = torch.linalg.svd(torch.nan_to_num(places), full_matrices=False)
    towards_class = gradient[0].flatten(1).sum(dim=1).double() @ directions[0]
    cam = (places @ directions[0]) * (1 if towards_class >= 0 else -1)
    return finish(enlarge(cam.relu().view(1, 1, *activation.shape[2:]), image.shape[2:]))


def feature_map(classifier: Classifier, image: Tensor, target: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return the output (1, F, *grid) of the layer groups up to the saliency group, without any hook.

    With it the gradient of the class's log-odds there, and the axes that the classifier pools, over which
    channels are weighed: a slice encoder weighs each slice by itself. The maps of transformers need no
    reshaping: their groups lay tokens back on their grid.
    """
    backbone = classifier.backbone
    with evaluating(classifier):
        with torch.no_grad():
            activation = backbone.between(0, backbone.saliency_group, place_images(image, classifier))
        with torch.enable_grad():
            activation = activation.detach().requires_grad_()
            score = log_odds(classifier, classifier(activation, start=backbone.saliency_group), target).sum()
            (gradient,) = torch.autograd.grad(score, activation)
    first = 3 if backbone.pooling == "slice-attention" else 2
    return activation.detach(), gradient, tuple(range(first, activation.ndim))


def _weighed(activation: Tensor, weights: Tensor, image: Tensor) -> NDArray[np.float32]:
    """Return the positive part of the weighed sum of channels, on the image's grid."""
    return finish(enlarge((weights * activation).sum(dim=1, keepdim=True).relu(), image.shape[2:]))
