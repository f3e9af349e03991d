"""Saliency methods: one file each, one line here for each.

METHODS[name](classifier, image (1, C, *size), target) -> heatmap (*size) in [0, 1]

A heatmap is what raised the log-odds of class `target`, 1 at its maximum, and zero everywhere where nothing
did. Each method runs the chain of layer groups itself: no hook, in 2D and 3D alike, with whatever the
classifier was (its modes, its parameters, their gradients) left as it was. The same input gives the same map.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medtl.errors import ConfigError
from medtl.explain.attention_rollout import attention_rollout, has_global_attention
from medtl.explain.cam import eigen_cam, grad_cam, grad_cam_plus
from medtl.explain.integrated_gradients import integrated_gradients
from medtl.explain.occlusion import occlusion
from medtl.models.classifier import Classifier

Method = Callable[[Classifier, Tensor, int], NDArray[np.float32]]
METHODS: dict[str, Method] = {
    "grad-cam": grad_cam,
    "grad-cam++": grad_cam_plus,
    "eigen-cam": eigen_cam,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
    "attention-rollout": attention_rollout,
}

# How pages name the saliency methods.
METHOD_NAMES = {
    "grad-cam": "Grad-CAM",
    "grad-cam++": "Grad-CAM++",
    "eigen-cam": "Eigen-CAM",
    "integrated-gradients": "Integrated gradients",
    "occlusion": "Occlusion",
    "attention-rollout": "Attention rollout",
}


def methods_for(classifier: Classifier) -> tuple[str, ...]:
    """Name the methods that suit a classifier's network."""
    return tuple(
        name
        for name, method in METHODS.items()
        if method is not attention_rollout or has_global_attention(classifier)
    )


def default_method(classifier: Classifier) -> str:
    """Name the method to explain with where none is asked for.

    Grad-CAM for convolutions. Where every patch attends to every other, places are mixed in the last feature
    map and Grad-CAM of it is at chance (docs/decisions/0015), so the gradients are followed to the pixels.
    """
    return "integrated-gradients" if has_global_attention(classifier) else "grad-cam"


def check_method(name: str, classifier: Classifier) -> None:
    """Raise ConfigError saliency-method where a method is not known, or does not suit the network."""
    suited = methods_for(classifier)
    if name in suited:
        return
    network = classifier.backbone.name
    reason = f"does not suit {network}" if name in METHODS else "is no saliency method"
    raise ConfigError("saliency-method", reason, where=name, fix=f"choose one of {', '.join(suited)}")
