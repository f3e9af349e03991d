"""A fit and its cache: the plan stands when it is resumed, and where there is no room it goes on without."""

import pytest

from medtl.errors import OutputError
from medtl.training.checkpoint import read_header
from medtl.training.feature_cache import store as feature_store
from medtl.training.feature_cache.cache import FeatureCache
from medtl.training.schedule import ScheduleConfig
from tests.training.conftest import SilentWatcher
from tests.training.test_trainer import Killed, digest

SCHEDULE = ScheduleConfig(
    name="gradual", head_epochs=3, unfrozen_epochs=6, steps=2, head_learning_rate=0.05, learning_rate=0.01
)


class Noting(SilentWatcher):
    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, label, text):
        self.notes.append(text)


class KilledAfterEpochs(SilentWatcher):
    """Ends the fit in the epoch after so many."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def progress(self, what, done, total):
        if len(self.rows) == self.epochs:
            raise Killed


def cached(fit):
    return [plan.cached for plan in fit.plans]


def refuse(monkeypatch, refuses):
    """Let the cache have no room for what `refuses(wanted)` says."""
    ensure = FeatureCache.ensure

    def maybe(cache, views, wanted, *rest, **options):
        if refuses(wanted):
            raise feature_store.cache_full(cache.root, "the disk has no room")
        return ensure(cache, views, wanted, *rest, **options)

    monkeypatch.setattr(FeatureCache, "ensure", maybe)


def test_a_resumed_run_keeps_the_plan_that_it_began_with(make_fit, tmp_path):
    unbroken = make_fit(tmp_path / "unbroken", SCHEDULE)
    unbroken.run(resume=False)
    assert cached(unbroken) == [True, True, False]
    with pytest.raises(Killed):
        make_fit(tmp_path / "killed", SCHEDULE, watcher=KilledAfterEpochs(4)).run(resume=False)
    resumed = make_fit(tmp_path / "killed", SCHEDULE, cache_gb=0)  # a plan of now would cache nothing
    resumed.run(resume=True)
    assert resumed.plans == unbroken.plans
    assert digest(resumed.classifier) == digest(unbroken.classifier)
    assert read_header(tmp_path / "killed" / "checkpoints" / "last").plans == tuple(unbroken.plans)


def test_without_room_a_run_goes_on_uncached_and_says_so(make_fit, tmp_path, monkeypatch):
    refuse(monkeypatch, lambda wanted: True)
    fit = make_fit(tmp_path / "run", SCHEDULE, watcher=(watcher := Noting()))
    fit.run(resume=False)
    assert cached(fit) == [False, False, False]
    assert "the disk has no room" in watcher.notes[0] and "\n" not in watcher.notes[0]
    assert fit.plans[0].reason == "the disk has no room"
    monkeypatch.undo()
    plain = make_fit(tmp_path / "plain", SCHEDULE, cache_gb=0)
    plain.run(resume=False)
    assert digest(fit.classifier) == digest(plain.classifier)


def test_where_later_stages_have_no_room_this_one_is_cached_all_the_same(make_fit, tmp_path, monkeypatch):
    refuse(monkeypatch, lambda wanted: 1 in wanted)
    fit = make_fit(tmp_path / "run", SCHEDULE)
    fit.run(resume=False)
    assert cached(fit) == [True, False, False]


@pytest.mark.parametrize("epochs", [4, 5, 7])
def test_a_run_that_lost_its_cache_resumes_to_the_same_bits(make_fit, tmp_path, monkeypatch, epochs):
    with monkeypatch.context() as patch:
        refuse(patch, lambda wanted: 1 in wanted)
        unbroken = make_fit(tmp_path / "unbroken", SCHEDULE)
        unbroken.run(resume=False)
        with pytest.raises(Killed):
            make_fit(tmp_path / "killed", SCHEDULE, watcher=KilledAfterEpochs(epochs)).run(resume=False)
    resumed = make_fit(tmp_path / "killed", SCHEDULE)  # now there is room
    resumed.run(resume=True)
    assert cached(resumed) == [True, False, False]
    assert digest(resumed.classifier) == digest(unbroken.classifier)


def test_a_cached_stage_that_finds_no_room_in_its_middle_is_one_line(make_fit, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        make_fit(tmp_path / "run", SCHEDULE, watcher=KilledAfterEpochs(1)).run(resume=False)
    refuse(monkeypatch, lambda wanted: True)
    with pytest.raises(OutputError) as caught:
        make_fit(tmp_path / "run", SCHEDULE).run(resume=True)
    assert caught.value.code == "cache-full"
