import asyncio
import hashlib
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.domain.errors import DependencyUnavailableError
from services.queue.event_source import Handler, consume, sqs_event
from services.queue.ports import OutgoingMessage, ReceivedMessage
from services.queue.sqlite import SqliteQueue

Event = dict[str, Any]
DONE: dict[str, Any] = {"batchItemFailures": []}


@pytest.fixture
def queue(tmp_path: Path) -> SqliteQueue:
    return SqliteQueue(tmp_path / "queue.db")


def messages(count: int, groups: int = 3) -> list[OutgoingMessage]:
    return [OutgoingMessage(f"{i}", f"g{i % groups}", f"id-{i}", {"traceparent": "t"}) for i in range(count)]


@asynccontextmanager
async def consuming(queue: SqliteQueue, handler: Handler, **options: Any) -> AsyncIterator[asyncio.Event]:
    draining = asyncio.Event()
    # Long, so that a message comes again only when its consumer says so.
    task = asyncio.create_task(consume(queue, handler, draining=draining, **({"visibility_seconds": 600.0} | options)))
    try:
        yield draining
    finally:
        draining.set()
        await asyncio.wait_for(task, 60)


async def until(check: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110 the state lies in a file
            await asyncio.sleep(0.01)


def failing(records: Sequence[Event]) -> dict[str, Any]:
    return {"batchItemFailures": [{"itemIdentifier": record["messageId"]} for record in records]}


def test_events_are_those_of_lambda(queue: SqliteQueue) -> None:
    began = time.time()
    queue.send([OutgoingMessage("größe", "market-data-AAPL", "id-1", {"traceparent": "00-a", "tracestate": "v=1"})])
    (message,) = queue.receive(1, 30)
    (record,) = sqs_event([message])["Records"]
    assert set(record) == {
        *("messageId", "receiptHandle", "body", "attributes", "messageAttributes", "md5OfBody"),
        *("eventSource", "eventSourceARN", "awsRegion"),
    }
    assert record["body"] == "größe"
    assert record["md5OfBody"] == hashlib.md5("größe".encode()).hexdigest()
    assert (record["eventSource"], record["awsRegion"]) == ("aws:sqs", "us-east-1")
    assert record["eventSourceARN"].endswith(":market_queue.fifo")
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert record["attributes"]["MessageGroupId"] == "market-data-AAPL"
    assert record["attributes"]["MessageDeduplicationId"] == "id-1"
    assert began - 0.001 <= int(record["attributes"]["SentTimestamp"]) / 1_000 <= time.time()
    assert record["messageAttributes"]["tracestate"] == {
        "stringValue": "v=1",
        "stringListValues": [],
        "binaryListValues": [],
        "dataType": "String",
    }


async def test_everything_is_handled_once_and_in_order(queue: SqliteQueue) -> None:
    handled: dict[str, list[int]] = defaultdict(list)

    async def handler(event: Event) -> dict[str, Any]:
        for record in event["Records"]:
            handled[record["attributes"]["MessageGroupId"]].append(int(record["body"]))
        await asyncio.sleep(0)
        return DONE

    queue.send(messages(300))
    async with consuming(queue, handler, batch_size=20):
        await until(lambda: queue.statistics().acknowledged == 300)
    assert {group: values == list(range(int(group[1]), 300, 3)) for group, values in handled.items()} == {
        "g0": True,
        "g1": True,
        "g2": True,
    }
    assert queue.statistics().deliveries_repeated == 0


async def test_concurrent_batches_never_hold_one_group(queue: SqliteQueue) -> None:
    held: Counter[str] = Counter()
    most = 0
    overlap = asyncio.Event()

    async def handler(event: Event) -> dict[str, Any]:
        nonlocal most
        groups = {record["attributes"]["MessageGroupId"] for record in event["Records"]}
        held.update(groups)
        assert max(held.values()) == 1
        most = max(most, sum(held.values()))
        if most > 1:
            overlap.set()
        await overlap.wait()  # the first one for another
        await asyncio.sleep(0.01)
        held.subtract(groups)
        return DONE

    queue.send(messages(200, groups=4))
    async with consuming(queue, handler, batch_size=10, concurrency=4):
        await until(lambda: queue.statistics().acknowledged == 200)
    assert most > 1


async def test_only_failures_come_again_and_their_successors_after_them(queue: SqliteQueue) -> None:
    handled: list[str] = []
    failures = 2

    async def handler(event: Event) -> dict[str, Any]:
        nonlocal failures
        records = event["Records"]
        bad = [r for r in records if r["attributes"]["MessageGroupId"] == "g1"] if failures else []
        failures -= bool(bad)
        handled.extend(r["body"] for r in records if r not in bad)
        return failing(bad)

    queue.send(messages(9))
    async with consuming(queue, handler, batch_size=9):
        await until(lambda: queue.statistics().acknowledged == 9)
    assert sorted(handled) == [str(i) for i in range(9)]
    assert [body for body in handled if int(body) % 3 == 1] == ["1", "4", "7"]
    assert queue.statistics().deliveries_repeated == 6


@pytest.mark.parametrize("fault", ["raises", "times out", "answers nonsense", "answers with strangers"])
async def test_everything_comes_again_when_the_handler(queue: SqliteQueue, fault: str) -> None:
    calls = 0

    async def handler(event: Event) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return None  # as Lambda takes it: all done
        if fault == "raises":
            raise RuntimeError("scorer on fire")
        if fault == "times out":
            await asyncio.sleep(60)
        if fault == "answers nonsense":
            return {"batchItemFailures": ["what?"]}
        return {"batchItemFailures": [{"itemIdentifier": "stranger"}]}

    queue.send(messages(4))
    async with consuming(queue, handler, batch_size=10, timeout_seconds=0.2):
        await until(lambda: queue.statistics().acknowledged == 4)
    assert queue.statistics().deliveries_repeated == 4


async def test_a_handler_that_always_fails_is_not_called_in_a_tight_loop(queue: SqliteQueue) -> None:
    times: dict[str, list[float]] = defaultdict(list)

    async def handler(event: Event) -> dict[str, Any]:
        for record in event["Records"]:
            times[record["messageId"]].append(time.time())
        return failing(event["Records"])

    queue.send(messages(3))
    async with consuming(queue, handler):
        await until(lambda: len(times) == 3 and all(len(each) >= 4 for each in times.values()))
    for each in times.values():
        gaps = [after - before for before, after in itertools.pairwise(each)]
        assert all(gap > 0.049 * 2**i for i, gap in enumerate(gaps[:3]))


async def test_a_slow_handler_keeps_its_messages_by_heartbeat(
    queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue's time passes with the heartbeats, less at each than it gives."""
    now, beats, extend = time.time(), 0, queue.change_visibility

    def beat(receipt_handles: Sequence[str], visibility_seconds: float) -> None:
        nonlocal beats
        extend(receipt_handles, visibility_seconds)
        beats += 1

    async def handler(event: Event) -> dict[str, Any]:
        nonlocal now
        for _ in range(4):
            now += 0.3
            # The second one has begun since.
            await until(lambda before=beats: beats >= before + 2)  # type: ignore[misc]
        return DONE

    queue.send(messages(2))
    monkeypatch.setattr(queue, "change_visibility", beat)
    monkeypatch.setattr("services.queue.sqlite.time.time", lambda: now)
    async with consuming(queue, handler, visibility_seconds=0.4):
        await until(lambda: queue.statistics().acknowledged == 2)
    assert queue.statistics().deliveries_repeated == 0


async def test_the_drain_finishes_what_is_in_flight_and_takes_nothing_more(queue: SqliteQueue) -> None:
    started = asyncio.Event()

    async def handler(event: Event) -> dict[str, Any]:
        started.set()
        await asyncio.sleep(0.3)
        return DONE

    queue.send(messages(40, groups=1))
    async with consuming(queue, handler, batch_size=10) as draining:
        await started.wait()
        draining.set()
    assert queue.statistics().acknowledged == 10
    assert (queue.depth().ready, queue.depth().in_flight) == (30, 0)


async def test_a_cancelled_consumer_releases_its_messages(queue: SqliteQueue) -> None:
    started = asyncio.Event()

    async def handler(event: Event) -> dict[str, Any]:
        started.set()
        await asyncio.sleep(60)
        return DONE

    queue.send(messages(5))
    task = asyncio.create_task(consume(queue, handler, draining=asyncio.Event(), concurrency=1))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (queue.depth().ready, queue.depth().in_flight) == (5, 0)


async def test_consuming_goes_on_after_the_queue_was_away(queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = queue.receive
    outages = 3

    def failing_receive(max_messages: int, visibility: float, wait: float = 0) -> list[ReceivedMessage]:
        nonlocal outages
        if outages:
            outages -= 1
            raise DependencyUnavailableError("queue", "away")
        return receive(max_messages, visibility, wait)

    async def handler(event: Event) -> dict[str, Any]:
        return DONE

    monkeypatch.setattr(queue, "receive", failing_receive)
    queue.send(messages(5))
    async with consuming(queue, handler):
        await until(lambda: queue.statistics().acknowledged == 5)
    assert outages == 0
