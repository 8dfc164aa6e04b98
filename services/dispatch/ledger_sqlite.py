"""The embedded ledger: one SQLite file, which `kill -9` at any moment leaves whole."""

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from services.dispatch.batch import (
    BUSY_STATES,
    Entry,
    NewBatch,
    TaskState,
    enter,
    entry_from_json,
    entry_to_json,
    id_before,
    kept,
)
from services.domain.errors import ConflictError
from services.runtime.embedded_database import EmbeddedDatabase

_VERSION = 1
_SCHEMA = """
CREATE TABLE entries (id TEXT PRIMARY KEY, digest TEXT NOT NULL, open INTEGER NOT NULL, state INTEGER NOT NULL,
    version INTEGER NOT NULL, entry TEXT NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX open_digests ON entries (digest) WHERE open = 1;
CREATE INDEX open_entries ON entries (id) WHERE open = 1;
CREATE TABLE lanes (lane TEXT PRIMARY KEY, tail TEXT NOT NULL) WITHOUT ROWID
"""


class SqliteLedger:
    """A `Ledger` in the file at `path`, made when missing; finished batches are forgotten after `retention`.

    Raises:
        NotConfiguredError: The file cannot be made, written or understood.
        DependencyUnavailableError: Another process has it locked.
    """

    def __init__(self, path: Path, retention: timedelta, *, synchronous: str = "full") -> None:
        self._retention = retention
        self._database = EmbeddedDatabase(
            path, _SCHEMA, _VERSION, subject="the ledger", setting="LEDGER_PATH", synchronous=synchronous
        )

    def enter(self, batch: NewBatch, now: datetime) -> Entry:
        """Find an equal open one, or take the lanes' tails and become the tail of each, in one transaction."""
        with self._database.transaction() as connection:
            known = connection.execute("SELECT entry FROM entries WHERE open = 1 AND digest = ?", (batch.digest,))
            if found := known.fetchone():
                return _entry(found)
            marks = ", ".join("?" * len(batch.lanes))
            tails = connection.execute(f"SELECT DISTINCT tail FROM lanes WHERE lane IN ({marks})", batch.lanes)  # noqa: S608
            entry = enter(batch, tuple(sorted(tail for (tail,) in tails)), now)
            _insert(connection, entry)
            connection.executemany(
                "INSERT INTO lanes VALUES (?, ?) ON CONFLICT (lane) DO UPDATE SET tail = excluded.tail",
                [(lane, entry.id) for lane in batch.lanes],
            )
            oldest = id_before(now - self._retention)
            connection.execute("DELETE FROM entries WHERE open = 0 AND id < ?", (oldest,))
        return entry

    def open(self) -> list[Entry]:
        """By their partial index."""
        with self._database.reading() as connection:
            return [_entry(row) for row in connection.execute("SELECT entry FROM entries WHERE open = 1 ORDER BY id")]

    def update(self, entry: Entry) -> Entry:
        """Write it if its version is the one that is there."""
        return self.update_together([entry])[0]

    def update_together(self, entries: Sequence[Entry]) -> list[Entry]:
        """Write them in one transaction."""
        with self._database.transaction() as connection:
            return [_change(connection, entry) for entry in entries]

    def claim(self, entries: Sequence[Entry], limit: int) -> list[Entry] | None:
        """Count and write in one transaction."""
        with self._database.transaction() as connection:
            marks = ", ".join("?" * len(BUSY_STATES))
            busy = connection.execute(
                f"SELECT entry FROM entries WHERE open = 1 AND state IN ({marks})",  # noqa: S608
                [int(state) for state in BUSY_STATES],
            )
            if sum(_entry(row).slot for row in busy) >= limit:
                return None
            return [_change(connection, entry) for entry in entries]

    def get(self, entry_id: str) -> Entry | None:
        """By its key."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT entry FROM entries WHERE id = ?", (entry_id,)).fetchone()
        return None if row is None else _entry(row)

    def list(self, limit: int, before: str = "", states: Collection[TaskState] = ()) -> "list[Entry]":
        """By key, downwards."""
        wanted = [int(state) for state in states or TaskState]
        marks = ", ".join("?" * len(wanted))
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT entry FROM entries WHERE (? = '' OR id < ?) AND state IN ({marks}) ORDER BY id DESC LIMIT ?",  # noqa: S608
                (before, before, *wanted, limit),
            )
            return [_entry(row) for row in rows]

    def check(self) -> None:
        """Take the write lock, and give it back."""
        self._database.check_writable()

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _insert(connection: sqlite3.Connection, entry: Entry) -> None:
    connection.execute(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
        (entry.id, entry.digest, entry.open, entry.state, entry.version, _text(entry)),
    )


def _change(connection: sqlite3.Connection, entry: Entry) -> Entry:
    changed = kept(entry)
    done = connection.execute(
        "UPDATE entries SET open = ?, state = ?, version = ?, entry = ? WHERE id = ? AND version = ?",
        (changed.open, changed.state, changed.version, _text(changed), changed.id, entry.version),
    )
    if not done.rowcount:
        raise ConflictError(f"{entry.id} changed since it was read")
    return changed


def _text(entry: Entry) -> str:
    return json.dumps(entry_to_json(entry), separators=(",", ":"))


def _entry(row: tuple[str]) -> Entry:
    entry = entry_from_json(json.loads(row[0]))
    return replace(entry, slot=entry.holds_place)
