"""What every queue adapter must do, whatever is behind it."""

import itertools
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest
from moto import mock_aws

from services.queue.ports import DeadLetter, OutgoingMessage, Queue, ReceivedMessage
from services.queue.sqlite import SqliteQueue
from services.queue.sqs import SqsQueue
from tests.servers.process import CREDENTIALS, REGION

_unique = itertools.count()


class MakeQueue(Protocol):
    def __call__(self, max_receive_count: int = 1_000) -> Queue: ...


Fault = Callable[..., None]


@pytest.fixture(params=["sqlite", "moto", "ministack", "elasticmq"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fault(backend: str, request: pytest.FixtureRequest) -> Fault:
    """Declares what a stand-in for SQS does wrong; strict, so that a mended one is noticed."""

    def declare(**faults: str) -> None:
        if backend in faults:
            request.applymarker(pytest.mark.xfail(strict=True, reason=f"{backend} {faults[backend]}"))

    return declare


def sqs_queue(max_receive_count: int) -> SqsQueue:
    """A new FIFO queue with its dead-letter queue."""
    name = f"market_queue-{uuid.uuid4().hex[:12]}"
    client = boto3.client("sqs", region_name=REGION)
    dead = client.create_queue(QueueName=f"{name}-dead.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
    arn = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": max_receive_count})
    attributes = {"FifoQueue": "true", "RedrivePolicy": policy}
    url = client.create_queue(QueueName=f"{name}.fifo", Attributes=attributes)["QueueUrl"]  # type: ignore[arg-type]
    client.close()
    return SqsQueue.connect(url, region=REGION)


@pytest.fixture
def make_queue(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[MakeQueue]:
    opened: list[Queue] = []
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    if backend in ("ministack", "elasticmq"):
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", request.getfixturevalue(backend).url)

    def make(max_receive_count: int = 1_000) -> Queue:
        if backend == "sqlite":
            opened.append(SqliteQueue(tmp_path / "queue.db", max_receive_count=max_receive_count))
        else:
            opened.append(sqs_queue(max_receive_count))
        return opened[-1]

    with mock_aws() if backend == "moto" else nullcontext():
        yield make
        for queue in opened:
            queue.close()


@pytest.fixture
def queue(make_queue: MakeQueue) -> Queue:
    return make_queue()


def message(body: str, group: str = "a", **fields: object) -> OutgoingMessage:
    values = {"body": body, "group_id": group, "deduplication_id": f"{body[:20]!a}-{next(_unique)}"} | fields
    values["deduplication_id"] = str(values["deduplication_id"]).replace(" ", "_")
    return OutgoingMessage(**values)  # type: ignore[arg-type]


def bodies(messages: Sequence[ReceivedMessage]) -> list[str]:
    return [m.body for m in messages]


def handles(messages: Sequence[ReceivedMessage]) -> list[str]:
    return [m.receipt_handle for m in messages]


def eventually(check: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.05)
    return False


def drain(queue: Queue, batch: int = 10) -> list[ReceivedMessage]:
    received: list[ReceivedMessage] = []
    while messages := queue.receive(batch, 30):
        queue.acknowledge(handles(messages))
        received += messages
    return received


def test_an_empty_queue_delivers_nothing(queue: Queue) -> None:
    assert queue.receive(10, 30) == []
    assert (queue.depth().ready, queue.depth().in_flight, queue.depth().dead_letters) == (0, 0, 0)


def test_nothing_sent_is_nothing_done(queue: Queue) -> None:
    assert queue.send([]) == []
    queue.acknowledge([])
    queue.change_visibility([], 1)


def test_a_message_arrives_as_it_was_sent(queue: Queue) -> None:
    attributes = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "tracestate": "vendor=1"}
    began = datetime.now(UTC)
    (sent,) = queue.send([message('Grüße, 株式 🚀\n"quoted"', "market-data-BRK.B", attributes=attributes)])
    (received,) = queue.receive(10, 30)
    assert received.body == 'Grüße, 株式 🚀\n"quoted"'
    assert received.message_id == sent.message_id
    assert received.group_id == "market-data-BRK.B"
    assert dict(received.attributes) == attributes
    assert received.receive_count == 1
    assert began - timedelta(seconds=1) < received.sent_time < datetime.now(UTC) + timedelta(seconds=1)


def test_order_holds_within_each_group_whatever_the_batch(queue: Queue) -> None:
    sent = [message(f"{group}{i:03d}", group) for i in range(35) for group in "abc"]
    assert len(queue.send(sent)) == 105
    received = drain(queue)
    assert len(received) == 105
    for group in "abc":
        assert [m.body for m in received if m.group_id == group] == [f"{group}{i:03d}" for i in range(35)]


def test_sequence_numbers_rise_within_a_group(queue: Queue, fault: Fault) -> None:
    fault(moto="gives random sequence numbers")
    queue.send([message(f"{i}") for i in range(10)])
    numbers = [int(m.sequence_number) for m in drain(queue)]
    assert len(numbers) == 10
    assert numbers == sorted(numbers)


def test_one_receive_may_bring_more_than_ten(queue: Queue) -> None:
    queue.send([message(f"{group}{i:03d}", group) for i in range(12) for group in "abc"])
    received = queue.receive(36, 30)
    # SQS answers ten at a time, and what it answered blocks its groups.
    assert len(received) >= 10
    for group in "abc":
        of_group = [m.body for m in received if m.group_id == group]
        assert of_group == [f"{group}{i:03d}" for i in range(len(of_group))]


def test_a_group_in_flight_is_blocked_and_others_are_not(queue: Queue) -> None:
    queue.send([message("a0"), message("a1"), message("b0", "b")])
    first = queue.receive(1, 30)
    assert bodies(first) == ["a0"]
    assert bodies(queue.receive(10, 30)) == ["b0"]
    assert queue.receive(10, 30) == []
    queue.acknowledge(handles(first))
    assert bodies(queue.receive(10, 30)) == ["a1"]


# Not moto: a mock in this process, whose receive is not one step, so its threads race on a loaded machine.
@pytest.mark.parametrize("backend", ["sqlite", "ministack", "elasticmq"], indirect=True)
def test_concurrent_receivers_never_hold_one_group(queue: Queue) -> None:
    queue.send([message(f"{group}{i}", group) for i in range(4) for group in "abcd"])
    with ThreadPoolExecutor(4) as threads:
        batches = list(threads.map(lambda _: queue.receive(4, 30), range(4)))
    groups = [{m.group_id for m in batch} for batch in batches]
    assert sum(len(g) for g in groups) == len(set().union(*groups))


def test_an_equal_deduplication_id_adds_nothing(queue: Queue) -> None:
    first = queue.send([message("once", deduplication_id="same")])
    again = queue.send([message("once", deduplication_id="same"), message("other")])
    assert again[0].deduplicated in (True, None)
    assert again[0].message_id == first[0].message_id or again[0].deduplicated is None
    assert bodies(drain(queue)) == ["once", "other"]


def test_an_equal_deduplication_id_adds_nothing_after_the_acknowledgement(queue: Queue, fault: Fault) -> None:
    fault(moto="forgets a deduplication id when its message is deleted; SQS keeps it for five minutes")
    queue.send([message("once", deduplication_id="same")])
    assert bodies(drain(queue)) == ["once"]
    queue.send([message("once", deduplication_id="same")])
    assert drain(queue) == []


def test_equal_deduplication_ids_in_one_batch_add_one(queue: Queue) -> None:
    queue.send([message("once", deduplication_id="same"), message("once", deduplication_id="same")])
    assert bodies(drain(queue)) == ["once"]


def test_an_unacknowledged_message_comes_again_with_its_count(queue: Queue) -> None:
    queue.send([message("a0")])
    first = queue.receive(10, 30)
    assert queue.receive(10, 30) == []
    queue.change_visibility(handles(first), 1)
    again = queue.receive(10, 30, wait_seconds=20)
    assert bodies(again) == ["a0"]
    assert (first[0].receive_count, again[0].receive_count) == (1, 2)
    assert again[0].message_id == first[0].message_id


def test_unacknowledged_messages_of_a_group_come_again_in_order(queue: Queue, fault: Fault) -> None:
    fault(moto="skips all but the last of a group's messages that timed out together")
    queue.send([message("a0"), message("a1")])
    assert bodies(queue.receive(10, 1)) == ["a0", "a1"]
    again = queue.receive(10, 30, wait_seconds=20)
    assert bodies(again) == ["a0", "a1"]
    assert [m.receive_count for m in again] == [2, 2]


def test_a_stale_handle_acknowledges_nothing(queue: Queue) -> None:
    queue.send([message("a0")])
    stale = queue.receive(10, 1)
    current = queue.receive(10, 30, wait_seconds=20)
    assert bodies(current) == ["a0"]
    assert stale[0].receipt_handle != current[0].receipt_handle
    queue.acknowledge(handles(current))
    queue.acknowledge(handles(stale))  # ignored, and no error
    assert queue.receive(10, 1) == []


def test_a_stale_handle_leaves_the_message_to_its_holder(queue: Queue, fault: Fault) -> None:
    fault(moto="deletes by any receipt handle that was ever given; SQS FIFO refuses an expired one")
    queue.send([message("a0")])
    stale = queue.receive(10, 1)
    assert bodies(queue.receive(10, 1, wait_seconds=20)) == ["a0"]
    queue.acknowledge(handles(stale))
    assert bodies(queue.receive(10, 30, wait_seconds=10)) == ["a0"]


def test_visibility_zero_releases_at_once(queue: Queue) -> None:
    queue.send([message("a0"), message("a1")])
    queue.change_visibility(handles(queue.receive(10, 30)), 0)
    assert bodies(queue.receive(10, 30)) == ["a0", "a1"]


def test_visibility_can_be_extended(queue: Queue) -> None:
    queue.send([message("a0")])
    held = queue.receive(10, 8)
    queue.change_visibility(handles(held), 120)
    assert queue.receive(10, 30, wait_seconds=8.5) == []
    queue.acknowledge(handles(held))
    assert queue.depth().ready + queue.depth().in_flight == 0


def test_a_partly_acknowledged_group_stays_blocked(queue: Queue) -> None:
    queue.send([message("a0"), message("a1"), message("a2")])
    first = queue.receive(2, 30)
    queue.acknowledge(handles(first[:1]))
    assert queue.receive(10, 30) == []
    queue.change_visibility(handles(first[1:]), 0)
    assert bodies(queue.receive(10, 30)) == ["a1", "a2"]


def test_waiting_ends_with_the_first_message(queue: Queue) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(queue.receive, 10, 30, 20)
        time.sleep(0.3)
        queue.send([message("late")])
        started = time.monotonic()
        assert bodies(waiting.result()) == ["late"]
    assert time.monotonic() - started < 15


def test_a_check_of_a_queue_that_is_there_changes_nothing(queue: Queue) -> None:
    queue.check()
    assert (queue.depth().ready, queue.depth().in_flight, queue.depth().dead_letters) == (0, 0, 0)


def test_depth_counts_what_waits(queue: Queue) -> None:
    queue.send([message(f"{i}", str(i)) for i in range(5)])
    assert queue.depth().ready == 5
    held = queue.receive(2, 30)
    assert (queue.depth().ready, queue.depth().in_flight) == (3, 2)
    queue.acknowledge(handles(held))
    assert (queue.depth().ready, queue.depth().in_flight) == (3, 0)


def test_a_dead_letter_keeps_its_reason(queue: Queue) -> None:
    letter = DeadLetter("{broken", "market-data-AAPL", "data.close: NaN “is” no price", {"traceparent": "00-1-2-03"})
    queue.send_dead_letter(letter)
    assert queue.depth().dead_letters == 1
    assert queue.list_dead_letters() == [letter]
    assert queue.list_dead_letters() == [letter]  # it stays where it is
    assert queue.receive(10, 1) == []


def test_an_equal_dead_letter_adds_nothing(queue: Queue) -> None:
    for _ in range(2):
        queue.send_dead_letter(DeadLetter("{broken", "g", "why"))
    queue.send_dead_letter(DeadLetter("{broken", "h", "why"))
    assert queue.depth().dead_letters == 2


def test_dead_letters_of_many_attributes_are_taken(queue: Queue) -> None:
    attributes = dict.fromkeys(("Symbol", "Source", "MessageType", "BatchId", "Timestamp", "traceparent"), "x")
    letter = DeadLetter("{}", "market-data-AAPL", "message_type: must be MARKET_DATA", attributes)
    queue.send_dead_letter(letter)
    assert queue.list_dead_letters() == [letter]


def test_a_message_delivered_too_often_becomes_a_dead_letter(make_queue: MakeQueue) -> None:
    queue = make_queue(max_receive_count=2)
    queue.send([message("poison"), message("next")])
    for count in (1, 2):
        (held,) = queue.receive(1, 30)
        assert (held.body, held.receive_count) == ("poison", count)
        queue.change_visibility([held.receipt_handle], 0)
    assert eventually(lambda: bodies(queue.receive(1, 30)) == ["next"])
    (letter,) = queue.list_dead_letters()
    assert letter.body == "poison"
    assert letter.reason


def test_many_messages_in_one_send(queue: Queue) -> None:
    assert len(queue.send([message(f"{i:04d}", str(i % 7)) for i in range(123)])) == 123
    assert sorted(bodies(drain(queue))) == [f"{i:04d}" for i in range(123)]


def test_large_bodies_are_taken(queue: Queue) -> None:
    big = "x" * 100_000
    queue.send([message(f"{i}{big}", str(i)) for i in range(6)])
    assert sorted(body[0] for body in bodies(drain(queue))) == list("012345")


def test_closing_twice_is_harmless(queue: Queue) -> None:
    queue.close()
    queue.close()


@pytest.mark.parametrize("backend", ["ministack", "elasticmq"])
def test_order_within_a_group_outlives_entries_that_sqs_refuses_for_the_moment(queue: Queue) -> None:
    """No stand-in refuses a single entry by itself: each call loses some on its way and finds them in its answer."""
    assert isinstance(queue, SqsQueue)
    chance = random.Random(7)
    refused: list[Any] = []
    lost: list[str] = []

    def lose(params: dict[str, Any], **_: object) -> None:
        entries = params["Entries"]
        refused[:] = [entry for entry in entries if chance.random() < 0.25][: len(entries) - 1]

        params["Entries"] = [entry for entry in entries if entry not in refused]
        lost.extend(entry["MessageBody"] for entry in refused)

    def tell(parsed: dict[str, Any], **_: object) -> None:
        parsed.setdefault("Failed", []).extend(
            {"Id": entry["Id"], "Code": "InternalError", "SenderFault": False} for entry in refused
        )

    events = queue._client.meta.events
    events.register("provide-client-params.sqs.SendMessageBatch", lose)
    events.register("after-call.sqs.SendMessageBatch", tell)
    queue.send([message(f"{i:03}", group=f"g{i % 6}") for i in range(120)])
    received = bodies(drain(queue))
    assert len(received) == 120
    assert len(lost) > 10
    for group in range(6):
        assert [int(body) for body in received if int(body) % 6 == group] == list(range(group, 120, 6))
