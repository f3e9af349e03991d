"""medtl score --watch: what arrives is scored once it is whole, and the table holds each study once."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import jobs
from tests.cli.conftest import Trained
from tests.waiting import wait_until


@pytest.fixture
def watching(trained: Trained, tmp_path: Path) -> Iterator[int]:
    """A process that watches tmp_path/arrivals into tmp_path/out; its id."""
    (tmp_path / "arrivals").mkdir()
    child = os.fork()
    if not child:
        try:
            out = ("--out", tmp_path / "out", "--watch", "--settle", "0.3")
            os._exit(jobs.medtl("score", trained.run, tmp_path / "arrivals", *out).exit_code)
        finally:
            os._exit(99)
    yield child
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def rows(tmp_path: Path) -> dict[str, str]:
    table = tmp_path / "out/scores.csv"
    found = jobs.read_rows(table) if table.exists() else []
    assert len({row["source"] for row in found}) == len(found)
    return {row["source"]: row["status"] for row in found}


def test_what_arrives_is_scored_and_a_stop_keeps_it(watching: int, trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "arrivals"
    jobs.write_png(folder / "a.png", jobs.draw(0, 0))
    wait_until(lambda: rows(tmp_path) == {"a.png": "scored"})
    jobs.write_png(folder / "later/b.png", jobs.draw(1, 1))
    (folder / "bad.png").write_bytes(b"")
    expected = {"a.png": "scored", "later/b.png": "scored", "bad.png": "refused"}
    wait_until(lambda: rows(tmp_path) == expected)
    (folder / "a.png").unlink()
    wait_until(lambda: "a.png" not in rows(tmp_path))
    os.kill(watching, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(watching, 0)[1]) == 143
    before = (tmp_path / "out/scores.csv").read_bytes()
    again = jobs.medtl("score", trained.run, folder, "--out", tmp_path / "out")
    assert "(1 rows were already there)" in again.stdout
    assert (tmp_path / "out/scores.csv").read_bytes() == before


def test_a_file_that_is_still_written_is_left_until_it_is_whole(watching: int, tmp_path: Path) -> None:
    whole = jobs.write_png(tmp_path / "elsewhere.png", jobs.draw(0, 0, (200, 200))).read_bytes()
    jobs.write_png(tmp_path / "arrivals/a.png", jobs.draw(1, 1))
    with (tmp_path / "arrivals/slow.png").open("wb", buffering=0) as file:
        for start in range(0, len(whole), len(whole) // 20 + 1):
            file.write(whole[start : start + len(whole) // 20 + 1])
            time.sleep(0.05)
            assert rows(tmp_path).get("slow.png") != "refused"
    wait_until(lambda: rows(tmp_path) == {"a.png": "scored", "slow.png": "scored"})


def test_there_must_be_a_folder(trained: Trained, tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "out", "--watch")
    assert jobs.fault(jobs.medtl("score", trained.run, tmp_path / "no", *arguments)) == "file-missing"


def test_one_document_at_the_end_does_not_go_with_no_end(trained: Trained, tmp_path: Path) -> None:
    result = jobs.medtl("score", trained.run, tmp_path, "--out", tmp_path / "out", "--watch", "--json")
    assert result.exit_code == 2 and "--watch" in result.stderr
