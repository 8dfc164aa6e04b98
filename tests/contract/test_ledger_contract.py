"""What every ledger of task mode must do, whatever is behind it."""

import dataclasses
import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.dispatch.batch import (
    MAX_LANES,
    MAX_TASK_BATCHES,
    Entry,
    NewBatch,
    SharedTask,
    TaskState,
    entry_from_json,
    entry_to_json,
)
from services.dispatch.ledger_dynamodb import DynamoDbLedger
from services.dispatch.ledger_sqlite import SqliteLedger
from services.dispatch.ports import Ledger
from services.domain.errors import ConflictError
from services.runtime.dynamodb_table import DynamoDbTable
from tests.servers.process import CREDENTIALS, REGION

MakeLedger = Callable[[], Ledger]
RETENTION = timedelta(days=7)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(params=["sqlite", "dynamodb_local", "ministack"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLedger]:
    """Opens the same ledger once more, as another dispatcher does."""
    opened: list[Ledger] = []
    table = f"ledger-{uuid.uuid4().hex[:12]}"
    if request.param != "sqlite":
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", request.getfixturevalue(request.param).url)
        DynamoDbTable.connect(table, REGION).create()

    def open_one() -> Ledger:
        if request.param == "sqlite":
            opened.append(SqliteLedger(tmp_path / "ledger.db", RETENTION))
        else:
            opened.append(DynamoDbLedger(DynamoDbTable.connect(table, REGION), RETENTION))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(make: MakeLedger) -> Ledger:
    return make()


def batch(digest: str, *lanes: str) -> NewBatch:
    return NewBatch(digest, lanes or ("live/AAPL",), 3, "00-trace", "state=1")


def recorded(ledger: Ledger, entry: Entry) -> Entry:
    return ledger.update(dataclasses.replace(entry, state=TaskState.RECORDED, stop_time=now()))


def test_a_batch_enters_whole(ledger: Ledger, make: MakeLedger) -> None:
    moment = now()
    entry = ledger.enter(batch("d1", "live/AAPL", "live/MSFT"), moment)
    assert (entry.state, entry.version, entry.after, entry.attempt) == (TaskState.WAITING, 1, (), 0)
    assert (entry.entered_time, entry.traceparent, entry.messages) == (moment, "00-trace", 3)
    assert make().get(entry.id) == entry
    assert make().open() == [entry]


def test_a_lane_is_a_queue(ledger: Ledger) -> None:
    first = ledger.enter(batch("d1", "a", "b"), now())
    second = ledger.enter(batch("d2", "b"), now())
    third = ledger.enter(batch("d3", "a", "b"), now())
    other = ledger.enter(batch("d4", "c"), now())
    assert second.after == (first.id,)
    assert third.after == tuple(sorted((first.id, second.id)))
    assert other.after == ()
    assert [entry.id for entry in ledger.open()] == [first.id, second.id, third.id, other.id]


def test_an_equal_open_batch_is_one(ledger: Ledger, make: MakeLedger) -> None:
    entry = ledger.enter(batch("d1"), now())
    running = ledger.update(dataclasses.replace(entry, state=TaskState.RUNNING, attempt=1, task="t"))
    assert make().enter(batch("d1"), now()) == running
    assert len(ledger.open()) == 1


def test_one_that_was_finished_enters_anew(ledger: Ledger) -> None:
    first = recorded(ledger, ledger.enter(batch("d1"), now()))
    again = ledger.enter(batch("d1"), now())
    assert again.id != first.id
    assert ledger.get(first.id) == first
    assert ledger.get(again.id) == again
    assert [entry.id for entry in ledger.open()] == [again.id]


def test_a_finished_batch_leaves_and_is_still_known(ledger: Ledger) -> None:
    entry = ledger.enter(batch("d1"), now())
    done = recorded(ledger, dataclasses.replace(entry, dead=(1,), reason="why", settled=3))
    assert ledger.open() == []
    assert ledger.get(entry.id) == done
    assert (done.version, done.dead, done.reason) == (2, (1,), "why")


def test_a_change_of_something_else_is_refused(ledger: Ledger, make: MakeLedger) -> None:
    entry = ledger.enter(batch("d1"), now())
    running = dataclasses.replace(entry, state=TaskState.RUNNING)
    kept = ledger.update(running)
    with pytest.raises(ConflictError):
        make().update(running)
    recorded(ledger, kept)
    with pytest.raises(ConflictError):
        ledger.update(kept)
    with pytest.raises(ConflictError):
        recorded(ledger, kept)


def test_an_old_entry_does_not_touch_the_new_one_of_an_equal_batch(ledger: Ledger) -> None:
    old = ledger.enter(batch("d1"), now())
    recorded(ledger, old)
    new = ledger.enter(batch("d1"), now())
    with pytest.raises(ConflictError):
        recorded(ledger, old)
    assert ledger.open() == [new]


def test_what_was_never_entered_is_unknown(ledger: Ledger) -> None:
    known = ledger.enter(batch("d1"), now())
    for entry_id in ("", "nothing", "20261124T223344000001Z-", "20261124T223344000001Z-d1", known.id + "x"):
        assert ledger.get(entry_id) is None


def test_lists_are_newest_first_in_pages(ledger: Ledger) -> None:
    base = now() - timedelta(days=2)
    entries = [ledger.enter(batch(f"d{i}", f"lane{i}"), base + timedelta(hours=8 * i)) for i in range(7)]
    entries = [recorded(ledger, entry) if i % 2 else entry for i, entry in enumerate(entries)]
    newest = [entry.id for entry in reversed(entries)]
    assert [entry.id for entry in ledger.list(100)] == newest
    pages, before = [], ""
    while page := ledger.list(3, before):
        pages.append([entry.id for entry in page])
        before = page[-1].id
    assert pages == [newest[:3], newest[3:6], newest[6:]]
    done = ledger.list(100, states=[TaskState.RECORDED])
    assert [entry.id for entry in done] == [entry.id for entry in reversed(entries) if not entry.open]
    waiting = ledger.list(2, states=[TaskState.WAITING])
    assert [entry.id for entry in waiting] == [entries[6].id, entries[4].id]


def test_a_batch_has_many_lanes(ledger: Ledger) -> None:
    lanes = tuple(f"live/S{i}" for i in range(MAX_LANES))
    first = ledger.enter(batch("d1", *lanes), now())
    assert ledger.enter(batch("d2", *lanes), now()).after == (first.id,)


def test_batches_that_enter_at_once_stand_one_behind_the_other(make: MakeLedger) -> None:
    ledgers = [make() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda i: ledgers[i % 3].enter(batch(f"d{i}", "a", f"b{i % 2}"), now()), range(9)))
    entries = {entry.id: entry for entry in ledgers[0].open()}
    assert len(entries) == 9
    assert sum(entry.after == () for entry in entries.values()) == 1
    successors: dict[str, int] = {}
    for entry in entries.values():
        ancestors = set(entry.after)
        while ancestors:  # a cycle would never end: the entries behind an ancestor are fewer and fewer
            assert entry.id not in ancestors
            ancestors = {each for ancestor in ancestors for each in entries[ancestor].after}
        for ancestor in entry.after:
            successors[ancestor] = successors.get(ancestor, 0) + 1
    assert len(successors) == 8, "every batch but the last has one behind it"


def test_it_can_be_checked(ledger: Ledger) -> None:
    ledger.check()


def launching(entry: Entry) -> Entry:
    return dataclasses.replace(entry, state=TaskState.LAUNCHING, attempt=entry.attempt + 1)


def claimed(ledger: Ledger, entry: Entry, limit: int) -> Entry | None:
    """The entry with a task of its own; None when there is no place."""
    kept = ledger.claim([launching(entry)], limit)
    return None if kept is None else kept[0]


def claimed_at_once(make: MakeLedger, entries: list[Entry], limit: int, dispatchers: int = 4) -> list[Entry]:
    """What dispatchers get that all claim every entry at the same moment."""
    ledgers = [make() for _ in range(dispatchers)]

    def claim(ledger: Ledger, entry: Entry) -> Entry | None:
        try:
            return claimed(ledger, entry, limit)
        except ConflictError:
            return None  # another one has it

    with ThreadPoolExecutor(2 * dispatchers) as threads:
        claims = [threads.submit(claim, ledger, entry) for entry in entries for ledger in ledgers]
        return [entry for claim_ in claims if (entry := claim_.result()) is not None]


def test_no_more_are_claimed_than_the_limit_however_many_claim(ledger: Ledger, make: MakeLedger) -> None:
    entries = [ledger.enter(batch(f"d{i}", f"lane{i}"), now()) for i in range(12)]
    first = claimed_at_once(make, entries, 5)
    assert len({entry.id for entry in first}) == len(first) == 5
    assert sorted(entry.id for entry in ledger.open() if entry.busy) == sorted(entry.id for entry in first)
    left = [entry for entry in ledger.open() if not entry.busy]
    assert claimed_at_once(make, left, 5) == [], "all places are taken"

    running = [ledger.update(dataclasses.replace(entry, state=TaskState.RUNNING)) for entry in first]
    recorded(ledger, running[0])
    ledger.update(dataclasses.replace(running[1], state=TaskState.WAITING))
    again = claimed_at_once(make, left, 5)
    assert len(again) == 2, "as many as there are places again"
    assert sum(entry.busy for entry in ledger.open()) == 5
    assert len(claimed_at_once(make, [each for each in ledger.open() if not each.busy], 7)) == 2, "a higher limit"


def test_a_claim_of_what_changed_is_refused_and_takes_no_place(ledger: Ledger) -> None:
    entry, other = ledger.enter(batch("d1", "a"), now()), ledger.enter(batch("d2", "b"), now())
    kept = claimed(ledger, entry, 2)
    assert kept is not None
    assert ledger.open()[0] == kept
    with pytest.raises(ConflictError):
        claimed(ledger, entry, 2)
    assert claimed(ledger, other, 2) is not None


def test_a_claim_that_ends_without_a_task_gives_its_place_back_once(ledger: Ledger) -> None:
    entries = [ledger.enter(batch(f"d{i}", f"lane{i}"), now()) for i in range(3)]
    for _ in range(3):
        kept = claimed(ledger, entries[0], 1)
        assert kept is not None
        kept = ledger.update(kept)  # launched again with the same token: still one place
        assert claimed(ledger, entries[1], 1) is None
        entries[0] = ledger.update(dataclasses.replace(kept, state=TaskState.WAITING))
        entries[0] = ledger.update(entries[0])
    assert claimed(ledger, entries[1], 1) is not None


def in_one_task(entries: list[Entry]) -> list[Entry]:
    """The entries as they share a task that is being launched."""
    leader, *riders = entries
    shared = SharedTask(f"{leader.id}.{leader.attempt + 1}", len(entries), "m", 3 * len(entries))
    return [
        dataclasses.replace(leader, shared=dataclasses.replace(shared, riders=tuple(each.id for each in riders))),
        *(
            dataclasses.replace(each, shared=dataclasses.replace(shared, first=3 * i))
            for i, each in enumerate(riders, 1)
        ),
    ]


def launched_together(ledger: Ledger, entries: list[Entry], limit: int) -> list[Entry] | None:
    return ledger.claim([launching(entry) for entry in in_one_task(entries)], limit)


def test_batches_that_share_a_task_take_one_place(ledger: Ledger, make: MakeLedger) -> None:
    entries = [ledger.enter(batch(f"d{i}", "a"), now()) for i in range(4)]
    other, third = ledger.enter(batch("d8", "b"), now()), ledger.enter(batch("d9", "c"), now())
    kept = launched_together(ledger, entries, 2)
    assert kept is not None
    assert make().open()[:4] == kept
    assert [entry.shared and entry.shared.first for entry in kept] == [0, 3, 6, 9]
    assert claimed(ledger, other, 2) is not None, "one place is left"
    assert claimed(ledger, third, 2) is None
    running = ledger.update_together([dataclasses.replace(e, state=TaskState.RUNNING, task="t") for e in kept])
    assert ledger.open()[:4] == running
    recorded(ledger, running[2])
    assert claimed(ledger, third, 2) is None, "its task goes on"
    recorded(ledger, running[0])
    assert claimed(ledger, third, 2) is not None, "who led it gives the place back"
    for entry in (running[1], running[3]):
        ledger.update(dataclasses.replace(entry, state=TaskState.WAITING, shared=None))
    assert claimed(ledger, ledger.open()[0], 2) is None, "nobody gave back more than was taken"


def test_as_many_batches_as_a_task_may_have_are_claimed_and_changed_as_one(ledger: Ledger) -> None:
    entries = [ledger.enter(batch(f"d{i}", "a"), now()) for i in range(MAX_TASK_BATCHES)]
    kept = launched_together(ledger, entries, 1)
    assert kept is not None
    assert ledger.open() == kept
    back = ledger.update_together([dataclasses.replace(e, state=TaskState.WAITING, shared=None) for e in kept])
    assert ledger.open() == back
    assert claimed(ledger, back[0], 1) is not None, "the place is free again"


def test_a_change_of_several_is_all_or_nothing(ledger: Ledger, make: MakeLedger) -> None:
    entries = [ledger.enter(batch(f"d{i}", "a"), now()) for i in range(3)]
    make().update(dataclasses.replace(entries[2], reason="changed"))
    before = ledger.open()
    with pytest.raises(ConflictError):
        launched_together(ledger, entries, 5)
    with pytest.raises(ConflictError):
        ledger.update_together([dataclasses.replace(entry, reason="late") for entry in entries])
    assert ledger.open() == before
    kept = launched_together(ledger, before, 1)
    assert kept is not None, "what failed took no place"


def test_dispatchers_that_claim_overlapping_batches_at_once(ledger: Ledger, make: MakeLedger) -> None:
    """Each batch goes to one task, and no more tasks are there than places."""
    entries = [ledger.enter(batch(f"d{i}", f"lane{i % 3}"), now()) for i in range(9)]
    ledgers = [make() for _ in range(4)]

    def claim(i: int) -> list[Entry]:
        wanted = [entries[i % 3 :: 3], entries[i % 3 : i % 3 + 4], [entries[i % 9]]][i % 4 % 3]
        try:
            return launched_together(ledgers[i % 4], wanted, 3) or []
        except ConflictError:
            return []

    with ThreadPoolExecutor(8) as threads:
        tasks = [task for task in threads.map(claim, range(24)) if task]
    members = [entry.id for task in tasks for entry in task]
    assert len(members) == len(set(members)) > 0
    assert sorted(members) == sorted(entry.id for entry in ledger.open() if entry.busy)
    assert len(tasks) == sum(entry.holds_place for entry in ledger.open()) <= 3


def test_entries_of_before_tasks_were_shared_are_read(ledger: Ledger) -> None:
    """A lone batch is still written as they were, so that a dispatcher that is older reads it as well."""
    entry = ledger.enter(batch("d1"), now())
    written = entry_to_json(entry)
    assert not {"shared", "most_batches"} & set(written)
    assert entry_from_json(json.loads(json.dumps(written))) == entry


@pytest.mark.parametrize("make", ["dynamodb_local", "ministack"], indirect=True)
def test_a_wrong_count_is_set_right(ledger: Ledger) -> None:
    """As after a dispatcher of a version that did not count, which ended a batch."""
    assert isinstance(ledger, DynamoDbLedger)
    entries = [ledger.enter(batch(f"d{i}", f"lane{i}"), now()) for i in range(2)]
    ended = claimed(ledger, entries[0], 1)
    assert ended is not None
    recorded(ledger, dataclasses.replace(ended, slot=False))
    assert claimed(ledger, entries[1], 1) is None, "still counted"
    assert claimed(ledger, entries[1], 1) is not None, "counted anew"
