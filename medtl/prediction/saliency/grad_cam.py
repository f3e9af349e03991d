"""Grad-CAM (Selvaraju 2017): the feature map weighed by how much each channel moves the score."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medtl.learning.classifier import Classifier
from medtl.prediction.saliency.feature_map import feature_map
from medtl.prediction.saliency.score import enlarge, finish


def grad_cam(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return what raised the score of class `target`, on the image's grid (*size), 1 at its maximum.

    image: (1, C, *size) prepared. All zero where nothing raised the score.
    """
    activation, gradient, axes = feature_map(classifier, image, target)
    weights = gradient.mean(dim=axes, keepdim=True)
    return finish(enlarge((weights * activation).sum(dim=1, keepdim=True).relu(), image.shape[2:]))
