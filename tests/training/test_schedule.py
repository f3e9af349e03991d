"""Schedules become stages; stages decide what moves and how fast."""

import pytest
import torch
from pydantic import ValidationError

from medtl.training.schedule import (
    Pace,
    ScheduleConfig,
    Stage,
    StageOptions,
    entry_step,
    learning_rate_factor,
    parameter_groups,
    resolve_schedule,
    unfreeze,
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
    stages = resolve_schedule(ScheduleConfig(name="gradual", unfrozen_epochs=7, steps=3, unfreeze=6), 9)
    assert [stage.groups for stage in stages] == [0, 2, 4, 6]
    assert sum(stage.epochs for stage in stages[1:]) == 7


def test_more_steps_than_epochs_is_refused():
    with pytest.raises(ValidationError, match="fewer than steps"):
        ScheduleConfig(name="gradual", unfrozen_epochs=1, steps=2)


def test_written_stages_are_taken_as_they_are():
    stage = Stage(name="mine", groups=99, epochs=2, head_learning_rate=1e-3, learning_rate=1e-4)
    assert resolve_schedule(ScheduleConfig(stages=(stage,)), 5)[0].groups == 5


def test_only_the_named_groups_are_trainable(make_classifier):
    classifier = make_classifier()
    unfreeze(classifier, Stage(name="top", groups=1, epochs=1, head_learning_rate=1e-3, learning_rate=1e-4))
    trainable = {
        name for name, group in classifier.backbone.groups.items() if next(group.parameters()).requires_grad
    }
    assert trainable == {"top"}
    assert (
        entry_step(classifier, Stage(name="head", groups=0, epochs=1, head_learning_rate=1))
        == classifier.head_step
    )


def test_frozen_groups_stay_in_evaluation_mode(make_classifier):
    classifier = make_classifier()
    unfreeze(classifier, Stage(name="top", groups=1, epochs=1, head_learning_rate=1e-3, batch_norm="follow"))
    classifier.train()
    modes = {
        name: any(m.training for m in group.modules()) for name, group in classifier.backbone.groups.items()
    }
    assert modes == {"stem": False, "middle": False, "top": True}


def test_thawed_batch_norm_may_keep_its_pretrained_statistics(make_classifier):
    classifier = make_classifier()
    unfreeze(
        classifier, Stage(name="all", groups=3, epochs=1, head_learning_rate=1e-3, batch_norm="pretrained")
    )
    classifier.train()
    before = classifier.backbone.groups["top"][1].running_mean.clone()
    classifier(torch.rand(4, 1, 32, 32))
    assert torch.equal(before, classifier.backbone.groups["top"][1].running_mean)
    assert classifier.backbone.groups["top"][2].training, "dropout of thawed groups is live"


def test_rates_fall_towards_the_stem_and_cover_each_parameter_once(make_classifier):
    classifier = make_classifier()
    stage = Stage(
        name="all", groups=3, epochs=1, head_learning_rate=1e-2, learning_rate=1e-3, layer_decay=0.5
    )
    unfreeze(classifier, stage)
    groups = parameter_groups(classifier, stage)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(classifier.parameters()))
    by_group = {n: rates[id(next(g.parameters()))] for n, g in classifier.backbone.groups.items()}
    assert by_group == {"top": 1e-3, "middle": 5e-4, "stem": 2.5e-4}
    assert all(group["weight_decay"] == 0 for group in groups if group["params"][0].ndim == 1)


def test_rate_rises_then_falls_to_nearly_nothing():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert max(factors) == 1.0 and factors.index(1.0) in (9, 10)
    assert factors[-1] < 0.01 and all(0 < factor <= 1 for factor in factors)


def test_every_shared_knob_of_a_schedule_reaches_its_stages():
    knobs = {
        "patience": 3,
        "min_delta": 0.01,
        "restore_best": False,
        "learning_rate": 5e-4,
        "layer_decay": 0.7,
        "weight_decay": 0.2,
        "l2_sp": 0.3,
        "warmup": 0.2,
        "warmup_new_groups": 0.4,
        "optimizer_state": "keep",
        "average": "swa",
        "ema_decay": 0.9,
        "swa_share": 0.5,
        "views": 3,
    }
    assert knobs.keys() == set(StageOptions.model_fields) - {"name", "head_learning_rate", "batch_norm"}
    for stage in resolve_schedule(ScheduleConfig(**knobs), 9):
        assert {name: getattr(stage, name) for name in knobs} == knobs
    head, *thawed = resolve_schedule(
        ScheduleConfig(head_learning_rate=0.1, learning_rate=0.2, batch_norm="follow"), 9
    )
    assert (head.head_learning_rate, head.batch_norm) == (0.1, "pretrained")
    assert {(stage.head_learning_rate, stage.batch_norm) for stage in thawed} == {(0.2, "follow")}


def test_step_budgets_are_shared_like_epochs():
    schedule = ScheduleConfig(unfrozen_epochs=9, head_steps=50, unfrozen_steps=101)
    assert [stage.steps for stage in resolve_schedule(schedule, 9)] == [50, 50, 51]
    with pytest.raises(ValidationError, match="unfrozen_steps 1 are fewer than steps"):
        ScheduleConfig(unfrozen_steps=1)


def test_scratch_is_pulled_towards_no_random_weights():
    (stage,) = resolve_schedule(ScheduleConfig(name="scratch", l2_sp=0.5), 9)
    assert stage.l2_sp == 0


def pace(per_epoch=10, **knobs):
    return Pace(
        Stage(**{"name": "s", "groups": 1, "epochs": 4, "head_learning_rate": 1.0, **knobs}), per_epoch
    )


@pytest.mark.parametrize(
    ("steps", "total", "epochs", "last"),
    [(None, 40, 4, 10), (25, 25, 3, 5), (20, 20, 2, 10), (99, 40, 4, 10)],
)
def test_a_stage_ends_by_epochs_or_by_steps_to_the_step(steps, total, epochs, last):
    found = pace(steps=steps)
    assert (found.total, found.epochs, found.steps_of(found.epochs - 1)) == (total, epochs, last)
    assert sum(found.steps_of(epoch) for epoch in range(found.epochs)) == total
    assert found.learning_rate_factor(total - 1) < 0.02, "the rate falls over the steps there are"


def test_new_groups_warm_up_besides_and_only_they():
    found = pace(warmup=0.0, warmup_new_groups=0.25)
    old = [found.learning_rate_factor(step) for step in range(40)]
    new = [found.learning_rate_factor(step, new=True) for step in range(40)]
    assert old == [learning_rate_factor(step, 40, 0.0) for step in range(40)]
    assert [n / o for n, o in zip(new, old, strict=True)] == pytest.approx(
        [min(1, (s + 1) / 10) for s in range(40)]
    )


def test_the_rate_stays_where_it_is_while_weights_are_averaged():
    found = pace(average="swa", swa_share=0.5)
    factors = [found.learning_rate_factor(step) for step in range(40)]
    assert found.first_averaged_epoch == 2
    assert factors[:20] == [learning_rate_factor(step, 40, 0.1) for step in range(20)]
    assert len(set(factors[20:])) == 1 and 0.1 < factors[-1] < 0.9
    whole = pace(average="swa", swa_share=1.0)
    assert [whole.learning_rate_factor(step) for step in (0, 4, 39)] == [0.25, 1.0, 1.0], (
        "it warms up before it stays"
    )


def test_parameters_know_whether_they_are_new_and_whither_they_are_drawn(make_classifier):
    classifier = make_classifier()
    before = Stage(name="top", groups=1, epochs=1, head_learning_rate=1e-3)
    stage = Stage(name="more", groups=2, epochs=1, head_learning_rate=1e-3, l2_sp=0.1, weight_decay=0.5)
    groups = parameter_groups(classifier, stage, before)
    kind = {
        id(p): (group["new"], group["pull"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    assert kind[id(classifier.head.linear.weight)] == (False, 0.0, 0.5)
    assert kind[id(classifier.backbone.groups["top"][0].weight)] == (False, 0.1, 0.0)
    assert kind[id(classifier.backbone.groups["middle"][0].bias)] == (True, 0.1, 0.0)
    assert all(group["new"] for group in parameter_groups(classifier, stage))
