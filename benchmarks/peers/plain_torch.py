"""The plain PyTorch recipe: freeze by requires_grad, one optimizer and a one-line learning rate per phase.

python -m benchmarks.peers.plain_torch JOB. Frozen groups are put into evaluation mode, as a careful author
would and PyTorch's tutorial on transfer does not: it is faster, and their statistics stay.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.peers.common import (
    Clock,
    Images,
    Trained,
    make_classifier,
    make_loaders,
    rate_factor,
    run_peer,
    to_score,
    top_groups,
)
from benchmarks.peers.job import Job, Phase
from medtl.models.classifier import Classifier


def train(job: Job, images: Images, folder: Path, clock: Clock) -> Trained:
    """Train phase after phase, each from the best epoch so far."""
    classifier = make_classifier(job, images)
    loader, val = make_loaders(job, images)
    best, kept, steps = -1.0, folder / "best.pt", 0
    clock.start()
    for phase in job.phases:
        optimizer, schedule = begin_phase(classifier, phase, job, len(loader))
        for _ in range(phase.epochs):
            steps += train_epoch(classifier, phase, loader, optimizer, schedule)
            score = validate(classifier, val)
            if score > best:
                best = score
                torch.save(classifier.state_dict(), kept)
        classifier.load_state_dict(torch.load(kept, weights_only=True))
        clock.lap(phase.name)
    return Trained(classifier, steps)


def begin_phase(
    classifier: Classifier, phase: Phase, job: Job, batches: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Unfreeze the phase's groups; return its optimizer and its learning rates by step."""
    classifier.requires_grad_(False)
    for module in (*top_groups(classifier, phase), classifier.head):
        module.requires_grad_(True)
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, phase.rate, weight_decay=job.weight_decay)
    total = phase.epochs * batches
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, total, job.warmup)
    )


def train_epoch(
    classifier: Classifier,
    phase: Phase,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> int:
    """Train on every batch; return how many there were."""
    classifier.eval()
    for module in (*top_groups(classifier, phase), classifier.head):
        module.train()
    device = next(classifier.parameters()).device
    for x, targets in loader:
        x = x.to(device, non_blocking=True, memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(classifier(x), targets.to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return len(loader)


@torch.inference_mode()
def validate(classifier: Classifier, loader: DataLoader) -> float:
    """Return the AUROC."""
    classifier.eval()
    found: list[tuple[Tensor, Tensor]] = []
    device = next(classifier.parameters()).device
    for x, targets in loader:
        x = x.to(device, non_blocking=True, memory_format=torch.channels_last)
        found.append((classifier(x).softmax(1).cpu(), targets))
    probabilities, targets = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return to_score(np.asarray(probabilities), np.asarray(targets))


if __name__ == "__main__":
    run_peer(train)
