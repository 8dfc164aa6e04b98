"""A batch of task mode as the ledger keeps it: what it holds, what it waits for, and how its tasks did."""

import heapq
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any

from services.runtime.backoff import backoff_seconds

MAX_LANES = 90
"""Most lanes of one batch: DynamoDB writes the batch and all its lanes in one transaction of at most 100 items."""

MAX_TASK_BATCHES = 90
"""Most batches of one task: DynamoDB claims them, and counts their task, in one such transaction."""

_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 60.0
_ID_TIME = "%Y%m%dT%H%M%S%fZ"
_TIMES = ("entered_time", "launch_time", "start_time", "stop_time", "not_before")
_LATER = {"shared": None, "most_batches": 0}
"""What entries did not have at first, with its default: written only where it is another, for older readers."""


class TaskState(IntEnum):
    """Where a batch stands; the numbers are the proto's."""

    WAITING = 1
    LAUNCHING = 2
    RUNNING = 3
    RECORDED = 4


BUSY_STATES = frozenset({TaskState.LAUNCHING, TaskState.RUNNING})
OPEN_STATES = frozenset({TaskState.WAITING, TaskState.LAUNCHING, TaskState.RUNNING})


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch whose manifest is durable, about to enter the ledger. `lanes` are its symbols' (tape and symbol)."""

    digest: str
    lanes: tuple[str, ...]
    messages: int
    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class SharedTask:
    """A task of several batches, as each of them knows it.

    `leader` is the CORRELATION_ID of the first batch's attempt, and so the task's. `digest` and `messages` are those of
    its manifest, the batches' parts one after the other; a batch's own part begins at the position `first`. The leader
    alone knows the ids of the others, its `riders`.
    """

    leader: str
    batches: int
    digest: str
    messages: int
    first: int = 0
    riders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A batch in the ledger.

    `after` are the ids of the batches that were last in its lanes: it starts only when none of them is open. An attempt
    takes `attempt_messages` messages from the manifest `attempt_digest`. `dead` are positions in the batch's manifest
    that were sent to the dead letters; `settled` counts these and the recorded ones. `crashes` counts tasks in a row
    that died without any progress, `failures` whatever delays the next attempt; `most` limits the messages of an
    attempt (0: all) while a message that kills its task is being isolated, and `most_batches` the batches of its task
    (0: as many as there is room for) while the one among them that makes tasks fail is. `shared` is the newest
    attempt's task where it has other batches too. `slot` says that the ledger counts it among those with a task, and is
    the ledger's own.
    """

    id: str
    digest: str
    lanes: tuple[str, ...]
    messages: int
    after: tuple[str, ...]
    entered_time: datetime
    traceparent: str = ""
    tracestate: str = ""
    state: TaskState = TaskState.WAITING
    version: int = 1
    attempt: int = 0
    attempt_digest: str = ""
    attempt_messages: int = 0
    task: str = ""
    launch_time: datetime | None = None
    start_time: datetime | None = None
    stop_time: datetime | None = None
    not_before: datetime | None = None
    failures: int = 0
    crashes: int = 0
    most: int = 0
    settled: int = 0
    dead: tuple[int, ...] = ()
    reason: str = ""
    shared: SharedTask | None = None
    most_batches: int = 0
    slot: bool = False

    @property
    def open(self) -> bool:
        """Whether something is left to do."""
        return self.state in OPEN_STATES

    @property
    def busy(self) -> bool:
        """Whether it has a task, or is about to."""
        return self.state in BUSY_STATES

    @property
    def leads(self) -> bool:
        """Whether its task is its own, or it is the first of those that share one."""
        return self.shared is None or self.shared.leader == f"{self.id}.{self.attempt}"

    @property
    def holds_place(self) -> bool:
        """Whether it takes one of the places for tasks: of batches that share a task, one does."""
        return self.busy and self.leads

    @property
    def correlation_id(self) -> str:
        """What the newest attempt's task is called: its CORRELATION_ID."""
        return f"{self.id}.{self.attempt}" if self.shared is None else self.shared.leader

    @property
    def task_digest(self) -> str:
        """The manifest of the newest attempt's task."""
        return self.attempt_digest if self.shared is None else self.shared.digest

    @property
    def task_messages(self) -> int:
        """Messages in the manifest of the newest attempt's task."""
        return self.attempt_messages if self.shared is None else self.shared.messages


def enter(batch: NewBatch, after: tuple[str, ...], now: datetime) -> Entry:
    """The entry of a batch that entered now, behind the batches `after`."""
    return Entry(
        id=f"{now.astimezone(UTC).strftime(_ID_TIME)}-{batch.digest}",
        digest=batch.digest,
        lanes=batch.lanes,
        messages=batch.messages,
        after=after,
        entered_time=now,
        traceparent=batch.traceparent,
        tracestate=batch.tracestate,
    )


def id_before(moment: datetime) -> str:
    """An id below those of all batches that entered at or after the moment."""
    return moment.astimezone(UTC).strftime(_ID_TIME)


def parse_id(entry_id: str) -> tuple[datetime, str] | None:
    """When the batch with that id entered, and its digest; None when it is no id.

    >>> parse_id("20261124T223344000001Z-ab")
    (datetime.datetime(2026, 11, 24, 22, 33, 44, 1, tzinfo=datetime.timezone.utc), 'ab')
    """
    time, _, digest = entry_id.partition("-")
    try:
        return datetime.strptime(time, _ID_TIME).replace(tzinfo=UTC), digest
    except ValueError:
        return None


def kept(entry: Entry) -> Entry:
    """The entry as it is kept by the next change: with a version of its own, and counted when it holds a place."""
    return replace(entry, version=entry.version + 1, slot=entry.holds_place)


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """The entry as JSON values, but for what is the ledger's own."""
    values: dict[str, Any] = {each.name: getattr(entry, each.name) for each in fields(entry) if each.name != "slot"}
    for name in _TIMES:
        values[name] = None if values[name] is None else values[name].isoformat()
    for name, default in _LATER.items():
        if values[name] == default:
            del values[name]
    if entry.shared is not None:
        values["shared"] = asdict(entry.shared)
    return values | {"state": int(entry.state)}


def entry_from_json(values: dict[str, Any]) -> Entry:
    """The entry of `entry_to_json`."""
    read = dict(values)
    for name in _TIMES:
        read[name] = None if read[name] is None else datetime.fromisoformat(read[name])
    for name in ("lanes", "after", "dead"):
        read[name] = tuple(read[name])
    if (shared := read.get("shared")) is not None:
        read["shared"] = SharedTask(**(shared | {"riders": tuple(shared["riders"])}))
    return Entry(**(read | {"state": TaskState(read["state"])}))


def ready(entry: Entry, open_ids: frozenset[str], now: datetime) -> bool:
    """Whether the entry's next attempt may be launched."""
    due = entry.not_before is None or entry.not_before <= now
    return entry.state is TaskState.WAITING and due and open_ids.isdisjoint(entry.after)


def together(entries: Sequence[Entry], now: datetime, most_messages: int) -> list[list[Entry]]:
    """Which of the open entries may be launched now: each list is one task, in an order that keeps that of every lane.

    A batch that is ready begins a list. One that waits behind others rides with them where each predecessor that is
    open does; lists that it has predecessors in become one. A list has at most MAX_TASK_BATCHES batches, or as few as
    the `most_batches` of one among them, and `most_messages` messages, unless its only batch has more. A batch whose
    tasks died goes alone: it may take a part of its messages only, which nothing behind it may overtake.
    """
    known = {entry.id: entry for entry in entries}
    behind: dict[str, list[str]] = defaultdict(list)
    ahead = {entry.id: [each for each in entry.after if each in known] for entry in entries}
    for entry in entries:
        for each in ahead[entry.id]:
            behind[each].append(entry.id)
    not_placed = {entry_id: len(each) for entry_id, each in ahead.items()}
    next_ids = [entry.id for entry in entries if not ahead[entry.id] and ready(entry, frozenset(), now)]
    heapq.heapify(next_ids)
    number: dict[str, int] = {}
    task_of: dict[str, str] = {}
    tasks: dict[str, list[Entry]] = {}
    while next_ids:
        entry = known[heapq.heappop(next_ids)]
        joined = {task_of[each] for each in ahead[entry.id]}
        riding = sorted((each for task in joined for each in tasks[task]), key=lambda each: number[each.id])
        task = [*riding, entry]
        if riding and (entry.state is not TaskState.WAITING or not _fit_one_task(task, most_messages)):
            continue
        number[entry.id] = len(number)
        for name in joined:
            del tasks[name]
        tasks[task[0].id] = task
        task_of |= dict.fromkeys((member.id for member in task), task[0].id)
        for later in behind[entry.id]:
            not_placed[later] -= 1
            if not not_placed[later]:
                heapq.heappush(next_ids, later)
    return sorted(tasks.values(), key=lambda task: task[0].id)


def _fit_one_task(task: Sequence[Entry], most_messages: int) -> bool:
    most_batches = min(entry.most_batches or MAX_TASK_BATCHES for entry in task)
    return (
        len(task) <= most_batches
        and sum(entry.messages for entry in task) <= most_messages
        and not any(entry.most or entry.crashes for entry in task)
    )


def delayed(entry: Entry, now: datetime, reason: str, state: TaskState = TaskState.WAITING) -> Entry:
    """The entry after a launch that failed: WAITING takes a new attempt, LAUNCHING asks for the same one again."""
    shared = entry.shared if state is TaskState.LAUNCHING else None
    waits = now + timedelta(
        seconds=backoff_seconds(entry.failures + 1, _FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS)
    )
    return replace(entry, state=state, shared=shared, failures=entry.failures + 1, not_before=waits, reason=reason)


def left_behind(entry: Entry, reason: str) -> Entry:
    """A batch that would have ridden in a task which was not launched: nothing is held against it."""
    return replace(entry, state=TaskState.WAITING, shared=None, reason=reason)


MAX_CRASHES = 3
"""Tasks in a row that die without progress before the attempt is made smaller, and a single message given up."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended. `crashed`: its task died by itself; else something around it failed, and it may pass."""

    crashed: bool
    reason: str


def select(entry: Entry, missing: Sequence[int]) -> list[int]:
    """Which of the missing positions the next attempt takes, in order."""
    return list(missing[: entry.most] if entry.most else missing)


def settle(entry: Entry, missing: Sequence[int], dead: Collection[int], ending: Ending, now: datetime) -> Entry:
    """The entry after an attempt, with the positions that are neither recorded nor dead letters.

    A crash without progress counts against the attempt's messages: after MAX_CRASHES the next attempt takes half as
    many, down to one (see `hopeless`). Progress forgives, and makes the next attempt twice as large.

    Where batches shared the task, nobody knows whose fault it was: each of them that made no progress goes on with half
    as many, until one that is alone is to blame. When the task did not die, it may have been too much for its time, or
    a gateway away for all: only who leads the next task is careful then, and after an outage the next but one is full.
    """
    settled = entry.messages - len(missing)
    after = replace(entry, dead=tuple(sorted({*entry.dead, *dead})), settled=settled, reason=ending.reason, shared=None)
    if not missing:
        return replace(after, state=TaskState.RECORDED, stop_time=now, not_before=None)
    after = replace(after, state=TaskState.WAITING, stop_time=now)
    if settled > entry.settled:
        most = entry.most * 2 if entry.most * 2 < len(missing) else 0
        return replace(after, not_before=None, failures=0, crashes=0, most=most, most_batches=0)
    waits = now + timedelta(
        seconds=backoff_seconds(entry.failures + 1, _FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS)
    )
    after = replace(after, not_before=waits, failures=entry.failures + 1)
    if entry.shared is not None:
        careful = ending.crashed or entry.leads
        return replace(after, most_batches=max(1, entry.shared.batches // 2)) if careful else after
    if not ending.crashed:
        return after
    if entry.crashes + 1 < MAX_CRASHES:
        return replace(after, crashes=entry.crashes + 1)
    return replace(after, crashes=0, most=max(1, entry.attempt_messages // 2))


def hopeless(entry: Entry, ending: Ending) -> bool:
    """Whether the single message of the attempt that ended so is to be given up: its task died once too often."""
    return ending.crashed and entry.attempt_messages == 1 and entry.crashes + 1 >= MAX_CRASHES
