import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.queue.open import open_queue
from services.queue.ports import OutgoingMessage
from services.queue.settings import QueueSettings
from services.queue.sqlite import SqliteQueue


def messages(count: int, groups: int = 5, start: int = 0) -> list[OutgoingMessage]:
    return [OutgoingMessage("x" * 400, f"g{i % groups}", f"id-{i:06d}") for i in range(start, start + count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def test_statistics_count_repeated_deliveries_of_all_processes(path: Path) -> None:
    queue, other = SqliteQueue(path), SqliteQueue(path)
    queue.send(messages(3))
    queue.send(messages(2))
    held = other.receive(10, 30)
    other.change_visibility([m.receipt_handle for m in held], 0)
    again = queue.receive(2, 30)
    queue.acknowledge([m.receipt_handle for m in again])
    statistics = other.statistics()
    assert (statistics.sent, statistics.deduplicated) == (3, 2)
    assert (statistics.delivered, statistics.deliveries_repeated, statistics.acknowledged) == (5, 2, 2)


def test_a_backlog_is_handed_out_group_by_group(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.send(messages(500))
    batches = [queue.receive(100, 30) for _ in range(5)]
    assert [{m.group_id for m in batch} for batch in batches] == [{f"g{i}"} for i in range(5)]


def test_one_receive_takes_from_many_groups(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.send(messages(60, groups=30))
    received = queue.receive(100, 30)
    assert len(received) == 60
    assert [m.group_id for m in received[:4]] == ["g0", "g0", "g1", "g1"]


def test_deduplication_ends_after_five_minutes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = SqliteQueue(path)
    now = time.time()
    queue.send(messages(1))
    monkeypatch.setattr("services.queue.sqlite.time.time", lambda: now + 301)
    assert queue.send(messages(1))[0].deduplicated is False
    assert queue.depth().ready == 2


def test_a_failed_send_leaves_nothing(path: Path) -> None:
    queue = SqliteQueue(path)
    with pytest.raises(UnicodeEncodeError):
        queue.send([*messages(3), OutgoingMessage("\ud800", "g", "bad")])
    assert queue.depth().ready == 0
    assert [r.deduplicated for r in queue.send(messages(3))] == [False] * 3


def test_sends_and_receives_stay_fast_with_a_backlog(path: Path) -> None:
    queue = SqliteQueue(path)
    sends = []
    for start in range(0, 12_000, 500):
        began = time.thread_time()
        queue.send(messages(500, start=start))
        sends.append(time.thread_time() - began)
    receives = []
    for _ in range(20):
        began = time.thread_time()
        received = queue.receive(128, 30)
        receives.append(time.thread_time() - began)
        assert len(received) == 128
        queue.acknowledge([m.receipt_handle for m in received])
    # Measured 7 ms and 2 ms; the limits, of CPU time, would still show a scan of the backlog.
    assert sorted(sends)[len(sends) // 2] < 0.05
    assert sorted(receives)[10] < 0.02


def test_waiting_ends_after_the_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = SqliteQueue(path)
    slept: list[float] = []
    monkeypatch.setattr("services.queue.sqlite.time.sleep", slept.append)
    monkeypatch.setattr("services.queue.sqlite.time.monotonic", lambda: 100.0 + sum(slept))
    assert queue.receive(1, 30, wait_seconds=0.2) == []
    assert sum(slept) == pytest.approx(0.2)


def test_a_locked_file_is_unavailable_and_says_so(path: Path) -> None:
    queue = SqliteQueue(path, busy_seconds=0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DependencyUnavailableError, match="is locked by another process"):
        queue.send(messages(1))
    with pytest.raises(DependencyUnavailableError, match="is locked by another process"):
        SqliteQueue(path, busy_seconds=0.1)
    other.execute("ROLLBACK")
    assert len(queue.send(messages(1))) == 1


def test_a_closed_queue_is_unavailable(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.close()
    with pytest.raises(DependencyUnavailableError, match="closed"):
        queue.depth()


def test_a_file_that_is_no_queue_is_one_clear_sentence(path: Path) -> None:
    path.write_bytes(b"this is not a database, not even a small one" * 100)
    with pytest.raises(NotConfiguredError, match=r"cannot use .*queue\.db .* set QUEUE_PATH to"):
        SqliteQueue(path)


def test_a_folder_that_cannot_be_made_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotConfiguredError, match="set QUEUE_PATH to a writable file"):
        SqliteQueue(tmp_path / "file" / "queue.db")


def test_a_read_only_file_is_one_clear_sentence(path: Path) -> None:
    SqliteQueue(path).close()
    queue = SqliteQueue(path)
    queue._database._connection.execute("PRAGMA query_only = 1")  # what a read-only file does, also to root
    with pytest.raises(NotConfiguredError, match="set QUEUE_PATH"):
        queue.send(messages(1))


def test_another_format_is_refused(path: Path) -> None:
    SqliteQueue(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(NotConfiguredError, match="has format 99"):
        SqliteQueue(path)


def test_full_synchronous_is_a_setting(path: Path) -> None:
    queue = open_queue(QueueSettings(queue_path=path, queue_synchronous="full"))
    assert isinstance(queue, SqliteQueue)
    assert queue._database._connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_sqs_without_a_url_is_one_clear_sentence() -> None:
    with pytest.raises(NotConfiguredError, match="set SQS_QUEUE_URL"):
        open_queue(QueueSettings(queue_backend="sqs"))


_RECEIVE_AND_WORK = """
import sys, time
from pathlib import Path
from services.queue.sqlite import SqliteQueue
queue = SqliteQueue(Path(sys.argv[1]))
while True:
    held = queue.receive(7, 0.5)
    queue.acknowledge([m.receipt_handle for m in held[:4]])
    print(len(held), flush=True)
"""


def test_kill_9_of_a_receiver_loses_and_doubles_nothing(path: Path) -> None:
    queue = SqliteQueue(path)
    queue.send(messages(2_000))
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", _RECEIVE_AND_WORK, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = queue.statistics().acknowledged
    assert before > 0
    seen: list[str] = []
    while (depth := queue.depth()).ready + depth.in_flight:
        held = queue.receive(100, 30, wait_seconds=1)
        seen += [m.deduplication_id for m in held]
        queue.acknowledge([m.receipt_handle for m in held])
    assert len(seen) == len(set(seen)) == 2_000 - before
    assert queue.statistics().acknowledged == 2_000
    for group in range(5):
        of_group = [i for i in seen if int(i[3:]) % 5 == group]
        assert of_group == sorted(of_group)


def _send(path: str, start: int) -> None:
    queue = SqliteQueue(Path(path), busy_seconds=60)
    for i in range(start, start + 400, 20):
        queue.send(messages(20, start=i))


def test_processes_send_at_once(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_send, args=(str(path), start)) for start in (0, 10_000)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert SqliteQueue(path).depth().ready == 800
