"""Averaged weights: the formula, what takes part, and batch norm's statistics."""

import copy

import pytest
import torch

from medtl.training.averaging import Average, estimate_batch_norm
from medtl.training.distributed import ProcessGroup
from medtl.training.schedule import Pace, Stage, unfreeze


def prepare(classifier, epochs=4, per_epoch=2, groups=3, **knobs):
    """Thaw a classifier for a stage; return its average."""
    stage = Stage(name="all", groups=groups, epochs=epochs, head_learning_rate=1e-3, **knobs)
    unfreeze(classifier, stage)
    return Average(classifier, Pace(stage, per_epoch))


def drift(classifier, seed):
    """Move every trainable parameter; return the head's bias, as one that stands for all."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand(parameter.shape, generator=generator))
    return classifier.head.linear.bias.detach().clone()


def test_the_moving_average_follows_its_formula_from_a_low_decay_on(make_classifier):
    classifier = make_classifier()
    average = prepare(classifier, average="ema", ema_decay=0.15)
    mean = classifier.head.linear.bias.detach().clone()
    for update in range(4):
        bias = drift(classifier, update)
        decay = min(0.15, (1 + update) / (10 + update))
        mean = decay * mean + (1 - decay) * bias
        average.after_step()
    with average.applied():
        assert torch.allclose(classifier.head.linear.bias, mean, atol=1e-6)


def test_swa_is_the_mean_over_the_last_epochs_each_taken_once(make_classifier):
    """Half of 4 epochs: those counted 2 and 3."""
    classifier = make_classifier()
    average = prepare(classifier, average="swa", swa_share=0.5)
    taken = []
    for epoch in range(4):
        bias = drift(classifier, epoch)
        average.after_step()
        average.after_epoch(epoch)
        if epoch == 3:
            average.after_epoch(epoch)  # as when a stopped validation is done again
        if epoch == 1:
            with average.applied():
                assert torch.equal(classifier.head.linear.bias, bias), "there is no average yet"
        if epoch >= 2:
            taken.append(bias)
    with average.applied():
        assert torch.allclose(classifier.head.linear.bias, torch.stack(taken).mean(dim=0), atol=1e-6)


def test_what_is_trained_comes_back_to_the_bit(make_classifier):
    classifier = make_classifier()
    average = prepare(classifier, average="ema", batch_norm="follow")
    drift(classifier, 0)
    average.after_step()
    drift(classifier, 1)
    before = copy.deepcopy(classifier.state_dict())
    with average.applied():
        assert not torch.equal(classifier.head.linear.bias, before["head.linear.bias"])
        classifier.train()(torch.rand(4, 1, 32, 32))  # moves batch norm's buffers, the counters too
    after = classifier.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_frozen_groups_take_no_part(make_classifier):
    classifier = make_classifier()
    average = prepare(classifier, groups=1, average="ema")
    average.after_step()
    assert not [name for name in average.state() if ".stem." in name or ".middle." in name]
    assert [name for name in average.state() if ".top." in name]


def test_the_state_is_whole(make_classifier):
    classifier = make_classifier()
    first = prepare(classifier, average="ema")
    assert first.state() == {}, "before the first step the average is the weights themselves"
    drift(classifier, 0)
    first.after_step()
    second = prepare(classifier, average="ema")
    second.restore(first.state())
    drift(classifier, 1)
    first.after_step()
    second.after_step()
    before, after = first.state(), second.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_none_keeps_nothing(make_classifier):
    average = prepare(make_classifier())
    average.after_step()
    average.after_epoch(3)
    assert average.state() == {}


def statistics(classifier):
    return {name: x.clone() for name, x in classifier.state_dict().items() if "running" in name}


def test_statistics_are_estimated_as_inference_meets_them(make_classifier):
    """The first norm's mean is that of its input over batches; dropout in front of the others is off."""
    classifier = make_classifier()
    prepare(classifier, average="swa", batch_norm="follow")
    images = [torch.rand(4, 1, 32, 32) for _ in range(3)]
    targets = torch.zeros(4)
    momentum = classifier.backbone.groups["stem"][1].momentum
    estimate_batch_norm(classifier, classifier, iter([(x, targets) for x in images]), 0, ProcessGroup())
    first = statistics(classifier)
    estimate_batch_norm(classifier, classifier, iter([(x, targets) for x in images]), 0, ProcessGroup())
    second = statistics(classifier)
    assert all(torch.equal(first[name], second[name]) for name in first), "dropout would differ"
    with torch.no_grad():
        inputs = [classifier.backbone.groups["stem"][0](classifier.backbone.normalise(x)) for x in images]
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    assert torch.allclose(classifier.backbone.groups["stem"][1].running_mean, mean, atol=1e-6)
    assert classifier.backbone.groups["stem"][1].momentum == momentum and not classifier.training


@pytest.mark.parametrize(("groups", "policy"), [(1, "follow"), (3, "pretrained")])
def test_statistics_that_do_not_follow_the_data_stay(make_classifier, groups, policy):
    classifier = make_classifier()
    prepare(classifier, groups=groups, average="swa", batch_norm=policy)
    before = statistics(classifier)
    estimate_batch_norm(
        classifier, classifier, iter([(torch.rand(4, 1, 32, 32), torch.zeros(4))]), 0, ProcessGroup()
    )
    moved = {
        name.split(".")[2] for name, x in statistics(classifier).items() if not torch.equal(x, before[name])
    }
    assert moved == ({"top"} if policy == "follow" else set())
