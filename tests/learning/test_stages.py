"""Schedules become stages; stages decide what moves and how fast."""

import pytest
import torch
from pydantic import ValidationError

from medtl.learning.stages import (
    ScheduleConfig,
    Stage,
    entry_step,
    parameter_groups,
    rate_factor,
    resolve_schedule,
    thaw,
)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("linear-probe", [0]),
        ("head-then-all", [0, 9]),
        ("gradual", [0, 4, 9]),
        ("full", [9]),
        ("scratch", [9]),
    ],
)
def test_named_schedules_thaw_from_the_head_down(name, groups):
    assert [stage.groups for stage in resolve_schedule(ScheduleConfig(name=name), 9)] == groups


def test_gradual_shares_its_epochs_and_stops_where_told():
    stages = resolve_schedule(ScheduleConfig(name="gradual", thawed_epochs=7, steps=3, thaw=6), 9)
    assert [stage.groups for stage in stages] == [0, 2, 4, 6]
    assert sum(stage.epochs for stage in stages[1:]) == 7


def test_more_steps_than_epochs_is_refused():
    with pytest.raises(ValidationError, match="fewer than steps"):
        ScheduleConfig(name="gradual", thawed_epochs=1, steps=2)


def test_written_stages_are_taken_as_they_are():
    stage = Stage(name="mine", groups=99, epochs=2, head_rate=1e-3, rate=1e-4)
    assert resolve_schedule(ScheduleConfig(stages=(stage,)), 5)[0].groups == 5


def test_only_the_named_groups_are_trainable(make_classifier):
    classifier = make_classifier()
    thaw(classifier, Stage(name="top", groups=1, epochs=1, head_rate=1e-3, rate=1e-4))
    trainable = {
        name for name, group in classifier.backbone.groups.items() if next(group.parameters()).requires_grad
    }
    assert trainable == {"top"}
    assert entry_step(classifier, Stage(name="head", groups=0, epochs=1, head_rate=1)) == classifier.head_step


def test_frozen_groups_stay_in_evaluation_mode(make_classifier):
    classifier = make_classifier()
    thaw(classifier, Stage(name="top", groups=1, epochs=1, head_rate=1e-3, batch_norm="follow"))
    classifier.train()
    modes = {
        name: any(m.training for m in group.modules()) for name, group in classifier.backbone.groups.items()
    }
    assert modes == {"stem": False, "middle": False, "top": True}


def test_thawed_batch_norm_may_keep_its_pretrained_statistics(make_classifier):
    classifier = make_classifier()
    thaw(classifier, Stage(name="all", groups=3, epochs=1, head_rate=1e-3, batch_norm="pretrained"))
    classifier.train()
    before = classifier.backbone.groups["top"][1].running_mean.clone()
    classifier(torch.rand(4, 1, 32, 32))
    assert torch.equal(before, classifier.backbone.groups["top"][1].running_mean)
    assert classifier.backbone.groups["top"][2].training, "dropout of thawed groups is live"


def test_rates_fall_towards_the_stem_and_cover_each_parameter_once(make_classifier):
    classifier = make_classifier()
    stage = Stage(name="all", groups=3, epochs=1, head_rate=1e-2, rate=1e-3, decay=0.5)
    thaw(classifier, stage)
    groups = parameter_groups(classifier, stage)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(classifier.parameters()))
    by_group = {n: rates[id(next(g.parameters()))] for n, g in classifier.backbone.groups.items()}
    assert by_group == {"top": 1e-3, "middle": 5e-4, "stem": 2.5e-4}
    assert all(group["weight_decay"] == 0 for group in groups if group["params"][0].ndim == 1)


def test_rate_rises_then_falls_to_nearly_nothing():
    factors = [rate_factor(step, 100, 0.1) for step in range(100)]
    assert max(factors) == 1.0 and factors.index(1.0) in (9, 10)
    assert factors[-1] < 0.01 and all(0 < factor <= 1 for factor in factors)
