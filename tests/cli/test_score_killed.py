"""R7: SIGKILL and SIGTERM at random points of `medtl score`, again and again: no row lost, none doubled.

The command runs in forked children of this process, which has imported everything already. The points are
drawn in time, and among the writes of journal and tables. The table in the end has the bytes of an unbroken
run's.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medtl.core import journal
from medtl.inference import predictor
from tests.cli import jobs
from tests.cli.conftest import Trained

STUDIES = 40
STOPPED = 128 + signal.SIGTERM
CASES = {"SIGKILL": 8, "SIGTERM": 6, "SIGKILL, with children": 6, "SIGTERM, with children": 4, "write": 8}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, every fifth of them damaged."""
    folder = tmp_path_factory.mktemp("mixed")
    for row in range(STUDIES):
        path = jobs.write_png(folder / f"{row:03d}.png", jobs.draw(row, row % 2, (200 + row, 180)))
        if row % 5 == 0:
            path.write_bytes(path.read_bytes()[:-40])
    return folder


def start_child(run: Path, folder: Path, out: Path, before: Callable[[], None], workers: int) -> int:
    """Fork a process that scores, in a process group of its own, and return its id."""
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            before()
            result = jobs.medtl("score", run, folder, "--out", out, "--workers", workers)
            early = result.exit_code in (130, 143) and "medtl: [interrupted]" in result.stderr
            os._exit(STOPPED if early else result.exit_code)
        except KeyboardInterrupt:  # it came while this test's own code was running
            os._exit(STOPPED)
        finally:
            os._exit(99)
    os.setpgid(child, child)
    return child


def end_after(child: int, seconds: float, number: int) -> int:
    """Send a signal after some seconds; return the exit code, minus the signal where that ended it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def rows_left(out: Path) -> int:
    """Return how many rows a process that was ended has left in the journal."""
    if not (out / journal.NAME).exists():
        return 0
    with journal.open_journal(out) as opened:
        return opened.connection.execute("select count(*) from rows").fetchone()[0]


def die_at(number: int) -> Callable[[], None]:
    """Return what makes a process kill itself at its number-th write to journal or tables."""

    def sabotage() -> None:
        left = iter(range(number, -1, -1))

        def deadly(function: Callable) -> Callable:
            def call(*arguments: object) -> object:
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments)

            return call

        os.fsync = deadly(os.fsync)
        journal.Journal.record = deadly(journal.Journal.record)
        journal.Journal.commit = deadly(journal.Journal.commit)

    return sabotage


@pytest.mark.parametrize(
    ("case", "ends"),
    [*CASES.items(), *(pytest.param(case, 40, marks=pytest.mark.long) for case in CASES)],
)
def test_a_scoring_that_is_ended_at_random_points_has_the_table_of_an_unbroken_one(
    case: str, ends: int, trained: Trained, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "COMMIT_SECONDS", 0.01)
    workers = 2 if "children" in case else 1
    number = signal.SIGTERM if "SIGTERM" in case else signal.SIGKILL
    started = time.monotonic()
    child = start_child(trained.run, mixed, tmp_path / "unbroken", lambda: None, workers)
    assert end_after(child, 600, number) == 3
    whole = time.monotonic() - started
    expected = (tmp_path / "unbroken/scores.csv").read_bytes()
    rows = jobs.read_rows(tmp_path / "unbroken/scores.csv")
    assert len(rows) == STUDIES and sum(row["status"] == "refused" for row in rows) == STUDIES // 5

    drawn, ended, outs, left = random.Random(case), 0, 0, set()
    while ended < ends:
        outs += 1
        out, code = tmp_path / f"out-{outs}", 1
        while code != 3:
            enough = ended >= ends
            if case == "write" and not enough:
                child = start_child(trained.run, mixed, out, die_at(drawn.randrange(60)), workers)
                code = end_after(child, 600, number)
            else:
                seconds = 600 if enough else drawn.uniform(0.05, 1.0) * whole
                child = start_child(trained.run, mixed, out, lambda: None, workers)
                code = end_after(child, seconds, number)
            assert code in (3, -signal.SIGKILL, -signal.SIGTERM, STOPPED), code
            ended += code != 3
            if code != 3:
                left.add(rows_left(out))
        assert (out / "scores.csv").read_bytes() == expected
    if case == "write":
        assert any(0 < count < STUDIES for count in left)


def test_what_is_in_the_journal_is_not_scored_again(
    trained: Trained, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = jobs.medtl("score", trained.run, mixed, "--out", tmp_path / "out")
    before = (tmp_path / "out/scores.csv").read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("a study was read")

    monkeypatch.setattr(predictor, "read_series", never)
    again = jobs.medtl("score", trained.run, mixed, "--out", tmp_path / "out")
    assert first.exit_code == again.exit_code == 3
    assert (tmp_path / "out/scores.csv").read_bytes() == before
    assert f"({STUDIES} rows were already there)" in again.stdout
