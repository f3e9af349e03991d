"""The loop over stages: it learns, resumes to the bit, and stops without loss."""

import hashlib

import pytest
import torch

from medtl.errors import TrainingError
from medtl.learning.checkpoint import load_checkpoint, model_tensors, read_header
from medtl.learning.fit import FitConfig, make_fabric
from medtl.learning.stages import ScheduleConfig

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
    schedule = SMALL.model_copy(update={"thawed_epochs": 16})
    fit = make_fit(tmp_path / "run", schedule=schedule, backbone=backbone, size=size)
    fit.run(resume=False)
    assert fit.history[-1]["train_loss"] < fit.history[0]["train_loss"]
    assert fit.position.best[0] > 0.9
    assert (tmp_path / "run" / "history.csv").read_text().count("\n") == 1 + 18


@pytest.mark.parametrize("after", [1, 2, 4, 7, 9, 11, 13, 14])
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


def test_a_run_that_dies_between_best_and_last_of_a_new_stage_ends_in_the_same_bits(
    make_fit, tmp_path, monkeypatch
):
    unbroken = make_fit(tmp_path / "unbroken")
    unbroken.run(resume=False)
    fit = make_fit(tmp_path / "killed")
    real = fit._save_last

    def die_in_the_first_epoch_of_the_second_stage(header, model, optimizer):
        if header.position.stage == 1 and header.position.epoch == 1:
            raise Killed
        real(header, model, optimizer)

    monkeypatch.setattr(fit, "_save_last", die_in_the_first_epoch_of_the_second_stage)
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

    def fail_in_the_second_epoch(logits, targets):
        calls.append(1)
        return real(logits, targets) * (float("nan") if len(calls) == 5 else 1.0)

    fit.strategy.loss = fail_in_the_second_epoch
    with pytest.raises(TrainingError, match="step 4") as caught:
        fit.run(resume=False)
    assert caught.value.code == "loss-not-finite"
    header = read_header(tmp_path / "run" / "checkpoints" / "last")
    assert header.position.epoch == 1
    load_checkpoint(tmp_path / "run", "last")


def test_patience_ends_a_stage_early(make_fit, tmp_path):
    schedule = SMALL.model_copy(
        update={"head_epochs": 30, "patience": 2, "name": "linear-probe", "head_rate": 1e-9}
    )
    watcher = SilentWatcher()
    make_fit(tmp_path / "run", schedule=schedule, watcher=watcher).run(resume=False)
    assert len(watcher.rows) < 30


@pytest.mark.parametrize("imbalance", ["none", "class-weighted", "balanced-sampler", "focal"])
def test_every_imbalance_strategy_trains(make_fit, tmp_path, imbalance):
    schedule = ScheduleConfig(name="linear-probe", head_epochs=1)
    fit = make_fit(tmp_path / "run", schedule=schedule, imbalance=imbalance)
    fit.run(resume=False)
    assert len(fit.history) == 1


@pytest.mark.parametrize("name", ["linear-probe", "head-then-all", "gradual", "full", "scratch"])
def test_every_schedule_trains(make_fit, tmp_path, name):
    schedule = ScheduleConfig(name=name, head_epochs=1, thawed_epochs=2)
    fit = make_fit(tmp_path / "run", schedule=schedule)
    fit.run(resume=False)
    assert load_checkpoint(tmp_path / "run").header.schedule == fit.stages


def test_an_absent_gpu_is_named():
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(TrainingError) as caught:
        make_fabric(FitConfig(device="cuda"))
    assert caught.value.code == "device-missing"


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_on_a_gpu(make_fit, tmp_path, precision):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here")
    fit = make_fit(tmp_path / "run", device="cuda", precision=precision)
    fit.run(resume=False)
    assert fit.position.best[0] > 0.9
