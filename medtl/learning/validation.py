"""Judge a classifier on validation data while it is trained."""

from collections.abc import Iterator

import torch
from numpy.typing import NDArray
from torch import nn

from medtl.learning.batches import Batch
from medtl.learning.classifier import Classifier, Placement
from medtl.learning.imbalance import NoCorrection
from medtl.learning.metrics import auroc


@torch.inference_mode()
def validate(
    model: nn.Module,
    classifier: Classifier,
    strategy: NoCorrection,
    batches: Iterator[Batch],
    targets: NDArray,
    start: int,
) -> tuple[float, float]:
    """Return the loss and the AUROC, NaN where it is undefined, over batches in the order of `targets`.

    The batches enter the classifier's chain at `start`.
    """
    place = Placement(classifier.eval())
    logits = torch.cat([model(place(x), start).float() for x, _ in batches])
    loss = float(strategy.loss(logits, torch.from_numpy(targets).to(logits.device)))
    probabilities = classifier.probabilities(logits).cpu().numpy()
    return loss, float(auroc(probabilities, targets, kind=classifier.task.kind))
