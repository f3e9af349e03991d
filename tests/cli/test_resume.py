"""medtl train --resume: a run that was broken off comes to the same model, and no other run is touched."""

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from itertools import count
from pathlib import Path

import pytest

from medtl.core.progress import StopSignal
from medtl.training.checkpoint import load_checkpoint
from medtl.training.run_folder import RunFolder
from tests.cli import jobs
from tests.cli.conftest import Trained
from tests.waiting import PATIENCE, wait_until

LONG = ("schedule.head_epochs=8", "schedule.unfrozen_epochs=8", "schedule.patience=null")


def epochs_logged(run: Path) -> int:
    """Return how many epochs the log tells of."""
    log = run / "log.jsonl"
    return log.read_text().count('"event": "epoch"') if log.is_file() else 0


def wait_for_epochs(process: subprocess.Popen[str], run: Path, epochs: int) -> None:
    """Return once a training process has finished that many epochs."""
    wait_until(lambda: epochs_logged(run) >= epochs, process)


def contents(run: Path) -> dict[str, bytes]:
    """Return all files of a run."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def unbroken(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long run that nothing broke off."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patch, jobs.tiny_backbones_registered():
        patch.setenv("MEDTL_HOME", str(run.parent / "home"))
        patch.setenv("MEDTL_SALT", "test")
        assert jobs.train(studies, run, overrides=LONG).exit_code == 0
    return run


@pytest.mark.parametrize(
    ("name", "epochs", "code"), [("SIGKILL", 10, -9), ("SIGTERM", 3, 143), ("SIGINT", 9, 130)]
)
def test_a_killed_run_goes_on_to_the_same_model(
    name: str, epochs: int, code: int, studies: Path, unbroken: Path, own_home: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["train", "--modality", "xray", "--data", studies, "--out", run]
    process = jobs.start(*command, *jobs.settings(*LONG), home=own_home)
    wait_for_epochs(process, run, epochs)
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert epochs <= epochs_logged(run) < 16
    load_checkpoint(run)
    if name != "SIGKILL":
        lines = [line for line in stderr.splitlines() if line.startswith("medtl: ")]
        assert len(lines) == 1 and "[interrupted]" in lines[0] and "--resume" in lines[0]
        assert "Traceback" not in stderr

    assert jobs.train(studies, run, "--resume", overrides=LONG).exit_code == 0
    for which in ("best", "last"):
        assert load_checkpoint(run, which).sha256 == load_checkpoint(unbroken, which).sha256
    assert (run / "splits.csv").read_bytes() == (unbroken / "splits.csv").read_bytes()
    without_seconds = [
        [{**row, "seconds": ""} for row in jobs.read_rows(path / "history.csv")] for path in (run, unbroken)
    ]
    assert without_seconds[0] == without_seconds[1]


def test_a_run_that_is_stopped_at_any_question_goes_on_to_the_same_model(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the pass, after a step, in a validation, in another stage, and while the best epoch is judged."""
    recipe = ["schedule.head_epochs=2"]  # one epoch alone would not be worth a cache
    assert jobs.train(studies, tmp_path / "unbroken", overrides=recipe).exit_code == 0
    told = []
    for poll in range(1, 20):
        run = tmp_path / f"stopped-{poll}"
        monkeypatch.setenv("MEDTL_HOME", str(tmp_path / f"home-{poll}"))
        with monkeypatch.context() as patch:
            asked = count(1)
            patch.setattr(StopSignal, "__call__", lambda _, asked=asked, poll=poll: next(asked) == poll)
            result = jobs.train(studies, run, overrides=recipe)
        if result.exit_code == 0:
            break
        assert jobs.fault(result, exit_code=130) == "interrupted"
        told.append(result.stderr.splitlines()[-1].split(": ")[2])
        assert jobs.train(studies, run, "--resume", overrides=recipe).exit_code == 0
        assert load_checkpoint(run, "last").sha256 == load_checkpoint(tmp_path / "unbroken", "last").sha256
        assert load_checkpoint(run).sha256 == load_checkpoint(tmp_path / "unbroken").sha256
    assert result.exit_code == 0, "there are not so many questions in three epochs"
    for word in ("frozen prefix", "steps of epoch", "validated", "stage all", "the best epoch was evaluated"):
        assert any(word in line for line in told), (word, told)


def test_ctrl_c_before_the_first_step_is_one_line_and_130(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr("medtl.workflows.train.prepare_samples", interrupt)
    result = jobs.train(studies, tmp_path / "run")
    assert jobs.fault(result, exit_code=130) == "interrupted"
    monkeypatch.undo()


def test_another_number_of_loaders_is_the_same_run(trained: Trained, own_run: Path) -> None:
    """It changes no result, and whoever lost a loader needs it."""
    more = ["fit.workers=1", "fit.save_minutes=1"]
    assert jobs.train(trained.data, own_run, "--resume", overrides=more).exit_code == 0
    assert load_checkpoint(own_run).sha256 == load_checkpoint(trained.run).sha256


def test_resuming_a_finished_run_changes_no_number(trained: Trained, own_run: Path) -> None:
    before = json.loads((own_run / "metrics.json").read_text())
    assert jobs.train(trained.data, own_run, "--resume").exit_code == 0
    after = json.loads((own_run / "metrics.json").read_text())
    assert after["split"] == before["split"] and after["stages"] == before["stages"]
    assert load_checkpoint(own_run).sha256 == load_checkpoint(trained.run).sha256


def test_a_run_is_not_overwritten_without_resume(trained: Trained, own_run: Path) -> None:
    before = contents(own_run)
    assert jobs.fault(jobs.train(trained.data, own_run)) == "run-exists"
    assert contents(own_run) == before


def test_another_recipe_is_refused(trained: Trained, own_run: Path) -> None:
    before = contents(own_run)
    result = jobs.train(trained.data, own_run, "--resume", overrides=["schedule.learning_rate=0.1"])
    assert jobs.fault(result) == "run-changed"
    assert "schedule.learning_rate was" in result.stderr and "is 0.1" in result.stderr
    assert contents(own_run) == before


def test_another_option_of_reading_is_refused(trained: Trained, own_run: Path) -> None:
    result = jobs.train(trained.data, own_run, "--resume", overrides=["preprocessing.fill_nan=true"])
    assert jobs.fault(result) == "run-changed"
    assert "preprocessing.fill_nan was False, is True" in result.stderr


def test_the_recipe_that_is_kept_is_the_one_that_was_used(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off before its first epoch, a run may start anew with another recipe, or refuse it."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("medtl.workflows.train.Fit.run", stop)
        assert jobs.fault(jobs.train(studies, run), exit_code=130) == "interrupted"
    result = jobs.train(studies, run, "--resume", overrides=["schedule.learning_rate=0.0123"])
    if result.exit_code:
        assert jobs.fault(result) == "run-changed"
    else:
        assert "rate: 0.0123" in (run / "config.yaml").read_text()


def test_fewer_samples_are_refused(trained: Trained, own_run: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    rows = jobs.read_rows(data / "labels.csv")
    jobs.write_labels(data, rows[:-2])
    before = contents(own_run)
    assert jobs.fault(jobs.train(data, own_run, "--resume")) == "run-changed"
    assert contents(own_run) == before


def test_other_pixels_under_the_same_names_are_refused(
    trained: Trained, own_run: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    jobs.write_png(data / "images/000.png", jobs.draw(999, 1))
    assert jobs.fault(jobs.train(data, own_run, "--resume")) == "run-changed"


def test_other_labels_under_the_same_split_are_refused(tmp_path: Path) -> None:
    data, run = jobs.write_images(tmp_path / "data"), tmp_path / "run"
    rows = [
        {**row, "split": "val" if index >= 16 else "train"}
        for index, row in enumerate(jobs.read_rows(data / "labels.csv"))
    ]
    jobs.write_labels(data, rows)
    assert jobs.train(data, run).exit_code == 0
    rows[0]["label"], rows[2]["label"] = rows[2]["label"], rows[0]["label"]
    jobs.write_labels(data, rows)
    assert jobs.fault(jobs.train(data, run, "--resume")) == "run-changed"


def test_a_second_process_on_the_run_is_refused(trained: Trained, own_run: Path) -> None:
    before = contents(own_run)
    with RunFolder(own_run).locked():
        assert jobs.fault(jobs.train(trained.data, own_run, "--resume")) == "run-locked"
    assert contents(own_run) == before
    assert jobs.train(trained.data, own_run, "--resume").exit_code == 0


def test_a_loss_that_is_not_finite_keeps_the_last_good_epoch(studies: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = jobs.train(studies, run, overrides=["schedule.learning_rate=1e30", "schedule.unfrozen_epochs=9"])
    assert jobs.fault(result) == "loss-not-finite"
    assert "at step" in result.stderr
    kept = load_checkpoint(run, "last")
    assert all(tensor.isfinite().all() for tensor in kept.classifier.state_dict().values())
    assert not (run / "metrics.json").exists()


def test_a_validation_loss_that_is_not_finite_is_told_and_spares_the_run(
    studies: Path, tmp_path: Path
) -> None:
    """The last step of an epoch may be the first bad one: only validation sees it then."""
    run = tmp_path / "run"
    wild = ["schedule.head_learning_rate=1e30"]
    assert jobs.fault(jobs.train(studies, run, overrides=wild)) == "loss-not-finite"
    for header in run.rglob("checkpoint.json"):
        load_checkpoint(header.parent)


def test_a_full_disk_keeps_the_run_as_it_was(
    trained: Trained, own_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_checkpoint(own_run).sha256

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        assert jobs.fault(jobs.train(trained.data, own_run, "--resume")) == "output-unwritable"
    assert load_checkpoint(own_run).sha256 == load_checkpoint(own_run, "last").sha256 == before
    assert not [path for path in own_run.rglob(".*") if path.name != ".lock"]


def test_a_disk_that_fills_while_training_keeps_the_last_good_epoch(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, flush = tmp_path / "run", os.fsync

    def fill_up(descriptor: int) -> None:
        if epochs_logged(run) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    short = ["schedule.head_epochs=4"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        assert jobs.fault(jobs.train(studies, run, overrides=short)) == "output-unwritable"
    assert load_checkpoint(run, "last").header.position.epoch == 2
    assert jobs.train(studies, run, "--resume", overrides=short).exit_code == 0
    assert jobs.train(studies, tmp_path / "unbroken", overrides=short).exit_code == 0
    assert load_checkpoint(run).sha256 == load_checkpoint(tmp_path / "unbroken").sha256
