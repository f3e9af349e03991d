"""Which stages cache their prefix: by a plain rule, always the same, saved by the run."""

import json

import pytest
import torch

from medtl.data.task import Task
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.training.feature_cache.plan import CachePlan, plan_cache, shared_views
from medtl.training.schedule import Stage

IMAGE = (1, 1, 160, 160)


@pytest.fixture(scope="module")
def classifier():
    with torch.device("meta"):
        backbone = BACKBONES["resnet18"]()
    return Classifier(backbone, Task("binary", ("normal", "lesion")))


def stage(groups, epochs=5, views=1):
    return Stage(
        name=str(groups),
        groups=groups,
        epochs=epochs,
        head_learning_rate=1e-3,
        learning_rate=1e-3,
        views=views,
    )


def plan(classifier, stages, samples=100, budget=1e12, **options):
    return plan_cache(classifier, stages, IMAGE, samples, budget, **options)


def test_the_plan_says_what_it_does_and_why(classifier):
    head, top, everything = plan(classifier, [stage(0, 10), stage(1, 4), stage(5)])
    assert head.cached and head.reason == "1 pass instead of 10, 205 kB"
    assert top.cached and top.reason == "1 pass instead of 4, 10 MB"
    assert not everything.cached and everything.reason == "nothing is frozen"


def test_a_stage_that_reads_nothing_twice_is_not_cached(classifier):
    (alone,) = plan(classifier, [stage(0, 4, views=4)])
    assert not alone.cached and "no more than 4 views" in alone.reason


def test_stages_on_the_same_prefix_share_a_pass_and_its_stores(classifier):
    first, second, third = plan(classifier, [stage(0, 5, views=4), stage(1, 5, views=4), stage(0, 5)])
    assert shared_views([first, second, third], 0) == {first.step: 4, second.step: 4}
    assert third.cached and third.reason == "1 pass instead of 5, 205 kB", "the second stage trained below it"
    _, again = plan(classifier, [stage(0, 5, views=2), stage(0, 5)])
    assert again.reason == "1 pass instead of 5, stored by an earlier stage"


def test_more_views_than_epochs_are_not_computed(classifier):
    head, other = plan(classifier, [stage(0, 2, views=8), stage(0, 6, views=3)])
    assert head.views == 2 and not head.cached
    assert shared_views([head, other], 0) == {other.step: 3}


def test_a_stage_is_cached_while_the_budget_holds_it(classifier):
    stages = [stage(0, 10), stage(1, 10)]
    head, top = plan(classifier, stages, budget=1e6)
    assert head.cached and not top.cached
    assert top.reason == "10 MB of activations exceed the 795 kB left of fit.cache_gb"


def test_without_a_budget_nothing_is_cached_and_the_line_says_so(classifier):
    (head,) = plan(classifier, [stage(0)], budget=0)
    assert not head.cached and head.reason == "fit.cache_gb is 0"


def test_held_out_samples_take_one_view_each(classifier):
    size = 4 * 512
    (fits,) = plan(classifier, [stage(0, 10, views=2)], held_out=50, budget=size * 250)
    (exceeds,) = plan(classifier, [stage(0, 10, views=2)], held_out=50, budget=size * 250 - 1)
    assert fits.cached and not exceeds.cached


def test_a_stage_bounded_by_steps_is_planned_for_the_epochs_it_can_take(classifier):
    (long,) = plan(classifier, [stage(0, 10)])
    (short,) = plan(classifier, [stage(0, 10)], epochs=[1])
    assert long.cached and not short.cached


def test_a_stage_that_freezes_again_what_was_trained_has_a_pass_of_its_own(classifier):
    plans = plan(classifier, [stage(0, 9), stage(3, 9), stage(1, 9), stage(0, 9)])
    head, deep, above, again = (found.step for found in plans)
    assert shared_views(plans, 0) == {head: 1, deep: 1}
    assert shared_views(plans, 2) == {above: 1}
    assert shared_views(plans, 3) == {again: 1}


def test_the_same_schedule_has_the_same_plan_on_any_device_of_its_kind(classifier):
    on_cpu = Classifier(BACKBONES["resnet18"](), Task("binary", ("normal", "lesion")))
    stages = [stage(0, 10, 4), stage(2, 4, 2), stage(4, 6)]
    assert plan(on_cpu, stages) == plan(classifier, stages) == plan(classifier, stages)


def test_the_plan_of_a_run_is_plain_data(classifier):
    first, second = plan(classifier, [stage(0, 10), stage(1, 4)])
    second = second.uncached("the disk has no room")
    kept = json.dumps([first.model_dump(), second.model_dump()])
    assert [CachePlan.model_validate(row) for row in json.loads(kept)] == [first, second]
    assert first.cached and not second.cached and second.reason == "the disk has no room"


def test_many_stages_are_planned_in_a_moment(classifier):
    stages = [stage(groups % 5, 2 + groups % 7, 1 + groups % 3) for groups in range(30)]
    assert len(plan(classifier, stages, budget=1e8)) == 30
