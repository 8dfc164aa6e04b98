"""The embedded queue: one SQLite file that several processes and threads may use at once.

It behaves as SQS FIFO does. Every change is one `BEGIN IMMEDIATE` transaction on a write-ahead log, so `kill -9` of any
process at any moment loses nothing and leaves no half-done change. A power loss may lose the last transactions unless
the queue is opened with synchronous FULL (QUEUE_SYNCHRONOUS=full).
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from services.queue.ports import (
    DEDUPLICATION_SECONDS,
    DeadLetter,
    OutgoingMessage,
    QueueDepth,
    ReceivedMessage,
    SentMessage,
)
from services.runtime.embedded_database import EmbeddedDatabase

DEFAULT_MAX_RECEIVE_COUNT: Final = 1_000
_SCHEMA_VERSION = 1
_BUSY_SECONDS = 5.0
_POLL_SECONDS = 0.015
_IN_CHUNK = 500
_FOREVER_SECONDS = 43_200.0
"""SQS's longest visibility, 12 hours."""

_SCHEMA = """
CREATE TABLE messages (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id TEXT NOT NULL,
    group_id TEXT NOT NULL,
    deduplication_id TEXT NOT NULL,
    body TEXT NOT NULL,
    attributes TEXT NOT NULL,
    sent_time REAL NOT NULL,
    receive_count INTEGER NOT NULL DEFAULT 0,
    receipt TEXT,
    visible_time REAL NOT NULL DEFAULT 0
);
CREATE INDEX messages_by_group ON messages (group_id, sequence);
CREATE INDEX messages_delivered ON messages (group_id, visible_time) WHERE receipt IS NOT NULL;

-- One row for each group that holds messages: its oldest one, and until when a delivered one blocks it
CREATE TABLE groups (
    group_id TEXT PRIMARY KEY,
    head INTEGER NOT NULL,
    blocked_until REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX groups_by_head ON groups (head, blocked_until);

CREATE TABLE deduplication (
    deduplication_id TEXT PRIMARY KEY,
    message_id TEXT NOT NULL,
    sent_time REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX deduplication_by_time ON deduplication (sent_time);

CREATE TABLE dead_letters (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    body TEXT NOT NULL,
    group_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    attributes TEXT NOT NULL,
    dead_time REAL NOT NULL
);

CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES
    ('sent', 0), ('deduplicated', 0), ('delivered', 0), ('deliveries_repeated', 0), ('acknowledged', 0);
"""


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """Messages since the queue was made.

    `deliveries_repeated` counts the deliveries beyond each message's first: after a failure, a timeout or a killed
    receiver.
    """

    sent: int
    deduplicated: int
    delivered: int
    deliveries_repeated: int
    acknowledged: int


class SqliteQueue:
    """A `Queue` in the file at `path`, made when missing.

    Raises:
        NotConfiguredError: The file cannot be made, written or understood.
        DependencyUnavailableError: Another process has it locked.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Literal["normal", "full"] = "normal",
        max_receive_count: int = DEFAULT_MAX_RECEIVE_COUNT,
        busy_seconds: float = _BUSY_SECONDS,
    ) -> None:
        self._max_receive_count = max_receive_count
        self._database = EmbeddedDatabase(
            path,
            _SCHEMA,
            _SCHEMA_VERSION,
            subject="the queue",
            setting="QUEUE_PATH",
            synchronous=synchronous,
            busy_seconds=busy_seconds,
        )

    def send(self, messages: Sequence[OutgoingMessage]) -> list[SentMessage]:
        """Make messages durable, in order, in one transaction: all of them or none."""
        if not messages:
            return []
        now = time.time()
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM deduplication WHERE sent_time <= ?", (now - DEDUPLICATION_SECONDS,))
            known = _known(connection, [message.deduplication_id for message in messages])
            (last,) = connection.execute(
                "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'messages'), 0)"
            ).fetchone()
            results, rows = [], []
            heads: dict[str, int] = {}
            for message in messages:
                if (earlier := known.get(message.deduplication_id)) is not None:
                    results.append(SentMessage(earlier, deduplicated=True))
                    continue
                last += 1
                message_id = str(uuid.uuid4())
                known[message.deduplication_id] = message_id
                heads.setdefault(message.group_id, last)
                attributes = json.dumps(dict(message.attributes))
                rows.append(
                    (last, message_id, message.group_id, message.deduplication_id, message.body, attributes, now)
                )
                results.append(SentMessage(message_id, deduplicated=False))
            connection.executemany(
                "INSERT INTO messages (sequence, message_id, group_id, deduplication_id, body, attributes, sent_time)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            connection.executemany("INSERT INTO deduplication VALUES (?, ?, ?)", ((r[3], r[1], now) for r in rows))
            connection.executemany(
                "INSERT INTO groups (group_id, head) VALUES (?, ?) ON CONFLICT DO NOTHING", heads.items()
            )
            _count(connection, sent=len(rows), deduplicated=len(messages) - len(rows))
        return results

    def receive(self, max_messages: int, visibility_seconds: float, wait_seconds: float = 0) -> list[ReceivedMessage]:
        """The group with the oldest message first and as many of it as there are, then the next group, as SQS does.

        So receivers at work on a backlog hold different groups, and none starves.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            # A look that takes no lock first: idle receivers must not hold up senders.
            with self._database.reading() as connection:
                ready = connection.execute(
                    "SELECT 1 FROM groups WHERE blocked_until <= ? LIMIT 1", (time.time(),)
                ).fetchone()
            if ready and (received := self._take(max_messages, min(visibility_seconds, _FOREVER_SECONDS))):
                return received
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return []
            time.sleep(min(_POLL_SECONDS, remaining))

    def _take(self, max_messages: int, visibility_seconds: float) -> list[ReceivedMessage]:
        received: list[ReceivedMessage] = []
        exhausted: list[int] = []
        touched: set[str] = set()
        with self._database.transaction() as connection:
            now = time.time()
            receipt = uuid.uuid4().hex
            groups = connection.execute(
                "SELECT group_id FROM groups WHERE blocked_until <= ? ORDER BY head LIMIT ?", (now, max_messages)
            ).fetchall()
            for (group_id,) in groups:
                if len(received) == max_messages:
                    break
                touched.add(group_id)
                rows = connection.execute(
                    "SELECT sequence, message_id, deduplication_id, body, attributes, sent_time, receive_count"
                    " FROM messages WHERE group_id = ? ORDER BY sequence LIMIT ?",
                    (group_id, max_messages - len(received)),
                ).fetchall()
                for sequence, message_id, deduplication_id, body, attributes, sent_time, count in rows:
                    if count >= self._max_receive_count:
                        exhausted.append(sequence)
                        continue
                    received.append(
                        ReceivedMessage(
                            message_id=message_id,
                            receipt_handle=f"{sequence}:{receipt}",
                            body=body,
                            group_id=group_id,
                            deduplication_id=deduplication_id,
                            sequence_number=f"{sequence:020d}",
                            receive_count=count + 1,
                            sent_time=datetime.fromtimestamp(sent_time, UTC),
                            attributes=json.loads(attributes),
                        )
                    )
            connection.executemany(
                "UPDATE messages SET receive_count = receive_count + 1, receipt = ?, visible_time = ?"
                " WHERE sequence = ?",
                ((receipt, now + visibility_seconds, int(message.sequence_number)) for message in received),
            )
            self._bury(connection, exhausted, now)
            _refresh(connection, touched)
            repeated = sum(message.receive_count > 1 for message in received)
            _count(connection, delivered=len(received), deliveries_repeated=repeated)
        return received

    def _bury(self, connection: sqlite3.Connection, sequences: Sequence[int], now: float) -> None:
        reason = f"delivered {self._max_receive_count:,} times without success"
        connection.executemany(
            "INSERT INTO dead_letters (body, group_id, reason, attributes, dead_time)"
            " SELECT body, group_id, ?, attributes, ? FROM messages WHERE sequence = ?",
            ((reason, now, sequence) for sequence in sequences),
        )
        connection.executemany("DELETE FROM messages WHERE sequence = ?", ((sequence,) for sequence in sequences))

    def acknowledge(self, receipt_handles: Sequence[str]) -> None:
        """Delete delivered messages; handles that are not the current ones are ignored."""
        with self._database.transaction() as connection:
            touched = set()
            deleted = 0
            for sequence, receipt in map(_parse_handle, receipt_handles):
                row = connection.execute(
                    "DELETE FROM messages WHERE sequence = ? AND receipt = ? RETURNING group_id", (sequence, receipt)
                ).fetchone()
                if row is not None:
                    deleted += 1
                    touched.add(row[0])
            _refresh(connection, touched)
            _count(connection, acknowledged=deleted)

    def change_visibility(self, receipt_handles: Sequence[str], visibility_seconds: float) -> None:
        """Keep delivered messages invisible for that much longer from now; 0 releases them at once."""
        visible_time = time.time() + min(visibility_seconds, _FOREVER_SECONDS)
        with self._database.transaction() as connection:
            touched = set()
            for sequence, receipt in map(_parse_handle, receipt_handles):
                row = connection.execute(
                    "UPDATE messages SET visible_time = ? WHERE sequence = ? AND receipt = ? RETURNING group_id",
                    (visible_time, sequence, receipt),
                ).fetchone()
                if row is not None:
                    touched.add(row[0])
            _refresh(connection, touched)

    def depth(self) -> QueueDepth:
        """What waits."""
        with self._database.reading() as connection:
            total, in_flight, dead = connection.execute(
                "SELECT (SELECT count(*) FROM messages),"
                " (SELECT count(*) FROM messages WHERE receipt IS NOT NULL AND visible_time > ?),"
                " (SELECT count(*) FROM dead_letters)",
                (time.time(),),
            ).fetchone()
        return QueueDepth(ready=total - in_flight, in_flight=in_flight, dead_letters=dead)

    def check(self) -> None:
        """That the file can be written."""
        self._database.check_writable()

    def statistics(self) -> QueueStatistics:
        """What went through the queue since it was made, by all processes."""
        with self._database.reading() as connection:
            return QueueStatistics(**dict(connection.execute("SELECT name, value FROM counters").fetchall()))

    def send_dead_letter(self, letter: DeadLetter) -> None:
        """Keep the letter; an equal one within the deduplication window adds nothing."""
        now = time.time()
        attributes = json.dumps(dict(letter.attributes))
        digest = sha256("\0".join((letter.group_id, letter.reason, letter.body)).encode()).hexdigest()
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM deduplication WHERE sent_time <= ?", (now - DEDUPLICATION_SECONDS,))
            added = connection.execute(
                "INSERT INTO deduplication VALUES (?, '', ?) ON CONFLICT DO NOTHING", (f"dead letter {digest}", now)
            )
            if added.rowcount:
                connection.execute(
                    "INSERT INTO dead_letters (body, group_id, reason, attributes, dead_time) VALUES (?, ?, ?, ?, ?)",
                    (letter.body, letter.group_id, letter.reason, attributes, now),
                )

    def list_dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The newest dead letters, oldest of them first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT body, group_id, reason, attributes FROM dead_letters ORDER BY number DESC LIMIT ?", (limit,)
            ).fetchall()
        return [DeadLetter(body, group, reason, json.loads(given)) for body, group, reason, given in reversed(rows)]

    def close(self) -> None:
        """Close the file. Calling it twice is harmless."""
        self._database.close()


def _known(connection: sqlite3.Connection, deduplication_ids: Sequence[str]) -> dict[str, str]:
    known: dict[str, str] = {}
    for start in range(0, len(deduplication_ids), _IN_CHUNK):
        chunk = deduplication_ids[start : start + _IN_CHUNK]
        marks = ",".join("?" * len(chunk))
        query = f"SELECT deduplication_id, message_id FROM deduplication WHERE deduplication_id IN ({marks})"  # noqa: S608
        known |= connection.execute(query, chunk).fetchall()
    return known


def _refresh(connection: sqlite3.Connection, group_ids: Iterable[str]) -> None:
    """Set the groups' heads and blocks from their messages; a group without messages goes."""
    for group_id in group_ids:
        head, blocked_until = connection.execute(
            "SELECT (SELECT min(sequence) FROM messages WHERE group_id = ?1),"
            " (SELECT max(visible_time) FROM messages WHERE group_id = ?1 AND receipt IS NOT NULL)",
            (group_id,),
        ).fetchone()
        if head is None:
            connection.execute("DELETE FROM groups WHERE group_id = ?", (group_id,))
        else:
            connection.execute(
                "UPDATE groups SET head = ?, blocked_until = ? WHERE group_id = ?", (head, blocked_until or 0, group_id)
            )


def _count(connection: sqlite3.Connection, **increments: int) -> None:
    connection.executemany(
        "UPDATE counters SET value = value + ? WHERE name = ?", ((n, name) for name, n in increments.items() if n)
    )


def _parse_handle(handle: str) -> tuple[int, str]:
    sequence, _, receipt = handle.partition(":")
    return (int(sequence), receipt) if sequence.isdecimal() and len(sequence) < 19 else (0, "")
