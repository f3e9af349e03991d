"""Judge a classifier on validation data while it is trained."""

from collections.abc import Iterable

import torch
from numpy.typing import NDArray
from torch import nn

from medtl.learning.batches import Batch, Indices
from medtl.learning.classifier import Classifier, Placement
from medtl.learning.imbalance import NoCorrection
from medtl.learning.metrics import auroc
from medtl.learning.world import World


@torch.inference_mode()
def validate(
    model: nn.Module,
    classifier: Classifier,
    strategy: NoCorrection,
    batches: Iterable[tuple[Indices, Batch]],
    targets: NDArray,
    start: int,
    world: World,
) -> tuple[float, float]:
    """Return the loss and the AUROC, NaN where it is undefined, over the samples of `targets`.

    batches: those of this process, each with the samples that are in it; they enter the classifier's chain at
    `start`. Of several processes all get the numbers of the one that leads.
    """
    place = Placement(classifier.eval())
    logits = torch.zeros(len(targets), len(classifier.task.classes), device=place.device)
    for samples, (x, _) in batches:
        logits[torch.from_numpy(samples)] = model(place(x), start).float()
    world.sum(logits)
    loss = float(strategy.loss(logits, torch.from_numpy(targets).to(logits.device)))
    probabilities = classifier.probabilities(logits).cpu().numpy()
    loss, score = world.share((loss, float(auroc(probabilities, targets, kind=classifier.task.kind))))
    return loss, score
