"""MONAI's SupervisedTrainer, over Ignite, with CacheDataset and its handlers.

python -m benchmarks.peers.monai_ignite JOB. One trainer per phase, frozen by requires_grad; SupervisedTrainer
puts the whole network into training mode at every step, including frozen batch norm. CacheDataset stores what
precedes the first random transform: plain tensors without metadata, as MONAI's guide to fast training
recommends.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ROCAUC, CheckpointSaver, LrScheduleHandler, ValidationHandler, from_engine
from monai.inferers import SimpleInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureTyped,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    ToDeviced,
)
from torch import Tensor, nn

from benchmarks.peers.common import (
    GAMMA,
    ROTATE_DEGREES,
    SCALE,
    TRANSLATE,
    Clock,
    Images,
    Trained,
    make_classifier,
    rate_factor,
    run_peer,
    top_groups,
)
from benchmarks.peers.job import Job, Phase
from medtl.models.classifier import Classifier


def train(job: Job, images: Images, folder: Path, clock: Clock) -> Trained:
    """Run a trainer for each phase, each from the best epoch so far."""
    logging.getLogger("ignite").setLevel(logging.ERROR)
    classifier = make_classifier(job, images)
    views = cached(images.train, images.train_targets, random_views(job))
    loader = DataLoader(views, batch_size=job.batch, shuffle=True)
    val = DataLoader(cached(images.val, images.val_targets, []), batch_size=job.batch)
    steps, best = 0, (-1.0, Path())
    clock.start()
    for phase in job.phases:
        saver = CheckpointSaver(
            str(folder), {"net": classifier}, file_prefix=phase.name, save_key_metric=True
        )
        evaluator = make_evaluator(classifier, val, len(images.classes), saver)
        trainer = make_trainer(classifier, loader, evaluator, phase, job)
        trainer.run()
        steps += trainer.state.iteration
        best = max(best, (evaluator.state.best_metric, newest(folder, phase)))
        classifier.load_state_dict(torch.load(best[1], weights_only=True))
        clock.lap(phase.name)
    return Trained(classifier, steps)


def cached(pixels: Tensor, targets: Tensor, random: list) -> CacheDataset:
    """Return a CacheDataset of images in memory under random transforms."""
    data = [{"image": image, "label": target} for image, target in zip(pixels, targets, strict=True)]
    fixed = EnsureTyped(keys="image", track_meta=False)
    return CacheDataset(data, Compose([fixed, *random]), progress=False)


def random_views(job: Job) -> list:
    """Return the transforms of common.augmentations over dictionaries, none without augmentation."""
    if not job.augment:
        return []
    affine = RandAffined(
        keys="image",
        prob=1.0,
        rotate_range=torch.pi * ROTATE_DEGREES / 180,
        scale_range=(SCALE, SCALE),
        translate_range=(TRANSLATE * job.size,) * 2,
        padding_mode="zeros",
        cache_grid=True,
        spatial_size=(job.size, job.size),
    )
    gamma = RandAdjustContrastd(keys="image", prob=1.0, gamma=(1 - GAMMA, 1 + GAMMA))
    return [affine, RandFlipd(keys="image", prob=0.5, spatial_axis=1), gamma]


def make_trainer(
    classifier: Classifier, loader: DataLoader, evaluator: SupervisedEvaluator, phase: Phase, job: Job
) -> SupervisedTrainer:
    """Unfreeze the phase's groups; return a trainer that validates after every epoch."""
    classifier.requires_grad_(False)
    for module in (*top_groups(classifier, phase), classifier.head):
        module.requires_grad_(True)
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, phase.rate, weight_decay=job.weight_decay)
    total = phase.epochs * len(loader)
    schedule: Any = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, total, job.warmup)
    )
    return SupervisedTrainer(
        device=torch.device(job.device),
        max_epochs=phase.epochs,
        train_data_loader=loader,
        network=classifier,
        optimizer=optimizer,
        loss_function=nn.CrossEntropyLoss(),
        prepare_batch=channels_last,
        inferer=SimpleInferer(),
        train_handlers=[
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            ValidationHandler(1, evaluator),
        ],
        decollate=False,
    )


def make_evaluator(
    classifier: Classifier, loader: DataLoader, classes: int, saver: CheckpointSaver
) -> SupervisedEvaluator:
    """Return an evaluator that saves the network of the best AUROC."""
    return SupervisedEvaluator(
        device=next(classifier.parameters()).device,
        val_data_loader=loader,
        network=classifier,
        prepare_batch=channels_last,
        inferer=SimpleInferer(),
        postprocessing=Compose(
            [
                Activationsd(keys="pred", softmax=True),
                AsDiscreted(keys="label", to_onehot=classes),
                ToDeviced(keys=["pred", "label"], device="cpu"),
            ]
        ),
        key_val_metric={"auroc": ROCAUC(average="macro", output_transform=from_engine(["pred", "label"]))},
        val_handlers=[saver],
    )


def channels_last(
    batch: dict[str, Tensor], device: torch.device, non_blocking: bool, **more: object
) -> tuple[Tensor, Tensor]:
    """Return images, channels last, and targets."""
    return batch["image"].to(device, memory_format=torch.channels_last), batch["label"].to(device)


def newest(folder: Path, phase: Phase) -> Path:
    """Return the checkpoint that a phase saved."""
    return max(folder.glob(f"{phase.name}_*.pt"), key=lambda path: path.stat().st_mtime_ns)


if __name__ == "__main__":
    run_peer(train)
