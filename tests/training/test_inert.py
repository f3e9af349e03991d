"""Inert means inert: for every backbone and every stage, what is frozen keeps its bytes and its output.

Small backbones in an ordinary run, all of them with -m long.
"""

import hashlib
from functools import partial

import pytest
import torch
from torch import nn

from medtl.data.task import Task
from medtl.models.classifier import Classifier
from medtl.training.config import FitConfig
from medtl.training.device import make_accelerator
from medtl.training.distributed import ProcessGroup
from medtl.training.imbalance import ImbalanceStrategy
from medtl.training.schedule import Pace, ScheduleConfig, entry_step, resolve_schedule, unfreeze
from medtl.training.step import Stepper, anchors_of, make_optimizer
from tests.models.test_backbones import ENTRIES, images

SMALL = {
    "efficientnet_lite0",
    "mobilenet_v3_small",
    "densenet121",
    "convnext_atto",
    "vit_tiny",
    "slices_efficientnet_lite0",
    "medicalnet_resnet10",
}

# Everything that moves weights: moments, decay, pull, averages of statistics.
KNOBS = {"batch_norm": "follow", "l2_sp": 0.1, "learning_rate": 1e-3, "head_learning_rate": 1e-2}
STAGES = {"gradual": {"steps": 3, "unfrozen_epochs": 3}, "head-then-all": {}}


CASES = [
    (name, schedule)
    if name in SMALL and schedule == "gradual"
    else pytest.param(name, schedule, marks=pytest.mark.long)
    for name in ENTRIES
    for schedule in STAGES
]


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_what_a_stage_freezes_keeps_its_bytes_and_its_output(name, schedule):
    entry = ENTRIES[name]
    torch.manual_seed(0)
    classifier = Classifier(entry(weights=None, in_channels=1), Task("binary", ("no", "yes")))
    groups = classifier.backbone.layer_groups
    stages = resolve_schedule(ScheduleConfig(name=schedule, **STAGES[schedule], **KNOBS), len(groups))
    anchors, x = anchors_of(classifier, stages), images(entry)
    for stage in stages:
        unfreeze(classifier, stage)
        frozen = {name: classifier.backbone.groups[name] for name in groups[: len(groups) - stage.groups]}
        before = {name: fingerprint(group) for name, group in frozen.items()}
        moving = {name: fingerprint(group) for name, group in classifier.backbone.groups.items()} | {
            "head": fingerprint(classifier.head)
        }
        take_a_step(classifier, stage, x, anchors)
        assert {name: fingerprint(group) for name, group in frozen.items()} == before, stage.name
        for name in (*groups[len(groups) - stage.groups :], "head"):
            module = classifier.head if name == "head" else classifier.backbone.groups[name]
            assert fingerprint(module) != moving[name], f"{name} is trainable in {stage.name}"
        assert_prefix_is_a_function(classifier, stage, x)


def fingerprint(module: nn.Module) -> str:
    """Return a hash of the bytes of parameters and buffers, those outside the state dict too."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def take_a_step(classifier, stage, x, anchors) -> None:
    """Take one step in the whole chain from the images, as where nothing is cached."""
    config = FitConfig(device="cpu")
    accelerator = make_accelerator(config, ProcessGroup())
    targets = torch.arange(len(x)) % 2
    optimizer = make_optimizer(classifier, stage)
    classifier.train()
    stepper = Stepper(
        accelerator,
        partial(accelerator.forward, classifier),
        classifier,
        optimizer,
        ImbalanceStrategy(classifier.task, targets.numpy()),
        config,
        Pace(stage, 4),
        start=0,
        anchors=anchors,
        process_group=ProcessGroup(),
    )
    assert stepper.step([(x, targets)], 0, 0).loss.isfinite()


def assert_prefix_is_a_function(classifier, stage, x) -> None:
    """Check that two passes of the prefix in training, and one in evaluation, give the same bits."""
    step = entry_step(classifier, stage)
    with torch.no_grad():
        classifier.train()
        first, second = classifier.run(x, 0, step), classifier.run(x, 0, step)
        inferred = classifier.eval().run(x, 0, step)
    assert torch.equal(first, second), f"something is random below {stage.name}"
    assert torch.equal(first, inferred)
