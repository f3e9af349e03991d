"""Processes that train together: they do what one would, agree on everything, and end together."""

import hashlib
import os
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch

from medtl.core.progress import StoppedError
from medtl.data.task import Task
from medtl.errors import TrainingError
from medtl.training.checkpoint import model_tensors, read_header
from medtl.training.config import FitConfig
from medtl.training.device import make_accelerator
from medtl.training.distributed import ProcessGroup, joined_group
from medtl.training.imbalance import IMBALANCE
from medtl.training.run_folder import RunFolder
from medtl.training.schedule import Pace, ScheduleConfig, Stage, unfreeze
from medtl.training.step import Stepper, make_optimizer

from .conftest import SMALL
from .processes import in_processes

MULTILABEL = Task("multilabel", ("a", "b", "c"))
VARIABLES = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def without_dropout(classifier):
    for module in classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return classifier


def gradients(classifier, group, imbalance, accumulate):
    """Return the loss, the wish to stop and the gradients of a step of 7 samples of unequal classes."""
    x = torch.rand((7, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 0, 0, 0, 1, 0, 0])
    if classifier.task.kind == "multilabel":
        targets = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (7, 3)).astype(float))
        targets[:3, 0] = float("nan")
    config = FitConfig(device="cpu", gradient_clip=None, imbalance=imbalance, batch_size=7)
    stage = Stage(name="stage", groups=2, epochs=1, head_learning_rate=0.1)
    unfreeze(classifier, stage)
    classifier.train()
    accelerator = make_accelerator(config, group)
    group.connect(accelerator.device)
    stepper = Stepper(
        accelerator,
        partial(accelerator.forward, classifier),
        classifier,
        make_optimizer(classifier, stage),
        IMBALANCE[config.imbalance.name](classifier.task, targets.numpy(), **config.imbalance.options),
        config,
        Pace(stage, 1),
        start=0,
        anchors={},
        process_group=group,
        stop=lambda: group.rank == 1,
    )
    own = group.split(np.arange(7))
    parts = [(x[part], targets[part]) for part in np.array_split(own, accumulate)]
    loss, stop, due = stepper.step(parts, 0, 0, None if group.alone else targets)
    assert not due
    found = {name: p.grad.numpy() for name, p in classifier.named_parameters() if p.grad is not None}
    return loss.item(), stop, found


@pytest.mark.parametrize("task", [Task("binary", ("normal", "lesion")), MULTILABEL], ids=["binary", "multi"])
@pytest.mark.parametrize(("imbalance", "accumulate"), [("class-weighted", 1), ("focal", 2)])
def test_the_gradient_is_that_of_one_process(make_classifier, task, imbalance, accumulate):
    """Of 7 samples one process takes 4 and the other 3, and the rare class is with one of them."""

    def member(group):
        return gradients(without_dropout(make_classifier(task)), group, imbalance, accumulate)

    loss, stop, alone = member(ProcessGroup())
    first, second = in_processes(member)
    assert not stop and first[1] and second[1], "one process asks, and all know it after this step"
    assert first[0] == second[0] == pytest.approx(loss, rel=1e-5)
    assert alone.keys() == first[2].keys() == second[2].keys()
    for name, gradient in alone.items():
        assert np.allclose(gradient, first[2][name], atol=1e-6), name
        assert np.array_equal(first[2][name], second[2][name]), name
    assert max(abs(gradient).max() for gradient in alone.values()) > 1e-3


def digest(classifier) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model_tensors(classifier).items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


@pytest.fixture
def train(make_fit, tmp_path):
    """Return what trains a run in one process or in two; it gives each one's (digest, orders, weights)."""

    def build(name, processes=2, schedule=SMALL, stops=(), resume=False, **config):
        def member(group):
            fit = make_fit(tmp_path / name, schedule=schedule, dropout=0.0, process_group=group, **config)
            without_dropout(fit.classifier)
            orders, real = [], type(fit.order).draw

            def draw(order, *place):
                orders.append([step.tolist() for step in real(order, *place)])
                return real(order, *place)

            polls = iter(range(1, 10_000))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(fit.order), "draw", draw)
                try:
                    fit.run(resume=resume, stop=lambda: (group.rank, next(polls)) in stops)
                except StoppedError as error:
                    return error.reason
            weights = {name: x.numpy() for name, x in model_tensors(fit.classifier).items()}
            return digest(fit.classifier), orders, weights

        return in_processes(member, processes) if processes > 1 else [member(ProcessGroup())]

    return build


def assert_alike(first: RunFolder, second: RunFolder) -> None:
    """Check that two runs have the same epochs and, to tolerance, the same numbers."""
    rows, others = first.read_history(), second.read_history()
    assert [(r["stage"], r["epoch"], r["step"], r["cached"]) for r in rows] == [
        (r["stage"], r["epoch"], r["step"], r["cached"]) for r in others
    ]
    for row, other in zip(rows, others, strict=True):
        for number in ("train_loss", "val_loss", "val_auroc"):
            assert float(row[number]) == pytest.approx(float(other[number]), abs=2e-4), (row, other)


@pytest.mark.parametrize(
    "config",
    [
        {"backbone": "tiny3d", "size": (8, 16, 16)},
        {"accumulate": 2, "imbalance": "class-weighted", "workers": 1},
        {"cache_gb": 0},
    ],
)
def test_two_processes_train_what_one_does(train, tmp_path, config):
    """The head on shared activations, then two stages of thawing: same order, same numbers, one writer."""
    ((_, order, weights),) = train("one", processes=1, **config)
    (mine, first, _), (theirs, second, other) = train("two", **config)
    assert mine == theirs, "all processes come to the same bits"
    assert order == first == second
    for name, tensor in weights.items():
        assert np.allclose(tensor, other[name], atol=1e-3), name
    assert_alike(RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two"))
    log = (tmp_path / "two" / "log.jsonl").read_text()
    assert log.count('"epoch"') == 2 * 6, "an event and its number for each epoch, once"
    assert len(list((tmp_path / "two" / "checkpoints" / "last").iterdir())) == 3


def test_batches_of_one_are_shared_and_none_is_empty(make_fit, tmp_path):
    """Three processes share 8 validation samples, and 16 of training, in batches of one."""
    schedule = ScheduleConfig(
        name="full", unfrozen_epochs=2, batch_norm="follow", average="swa", learning_rate=0.001
    )

    def member(group):
        batch = {"batch_size": 1, "accumulate": 4, "cache_gb": 0}
        fit = make_fit(
            tmp_path / f"of {group.size}", schedule=schedule, dropout=0.0, process_group=group, **batch
        )
        without_dropout(fit.classifier)
        seen = []
        fit.classifier.register_forward_pre_hook(
            lambda module, given: seen.append((module.training, len(given[0])))
        )
        fit.run(resume=False)
        assert all(size for _, size in seen), seen
        return [size for training, size in seen if not training]

    judged = in_processes(member, size=3)
    assert len({len(sizes) for sizes in judged}) == 1, judged
    assert [sum(sizes) for sizes in zip(*judged, strict=True)][:2] == [5, 3], "8 samples, in two rounds"
    member(ProcessGroup())
    one, three = (RunFolder(tmp_path / f"of {size}").read_history() for size in (1, 3))
    assert [row["step"] for row in one] == [row["step"] for row in three]


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_statistics_and_averages_are_the_same_everywhere(train, average):
    """Each process sees batch statistics of its own parts; what is kept of them is their mean."""
    schedule = ScheduleConfig(name="full", unfrozen_epochs=3, batch_norm="follow", average=average)
    first, second = train("run", schedule=schedule)
    assert first[0] == second[0]
    moved = first[2]["backbone.groups.stem.1.running_mean"]
    assert abs(moved).max() > 1e-3


@pytest.mark.parametrize("goes_on", [1, 2])
def test_a_stop_that_one_process_hears_ends_all_at_the_same_step_and_the_run_goes_on(
    train, tmp_path, goes_on
):
    train("unbroken", processes=1, cache_gb=0)
    found = train("broken", stops={(1, 7)}, cache_gb=0)  # two steps and a validation make an epoch
    assert found[0] == found[1] and "after 1 of 2 steps of epoch 1" in found[0]
    assert read_header(RunFolder(tmp_path / "broken").last).position.step == 5
    train("broken", processes=goes_on, resume=True, cache_gb=0)
    assert_alike(RunFolder(tmp_path / "unbroken"), RunFolder(tmp_path / "broken"))


@pytest.mark.parametrize("late", [0, 1])
def test_an_epoch_is_saved_within_by_all_or_none_whoever_finds_that_it_is_time(make_fit, tmp_path, late):
    """The clocks of two processes differ: one always finds that it is time to save, the other never."""
    schedule = ScheduleConfig(name="full", unfrozen_epochs=2, batch_norm="follow", average="ema")

    def member(group):
        minutes = 1e-9 if group.rank == late else None
        fit = make_fit(tmp_path / "run", schedule=schedule, process_group=group, save_minutes=minutes)
        saved, real = [], fit.files.save_last

        def save(position, optimizer, average, metrics):
            kept = hashlib.sha256(b"".join(x.numpy().tobytes() for x in average.state().values()))
            place = position.epoch, position.done, position.step
            saved.append((place, digest(fit.classifier), kept.hexdigest()))
            real(position, optimizer, average, metrics)

        fit.files.save_last = save
        fit.run(resume=False)
        return saved

    first, second = in_processes(member)
    assert first == second, "weights, statistics and their averages, too"
    places = [place for place, *_ in first]
    assert places == [(0, 1, 1), (0, 2, 2), (1, 0, 2), (1, 1, 3), (1, 2, 4), (2, 0, 4)]


def test_a_stop_in_the_pass_over_the_frozen_prefix_ends_all(train):
    found = train("run", stops={(1, 1)})
    assert all("in stage head" in line and "frozen prefix" in line for line in found)


def test_a_stop_in_a_validation_ends_all_and_keeps_the_steps(train, tmp_path):
    """Two steps and the batch of validation, in either process."""
    found = train("run", stops={(0, 3)}, cache_gb=0)
    assert found[0] == found[1] and "while epoch 1 was validated" in found[0]
    assert read_header(RunFolder(tmp_path / "run").last).position.done == 2


def test_the_fault_of_one_process_is_told_once_and_ends_all():
    def member(group):
        group.connect(torch.device("cpu"))
        if group.rank == 1:
            raise TrainingError("out-of-memory", "the device is full")
        group.sum(torch.zeros(1))

    first, second = in_processes(member)
    assert second.startswith("TrainingError: [out-of-memory]")
    assert first.startswith("AlreadyReportedError")


def test_a_process_that_is_killed_ends_the_other_one_in_a_line():
    def member(group):
        group.connect(torch.device("cpu"))
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        group.sum(torch.zeros(1))

    first, second = in_processes(member)
    assert second is None
    assert first.startswith("TrainingError: [world-lost] process 0 of 2") and "--resume" in first


def test_whoever_waits_for_the_leader_ends_with_it():
    def member(group):
        if group.leads:
            raise TrainingError("run-exists", "holds a run already")
        group.barrier()

    first, second, third = in_processes(member, size=3)
    assert first.startswith("TrainingError: [run-exists]")
    assert second.startswith("AlreadyReportedError") and third.startswith("AlreadyReportedError")


@pytest.mark.parametrize("error", [StoppedError("interrupted", "stopped"), KeyboardInterrupt()])
def test_of_a_stop_the_leader_speaks_however_long_it_takes_to_save(error):
    def member(group):
        if group.leads:
            time.sleep(0.5)
        raise error

    first, second = in_processes(member)
    assert first.startswith(type(error).__name__) and second.startswith("AlreadyReportedError")


def test_parts_are_every_sample_once_and_differ_by_one_at_most():
    step = np.arange(11)
    parts = [ProcessGroup(rank, 3).split(step) for rank in range(3)]
    assert np.array_equal(np.concatenate(parts), step)
    assert [len(part) for part in parts] == [4, 4, 3]


def test_a_process_alone_changes_nothing(make_classifier):
    group, extras = ProcessGroup(), torch.rand(2)
    classifier = make_classifier()
    classifier.head.linear.weight.grad = torch.ones(2, 8)
    assert group.sum_gradients(classifier.parameters(), extras) is extras
    assert torch.equal(classifier.head.linear.weight.grad, torch.ones(2, 8))
    assert group.broadcast([0.1]) == [0.1] and group.any(True) and not group.stop_requested(False)
    assert group.split(extras.numpy()) is not None and group.leads
    group.connect(torch.device("cpu"))
    assert not torch.distributed.is_initialized()


def test_more_processes_than_samples_of_a_step_are_refused_in_a_line(make_fit, tmp_path):
    """16 training images in steps of 8: the ninth process would have nothing to do."""
    make_fit(tmp_path / "enough", process_group=ProcessGroup(0, 8))
    with pytest.raises(TrainingError, match="9 processes cannot share 8 samples") as caught:
        make_fit(tmp_path / "few", process_group=ProcessGroup(0, 9))
    assert caught.value.code == "world-unjoined"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"RANK": ""}, "RANK is not"),
        ({"RANK": "2"}, "no process 2 of 2"),
        ({"WORLD_SIZE": "two"}, "two"),
        ({"LOCAL_RANK": "-1"}, "process"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not"),
    ],
)
def test_half_an_environment_is_refused_in_a_line(monkeypatch, changes, word):
    for name, value in {**VARIABLES, "MASTER_PORT": "1", **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=word) as caught, joined_group():
        pass
    assert caught.value.code == "world-unjoined" and len(str(caught.value)) <= 200


def sums_on_a_gpu(group):
    """Return what tensors on the first GPU come to when they are added up: over NCCL in a group of one."""
    if group.size == 1:
        group = ProcessGroup(0, 1, 0, torch.distributed.HashStore())
    group.connect(torch.device("cuda", 0) if group.size == 1 else torch.device("cpu"))
    linear = torch.nn.Linear(3, 2).cuda()
    for parameter in linear.parameters():
        parameter.grad = torch.full_like(parameter, group.rank + 1.0)
    extras = group.sum_gradients(linear.parameters(), torch.tensor([group.rank + 1.0]).cuda())
    backend = torch.distributed.get_backend_config()
    return [linear.weight.grad.sum().item(), extras.item(), *group.broadcast([0.5]), "nccl" in backend]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("size", [1, 2])
def test_gradients_on_a_gpu_are_added_up(size):
    """Over NCCL, which asks for a GPU each; and over gloo by two processes on one GPU."""
    total = size * (size + 1) / 2
    assert in_processes(sums_on_a_gpu, size, "spawn") == [[6 * total, total, 0.5, size == 1]] * size
