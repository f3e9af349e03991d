"""Grad-CAM++ (Chattopadhay 2018): places weighed so that several small causes count as one large one does."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.learning.classifier import Classifier
from medtl.prediction.saliency.feature_map import feature_map
from medtl.prediction.saliency.score import enlarge, finish


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
