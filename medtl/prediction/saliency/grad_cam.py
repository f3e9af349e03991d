"""Grad-CAM (Selvaraju 2017): the feature map weighed by how much each channel moves the score.

The chain of layer groups gives the feature map and its gradient without any hook, and in 2D and 3D alike.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medtl.learning.classifier import Classifier
from medtl.learning.features import place_images


def grad_cam(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return what raised the score of class `target`, on the image's grid (*size), 1 at its maximum.

    image: (1, C, *size) prepared. The score is the log-odds of the class, so that the map explains the
    probability that is reported. Channels are averaged over the axes that the classifier pools: a slice
    encoder weighs each slice by itself. All zero where nothing raised the score.
    """
    backbone = classifier.backbone
    classifier.eval()
    with torch.no_grad():
        activation = backbone.prefix(backbone.saliency_group, place_images(image, classifier))
    with torch.enable_grad():
        activation = activation.detach().requires_grad_()
        logits = classifier(activation, start=backbone.saliency_group)
        (gradient,) = torch.autograd.grad(log_odds(classifier, logits, target), activation)
    axes = tuple(range(3 if backbone.pooling == "slice-attention" else 2, activation.ndim))
    cam = (gradient.mean(dim=axes, keepdim=True) * activation).sum(dim=1, keepdim=True).relu()
    heatmap = _enlarge(cam, image.shape[2:])[0, 0].detach().cpu().numpy()
    peak = heatmap.max()
    return (heatmap / peak if peak > 0 else heatmap).astype(np.float32)


def log_odds(classifier: Classifier, logits: Tensor, target: int) -> Tensor:
    """Return log(p / (1 - p)) of class `target` for logits (1, K)."""
    if classifier.task.kind == "multilabel":
        return logits[0, target]
    others = torch.cat([logits[0, :target], logits[0, target + 1 :]])
    return logits[0, target] - others.logsumexp(dim=0)


def _enlarge(cam: Tensor, size: torch.Size) -> Tensor:
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(cam.float(), size=size, mode=mode, align_corners=False)
