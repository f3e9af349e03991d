"""Saliency methods: one file each, one line here for each.

METHODS[name](classifier, image (1, C, *size), target) -> heatmap (*size) in [0, 1]

A heatmap shows what raised the log-odds of class `target`: 1 at its maximum, all zero where nothing did. Each
method runs the chain of layer groups itself, without hooks, in 2D and 3D alike. It leaves the classifier as
it was (modes, parameters, gradients), and the same input gives the same map.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medtl.errors import ConfigError
from medtl.explain.attention_rollout import attention_rollout, has_global_attention
from medtl.explain.cam import eigen_cam, grad_cam, grad_cam_plus
from medtl.explain.integrated_gradients import integrated_gradients
from medtl.explain.occlusion import occlusion
from medtl.models.classifier import Classifier


def suits_all(classifier: Classifier) -> bool:
    """Say that a method suits every network."""
    return True


@dataclass(frozen=True)
class Method:
    """A saliency method: the name that pages show, the function, and which networks it suits."""

    name: str
    heatmap: Callable[[Classifier, Tensor, int], NDArray[np.float32]]
    suits: Callable[[Classifier], bool] = suits_all

    def __call__(self, classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
        """Return what raised the score of class `target` of an image (1, C, *size): (*size) in [0, 1]."""
        return self.heatmap(classifier, image, target)


METHODS = {
    "grad-cam": Method("Grad-CAM", grad_cam),
    "grad-cam++": Method("Grad-CAM++", grad_cam_plus),
    "eigen-cam": Method("Eigen-CAM", eigen_cam),
    "integrated-gradients": Method("Integrated gradients", integrated_gradients),
    "occlusion": Method("Occlusion", occlusion),
    "attention-rollout": Method("Attention rollout", attention_rollout, has_global_attention),
}


def methods_for(classifier: Classifier) -> tuple[str, ...]:
    """Name the methods that suit a classifier's network."""
    return tuple(name for name, method in METHODS.items() if method.suits(classifier))


def default_method(classifier: Classifier) -> str:
    """Name the method to use where none is given.

    Grad-CAM for convolutions. Global attention mixes positions in the last feature map, where Grad-CAM is no
    better than chance (docs/decisions/0015): integrated gradients follow the gradient to the pixels instead.
    """
    return "integrated-gradients" if has_global_attention(classifier) else "grad-cam"


def check_method(name: str, classifier: Classifier) -> None:
    """Raise ConfigError saliency-method if a method is unknown or does not suit the network."""
    suited = methods_for(classifier)
    if name in suited:
        return
    network = classifier.backbone.name
    reason = f"does not suit {network}" if name in METHODS else "is no saliency method"
    raise ConfigError("saliency-method", reason, where=name, fix=f"choose one of {', '.join(suited)}")
