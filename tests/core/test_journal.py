"""The journal of a scoring: rows come back as they went in, one a unit, held by one process."""

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from medtl.core import journal as journals
from medtl.core.journal import NAME, Journal, JournalEntry, open_journal
from medtl.errors import CheckpointError, OutputError, TrainingError

THIRD = 1 / 3
ROW = {"source": "a.png", "reason": "is flat", "probabilities": [THIRD, 0.1 + 0.2]}
FACTS = {"models": ["m"], "precision": "fp32"}


def entry(row: dict = ROW, stamp: str = "t", content: str = "c") -> JournalEntry:
    return JournalEntry(stamp, content, row)


def test_a_row_comes_back_to_the_bit(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.open_for(FACTS)
        journal.record("a.png", entry())
    with open_journal(tmp_path) as journal:
        journal.open_for(FACTS)
        assert journal.find("a.png") == entry()
        assert journal.find("b.png") is None


def test_a_unit_has_one_row(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.open_for(FACTS)
        journal.record("a.png", entry(stamp="before"))
        journal.record("a.png", entry(stamp="after"))
        assert journal.find("a.png") == entry(stamp="after")
        assert journal.connection.execute("select count(*) from rows").fetchone() == (1,)


def test_another_model_sees_rows_of_its_own(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.open_for(FACTS)
        journal.record("a.png", entry())
        journal.open_for({**FACTS, "precision": "bf16"})
        assert journal.find("a.png") is None
        journal.forget()
        journal.open_for(FACTS)
        assert journal.find("a.png") == entry()
        journal.forget()
        assert journal.find("a.png") is None


def test_names_are_no_sql(tmp_path: Path) -> None:
    name = "'; drop table rows; --<script>=cmd()\n\x00é"
    with open_journal(tmp_path) as journal:
        journal.open_for(FACTS)
        journal.record(name, entry())
        assert journal.find(name) == entry()


def test_rows_stay_that_an_error_came_after(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_journal(tmp_path) as journal:
        journal.open_for(FACTS)
        journal.record("a.png", entry())
        raise KeyboardInterrupt
    with open_journal(tmp_path) as journal:
        journal.open_for(FACTS)
        assert journal.find("a.png") == entry()


@pytest.fixture
def held(tmp_path: Path) -> int:
    """A process that holds the journal of tmp_path/out; its id."""
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            with open_journal(tmp_path / "out"):
                os.write(told, b"!")
                signal.pause()
        finally:
            os._exit(0)
    os.read(ready, 1)
    return child


def test_a_second_process_is_refused_until_the_first_is_gone(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "LOCK_SECONDS", 0.05)
    try:
        with pytest.raises(TrainingError) as caught, open_journal(tmp_path / "out"):
            pass
        assert caught.value.code == "run-locked" and "another process" in str(caught.value)
    finally:
        os.kill(held, signal.SIGKILL)
        os.waitpid(held, 0)
    with open_journal(tmp_path / "out") as journal:
        assert isinstance(journal, Journal)


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_damaged_journal_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(CheckpointError) as caught, open_journal(tmp_path):
        pass
    assert caught.value.code == "scores-damaged" and "remove it" in str(caught.value)


def test_a_journal_of_another_kind_is_named(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / NAME) as other:
        other.execute("create table rows (something)")
    with pytest.raises(CheckpointError) as caught, open_journal(tmp_path) as journal:
        journal.open_for(FACTS)
        journal.find("a.png")
    assert caught.value.code == "scores-damaged"


def test_a_journal_in_the_place_of_a_folder_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(OutputError) as caught, open_journal(tmp_path):
        pass
    assert caught.value.code == "output-unwritable"
