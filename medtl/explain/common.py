"""What saliency methods share: log-odds to explain, a blur that stands for absence, scaling to [0, 1]."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from medtl.models.classifier import Classifier, place_images

# The blur that stands for absence, as a share of each axis: wider than most lesions, finer than the body.
FADE = 1 / 8
BATCH_PIXELS = 2**20  # of prepared images that are run at once


@contextmanager
def evaluating(classifier: Classifier) -> Iterator[None]:
    """Set evaluation mode within the block, and restore the mode of each module after it."""
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def log_odds(classifier: Classifier, logits: Tensor, target: int) -> Tensor:
    """Return log(p / (1 - p)) of class `target`, (N,), for logits (N, K).

    Pages report a probability, so a map has to explain this and not the class's own logit.
    """
    if classifier.task.kind == "multilabel":
        return logits[:, target]
    others = torch.cat([logits[:, :target], logits[:, target + 1 :]], dim=1)
    return logits[:, target] - others.logsumexp(dim=1)


def batches(images: Tensor) -> Iterator[Tensor]:
    """Yield images (N, C, *size) in batches of about BATCH_PIXELS."""
    yield from images.split(max(1, BATCH_PIXELS // images[0].numel()))


def logits_of(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the logits (N, K) of images (N, C, *size), in batches, without gradient."""
    with torch.inference_mode(), evaluating(classifier):
        return torch.cat([classifier(place_images(x, classifier)) for x in batches(images)])


def fade(image: Tensor) -> Tensor:
    """Return an image (1, C, *size) so blurred (FADE) that structures are gone and brightness stays.

    It stands for absence wherever part of an image is removed. A black or grey patch would be a new structure
    with edges of its own, and black means air in a radiograph.
    """
    sigma = (0, 0, *(extent * FADE for extent in image.shape[2:]))
    return torch.from_numpy(gaussian_filter(image.cpu().numpy(), sigma, mode="reflect")).to(image)


def enlarge(grid: Tensor, size: torch.Size) -> Tensor:
    """Resize a map (1, 1, *grid) to an image's size, linearly: (*size)."""
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(grid.float(), size=size, mode=mode, align_corners=False)[0, 0]


def finish(heat: Tensor | NDArray) -> NDArray[np.float32]:
    """Clip a map (*size) below zero and scale its maximum to 1; all zero if nothing is above zero.

    NaN and infinities, which a network with random weights may give, count as zero.
    """
    values = heat.detach().cpu().numpy() if isinstance(heat, Tensor) else heat
    values = np.clip(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), 0, None)
    peak = values.max()
    return (values / peak if peak > 0 else values).astype(np.float32)
