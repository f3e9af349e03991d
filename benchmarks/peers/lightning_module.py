"""What both Lightning peers share: module, learning rates, clock, and a Trainer without its extras."""

import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from benchmarks.peers.common import Clock, Images, Trained, make_loaders, rate_factor, to_score
from benchmarks.peers.job import Job, Phase
from medtl.models.classifier import Classifier


class Transfer(lightning.LightningModule):
    """The backbone and head of a Classifier, with `first` given to the optimizer at the start."""

    def __init__(self, classifier: Classifier, job: Job, first: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.backbone, self.head, self.pool = classifier.backbone, classifier.head, classifier.pool
        self.job, self.first = job, list(first)
        self.found: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.backbone(x.to(memory_format=torch.channels_last))))

    def training_step(self, batch: Sequence[Tensor], number: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Sequence[Tensor], number: int) -> None:
        self.found.append((self(batch[0]).softmax(1), batch[1]))

    def on_validation_epoch_end(self) -> None:
        probabilities, targets = (torch.cat(parts).cpu().numpy() for parts in zip(*self.found, strict=True))
        self.found.clear()
        self.log("val_auroc", to_score(probabilities, targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.first, self.job.phases[0].rate, weight_decay=self.job.weight_decay)


class Rates(Callback):
    """Set the learning rate of every step as all peers do, and lap the clock when a phase begins.

    One rule for all: neither peer's own learning rates restart at a transition inside a fit unless its
    optimizer or scheduler is replaced.
    """

    def __init__(self, job: Job, clock: Clock) -> None:
        self.job, self.clock = job, clock
        self.at = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.clock.start()

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        phase = phase_of_epoch(self.job.phases, trainer.current_epoch)
        if phase != self.at:
            self.clock.lap(self.job.phases[self.at].name)
            self.at = phase

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, number: int
    ) -> None:
        phase, before = self.job.phases[self.at], sum(p.epochs for p in self.job.phases[: self.at])
        batches = int(trainer.num_training_batches)
        step = (trainer.current_epoch - before) * batches + number
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = phase.rate * rate_factor(step, phase.epochs * batches, self.job.warmup)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.clock.lap(self.job.phases[self.at].name)


def phase_of_epoch(phases: Sequence[Phase], epoch: int) -> int:
    """Return the number of the phase that an epoch of the whole fit belongs to."""
    ends = [sum(phase.epochs for phase in phases[: number + 1]) for number in range(len(phases))]
    return next(number for number, end in enumerate(ends) if epoch < end)


def fit(
    classifier: Classifier,
    module: Transfer,
    images: Images,
    folder: Path,
    clock: Clock,
    callbacks: Sequence[Callback],
    checkpoint: ModelCheckpoint,
) -> Trained:
    """Fit through all phases, load the best epoch's weights."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    job = module.job
    trainer = lightning.Trainer(
        accelerator=job.device,
        devices=1,
        max_epochs=sum(phase.epochs for phase in job.phases),
        callbacks=[*callbacks, Rates(job, clock), checkpoint],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, *make_loaders(job, images))
    state = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    module.load_state_dict(state)
    return Trained(classifier, int(trainer.global_step))
