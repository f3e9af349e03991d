"""Eigen-CAM (Muhammad and Yeasin 2020): the first principal component of the feature map."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtl.learning.classifier import Classifier
from medtl.prediction.saliency.feature_map import feature_map
from medtl.prediction.saliency.score import enlarge, finish


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
