"""Integrated gradients (Sundararajan 2017): how much each pixel adds to the score above a baseline's."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medtl.explain.common import batches, evaluating, fade, finish, log_odds
from medtl.models.classifier import Classifier, place_images

STEPS = 16
GATHERED = 1 / 40  # of each axis: width of the blur that sums neighbours before negative parts are clipped


def integrated_gradients(classifier: Classifier, image: Tensor, target: int) -> NDArray[np.float32]:
    """Return what raised the score of class `target` over that of the blurred image (common.fade).

    image: (1, C, *size) prepared. The signs of neighbouring pixels alternate, so neighbours are summed first.
    """
    parts = attributions(classifier, image, target).sum(axis=0)
    gathered = gaussian_filter(parts, [extent * GATHERED for extent in parts.shape], mode="nearest")
    return finish(gathered)


def attributions(
    classifier: Classifier, image: Tensor, target: int, steps: int = STEPS
) -> NDArray[np.float64]:
    """Return each pixel's part (C, *size); they sum to score(image) - score(baseline).

    The integral along the path is taken at the middles of `steps` equal pieces.
    """
    baseline = fade(image)
    middles = (torch.arange(steps, dtype=image.dtype) + 0.5) / steps
    path = baseline + middles.view(-1, *[1] * (image.ndim - 1)) * (image - baseline)
    total = torch.zeros_like(image[0])
    with evaluating(classifier), torch.enable_grad():
        for part in batches(path):
            x = place_images(part, classifier).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_odds(classifier, classifier(x), target).sum(), x)
            total += gradient.sum(dim=0).to(total)
    return ((image - baseline)[0] * total / steps).double().cpu().numpy()
