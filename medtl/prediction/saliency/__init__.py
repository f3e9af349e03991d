"""Saliency methods: one file each, one line here for each.

METHODS[name](classifier, image (1, C, *size), target) -> heatmap (*size) in [0, 1]
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medtl.learning.classifier import Classifier
from medtl.prediction.saliency.grad_cam import grad_cam

Method = Callable[[Classifier, Tensor, int], NDArray[np.float32]]

METHODS: dict[str, Method] = {"grad-cam": grad_cam}
