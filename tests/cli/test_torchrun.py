"""torchrun -m medtl train: one run by two processes, one voice, and no process is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from medtl.cli import main
from medtl.training.checkpoint import load_checkpoint
from tests.cli import jobs
from tests.waiting import PATIENCE, wait_until

# On activations of the frozen prefix, then from the images.
RECIPE = ("schedule.head_epochs=2", "fit.dropout=0", "fit.imbalance=class-weighted")
LONG = (*RECIPE, "schedule.unfrozen_epochs=60", "schedule.patience=null")


@contextmanager
def still_backbones() -> Iterator[None]:
    """Register the tiny backbones, without their dropout: it differs between processes."""
    before = torch.nn.Dropout.forward
    torch.nn.Dropout.forward = lambda self, x: x  # type: ignore[method-assign]
    try:
        with jobs.tiny_backbones_registered():
            yield
    finally:
        torch.nn.Dropout.forward = before  # type: ignore[method-assign]


def torchrun(*arguments: str | Path, module: str = "tests.cli.test_torchrun") -> subprocess.Popen[str]:
    """Start a command in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--nproc-per-node", "2", "--master-port", str(port), "-m", module]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *map(str, arguments)],
        cwd=jobs.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train_together(data: Path, out: Path, *more: str, overrides: Sequence[str]) -> subprocess.Popen[str]:
    """Start `medtl train` with the tiny recipe in two processes."""
    command = ["train", "--modality", "xray", "--data", data, "--out", out, *jobs.settings(*overrides)]
    return torchrun(*command, *more)


def told(stderr: str) -> list[str]:
    """Return the faults that medtl tells of; torchrun adds a report of its own, and no other traceback."""
    lines = stderr.splitlines()
    own = f'  File "{jobs.ROOT / "medtl"}{os.sep}'  # torchrun's are there, wherever it is installed
    assert not [line for line in lines if line.startswith(own)], stderr
    assert "Exception ignored" not in stderr
    return [line for line in lines if line.startswith("medtl: [")]


def numbers(run: Path) -> list[dict[str, str]]:
    """Return the rows of history.csv without what differs between any two runs."""
    return [{**row, "seconds": ""} for row in jobs.read_rows(run / "history.csv")]


def assert_same_numbers(run: Path, alone: Path) -> None:
    """Check that a run has the epochs of another one, and its numbers to tolerance."""
    rows, others = numbers(run), numbers(alone)
    assert [(row["stage"], row["step"]) for row in rows] == [(row["stage"], row["step"]) for row in others]
    for row, other in zip(rows, others, strict=True):
        for name in ("train_loss", "val_loss", "val_auroc"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=1e-4), (name, row, other)


def train_alone(data: Path, out: Path, *more: str, overrides: Sequence[str]) -> None:
    with still_backbones():
        assert jobs.train(data, out, *more, overrides=overrides).exit_code == 0


def wait_for_epochs(process: subprocess.Popen[str], run: Path, epochs: int) -> None:
    """Return once the processes have finished that many epochs."""
    log = run / "log.jsonl"
    wait_until(lambda: log.is_file() and log.read_text().count('"event": "epoch"') >= epochs, process)


def test_two_processes_leave_the_run_of_one(studies: Path, tmp_path: Path) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    process = train_together(studies, run, "--json", overrides=RECIPE)
    train_alone(studies, alone, overrides=RECIPE)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    assert told(stderr) == []
    metrics = json.loads(stdout)  # one document: one process prints
    assert stderr.count("stage 1/2") == 1
    assert_same_numbers(run, alone)
    assert {row["cached"] for row in numbers(run)} == {"True", "False"}
    theirs = json.loads((alone / "metrics.json").read_text())
    for name in ("auroc", "accuracy"):
        mine, other = (found["split"]["val"][name]["value"] for found in (metrics, theirs))
        assert mine == pytest.approx(other), name
    assert (run / "splits.csv").read_bytes() == (alone / "splits.csv").read_bytes()
    log = (run / "log.jsonl").read_text()
    assert log.count('"started"') == log.count('"finished"') == 1 and '"processes": 2' in log
    assert load_checkpoint(run).header.thresholds is not None
    left = {path.name.split("-")[0] for path in (run / "checkpoints/last").iterdir()}
    assert left == {"checkpoint.json", "model", "optimizer"}


def test_a_refusal_is_one_line_and_ends_both_processes(tmp_path: Path) -> None:
    """By the command as it is installed."""
    command = ["train", "--modality", "xray", "--data", tmp_path / "absent", "--out", tmp_path / "run"]
    process = torchrun(*command, module="medtl")
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    (line,) = told(stderr)
    assert line.startswith("medtl: [file-missing]") and len(line) <= 210


def test_sigterm_saves_once_and_one_process_goes_on_where_two_were(studies: Path, tmp_path: Path) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    process = train_together(studies, run, overrides=LONG)
    train_alone(studies, alone, overrides=LONG)
    wait_for_epochs(process, run, 5)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=PATIENCE)
    (line,) = told(stderr)
    assert line.startswith("medtl: [interrupted]") and "--resume" in line
    assert 5 <= len(numbers(run)) < 62, "otherwise it was not stopped"
    load_checkpoint(run, "last")
    train_alone(studies, run, "--resume", overrides=LONG)
    assert_same_numbers(run, alone)


if __name__ == "__main__":
    with still_backbones():
        main()
