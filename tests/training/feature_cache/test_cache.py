"""The frozen prefix's activations: computed once, shared, and the same as computing them again."""

import copy
import errno
import multiprocessing
import os
import signal
import threading

import numpy as np
import pytest
import torch

from medtl.data.prepared import PreparedDataset
from medtl.data.task import Task
from medtl.errors import OutputError
from medtl.imaging.augmentation import Augmentation, AugmentationConfig
from medtl.models.backbones import BACKBONES
from medtl.models.classifier import Classifier
from medtl.models.costs import step_costs
from medtl.training.feature_cache import cache as features
from medtl.training.feature_cache.cache import FeatureCache, Views, pass_batch_size
from medtl.training.feature_cache.store import StoreWriter
from tests.waiting import PATIENCE

from ..processes import in_processes

fork = multiprocessing.get_context("fork")
FAMILIES = {
    "tiny": (32, 32),
    "mobilenet_v3_small": (64, 64),
    "tiny3d": (8, 16, 16),
    "slices_mobilenet_v3_small": (3, 64, 64),
}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Let ten samples be three batches."""
    monkeypatch.setattr(features, "MOST_IN_A_BATCH", 4)


def make_views(make_prepared, count=10, size=(32, 32), seed=0, **augmentation):
    prepared, _ = make_prepared(count, size)
    config = AugmentationConfig(**augmentation)
    key = f"{seed} {config.model_dump_json()}"
    return Views(prepared, np.arange(count), Augmentation(config, size), seed, key)


def make_cache(classifier, tmp_path, precision="cpu 32", **options):
    return FeatureCache(classifier, torch.no_grad, precision, root=tmp_path / "features", **options)


def computed(cache, views, wanted):
    """Return how many images the network saw for a call of ensure, and what it returned."""
    seen = []
    whole = cache._boundaries
    cache._boundaries = lambda net, images, steps: (seen.append(len(images)), whole(net, images, steps))[1]
    stores = cache.ensure(views, wanted)
    cache._boundaries = whole
    return sum(seen), stores


def content(stores):
    return {step: [view.activations.tobytes() for view in store.views] for step, store in stores.items()}


def folders(tmp_path):
    return {path.name for path in (tmp_path / "features").iterdir() if path.is_dir()}


@pytest.mark.parametrize("backbone", FAMILIES)
def test_training_on_the_cache_gives_the_same_logits_at_every_boundary(make_prepared, tmp_path, backbone):
    torch.manual_seed(0)
    classifier = Classifier(BACKBONES[backbone](), Task("binary", ("normal", "lesion")))
    views = make_views(make_prepared, 6, FAMILIES[backbone])
    steps = range(1, classifier.head_step + 1)
    stores = make_cache(classifier, tmp_path).ensure(views, dict.fromkeys(steps, 2))
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    for step in steps:
        logits = []
        for source, start in ((stores[step], step), (views, 0)):
            classifier.load_state_dict(state)
            classifier.freeze(min(step, classifier.pool_step), batch_norm_follows_data=False)
            logits.append(train_a_little(classifier, source, start))
        assert torch.allclose(*logits, rtol=0, atol=1e-5), step


def train_a_little(classifier, source, start):
    """Take four steps of descent over two views; return the logits of all of them."""
    thawed = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(thawed, lr=0.01)
    classifier.train()
    logits = []
    for number, indices in enumerate(([5, 0, 3], [1, 2, 4], [0, 5, 2], [4, 3, 1])):
        torch.manual_seed(number)  # dropout
        logits.append(classifier(source.read(indices, number % 2), start))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits[-1], torch.tensor([0, 1, 0])).backward()
        optimizer.step()
    return torch.stack(logits).detach()


def test_one_pass_serves_several_boundaries(make_classifier, make_prepared, tmp_path):
    seen, cache = [], make_cache(make_classifier(), tmp_path)
    cache.ensure(make_views(make_prepared), {4: 2, 2: 1}, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (20, 20), "ten samples pass twice"


def test_a_second_run_computes_nothing(make_classifier, make_prepared, tmp_path):
    views = make_views(make_prepared)
    _, first = computed(make_cache(make_classifier(), tmp_path), views, {4: 2})
    images, second = computed(make_cache(make_classifier(), tmp_path), views, {4: 2})
    assert images == 0 and content(first) == content(second)


def test_a_run_with_more_views_computes_only_those_that_are_not_there(
    make_classifier, make_prepared, tmp_path
):
    views, cache = make_views(make_prepared), make_cache(make_classifier(), tmp_path)
    images, two = computed(cache, views, {4: 2})
    more, four = computed(cache, views, {4: 4})
    assert (images, more) == (20, 20)
    assert content(four)[4][:2] == content(two)[4]


@pytest.mark.parametrize("changed", ["head", "above", "seed", "augmentation", "mode"])
def test_what_the_first_view_does_not_depend_on_shares_its_store(
    make_classifier, make_prepared, tmp_path, changed
):
    classifier, knobs = make_classifier(), {}
    make_cache(classifier, tmp_path).ensure(make_views(make_prepared), {2: 1})
    if changed in ("head", "above"):
        module = classifier.head.linear if changed == "head" else classifier.backbone.groups["top"][0]
        torch.nn.init.zeros_(module.weight)
    elif changed == "mode":
        classifier.freeze(2, batch_norm_follows_data=True)
    else:
        knobs = {"seed": 1} if changed == "seed" else {"gamma": 0.4}
    images, _ = computed(make_cache(classifier, tmp_path), make_views(make_prepared, **knobs), {2: 1})
    assert images == 0


@pytest.mark.parametrize(
    "changed",
    [
        *("weight", "statistics", "normalisation", "pixel", "order", "seed", "augmentation"),
        *("version", "precision", "threads", "batch", "boundary", "pooling"),
    ],
)
def test_what_the_numbers_depend_on_has_a_store_of_its_own(
    make_classifier, make_prepared, tmp_path, monkeypatch, changed
):
    classifier, step, options, knobs = make_classifier(), 2, {}, {}
    make_cache(classifier, tmp_path).ensure(make_views(make_prepared), {step: 2})
    backbone = classifier.backbone
    if changed == "weight":
        backbone.groups["middle"][0].weight.data[0, 0, 0, 0] += 1e-6
    elif changed == "statistics":
        backbone.groups["stem"][1].running_mean[0] += 1e-3
    elif changed == "normalisation":
        backbone.normalise.mean = (0.25,)
    elif changed in ("seed", "augmentation"):
        knobs = {"seed": 1} if changed == "seed" else {"gamma": 0.4}
    elif changed == "version":
        monkeypatch.setattr(features, "VERSIONS", ("next",))
    elif changed == "precision":
        options = {"precision": "cpu bf16"}
    elif changed == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    elif changed == "batch":
        monkeypatch.setattr(features, "MOST_IN_A_BATCH", 2)
    elif changed == "boundary":
        step = 1
    elif changed == "pooling":
        classifier = copy.deepcopy(classifier)  # what it costs is known of the other
        step, classifier.backbone.pooling = 4, "slice-attention"
        monkeypatch.setattr(classifier, "pool", lambda x: x.mean(3))
        classifier.head = torch.nn.Flatten()
    views = make_views(make_prepared, **knobs)
    if changed in ("pixel", "order"):
        views = altered(views, changed)
    known = folders(tmp_path)
    make_cache(classifier, tmp_path, **options).ensure(views, {step: 2})
    assert len(folders(tmp_path) - known) == (1 if changed in ("seed", "augmentation") else 2)


def altered(views, changed):
    if changed == "order":
        return Views(views.dataset, views.rows[::-1].copy(), views.augmentation, views.seed, views.key)
    old = views.dataset
    hashes = ("another", *old.content_hashes[1:])
    dataset = PreparedDataset(old.folder, old.pixels, old.sample_ids, hashes, ())
    return Views(dataset, views.rows, views.augmentation, views.seed, views.key)


def test_a_pass_takes_fewer_images_at_once_where_they_are_large(make_classifier, monkeypatch):
    monkeypatch.setattr(features, "MOST_IN_A_BATCH", 32)
    sizes = [pass_batch_size(step_costs(make_classifier(), (1, 1, side, side))) for side in (32, 2048, 8192)]
    assert sizes == [32, 8, 1]


def test_a_pass_that_was_broken_off_goes_on_where_it_was(make_classifier, make_prepared, tmp_path):
    views = make_views(make_prepared)
    unbroken = content(make_cache(make_classifier(), tmp_path / "unbroken").ensure(views, {4: 2, 1: 1}))

    def interrupt(done, total):
        if done >= 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_cache(make_classifier(), tmp_path).ensure(views, {4: 2, 1: 1}, interrupt)
    images, stores = computed(make_cache(make_classifier(), tmp_path), views, {4: 2, 1: 1})
    assert images == 6 and content(stores) == unbroken
    assert not any(name.startswith(".") for name in folders(tmp_path))


def test_a_pass_that_was_killed_leaves_no_lock_and_goes_on(make_classifier, make_prepared, tmp_path):
    views = make_views(make_prepared)

    def kill(done, total):
        if done >= 4:
            os.kill(os.getpid(), signal.SIGKILL)

    child = fork.Process(target=lambda: make_cache(make_classifier(), tmp_path).ensure(views, {4: 1}, kill))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == -signal.SIGKILL
    images, stores = computed(make_cache(make_classifier(), tmp_path), views, {4: 1})
    assert images == 6
    elsewhere = make_cache(make_classifier(), tmp_path / "elsewhere").ensure(views, {4: 1})
    assert content(stores) == content(elsewhere)


def run_all(*targets):
    """Run functions in processes of their own; return their exit codes."""
    children = [fork.Process(target=target) for target in targets]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
    stuck = [child for child in children if child.is_alive()]
    for child in stuck:
        child.kill()
    assert not stuck, "processes wait for each other"
    return [child.exitcode for child in children]


def test_of_two_processes_that_want_the_same_one_computes_and_the_other_waits(
    make_classifier, make_prepared, tmp_path
):
    views, together, counts = make_views(make_prepared), fork.Barrier(2), fork.Queue()

    def ask(wanted):
        together.wait(PATIENCE)
        cache = make_cache(make_classifier(), tmp_path)
        images, stores = computed(cache, views, wanted)
        counts.put((images, content(stores)[4][0]))

    assert run_all(lambda: ask({4: 2, 1: 1}), lambda: ask({4: 2, 2: 1})) == [0, 0]
    found = [counts.get(timeout=PATIENCE) for _ in range(2)]
    images = sorted(count for count, _ in found)
    assert images == [10, 20], "the other one has its own boundary left to do"
    assert found[0][1] == found[1][1]


def in_team(make_classifier, views, root, wanted, *, prepare=lambda rank, cache: None):
    """Run ensure in two processes of one run; return each one's (images, content), or (code, None)."""

    def member(group):
        cache = make_cache(make_classifier(), root, process_group=group)
        prepare(group.rank, cache)
        try:
            images, stores = computed(cache, views, wanted)
        except OutputError as error:
            return error.code, None
        return images, content(stores)

    return in_processes(member)


def test_a_team_shares_the_pass_and_writes_the_bytes_of_one_process(make_classifier, make_prepared, tmp_path):
    views, wanted = make_views(make_prepared), {4: 2, 2: 1}
    alone = content(make_cache(make_classifier(), tmp_path / "alone").ensure(views, wanted))
    first, second = in_team(make_classifier, views, tmp_path, wanted)
    assert (first[0], second[0]) == (10, 10), "six batches are dealt out"
    assert first[1] == second[1] == alone
    assert {path.name for path in (tmp_path / "features").iterdir()} == folders(tmp_path) | {".room.lock"}


def test_a_team_goes_on_with_what_a_process_alone_had_begun(make_classifier, make_prepared, tmp_path):
    views = make_views(make_prepared)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_cache(make_classifier(), tmp_path).ensure(views, {4: 1}, interrupt)
    first, second = in_team(make_classifier, views, tmp_path, {4: 1})
    assert first[0] + second[0] == 6 and first[1] == second[1]


def test_a_team_without_room_is_told_of_it_all_together(make_classifier, make_prepared, tmp_path):
    def no_budget(rank, cache):
        cache.budget_bytes = 1

    results = in_team(make_classifier, make_views(make_prepared), tmp_path, {4: 1}, prepare=no_budget)
    assert [result[0] for result in results] == ["cache-full", "cache-full"]
    assert not folders(tmp_path)


@pytest.mark.parametrize("unlucky", [0, 1])
def test_where_one_of_a_team_cannot_write_none_has_a_store(make_classifier, make_prepared, tmp_path, unlucky):
    def fill_disk(rank, cache):
        if rank == unlucky:
            StoreWriter.write = no_space

    results = in_team(make_classifier, make_views(make_prepared), tmp_path, {4: 2}, prepare=fill_disk)
    assert [result[0] for result in results] == ["cache-full", "cache-full"]
    assert not folders(tmp_path)


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("place", "call"), [(StoreWriter, "write"), (os, "posix_fallocate"), (os, "fsync")])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    make_classifier, make_prepared, tmp_path, monkeypatch, place, call
):
    cache, views = make_cache(make_classifier(), tmp_path), make_views(make_prepared)
    monkeypatch.setattr(place, call, no_space)
    with pytest.raises(OutputError) as caught:
        cache.ensure(views, {4: 2})
    assert caught.value.code == "cache-full" and "\n" not in str(caught.value)
    assert not folders(tmp_path)
    monkeypatch.undo()
    assert computed(cache, views, {4: 2})[0] == 20


def test_a_budget_that_is_too_small_is_one_line_and_evicts_nothing(make_classifier, make_prepared, tmp_path):
    views = make_views(make_prepared)
    make_cache(make_classifier(), tmp_path).ensure(views, {4: 1})
    known = folders(tmp_path)
    with pytest.raises(OutputError) as caught:
        make_cache(make_classifier(), tmp_path, budget_bytes=500).ensure(views, {1: 1})
    assert caught.value.code == "cache-full" and folders(tmp_path) == known


def test_a_later_run_evicts_what_an_earlier_one_left(make_classifier, make_prepared, tmp_path):
    views = make_views(make_prepared)
    stores = make_cache(make_classifier(), tmp_path).ensure(views, {1: 1})
    known = folders(tmp_path)
    size = sum(view.activations.nbytes for view in stores[1].views)
    with pytest.raises(OutputError):  # the stores are held
        make_cache(make_classifier(), tmp_path, budget_bytes=size).ensure(views, {2: 1})
    del stores
    make_cache(make_classifier(), tmp_path, budget_bytes=size).ensure(views, {2: 1})
    assert not folders(tmp_path) & known


def test_a_store_with_a_flipped_bit_is_computed_again(make_classifier, make_prepared, tmp_path):
    views, cache = make_views(make_prepared), make_cache(make_classifier(), tmp_path)
    whole = content(cache.ensure(views, {4: 1}))
    (path,) = (tmp_path / "features").glob("*/activations.f32")
    damaged = bytearray(path.read_bytes())
    damaged[17] ^= 64
    path.write_bytes(damaged)
    images, stores = computed(cache, views, {4: 1})
    assert images == 10 and content(stores) == whole


def test_reading_goes_on_while_the_network_runs(make_classifier, make_prepared, tmp_path, monkeypatch):
    views, cache = make_views(make_prepared), make_cache(make_classifier(), tmp_path)
    read, write, read_ahead = Views.read, StoreWriter.write, [threading.Event(), threading.Event()]
    unread = iter(read_ahead)

    def read_and_tell(*args, **kwargs):
        next(unread, threading.Event()).set()
        return read(*args, **kwargs)

    def write_when_more_is_read(*args):
        assert all(event.wait(PATIENCE) for event in read_ahead)
        write(*args)

    monkeypatch.setattr(Views, "read", read_and_tell)
    monkeypatch.setattr(StoreWriter, "write", write_when_more_is_read)
    cache.ensure(views, {4: 1})


def test_an_unwritable_cache_is_one_line_and_leaves_nothing(make_classifier, make_prepared, tmp_path):
    (tmp_path / "features").write_text("a file where the folder should be")
    with pytest.raises(OutputError) as caught:
        make_cache(make_classifier(), tmp_path).ensure(make_views(make_prepared), {4: 1})
    assert caught.value.code == "output-unwritable"


@pytest.mark.cuda
def test_a_pass_on_a_gpu_agrees_with_one_on_a_processor(make_classifier, make_prepared, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here")
    views = make_views(make_prepared)
    here = make_cache(make_classifier(), tmp_path).ensure(views, {4: 2})[4]
    there = make_cache(make_classifier().cuda(), tmp_path, precision="cuda 32").ensure(views, {4: 2})[4]
    assert torch.allclose(here.read(range(10), 1), there.read(range(10), 1), atol=1e-4)
