"""A SQLite file that is no longer in its place: SQLite itself would write on into what nobody finds again."""

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.domain.errors import DependencyUnavailableError, FileLostError
from services.runtime.embedded_database import EmbeddedDatabase


def opened(path: Path, busy_seconds: float = 5.0) -> EmbeddedDatabase:
    return EmbeddedDatabase(
        path, "CREATE TABLE notes (text)", 1, subject="the notes", setting="NOTES_PATH", busy_seconds=busy_seconds
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[EmbeddedDatabase]:
    database = opened(tmp_path / "notes.db")
    write(database)
    yield database
    database.close()


class Other:
    """Another process that has the file open. `write` answers what went wrong, or nothing."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, __file__, str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._answer() == ""

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip("\n")

    def write(self) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """It closes the file and ends. Harmless when repeated."""
        if self._process.poll() is None:
            self._process.communicate(timeout=30)
        assert self._process.returncode == 0


@contextmanager
def another(path: Path) -> Iterator[Other]:
    other = Other(path)
    try:
        yield other
    finally:
        other.end()


class NoticedLock:
    """A database's lock. `awaited` is set once a look at the database has begun to wait for it."""

    def __init__(self, database: EmbeddedDatabase) -> None:
        self._lock = database._lock
        self.awaited = threading.Event()
        self.release = self._lock.release
        database._lock = self  # type: ignore[assignment]

    def acquire(self, timeout: float) -> bool:
        self.awaited.set()
        return self._lock.acquire(timeout=timeout)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def write(database: EmbeddedDatabase) -> None:
    with database.transaction() as connection:
        connection.execute("INSERT INTO notes VALUES ('kept')")


def read(database: EmbeddedDatabase) -> None:
    with database.reading() as connection:
        connection.execute("SELECT * FROM notes").fetchall()


def delete(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def replace(path: Path) -> None:
    copy = shutil.copy(path, path.with_suffix(".copy"))
    Path(copy).replace(path)


@pytest.mark.parametrize("lose", [delete, replace])
@pytest.mark.parametrize("use", [write, read, EmbeddedDatabase.check_writable])
def test_a_file_that_is_no_longer_there_is_told_by_every_use(
    database: EmbeddedDatabase, use: Callable[[EmbeddedDatabase], None], lose: Callable[[Path], None]
) -> None:
    use(database)
    lose(database.path)
    left = sorted(database.path.parent.iterdir())
    for _ in range(2):
        with pytest.raises(FileLostError, match=r"the notes: .*notes\.db was deleted or replaced while in use"):
            use(database)
    assert sorted(database.path.parent.iterdir()) == left, "nothing is made in its place"


@pytest.mark.parametrize("ending", ["-wal", "-shm"])
@pytest.mark.parametrize("use", [write, read, EmbeddedDatabase.check_writable])
def test_a_log_that_is_no_longer_there_is_told_by_every_use(
    database: EmbeddedDatabase, use: Callable[[EmbeddedDatabase], None], ending: str
) -> None:
    use(database)
    Path(f"{database.path}{ending}").unlink()
    for _ in range(2):
        with pytest.raises(FileLostError, match=rf"notes\.db{ending} was deleted or replaced while in use"):
            use(database)


def test_a_log_stays_in_place_while_others_come_and_go(database: EmbeddedDatabase) -> None:
    for _ in range(3):
        with another(database.path) as other:
            other.write()
        write(database)
        with database.transaction() as connection:  # more than the log takes before it is written back
            connection.executemany("INSERT INTO notes VALUES (?)", [("x" * 4_000,)] * 1_100)
    read(database)


def test_whether_it_is_writable_is_known_while_many_wait_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them waits in turn until it is refused; the look at it does not wait for them all."""
    monkeypatch.setattr("services.runtime.embedded_database._PROVEN_SECONDS", 0.0)
    database = opened(tmp_path / "notes.db", busy_seconds=0.1)
    holder = sqlite3.connect(database.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    lock, begun, answered = NoticedLock(database), threading.Event(), threading.Event()

    def begin(_: str) -> None:
        lock.awaited.wait(30)
        if begun.is_set():  # what became of the first one is answer enough
            answered.wait(30)
        begun.set()

    database._connection.set_trace_callback(begin)
    with ThreadPoolExecutor(40) as threads:
        waiting = [threads.submit(write, database) for _ in range(40)]
        with pytest.raises(DependencyUnavailableError, match="locked by another process"):
            database.check_writable()
        assert any(not write.done() for write in waiting), "it answers before their turn is over"
        answered.set()
        assert all(isinstance(write.exception(), DependencyUnavailableError) for write in waiting)
        holder.close()
        waiting = [threads.submit(write, database) for _ in range(40)]
        database.check_writable()
    assert all(write.exception() is None for write in waiting)
    database.close()


def test_what_refuses_one_writer_is_not_waited_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.runtime.embedded_database._PROVEN_SECONDS", 0.0)
    database = opened(tmp_path / "notes.db", busy_seconds=0.5)
    holder = sqlite3.connect(database.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    lock, statements = NoticedLock(database), list[str]()

    def begin(statement: str) -> None:
        statements.append(statement)
        lock.awaited.wait(60)

    database._connection.set_trace_callback(begin)
    with ThreadPoolExecutor(1) as thread:
        writer = thread.submit(write, database)
        while not statements:
            time.sleep(0.001)
        with pytest.raises(DependencyUnavailableError, match="locked by another process"):
            database.check_writable()
    assert isinstance(writer.exception(), DependencyUnavailableError)
    assert statements == ["BEGIN IMMEDIATE"], "the writer's"
    holder.close()
    database.close()


def test_who_opens_after_a_log_is_gone_never_meets_those_who_had_it(tmp_path: Path) -> None:
    """One notices and ends, another has not noticed yet, and the next start has a log of its own."""
    path = tmp_path / "notes.db"
    with another(path) as first, another(path) as unaware:
        for _ in range(20):
            first.write()
        Path(f"{path}-wal").unlink()
        assert first.write().startswith("the notes: ")
        first.end()
        new = opened(path)
        write(new)
        assert unaware.write().startswith("the notes: ")
        unaware.end()
    for _ in range(20):
        write(new)
    with new.reading() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM notes").fetchone() == (21,)
    new.close()


def test_a_log_that_is_gone_loses_nothing_when_all_who_had_it_end_first(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with another(path) as first, another(path) as second:
        for each in (first, second, first):
            each.write()
        Path(f"{path}-wal").unlink()
        assert all(each.write().startswith("the notes: ") for each in (first, second))
    new = opened(path)
    with new.reading() as connection:
        assert connection.execute("SELECT count(*) FROM notes").fetchone() == (3,)
    new.close()


def test_the_next_start_makes_a_new_file(database: EmbeddedDatabase) -> None:
    delete(database.path)
    new = opened(database.path)
    write(new)
    with pytest.raises(FileLostError):
        write(database)
    database.close()
    read(new)
    write(new)
    new.close()


def _serve(path: Path) -> None:
    database = opened(path)
    print(flush=True)
    for _ in sys.stdin:
        try:
            write(database)
            print(flush=True)
        except FileLostError as error:
            print(error.message, flush=True)
    database.close()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
