"""The optimizer step: what moves, by how much, and that the same step is the same again."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from medtl.core.ids import make_generator
from medtl.data.task import Task
from medtl.models.classifier import Placement
from medtl.training.checkpoint import model_tensors
from medtl.training.config import FitConfig
from medtl.training.device import make_accelerator
from medtl.training.distributed import ProcessGroup
from medtl.training.imbalance import IMBALANCE
from medtl.training.schedule import Pace, Stage, entry_step, unfreeze
from medtl.training.step import LossSum, Stepper, anchors_of, make_optimizer, mix

BINARY = Task("binary", ("normal", "lesion"))
MULTILABEL = Task("multilabel", ("a", "b", "c"))


def make_stage(groups=3, **knobs):
    return Stage(
        **{"name": "stage", "groups": groups, "epochs": 2, "head_learning_rate": 0.1, "warmup": 0, **knobs}
    )


def make_stepper(classifier, stage, *, targets=None, start=0, optimizer=None, anchors=None, **config):
    """Return a stepper on the processor for a stage of two steps an epoch."""
    config = FitConfig(device="cpu", gradient_clip=None, **config)
    unfreeze(classifier, stage)
    classifier.train()
    accelerator = make_accelerator(config, ProcessGroup())
    targets = np.array([0, 1]) if targets is None else targets
    return Stepper(
        accelerator,
        partial(accelerator.forward, classifier),
        classifier,
        optimizer or make_optimizer(classifier, stage),
        IMBALANCE[config.imbalance.name](classifier.task, targets, **config.imbalance.options),
        config,
        Pace(stage, 2),
        start=start,
        anchors=anchors or {},
        process_group=ProcessGroup(),
    )


def images(count=8, seed=0):
    return torch.rand((count, 1, 32, 32), generator=torch.Generator().manual_seed(seed))


def without_dropout(classifier):
    for module in classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return classifier


def labels(task, count=8):
    """Return targets of unequal classes; in multilabel some are missing."""
    if task.kind != "multilabel":
        return torch.tensor([0, 0, 0, 0, 0, 1, 0, 1])[:count]
    drawn = np.random.default_rng(0).integers(0, 2, (count, 3)).astype(float)
    drawn[::3, 0] = np.nan
    drawn[1:3] = np.nan
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("task", [BINARY, MULTILABEL], ids=["binary", "multilabel"])
@pytest.mark.parametrize("imbalance", ["none", "class-weighted", "focal"])
def test_accumulated_parts_take_the_step_of_the_whole_batch(make_classifier, task, imbalance):
    """Uneven parts, uneven classes and missing labels: the gradient is that of all samples together."""
    targets, x = labels(task), images()
    losses, gradients = [], []
    for parts in ([slice(0, 8)], [slice(0, 3), slice(3, 5), slice(5, 8)]):
        classifier = without_dropout(make_classifier(task))
        stepper = make_stepper(classifier, make_stage(), targets=targets.numpy(), imbalance=imbalance)
        losses.append(stepper.step([(x[part], targets[part]) for part in parts], 0, 0).loss.item())
        gradients.append([parameter.grad for parameter in classifier.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for whole, accumulated in zip(*gradients, strict=True):
        assert torch.allclose(whole, accumulated, atol=1e-6)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0])


def test_a_step_is_repeated_to_the_bit_and_another_number_is_another_dropout(make_classifier):
    found = []
    for number in (5, 5, 6):
        classifier = make_classifier()
        torch.rand(number)  # what was drawn before does not matter
        make_stepper(classifier, make_stage()).step([(images(), labels(BINARY))], number, 0)
        found.append(model_tensors(classifier)["head.linear.weight"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("knobs", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 0.6}])
@pytest.mark.parametrize("groups", [0, 1, 2, 3])
def test_mixing_on_cached_activations_equals_mixing_without_a_cache(make_classifier, groups, knobs):
    stage, found = make_stage(groups), []
    for cached in (False, True):
        classifier = make_classifier().eval()
        step = entry_step(classifier, stage)
        with torch.no_grad():
            x = classifier.run(images(), 0, step) if cached else images()
        stepper = make_stepper(classifier, stage, start=step if cached else 0, **knobs)
        loss = stepper.step([(x, labels(BINARY))], 3, 0).loss
        found.append((loss.item(), model_tensors(classifier)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for name, tensor in found[0][1].items():
        assert torch.allclose(tensor.float(), found[1][1][name].float(), atol=1e-5), name


@pytest.mark.parametrize("task", [BINARY, MULTILABEL], ids=["binary", "multilabel"])
def test_the_loss_of_a_mixture_is_mixed_alike(make_classifier, task):
    classifier, targets = without_dropout(make_classifier(task)), labels(task)
    before = copy.deepcopy(classifier)
    stage = make_stage(0)
    stepper = make_stepper(classifier, stage, targets=targets.numpy(), mixup=1.0)
    loss = stepper.step([(images(), targets)], 7, 0).loss.item()

    unfreeze(before, stage)
    features = before.run(images(), 0, before.head_step)
    mixed = mix(features, 1.0, 0.0, make_generator(0, "mix", 7))
    logits = before(mixed.x, before.head_step)
    own, other = (stepper.strategy.loss(logits, t).item() for t in (targets, targets[mixed.partners]))
    assert loss == pytest.approx(mixed.share * own + (1 - mixed.share) * other, abs=1e-6)
    assert own != pytest.approx(other, abs=1e-4)


def test_smoothing_reaches_the_loss(make_classifier):
    """Cross-entropy against 1 - s of the label and s of all labels."""
    classifier = without_dropout(make_classifier()).eval()
    targets = labels(BINARY)
    with torch.no_grad():
        logits = classifier(images())
    smoothed = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.2)
    stepper = make_stepper(classifier, make_stage(0), label_smoothing=0.2)
    assert stepper.step([(images(), targets)], 0, 0).loss.item() == pytest.approx(smoothed.item(), abs=1e-6)


def still(classifier, stage, **options):
    """Take one step whose gradient is zero; return the parameters before and after."""
    stepper = make_stepper(classifier, stage, **options)
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    stepper.strategy.loss = lambda logits, *_: 0 * logits.sum()
    stepper.step([(images(), labels(BINARY))], 0, 0)
    return before, {name: p.detach() for name, p in classifier.named_parameters()}


def test_l2_sp_draws_thawed_groups_to_where_the_run_began_and_the_head_to_zero(make_classifier):
    classifier = make_classifier()
    stage = make_stage(2, l2_sp=0.5, weight_decay=0.1, learning_rate=0.01)
    anchors = anchors_of(classifier, [stage])
    began = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(1.0)
    before, after = still(classifier, stage, anchors=anchors)
    for name, parameter in after.items():
        if name.startswith(("backbone.groups.top", "backbone.groups.middle")):
            pulled = before[name] - 0.01 * 0.5 * (before[name] - began[name])
            assert torch.allclose(parameter, pulled, atol=1e-6), name
        elif name == "head.linear.weight":
            assert torch.allclose(parameter, before[name] * (1 - 0.1 * 0.1), atol=1e-6)
        else:
            assert torch.equal(parameter, before[name]), name


def test_without_l2_sp_thawed_weights_decay_to_zero_and_nothing_is_copied(make_classifier):
    classifier, stage = make_classifier(), make_stage(3, weight_decay=0.1, learning_rate=0.01)
    assert anchors_of(classifier, [stage]) == {}
    before, after = still(classifier, stage)
    name = "backbone.groups.top.0.weight"
    assert torch.allclose(after[name], before[name] * (1 - 0.01 * 0.1), atol=1e-7)


def test_kept_moments_are_those_of_what_was_trained_before(make_classifier):
    classifier, head, more = make_classifier(), make_stage(1), make_stage(2, optimizer_state="keep")
    former = make_stepper(classifier, head)
    for number in range(3):
        former.step([(images(), labels(BINARY))], number, number)
    optimizer = make_optimizer(classifier, more, head, former.optimizer)
    weight, new = classifier.head.linear.weight, classifier.backbone.groups["middle"][0].weight
    assert optimizer.state[weight]["step"] == 3
    assert torch.equal(optimizer.state[weight]["exp_avg"], former.optimizer.state[weight]["exp_avg"])
    assert new not in optimizer.state
    stepper = make_stepper(classifier, more, optimizer=optimizer)
    stepper.step([(images(), labels(BINARY))], 3, 0)
    assert optimizer.state[weight]["step"] == 4 and optimizer.state[new]["step"] == 1
    fresh = make_optimizer(classifier, make_stage(2), head, former.optimizer)
    assert not fresh.state


def test_rates_follow_the_pace_and_new_groups_lag(make_classifier):
    classifier = make_classifier()
    stage = make_stage(2, epochs=5, warmup_new_groups=0.5, learning_rate=0.1)
    optimizer = make_optimizer(classifier, stage, make_stage(1))
    stepper = make_stepper(classifier, stage, optimizer=optimizer)
    stepper.step([(images(), labels(BINARY))], 0, 1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    top = rates[id(classifier.backbone.groups["top"][0].weight)]
    middle = rates[id(classifier.backbone.groups["middle"][0].weight)]
    assert top == pytest.approx(0.1 * stepper.pace.learning_rate_factor(1))
    assert middle == pytest.approx(top * 2 / 5), "the second of five steps of warming up"


def test_placing_is_what_the_layout_of_the_weights_asks_for(make_classifier):
    classifier = make_classifier().to(memory_format=torch.channels_last)
    place = Placement(classifier)
    assert place(images()).is_contiguous(memory_format=torch.channels_last)
    pooled = torch.rand(4, 8)
    assert place(pooled) is pooled
    volumes = make_classifier(backbone="tiny3d").to(memory_format=torch.channels_last_3d)
    x = Placement(volumes)(torch.rand(2, 3, 8, 16, 16))
    assert x.is_contiguous(memory_format=torch.channels_last_3d)


def test_losses_are_waited_for_one_step_later_and_named_by_their_step():
    checked = []
    losses = LossSum(10.0, lambda loss, step: checked.append((loss, step)))
    losses.add(torch.tensor(1.0), 4)
    assert checked == []
    losses.add(torch.tensor(2.0), 5)
    assert checked == [(1.0, 4)]
    assert losses.total() == losses.total() == 13.0
    assert checked == [(1.0, 4), (2.0, 5)]


def test_seeding_a_step_queues_nothing_for_a_gpu_that_is_not_there(make_classifier):
    """torch.manual_seed would keep a traceback for each step until CUDA is used."""
    stepper = make_stepper(make_classifier(), make_stage(0))
    before = len(torch.cuda._queued_calls)
    for number in range(3):
        stepper.step([(images(), labels(BINARY))], number, 0)
    assert len(torch.cuda._queued_calls) == before
