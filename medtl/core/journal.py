"""The journal of a scoring: one row a unit in SQLite, so that none is lost and none is scored twice.

A row is valid while three things stay the same: the model (weights, preprocessing, precision: the model
key), the unit's name, and its content. One process at a time holds a journal, until it closes the journal or
ends, however it ends: the lock is SQLite's own, which child processes do not share.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from medtl.core.files import make_folder
from medtl.errors import CheckpointError, OutputError, TrainingError

NAME = "journal.sqlite"

# After a kill, units since the last commit are scored again.
COMMIT_SECONDS = 1.0
# A process that is ending still holds its journal for a moment.
LOCK_SECONDS = 2.0

TABLES = """
create table if not exists facts (key text primary key, value text not null) without rowid;
create table if not exists rows (
    model_key text, source text, stamp text, content text, row text, primary key (model_key, source)
) without rowid;
"""


class JournalEntry(NamedTuple):
    """One unit of the journal.

    stamp: sizes and times of its files when they were read. content: SHA-256 of their bytes, "" where it was
    refused. row: its result, as plain data.
    """

    stamp: str
    content: str
    row: dict[str, Any]


class Journal:
    """An open journal that shows the rows of one model at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self.path = path
        self.model_key = ""
        self._committed = time.monotonic()

    def open_for(self, facts: Mapping[str, Any], former: Mapping[str, Any] | None = None) -> None:
        """Show the rows of one model. facts: all that a row depends on but its image, as plain data.

        former: facts under which an earlier medtl wrote rows that are still valid; they are taken over.
        """
        self.model_key = key_of(facts)
        if former is not None:
            query = "update or ignore rows set model_key = ? where model_key = ?"
            self._execute(query, (self.model_key, key_of(former)))
        self.remember(self.model_key, facts)

    def find(self, source: str) -> JournalEntry | None:
        """Return a unit's entry, None where there is none. Raises CheckpointError scores-damaged."""
        query = "select stamp, content, row from rows where model_key = ? and source = ?"
        found = self._execute(query, (self.model_key, source)).fetchone()
        if found is None:
            return None
        row = self._parsed(found[2])
        if not isinstance(row, dict):
            raise journal_damaged(self.path)
        return JournalEntry(str(found[0]), str(found[1]), row)

    def record(self, source: str, entry: JournalEntry) -> None:
        """Write the row of a unit; it is on disk within COMMIT_SECONDS of the next one, or at the end."""
        values = (self.model_key, source, entry.stamp, entry.content, json.dumps(entry.row))
        self._execute("insert or replace into rows values (?, ?, ?, ?, ?)", values)
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def forget(self) -> None:
        """Delete the model's rows."""
        self._execute("delete from rows where model_key = ?", (self.model_key,))
        self.commit()

    def recall(self, key: str) -> Any:
        """Return what was stored under a name, None where nothing was. Raises CheckpointError."""
        found = self._execute("select value from facts where key = ?", (key,)).fetchone()
        return self._parsed(found[0]) if found else None

    def remember(self, key: str, value: Any) -> None:
        """Store plain data under a name."""
        self._execute("insert or replace into facts values (?, ?)", (key, json.dumps(value)))
        self.commit()

    def commit(self) -> None:
        """Flush what was written to the disk."""
        with _explaining(self.path):
            self.connection.commit()
        self._committed = time.monotonic()

    def _parsed(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (TypeError, ValueError) as error:
            raise journal_damaged(self.path) from error

    def _execute(self, query: str, values: Sequence[str]) -> sqlite3.Cursor:
        with _explaining(self.path):
            return self.connection.execute(query, values)


@contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """Hold the journal of an output folder, made where there is none.

    Raises TrainingError run-locked where another process holds it, CheckpointError scores-damaged,
    OutputError output-unwritable.
    """
    path = make_folder(folder) / NAME
    with _explaining(path), closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        connection.execute("pragma locking_mode = exclusive")
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.executescript(TABLES)
        if "judge" in {row[1] for row in connection.execute("pragma table_info(rows)")}:  # of medtl 0.1.0
            connection.execute("alter table rows rename column judge to model_key")
        try:
            yield Journal(connection, path)
            connection.commit()
        finally:
            with suppress(sqlite3.Error):  # rows are whole, even if an error or a signal interrupted the work
                connection.commit()


def key_of(facts: Mapping[str, Any]) -> str:
    """Return the key of plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one that says what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            fix = "wait for it or choose another --out"
            reason = "another process works here"
            raise TrainingError("run-locked", reason, where=path.parent, fix=fix) from error
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
            raise journal_damaged(path) from error
        fix = "free the disk or choose another"
        raise OutputError("output-unwritable", str(error), where=path, fix=fix) from error


def journal_damaged(path: Path) -> CheckpointError:
    """Return the error that says that a journal holds what medtl did not write."""
    fix = "remove it, and everything is scored again"
    return CheckpointError("scores-damaged", "is no journal of medtl", where=path, fix=fix)
