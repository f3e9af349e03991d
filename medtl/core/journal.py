"""The journal of a scoring: one row a unit in SQLite, so that none is lost, and none scored twice.

A row is valid while three things stay the same: the model (weights, preprocessing, precision: the model
key), the unit's name, and its content. One process at a time holds a journal, until it closes the journal or
ends in whatever way: SQLite's lock is the kernel's, and children that outlive their parent do not have it.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from medtl.core.files import make_folder
from medtl.errors import CheckpointError, MedtlError, OutputError, TrainingError

NAME = "journal.sqlite"

# What was done since the last commit is done again by whoever goes on after a kill.
COMMIT_SECONDS = 1.0
# A process that is ending still holds its journal for a moment.
LOCK_SECONDS = 2.0

TABLES = """
create table if not exists facts (key text primary key, value text not null) without rowid;
create table if not exists rows (
    model_key text, source text, stamp text, content text, row text, primary key (model_key, source)
) without rowid;
"""


class Entry(NamedTuple):
    """What the journal says of a unit.

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

    def find(self, source: str) -> Entry | None:
        """Return what is known of a unit by its name. Raises CheckpointError scores-damaged."""
        query = "select stamp, content, row from rows where model_key = ? and source = ?"
        found = self._execute(query, (self.model_key, source)).fetchone()
        if found is None:
            return None
        row = self._parsed(found[2])
        if not isinstance(row, dict):
            raise self.damaged()
        return Entry(str(found[0]), str(found[1]), row)

    def record(self, source: str, entry: Entry) -> None:
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
        """Return plain data that were remembered, None where there are none. Raises CheckpointError."""
        found = self._execute("select value from facts where key = ?", (key,)).fetchone()
        return self._parsed(found[0]) if found else None

    def remember(self, key: str, value: Any) -> None:
        """Keep plain data under a name."""
        self._execute("insert or replace into facts values (?, ?)", (key, json.dumps(value)))
        self.commit()

    def commit(self) -> None:
        """Put on disk what was written."""
        with _told(self.path):
            self.connection.commit()
        self._committed = time.monotonic()

    def damaged(self) -> CheckpointError:
        """Return the error that says that the journal holds what medtl did not write."""
        return _no_journal(self.path)

    def _parsed(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (TypeError, ValueError) as error:
            raise self.damaged() from error

    def _execute(self, query: str, values: Sequence[str]) -> sqlite3.Cursor:
        with _told(self.path):
            return self.connection.execute(query, values)


@contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """Hold the journal of an output folder, made where there is none.

    Raises TrainingError run-locked where another process holds it, CheckpointError scores-damaged,
    OutputError output-unwritable.
    """
    path = make_folder(folder) / NAME
    with _told(path):
        connection = sqlite3.connect(path, timeout=LOCK_SECONDS)
    try:
        with _told(path):
            connection.execute("pragma locking_mode = exclusive")
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.executescript(TABLES)
            _rename_old_column(connection)
        journal = Journal(connection, path)
        yield journal
        journal.commit()
    finally:
        with suppress(sqlite3.Error):  # rows are whole, also where an error or a signal came between two
            connection.commit()
        connection.close()


def _rename_old_column(connection: sqlite3.Connection) -> None:
    """Bring a journal of medtl 0.1.0 up to date: the same columns under another name."""
    columns = {row[1] for row in connection.execute("pragma table_info(rows)")}
    if "judge" in columns:
        connection.execute("alter table rows rename column judge to model_key")


def key_of(facts: Mapping[str, Any]) -> str:
    """Return the key of plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn SQLite's words into an error that says what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _explained(path, error) from error


def _explained(path: Path, error: sqlite3.DatabaseError) -> MedtlError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        fix = "wait for it or choose another --out"
        return TrainingError("run-locked", "another process works here", where=path.parent, fix=fix)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
        return _no_journal(path)
    return OutputError("output-unwritable", str(error), where=path, fix="free the disk or choose another")


def _no_journal(path: Path) -> CheckpointError:
    fix = "remove it, and all is done anew"
    return CheckpointError("scores-damaged", "is no journal of medtl", where=path, fix=fix)
