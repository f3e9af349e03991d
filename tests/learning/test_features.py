"""The frozen prefix's cache: planned, computed once, and the same as computing it again."""

import numpy as np
import pytest
import torch

from medtl.errors import OutputError
from medtl.imaging.augmentation import Augmentation, AugmentationConfig
from medtl.learning.features import FeatureCache, Views, plan_cache
from medtl.learning.stages import Stage


def make_views(make_prepared, count=10):
    prepared, _ = make_prepared(count)
    return Views(prepared, np.arange(count), Augmentation(AugmentationConfig(), (32, 32)), 0, "key")


def make_cache(classifier, tmp_path):
    return FeatureCache(
        classifier, torch.no_grad, batch_size=4, precision="cpu 32", root=tmp_path / "features"
    )


def stage(groups, epochs=5, views=1):
    return Stage(name=str(groups), groups=groups, epochs=epochs, head_rate=1e-3, rate=1e-3, views=views)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_cached_logits_equal_uncached_ones_at_every_boundary(make_classifier, make_prepared, tmp_path, step):
    classifier, views = make_classifier().eval(), make_views(make_prepared)
    store = make_cache(classifier, tmp_path).ensure(views, {step: 2})[step]
    indices = [7, 0, 3]
    for view in (0, 1):
        with torch.no_grad():
            cached = classifier(store.read(indices, view), step)
            plain = classifier(views.read(indices, view))
        assert torch.allclose(cached, plain, atol=1e-5)


def test_one_pass_serves_several_boundaries(make_classifier, make_prepared, tmp_path):
    classifier, views, seen = make_classifier().eval(), make_views(make_prepared), []
    make_cache(classifier, tmp_path).ensure(
        views, {4: 1, 2: 1}, lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (10, 10), "ten samples pass once"


def test_a_second_run_computes_nothing(make_classifier, make_prepared, tmp_path):
    classifier, views, seen = make_classifier().eval(), make_views(make_prepared), []
    cache = make_cache(classifier, tmp_path)
    first = cache.ensure(views, {4: 1})[4]
    second = cache.ensure(views, {4: 1}, lambda done, total: seen.append(done))[4]
    assert not seen
    assert np.array_equal(first.activations, second.activations)


def test_other_prefix_weights_are_another_store(make_classifier, make_prepared, tmp_path):
    classifier, views, seen = make_classifier().eval(), make_views(make_prepared), []
    cache = make_cache(classifier, tmp_path)
    before = cache.ensure(views, {2: 1})[2].activations.copy()
    with torch.no_grad():
        classifier.backbone.groups["stem"][0].weight.add_(0.1)
    after = cache.ensure(views, {2: 1}, lambda done, total: seen.append(done))[2].activations
    assert seen and not np.array_equal(before, after)


def test_weights_above_the_boundary_do_not_matter(make_classifier, make_prepared, tmp_path):
    classifier, views, seen = make_classifier().eval(), make_views(make_prepared), []
    cache = make_cache(classifier, tmp_path)
    cache.ensure(views, {2: 1})
    with torch.no_grad():
        classifier.backbone.groups["top"][0].weight.add_(0.1)
    cache.ensure(views, {2: 1}, lambda done, total: seen.append(done))
    assert not seen


def test_the_plan_says_what_it_does_and_why(make_classifier):
    classifier, image = make_classifier(), torch.rand(1, 1, 32, 32)
    stages = [stage(0), stage(1, epochs=1), stage(2, epochs=4), stage(3)]
    head, short, middle, everything = plan_cache(classifier, stages, image, 100, 10e6)
    assert head.cached and head.reason.startswith("one pass in place of 5")
    assert not short.cached and "no more than" in short.reason
    assert middle.cached
    assert not everything.cached and everything.reason == "nothing is frozen"


def test_the_plan_keeps_the_disk_budget(make_classifier):
    image = torch.rand(1, 1, 32, 32)
    (plan,) = plan_cache(make_classifier(), [stage(1)], image, 1000, budget_bytes=100)
    assert not plan.cached and "exceed" in plan.reason


@pytest.mark.parametrize("damage", ["cut", "gone", "json"])
def test_a_store_that_is_not_whole_is_computed_again(make_classifier, make_prepared, tmp_path, damage):
    classifier, views = make_classifier().eval(), make_views(make_prepared)
    cache = make_cache(classifier, tmp_path)
    whole = cache.ensure(views, {4: 1})[4].activations.copy()
    (store,) = (tmp_path / "features").iterdir()
    if damage == "cut":
        (store / "activations.f32").write_bytes((store / "activations.f32").read_bytes()[:-4])
    elif damage == "gone":
        (store / "activations.f32").unlink()
    else:
        (store / "features.json").write_text("{")
    assert np.array_equal(cache.ensure(views, {4: 1})[4].activations, whole)


def test_an_unwritable_cache_is_one_line_and_leaves_nothing(make_classifier, make_prepared, tmp_path):
    classifier, views = make_classifier().eval(), make_views(make_prepared)
    (tmp_path / "features").write_text("a file where the folder should be")
    with pytest.raises(OutputError) as caught:
        make_cache(classifier, tmp_path).ensure(views, {4: 1})
    assert caught.value.code == "output-unwritable"
