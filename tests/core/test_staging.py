"""Locks, staging folders and journals: one process at a time, whole lines alone, whole folders alone."""

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from medtl.core.staging import (
    StagingFolder,
    journal_line,
    remove_folder,
    remove_lock,
    try_lock,
    wait_for_lock,
)
from tests.waiting import PATIENCE


def test_a_lock_is_held_once_until_it_is_released_or_dropped(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "a.lock")
    assert first is not None and try_lock(tmp_path / "a.lock") is None
    first.release()
    second = try_lock(tmp_path / "a.lock")
    assert second is not None
    del second
    with wait_for_lock(tmp_path / "a.lock"):
        assert try_lock(tmp_path / "a.lock") is None
    assert try_lock(tmp_path / "a.lock") is not None


def test_a_lock_ends_with_its_process_although_a_child_of_it_lives(tmp_path: Path) -> None:
    """A loader that outlives a killed training must not keep the run locked."""
    context = multiprocessing.get_context("fork")
    held, end = context.Event(), context.Event()

    def hold_and_die() -> None:
        lock = try_lock(tmp_path / "a.lock")
        assert lock is not None
        if os.fork() == 0:
            held.set()
            end.wait(PATIENCE)
        os._exit(0)

    process = context.Process(target=hold_and_die)
    process.start()
    process.join()  # with a timeout it would wait for the child, too
    assert held.wait(PATIENCE)
    found = try_lock(tmp_path / "a.lock")
    end.set()
    assert found is not None


def test_who_waits_for_a_lock_whose_file_is_removed_holds_a_new_one(tmp_path: Path) -> None:
    """Otherwise two would hold it: one the file that is gone, one the file of that name."""
    path, holders = tmp_path / "a.lock", []
    first = wait_for_lock(path)
    waiting = threading.Thread(target=lambda: holders.append(wait_for_lock(path)))
    waiting.start()
    remove_lock(path)
    first.release()
    waiting.join(PATIENCE)
    assert len(holders) == 1 and try_lock(path) is None


def test_a_journal_is_read_as_far_as_its_lines_are_whole(tmp_path: Path) -> None:
    staging = StagingFolder(tmp_path / "place", "key")
    with staging.claim():
        (staging.path / "content").write_bytes(b"12")
        (staging.path / "left").write_bytes(b"half a header")
        staging.begin([["a", 1]], keep="content")
        with staging.journal() as journal, staging.journal(1) as other:
            journal.write(journal_line(["b", None]))
            other.write(journal_line(["c", [2, 3]]))
        assert staging.entries() == [["a", 1], ["b", None], ["c", [2, 3]]]
        assert staging.entries(parts=False) == [["a", 1], ["b", None]]
        with (staging.path / "journal.jsonl").open("ab") as file:
            file.write(b'["d", 4')
        assert staging.entries(parts=False) == [["a", 1], ["b", None]]
        assert StagingFolder(tmp_path / "place", "other key").entries() == []
        assert {path.name for path in staging.path.iterdir()} == {
            "content",
            "journal.jsonl",
            "journal-1.jsonl",
        }


def test_what_is_published_replaces_what_was_there_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "place/sub").mkdir(parents=True)
    (tmp_path / ".removed-place/sub").mkdir(parents=True)  # a process was killed as it removed something
    staging = StagingFolder(tmp_path / "place", "key")
    with staging.claim():
        (staging.path / "content").write_bytes(b"12")
        staging.begin([], keep="content")
        staging.publish()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "place",
        "place/content",
    ]
    assert (tmp_path / "place").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("absent", [True, False])
def test_a_folder_is_removed_with_its_lock(absent: bool, tmp_path: Path) -> None:
    staging = StagingFolder(tmp_path / "place", "key")
    with staging.claim():
        if absent:
            remove_folder(staging.path)
        remove_folder(staging.path)
    assert not list(tmp_path.iterdir())
