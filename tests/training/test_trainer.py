"""The loop over stages: it learns, resumes to the bit, and stops without loss."""

import hashlib
from functools import partial

import pytest
import torch

from medtl.core.progress import StoppedError
from medtl.errors import OutputError, TrainingError
from medtl.training.checkpoint import load_checkpoint, model_tensors, read_header, read_tensors
from medtl.training.config import FitConfig
from medtl.training.device import make_accelerator
from medtl.training.distributed import ProcessGroup
from medtl.training.imbalance import IMBALANCE
from medtl.training.run_folder import RunFolder
from medtl.training.schedule import ScheduleConfig, Stage

from .conftest import SMALL, SilentWatcher


def digest(classifier) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model_tensors(classifier).items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


class Killed(Exception):  # noqa: N818
    """Stands for a process that ends."""


class KillingWatcher(SilentWatcher):
    """Ends the fit after some number of progress calls, wherever that is."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def progress(self, what, done, total):
        self.left -= 1
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize(("backbone", "size"), [("tiny", (32, 32)), ("tiny3d", (8, 16, 16))])
def test_a_visible_difference_is_learned_in_2d_and_3d(make_fit, tmp_path, backbone, size):
    schedule = SMALL.model_copy(update={"unfrozen_epochs": 16})
    fit = make_fit(tmp_path / "run", schedule=schedule, backbone=backbone, size=size)
    fit.run(resume=False)
    assert fit.history[-1]["train_loss"] < fit.history[0]["train_loss"]
    assert fit.position.best[0] > 0.9
    assert (tmp_path / "run" / "history.csv").read_text().count("\n") == 1 + 18


@pytest.mark.parametrize("after", [0, 1, 3, 5, 7, 9, 11, 13])
def test_a_killed_run_ends_in_the_same_bits_when_resumed(make_fit, tmp_path, monkeypatch, after):
    unbroken = make_fit(tmp_path / "unbroken")
    unbroken.run(resume=False)
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "another home"))
    with pytest.raises(Killed):
        make_fit(tmp_path / "killed", watcher=KillingWatcher(after)).run(resume=False)
    resumed = make_fit(tmp_path / "killed")
    resumed.run(resume=True)
    assert digest(resumed.classifier) == digest(unbroken.classifier)
    kept = [(tmp_path / name / "history.csv").read_text().splitlines() for name in ("killed", "unbroken")]
    assert len(kept[0]) == len(kept[1])


# What a run may carry from step to step beside its weights, each with a schedule that uses it.
CARRIED = {
    "plain": {},
    "kept moments": {"optimizer_state": "keep", "warmup_new_groups": 0.3},
    "ema": {"average": "ema", "ema_decay": 0.8, "batch_norm": "follow"},
    "swa": {"average": "swa", "swa_share": 0.7, "batch_norm": "follow"},
    "l2-sp": {"l2_sp": 0.5},
    "last weights go on": {"restore_best": False, "average": "ema", "optimizer_state": "keep"},
    "step budgets": {"head_steps": 3, "unfrozen_steps": 7},
    "plateau": {"patience": 1, "min_delta": 0.05},
}
MIXED = {
    "accumulation": {"accumulate": 2},
    "mixup and cutmix": {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1},
    "by loss": {"select": "loss"},
}


class StopAt:
    """Asks to stop at the polls of that number, once in a session."""

    def __init__(self, poll: int) -> None:
        self.left = poll

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def run_in_sessions(build, polls) -> int:
    """Run, stop at some poll, resume by a fit of its own, and so on to the end; return the sessions."""
    for session in range(100):
        try:
            build().run(resume=True, stop=StopAt(polls[session % len(polls)]))
        except StoppedError as error:
            assert error.code == "interrupted" and "--resume" in str(error)
        else:
            return session + 1
    raise AssertionError("it never ends")


def assert_same_run(make_fit, tmp_path, polls, schedule, config) -> None:
    """Check that a run that is stopped again and again is the unbroken one, in every byte that it keeps."""
    make_fit(tmp_path / "unbroken", schedule=schedule, **config).run(resume=False)
    build = partial(make_fit, tmp_path / "broken", schedule=schedule, **config)
    assert run_in_sessions(build, polls) > 2
    runs = [RunFolder(tmp_path / name) for name in ("unbroken", "broken")]
    for which in ("best", "last"):
        headers = [read_header(getattr(run, which)) for run in runs]
        assert headers[0].tensors == headers[1].tensors, which
        assert headers[0].position == headers[1].position
    rows = [[{**row, "seconds": ""} for row in run.read_history()] for run in runs]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("carried", CARRIED)
def test_a_run_that_is_stopped_within_epochs_ends_in_the_same_bits(make_fit, tmp_path, carried):
    schedule = SMALL.model_copy(update=CARRIED[carried])
    assert_same_run(make_fit, tmp_path, (4, 5, 7), schedule, {})


@pytest.mark.parametrize("mixed", MIXED)
def test_so_does_one_whose_steps_are_accumulated_or_mixed(make_fit, tmp_path, mixed):
    assert_same_run(make_fit, tmp_path, (3, 4, 5), SMALL, MIXED[mixed])


def test_so_does_one_that_freezes_layers_again(make_fit, tmp_path):
    """Gradients that the first stage left in the backbone must not count when the second clips the head's."""
    stages = (
        Stage(name="all", groups=3, epochs=2, head_learning_rate=0.05, learning_rate=0.01),
        Stage(name="head", groups=0, epochs=4, head_learning_rate=0.05),
    )
    config = {"gradient_clip": 1e-3, "cache_gb": 0}  # below each step's norm, so that each step is clipped
    assert_same_run(make_fit, tmp_path, (5, 4, 3), ScheduleConfig(stages=stages), config)


def test_so_does_one_with_everything_at_once_and_loader_workers(make_fit, tmp_path):
    everything = {"optimizer_state": "keep", "average": "swa", "batch_norm": "follow", "l2_sp": 0.1}
    schedule = SMALL.model_copy(update={**everything, "unfrozen_epochs": 2, "views": 2})
    config = {"workers": 2, "accumulate": 2, "mixup": 1.0, "cache_gb": 0}
    assert_same_run(make_fit, tmp_path, (6, 7), schedule, config)


def test_an_epoch_is_saved_within_whenever_the_minutes_have_passed(make_fit, tmp_path, monkeypatch):
    schedule = ScheduleConfig(name="linear-probe", head_epochs=1)
    fit = make_fit(tmp_path / "run", schedule=schedule, save_minutes=1e-9)
    saved, real = [], fit.files.save_last
    monkeypatch.setattr(
        fit.files, "save_last", lambda position, *state: (saved.append(position), real(position, *state))
    )
    fit.run(resume=False)
    assert [(position.epoch, position.done) for position in saved] == [(0, 1), (0, 2), (1, 0)]


def test_a_stop_while_validating_need_not_train_again(make_fit, tmp_path):
    """Two steps an epoch and one validation batch: the third poll after the pass is in the validation."""
    fit = make_fit(tmp_path / "run", cache_gb=0)
    with pytest.raises(StoppedError, match="validated"):
        fit.run(resume=False, stop=StopAt(3))
    watcher = SilentWatcher()
    resumed = make_fit(tmp_path / "run", cache_gb=0, watcher=watcher)
    assert resumed.files.load_last().done == 2
    seen = []
    watcher.progress = lambda what, done, total: seen.append(what)
    resumed.run(resume=True)
    assert watcher.rows[0]["epoch"] == 1 and "head epoch 1" not in seen


def test_a_run_that_dies_between_best_and_last_of_a_new_stage_ends_in_the_same_bits(
    make_fit, tmp_path, monkeypatch
):
    unbroken = make_fit(tmp_path / "unbroken")
    unbroken.run(resume=False)
    fit = make_fit(tmp_path / "killed")
    real = fit.files.save_last

    def die_in_the_first_epoch_of_the_second_stage(position, *state):
        if position.stage == 1 and position.epoch == 1:
            raise Killed
        real(position, *state)

    monkeypatch.setattr(fit.files, "save_last", die_in_the_first_epoch_of_the_second_stage)
    with pytest.raises(Killed):
        fit.run(resume=False)
    resumed = make_fit(tmp_path / "killed")
    resumed.run(resume=True)
    assert digest(resumed.classifier) == digest(unbroken.classifier)


def test_the_result_does_not_depend_on_loader_workers(make_fit, tmp_path):
    alone, helped = make_fit(tmp_path / "alone"), make_fit(tmp_path / "helped", workers=2)
    alone.run(resume=False)
    helped.run(resume=False)
    assert digest(alone.classifier) == digest(helped.classifier)


def test_training_on_the_cache_equals_training_without_it(make_fit, tmp_path):
    cached, plain = make_fit(tmp_path / "cached"), make_fit(tmp_path / "plain", cache_gb=0)
    cached.run(resume=False)
    plain.run(resume=False)
    assert any(plan.cached for plan in cached.plans) and not any(plan.cached for plan in plain.plans)
    for name, tensor in model_tensors(cached.classifier).items():
        assert torch.allclose(tensor.float(), model_tensors(plain.classifier)[name].float(), atol=1e-4), name


def test_resuming_a_finished_run_changes_nothing(make_fit, tmp_path):
    fit = make_fit(tmp_path / "run")
    fit.run(resume=False)
    again = make_fit(tmp_path / "run", watcher=(watcher := SilentWatcher()))
    again.run(resume=True)
    assert not watcher.rows
    assert digest(again.classifier) == digest(fit.classifier)


def test_the_frozen_prefix_keeps_its_bytes_through_a_head_stage(make_fit, tmp_path):
    fit = make_fit(tmp_path / "run", schedule=ScheduleConfig(name="linear-probe", head_epochs=2))
    before = {name: tensor.clone() for name, tensor in fit.classifier.backbone.state_dict().items()}
    fit.run(resume=False)
    after = fit.classifier.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_epoch(make_fit, tmp_path):
    fit = make_fit(tmp_path / "run")
    real, calls = fit.strategy.loss, []

    def fail_in_the_second_epoch(logits, targets, smoothing=0.0):
        calls.append(1)
        return real(logits, targets, smoothing) * (float("nan") if len(calls) == 5 else 1.0)

    fit.strategy.loss = fail_in_the_second_epoch
    with pytest.raises(TrainingError, match="step 4") as caught:
        fit.run(resume=False)
    assert caught.value.code == "loss-not-finite"
    header = read_header(tmp_path / "run" / "checkpoints" / "last")
    assert header.position.epoch == 1
    load_checkpoint(tmp_path / "run", "last")


def test_patience_ends_a_stage_early(make_fit, tmp_path):
    schedule = SMALL.model_copy(
        update={"head_epochs": 30, "patience": 2, "name": "linear-probe", "head_learning_rate": 1e-9}
    )
    watcher = SilentWatcher()
    make_fit(tmp_path / "run", schedule=schedule, watcher=watcher).run(resume=False)
    assert len(watcher.rows) < 30
    assert "head ends: no improvement for 2 epochs" in watcher.notes


def test_patience_waits_for_more_than_min_delta(make_fit, tmp_path):
    update = {"name": "linear-probe", "head_epochs": 12, "patience": 2, "min_delta": 2.0}
    watcher = SilentWatcher()
    make_fit(tmp_path / "run", schedule=SMALL.model_copy(update=update), watcher=watcher).run(resume=False)
    assert len(watcher.rows) == 3, "the first epoch counts, and no AUROC rises by 2"


def test_a_step_budget_ends_a_stage_within_its_epoch(make_fit, tmp_path):
    """16 training images in batches of 8 are 2 steps an epoch."""
    schedule = ScheduleConfig(name="linear-probe", head_epochs=10, head_steps=5)
    fit = make_fit(tmp_path / "run", schedule=schedule)
    fit.run(resume=False)
    assert [row["step"] for row in fit.history] == [2, 4, 5]


def test_the_next_stage_begins_from_the_best_weights_or_from_the_last(make_fit, tmp_path):
    begun = {}
    for restore in (True, False):
        stages = (
            Stage(name="wild", groups=0, epochs=3, head_learning_rate=5.0, restore_best=restore),
            Stage(name="still", groups=0, epochs=1, head_learning_rate=1e-12, warmup=0),
        )
        root = tmp_path / str(restore)
        fit = make_fit(root, schedule=ScheduleConfig(stages=stages), gradient_clip=None, select="loss")
        real = fit.files.save_last

        def save(position, *state, files=fit.files, real=real, restore=restore):
            if position.stage == 1 and position.epoch == 0:
                best = read_tensors(files.run.best, read_header(files.run.best), "model")
                begun[restore, "best"] = torch.equal(
                    best["head.linear.weight"], files.classifier.head.linear.weight
                )
            real(position, *state)

        fit.files.save_last = save
        fit.run(resume=False)
        assert fit.history[2]["val_loss"] > min(row["val_loss"] for row in fit.history[:3]), (
            "best is not last"
        )
    assert begun[True, "best"] and not begun[False, "best"]


def test_what_is_validated_and_kept_is_the_average(make_fit, tmp_path):
    """best holds the average, last the weights that are trained, and both score as history says."""
    update = {"name": "full", "unfrozen_epochs": 3, "average": "ema", "ema_decay": 0.9}
    fit = make_fit(tmp_path / "run", schedule=SMALL.model_copy(update=update))
    fit.run(resume=False)
    run = RunFolder(tmp_path / "run")
    assert read_header(run.best).position.epoch == 3, "otherwise the two hold different epochs"
    last = read_header(run.last)
    best = read_tensors(run.best, read_header(run.best), "model")
    trained, average = read_tensors(run.last, last, "model"), read_tensors(run.last, last, "average")
    name = "backbone.groups.stem.0.weight"
    assert torch.equal(best[name], average[name]) and not torch.equal(best[name], trained[name])
    classifier = load_checkpoint(tmp_path / "run").classifier
    with torch.no_grad():
        logits = classifier(fit.data.val.read(range(8), 0))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(fit.data.val_targets))
    assert loss.item() == pytest.approx(fit.history[-1]["val_loss"], abs=1e-5)


def test_swa_scores_with_statistics_of_the_averaged_network(make_fit, tmp_path):
    """They equal those of torch's own update_bn over the training images."""
    update = {
        "name": "full",
        "unfrozen_epochs": 4,
        "average": "swa",
        "swa_share": 1.0,
        "batch_norm": "follow",
    }
    fit = make_fit(tmp_path / "run", schedule=SMALL.model_copy(update=update), dropout=0.0)
    for module in fit.classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    fit.run(resume=False)
    classifier = load_checkpoint(tmp_path / "run").classifier
    view = read_header(RunFolder(tmp_path / "run").best).position.epoch  # each epoch has its own
    kept = {key: value.clone() for key, value in classifier.state_dict().items() if "running" in key}
    batches = [fit.data.train.read(range(start, start + 8), view) for start in (0, 8)]
    for module in classifier.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.optim.swa_utils.update_bn(batches, classifier)
    for key, value in classifier.state_dict().items():
        if "running" in key:
            assert torch.allclose(value, kept[key], atol=1e-5), key


def test_a_prefix_that_finds_no_room_is_computed_in_each_epoch(make_fit, tmp_path, monkeypatch):
    told, asked = [], []

    def no_room(*_, **__):
        asked.append(1)
        raise OutputError("cache-full", "there is no room", where="features")

    fit = make_fit(tmp_path / "run", schedule=ScheduleConfig(name="linear-probe", head_epochs=3))
    fit.watcher.note = lambda label, text: told.append(text)
    with monkeypatch.context() as patch:
        patch.setattr("medtl.training.trainer.FeatureCache.ensure", no_room)
        fit.run(resume=False)
    assert any("no room" in line for line in told) and len(asked) == 1
    assert not fit.plans[0].cached and len(fit.history) == 3
    assert read_header(RunFolder(tmp_path / "run").last).plans == tuple(fit.plans)


@pytest.mark.parametrize("imbalance", list(IMBALANCE))
def test_every_imbalance_strategy_trains(make_fit, tmp_path, imbalance):
    schedule = ScheduleConfig(name="linear-probe", head_epochs=1)
    fit = make_fit(tmp_path / "run", schedule=schedule, imbalance=imbalance)
    fit.run(resume=False)
    assert len(fit.history) == 1


@pytest.mark.parametrize("name", ["linear-probe", "head-then-all", "gradual", "full", "scratch"])
def test_every_schedule_trains(make_fit, tmp_path, name):
    schedule = ScheduleConfig(name=name, head_epochs=1, unfrozen_epochs=2)
    fit = make_fit(tmp_path / "run", schedule=schedule)
    fit.run(resume=False)
    assert load_checkpoint(tmp_path / "run").header.schedule == fit.stages


def test_an_absent_gpu_is_named():
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(TrainingError) as caught:
        make_accelerator(FitConfig(device="cuda"), ProcessGroup())
    assert caught.value.code == "device-missing"


def test_a_compiled_network_trains_to_the_same_numbers(make_fit, tmp_path, monkeypatch):
    plain, made = make_fit(tmp_path / "plain"), []
    plain.run(resume=False)

    really_compile = torch.compile

    def compile_quickly(network, **_):
        made.append(network)
        return really_compile(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)
    compiled = make_fit(tmp_path / "compiled", compile=True)
    compiled.run(resume=False)
    assert made[0] is compiled.classifier
    assert_close(compiled.classifier, plain.classifier, 1e-4)
    assert load_checkpoint(tmp_path / "compiled").header.schedule == plain.stages


def assert_close(one, other, tolerance):
    for (name, here), there in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(here.cpu().float(), there.cpu().float(), atol=tolerance), name


@pytest.fixture
def make_gpu_fit(make_fit):
    """Return make_fit on a GPU, in 32 bits: skip without one."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here")
    torch.backends.cudnn.allow_tf32, before = False, torch.backends.cudnn.allow_tf32
    yield partial(make_fit, device="cuda", precision="32-true")
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.cuda
def test_a_gpu_trains_to_what_a_processor_does(make_fit, make_gpu_fit, tmp_path):
    schedule = SMALL.model_copy(update={"head_epochs": 1, "unfrozen_epochs": 2})
    here, there = make_fit(tmp_path / "cpu", schedule), make_gpu_fit(tmp_path / "cuda", schedule)
    for fit in (here, there):
        fit.run(resume=False)
    for ours, theirs in zip(there.history, here.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.05)


@pytest.mark.cuda
def test_cached_and_uncached_training_agree_on_a_gpu(make_gpu_fit, tmp_path):
    cached, uncached = make_gpu_fit(tmp_path / "a"), make_gpu_fit(tmp_path / "b", cache_gb=0)
    for fit in (cached, uncached):
        fit.run(resume=False)
    assert [any(plan.cached for plan in fit.plans) for fit in (cached, uncached)] == [True, False]
    assert_close(cached.classifier, uncached.classifier, 1e-4)


@pytest.mark.cuda
def test_what_is_frozen_keeps_its_bytes_on_a_gpu(make_gpu_fit, tmp_path):
    fit = make_gpu_fit(tmp_path / "run", schedule=ScheduleConfig(name="linear-probe", head_epochs=2))
    before = {name: tensor.clone() for name, tensor in fit.classifier.backbone.state_dict().items()}
    fit.run(resume=False)
    after = fit.classifier.backbone.state_dict()
    assert after and all(
        tensor.is_cuda and torch.equal(before[name], tensor) for name, tensor in after.items()
    )


@pytest.mark.cuda
@pytest.mark.parametrize("after", [3, 9])
def test_a_killed_run_on_a_gpu_goes_on_where_it_was(make_gpu_fit, tmp_path, after):
    unbroken = make_gpu_fit(tmp_path / "unbroken")
    unbroken.run(resume=False)
    with pytest.raises(Killed):
        make_gpu_fit(tmp_path / "killed", watcher=KillingWatcher(after)).run(resume=False)
    resumed = make_gpu_fit(tmp_path / "killed")
    resumed.run(resume=True)
    assert_close(resumed.classifier, unbroken.classifier, 1e-4)


@pytest.mark.cuda
def test_compiled_kernels_train_on_a_gpu(make_gpu_fit, tmp_path):
    fit = make_gpu_fit(tmp_path / "run", compile=True, cache_gb=0)
    fit.run(resume=False)
    assert fit.position.best[0] > 0.9


@pytest.mark.cuda
def test_a_full_gpu_is_one_line_and_keeps_the_last_epoch(make_gpu_fit, tmp_path):
    fit = make_gpu_fit(tmp_path / "run")
    real, calls = fit.strategy.loss, []

    def fill_up_in_the_second_epoch(logits, targets, smoothing=0.0):
        calls.append(1)
        if len(calls) > 3:
            torch.empty(2**45, dtype=torch.uint8, device="cuda")
        return real(logits, targets, smoothing)

    fit.strategy.loss = fill_up_in_the_second_epoch
    with pytest.raises(TrainingError) as caught:
        fit.run(resume=False)
    assert caught.value.code == "out-of-memory" and "batch_size" in caught.value.fix
    assert len(fit.history) == 1 and load_checkpoint(tmp_path / "run").header


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_on_a_gpu(make_fit, tmp_path, precision):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here")
    fit = make_fit(tmp_path / "run", device="cuda", precision=precision)
    fit.run(resume=False)
    assert fit.position.best[0] > 0.9
