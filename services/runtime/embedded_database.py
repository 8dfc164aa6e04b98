"""One SQLite file that several processes and threads use at once: what the embedded adapters stand on.

Every change is one `BEGIN IMMEDIATE` transaction on a write-ahead log, so `kill -9` of any process at any moment loses
nothing and leaves no half-done change. A power loss may lose the last transactions unless `synchronous` is FULL.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.domain.errors import DependencyUnavailableError, NotConfiguredError

_BUSY_SECONDS = 5.0
_POLL_SECONDS = 0.015
_BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class EmbeddedDatabase:
    """The file at `path`, made with `schema` when missing.

    Args:
        path: The file.
        schema: Statements that make format `version`.
        version: Number of the format.
        subject: What the file is, for messages: "the store".
        setting: Environment variable that names the file.
        synchronous: "normal", or "full" to survive a power loss at the price of slower writes.
        busy_seconds: How long to wait for another process's transaction.

    Raises:
        NotConfiguredError: The file cannot be made, written or understood.
        DependencyUnavailableError: Another process keeps it locked.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        version: int,
        *,
        subject: str,
        setting: str,
        synchronous: str = "normal",
        busy_seconds: float = _BUSY_SECONDS,
    ) -> None:
        self.path = path
        self._subject = subject
        self._setting = setting
        self._lock = threading.Lock()
        with self._translated(opening=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=busy_seconds, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(schema, version, synchronous, busy_seconds)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, schema: str, version: int, synchronous: str, busy_seconds: float) -> None:
        deadline = time.monotonic() + busy_seconds
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # Turning the log on ignores the busy timeout while another process does the same.
                if error.sqlite_errorcode not in _BUSY_CODES or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if synchronous == 'full' else 'NORMAL'}")
        with self.transaction() as connection:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found == 0:
                for statement in schema.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version}")
            elif found != version:
                raise NotConfiguredError(
                    f"{self._subject}'s file {self.path} has format {found}, not {version}; {self._subject}",
                    f"{self._setting} to another file",
                )

    @contextmanager
    def _translated(self, *, opening: bool = False) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY_CODES:
                raise DependencyUnavailableError(
                    self._subject, f"{self.path} is locked by another process; end it, or set {self._setting}"
                ) from error
            if opening or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
                raise NotConfiguredError(
                    f"{self._subject} cannot use {self.path} ({error}); it", f"{self._setting} to a writable file"
                ) from error
            raise DependencyUnavailableError(self._subject, f"{self.path}: {error}") from error
        except OSError as error:
            raise NotConfiguredError(
                f"{self._subject} cannot make {self.path} ({error.strerror}); it", f"{self._setting} to a writable file"
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A read-and-write transaction: committed at the end, rolled back when an error leaves the block."""
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection for single reads, each of which sees everything committed before it."""
        with self._lock, self._translated():
            yield self._connection

    def close(self) -> None:
        """Close the connection. Calling it twice is harmless."""
        with self._lock:
            self._connection.close()
