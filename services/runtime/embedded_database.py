"""One SQLite file that several processes and threads use at once: what the embedded adapters stand on.

Every change is one `BEGIN IMMEDIATE` transaction on a write-ahead log, so `kill -9` of any process at any moment loses
nothing and leaves no half-done change; readers never wait for writers. A power loss may lose the last transactions
unless `synchronous` is FULL.

A file that is deleted or replaced stays open, and SQLite would write on into what nobody finds again: each use looks
whether the file is still in its place, and so its log (`-wal`) and the log's index (`-shm`), which SQLite leaves where
they are as long as anybody has the file open.
"""

import os
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.domain.errors import DependencyUnavailableError, FileLostError, NotConfiguredError

_BUSY_SECONDS = 5.0
_POLL_SECONDS = 0.015
_BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_READERS_LIMIT = 8
_PROVEN_SECONDS = 2.0


class EmbeddedDatabase:
    """The file at `path`, made with `schema` when missing.

    Args:
        path: The file.
        schema: Statements that make format `version`.
        version: Number of the format.
        subject: What the file is, for messages: "the store". Another subject's file is refused.
        setting: Environment variable that names the file.
        synchronous: "normal", or "full" to survive a power loss at the price of slower writes.
        busy_seconds: How long to wait for another process's transaction.

    Raises:
        NotConfiguredError: The file cannot be made, written or understood.
        DependencyUnavailableError: Another process keeps it locked.
        FileLostError: By every later use, once the file is no longer in its place.
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
        self._busy_seconds = busy_seconds
        self._lock = threading.Lock()
        self._reader_slots = threading.BoundedSemaphore(_READERS_LIMIT)
        self._idle_readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._closed = False
        self._committed = self._refused = float("-inf")
        self._opened: dict[Path, os.stat_result] = {}
        with self._translated(opening=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._connect()
            try:
                self._prepare(schema, version, synchronous, busy_seconds)
            except BaseException:
                self._connection.close()
                raise
            self._opened = {each: each.stat() for each in self._files if each.exists()}

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False)

    def _prepare(self, schema: str, version: int, synchronous: str, busy_seconds: float) -> None:
        deadline = time.monotonic() + busy_seconds
        while True:
            try:
                (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                if tables:  # before anything of somebody else's file is changed
                    self._check_owner(self._connection.execute("PRAGMA application_id").fetchone()[0])
                self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # Turning the log on ignores the busy timeout while another process does the same.
                if error.sqlite_errorcode not in _BUSY_CODES or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if synchronous == 'full' else 'NORMAL'}")
        with self.transaction() as connection:
            (owner,) = connection.execute("PRAGMA application_id").fetchone()
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if (owner, found, tables) == (0, 0, 0):
                for statement in schema.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {self._application_id}")
                connection.execute(f"PRAGMA user_version = {version}")
                return
            self._check_owner(owner)
            if found != version:
                raise NotConfiguredError(
                    f"{self._subject}'s file {self.path} has format {found}, not {version}",
                    f"set {self._setting} to another file",
                )

    @property
    def _application_id(self) -> int:
        return zlib.crc32(self._subject.encode()) & 0x7FFF_FFFF

    def _check_owner(self, owner: int) -> None:
        if owner != self._application_id:
            raise NotConfiguredError(
                f"{self.path} belongs to something else and is left as it is", f"set {self._setting} to another file"
            )

    @contextmanager
    def _translated(self, *, opening: bool = False) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY_CODES:
                raise self._locked_by_another() from error
            if opening or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
                raise NotConfiguredError(
                    f"{self._subject} cannot use {self.path} ({error})", f"set {self._setting} to a writable file"
                ) from error
            raise DependencyUnavailableError(self._subject, f"{self.path}: {error}") from error
        except OSError as error:
            raise NotConfiguredError(
                f"{self._subject} cannot make {self.path} ({error.strerror})", f"set {self._setting} to a writable file"
            ) from error

    def _locked_by_another(self) -> DependencyUnavailableError:
        words = f"{self.path} is locked by another process; end it, or set {self._setting}"
        return DependencyUnavailableError(self._subject, words)

    @property
    def _files(self) -> tuple[Path, Path, Path]:
        """The file, its log and the log's index."""
        return self.path, _beside(self.path, "-wal"), _beside(self.path, "-shm")

    def _in_place(self, file: Path) -> bool:
        try:
            return os.path.samestat(self._opened[file], file.stat())
        except OSError:
            return False

    def _check_in_place(self) -> None:
        for file in self._opened:
            if not self._in_place(file):
                if file != self.path:
                    self._part_from_index()
                raise FileLostError(self._subject, str(file))

    def _part_from_index(self) -> None:
        """Leave the log's index to those who have it open: who opens the file now would take it for the new log's."""
        index = self._files[-1]
        if index in self._opened and self._in_place(index):
            index.unlink(missing_ok=True)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A read-and-write transaction: committed at the end, rolled back when an error leaves the block."""
        with self._lock, self._locked_transaction() as connection:
            yield connection

    @contextmanager
    def _locked_transaction(self) -> Iterator[sqlite3.Connection]:
        with self._translated():
            self._check_in_place()
            self._begin()
            try:
                yield self._connection
                self._connection.execute("COMMIT")
                self._committed = time.monotonic()
            except BaseException:
                if self._connection.in_transaction:  # some errors have rolled back already
                    self._connection.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in _BUSY_CODES:
                self._refused = time.monotonic()
            raise

    def check_writable(self) -> None:
        """Return when a transaction can be made now: a read alone succeeds while another process holds the lock.

        Raises: DependencyUnavailableError when the file is locked or gone bad, NotConfiguredError when it is read-only,
        FileLostError when it is no longer in its place.
        """
        self._check_in_place()
        began = time.monotonic()
        if began - self._committed < _PROVEN_SECONDS:
            return
        # What becomes of the writers that wait before this one answers for it: each may wait for `busy_seconds`.
        while not self._lock.acquire(timeout=_POLL_SECONDS):
            if self._committed > began:
                return
            if self._refused > began:
                raise self._locked_by_another()
        try:
            if self._refused > began:
                raise self._locked_by_another()
            with self._locked_transaction():
                pass
        finally:
            self._lock.release()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for reads, each of which sees everything committed before it."""
        with self._reader_slots, self._translated():
            self._check_in_place()
            try:
                connection = self._idle_readers.get_nowait()
            except queue.Empty:
                if self._closed:
                    raise DependencyUnavailableError(self._subject, f"{self.path} is closed") from None
                connection = self._connect()
                connection.execute("PRAGMA query_only = ON")
            try:
                yield connection
            finally:
                self._idle_readers.put(connection)
                if self._closed:
                    self._close_readers()

    def _close_readers(self) -> None:
        while True:
            try:
                self._idle_readers.get_nowait().close()
            except queue.Empty:
                return

    def close(self) -> None:
        """Close the file; reads at work end first. Calling it twice is harmless."""
        with self._lock:
            self._closed = True
            self._connection.close()
        self._close_readers()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
