"""R6: SIGKILL at random points of `medtl train`, again and again, and the run ends in the same bytes.

The command runs in children of this process, which has imported everything already. 30 points in an ordinary
run of the tests; 100 with -m long. The points are drawn in time, over a whole run, and among the flushes to
disk, before and after a file is renamed: within the writing of checkpoints, history, caches and datasets.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medtl.training.checkpoint import read_header
from medtl.training.run_folder import RunFolder
from tests.cli import jobs

# Something to lose in each step: moments that outlive stages, averages, several parts of a step.
RECIPE = (
    "schedule.head_epochs=3",
    "schedule.unfrozen_epochs=3",
    "schedule.views=2",
    "schedule.average=ema",
    "schedule.optimizer_state=keep",
    "fit.accumulate=2",
    "fit.batch_size=4",
    "fit.save_minutes=0.0002",
)
LOADERS = ("fit.workers=2", "fit.cache_gb=0", "fit.seed=1", "schedule.head_epochs=1")
CASES = {"time": 12, "flush": 12, "time, with loaders": 6}


def start_child(data: Path, run: Path, recipe: tuple[str, ...], before: Callable[[], None]) -> int:
    """Fork a process that trains, resuming what is there, and return its id."""
    child = os.fork()
    if child:
        return child
    try:
        before()
        os._exit(jobs.train(data, run, "--resume", overrides=recipe).exit_code)
    finally:
        os._exit(99)


def train_and_kill_after(seconds: float, data: Path, run: Path, recipe: tuple[str, ...]) -> int:
    """Train in a child and kill it after some seconds; return its exit code, -9 where it was killed."""
    child = start_child(data, run, recipe, lambda: os.setpgid(0, 0))
    os.setpgid(child, child)  # whoever comes first
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)  # its loaders too: they hold the run's lock until they miss it
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_and_die_at_flush(number: int, data: Path, run: Path, recipe: tuple[str, ...]) -> int:
    """Train in a child that kills itself when it flushes to disk for the number-th time."""

    def sabotage() -> None:
        flush, left = os.fsync, iter(range(number, -1, -1))

        def dying(descriptor: int) -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(descriptor)

        os.fsync = dying

    child = start_child(data, run, recipe, sabotage)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kept(run: Path) -> tuple[object, ...]:
    """Return what a finished run holds, but for times."""
    folder = RunFolder(run)
    headers = [read_header(place) for place in (folder.best, folder.last)]
    history = [{**row, "seconds": ""} for row in folder.read_history()]
    return *(header.tensors for header in headers), headers[1].position, history


@pytest.mark.parametrize(
    ("case", "kills"),
    [*CASES.items(), *(pytest.param(case, 34, marks=pytest.mark.long) for case in CASES)],
)
def test_a_run_killed_at_random_points_ends_in_the_same_bytes(
    case: str, kills: int, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE + (LOADERS if "loaders" in case else ())
    monkeypatch.setenv("MEDTL_HOME", str(tmp_path / "home of the unbroken"))
    started = time.monotonic()
    assert train_and_kill_after(600, studies, tmp_path / "unbroken", recipe) == 0
    whole = time.monotonic() - started
    expected = kept(tmp_path / "unbroken")

    drawn, died, runs = random.Random(case), 0, 0
    while died < kills:
        runs += 1
        run = tmp_path / f"run-{runs}"
        monkeypatch.setenv("MEDTL_HOME", str(tmp_path / f"home-{runs}"))
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            if died >= kills:  # enough: let it end
                code = train_and_kill_after(600, studies, run, recipe)
            elif case == "flush":
                code = train_and_die_at_flush(drawn.randrange(60), studies, run, recipe)
            else:
                code = train_and_kill_after(drawn.uniform(0.2, 1.0) * whole, studies, run, recipe)
            died += code == -signal.SIGKILL
        assert code == 0
        assert kept(run) == expected
    assert died >= kills
