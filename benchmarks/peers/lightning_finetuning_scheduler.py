"""Lightning's Trainer with the callback of finetuning-scheduler, with an explicit schedule equal to medtl's.

python -m benchmarks.peers.lightning_finetuning_scheduler JOB. It returns to the best epoch at a transition,
as medtl does. By default its frozen batch norm uses the statistics of the batch and updates its own.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint
from torch import nn

from benchmarks.peers.common import Clock, Images, Trained, make_classifier, run_peer, top_groups
from benchmarks.peers.job import Job, Phase
from benchmarks.peers.lightning_module import Transfer, fit
from medtl.models.classifier import Classifier


def train(job: Job, images: Images, folder: Path, clock: Clock) -> Trained:
    """Train through the schedule; everything from the start if nothing is frozen."""
    classifier = make_classifier(job, images)
    module = Transfer(classifier, job, classifier.parameters())
    scheduler = FinetuningScheduler(
        ft_schedule=schedule_of(classifier, module, job.phases),
        epoch_transitions_only=True,
        logging_level=logging.ERROR,
        log_dir=folder,
    )
    checkpoint = FTSCheckpoint(folder / "checkpoints", monitor="val_auroc", mode="max", save_top_k=1)
    return fit(classifier, module, images, folder, clock, [scheduler], checkpoint)


def schedule_of(
    classifier: Classifier, module: Transfer, phases: Sequence[Phase]
) -> dict[int, dict[str, Any]]:
    """Return the phases by parameter names; each names what it unfreezes in addition to earlier ones."""
    schedule: dict[int, dict[str, Any]] = {}
    thawed: set[str] = set()
    for number, phase in enumerate(phases):
        trained = parameter_ids([classifier.head, *top_groups(classifier, phase)])
        names = {name for name, parameter in module.named_parameters() if id(parameter) in trained}
        epochs = sum(earlier.epochs for earlier in phases[: number + 1])
        schedule[number] = {"params": sorted(names - thawed), "max_transition_epoch": epochs}
        if number:
            schedule[number]["lr"] = phase.rate
        thawed |= names
    return schedule


def parameter_ids(modules: Sequence[nn.Module]) -> set[int]:
    """Return the identities of the parameters of modules."""
    return {id(parameter) for module in modules for parameter in module.parameters()}


if __name__ == "__main__":
    run_peer(train)
