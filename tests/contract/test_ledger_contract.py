"""What every ledger of task mode must do, whatever is behind it."""

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.dispatch.batch import MAX_LANES, Entry, NewBatch, TaskState
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


def claimed_at_once(make: MakeLedger, entries: list[Entry], limit: int, dispatchers: int = 4) -> list[Entry]:
    """What dispatchers get that all claim every entry at the same moment."""
    ledgers = [make() for _ in range(dispatchers)]

    def claim(ledger: Ledger, entry: Entry) -> Entry | None:
        try:
            return ledger.claim(launching(entry), limit)
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
    kept = ledger.claim(launching(entry), 2)
    assert kept is not None
    assert ledger.open()[0] == kept
    with pytest.raises(ConflictError):
        ledger.claim(launching(entry), 2)
    assert ledger.claim(launching(other), 2) is not None


def test_a_claim_that_ends_without_a_task_gives_its_place_back_once(ledger: Ledger) -> None:
    entries = [ledger.enter(batch(f"d{i}", f"lane{i}"), now()) for i in range(3)]
    for _ in range(3):
        kept = ledger.claim(launching(entries[0]), 1)
        assert kept is not None
        kept = ledger.update(kept)  # launched again with the same token: still one place
        assert ledger.claim(launching(entries[1]), 1) is None
        entries[0] = ledger.update(dataclasses.replace(kept, state=TaskState.WAITING))
        entries[0] = ledger.update(entries[0])
    assert ledger.claim(launching(entries[1]), 1) is not None


@pytest.mark.parametrize("make", ["dynamodb_local", "ministack"], indirect=True)
def test_a_wrong_count_is_set_right(ledger: Ledger) -> None:
    """As after a dispatcher of a version that did not count, which ended a batch."""
    assert isinstance(ledger, DynamoDbLedger)
    entries = [ledger.enter(batch(f"d{i}", f"lane{i}"), now()) for i in range(2)]
    ended = ledger.claim(launching(entries[0]), 1)
    assert ended is not None
    recorded(ledger, dataclasses.replace(ended, slot=False))
    assert ledger.claim(launching(entries[1]), 1) is None, "still counted"
    assert ledger.claim(launching(entries[1]), 1) is not None, "counted anew"
