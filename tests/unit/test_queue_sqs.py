"""What only the SQS adapter does: partial failures, limits, and AWS's errors as sentences."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    SSOTokenLoadError,
)
from moto import mock_aws

from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.queue.ports import DeadLetter, OutgoingMessage
from services.queue.sqs import SqsQueue

URL = "https://sqs.us-east-1.amazonaws.com/123456789012/market_queue.fifo"


class Sqs:
    """Stands in for a boto3 client: answers `send_message_batch` as told and keeps what was sent."""

    def __init__(self, answer: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]) -> None:
        self.answer = answer
        self.batches: list[list[str]] = []

    def send_message_batch(self, **request: Any) -> dict[str, Any]:
        entries = request["Entries"]
        self.batches.append([entry["MessageBody"] for entry in entries])
        return self.answer(entries)


def queue(sqs: Any) -> SqsQueue:
    return SqsQueue(sqs, URL)


def messages(count: int, size: int = 1, groups: int = 1) -> list[OutgoingMessage]:
    return [OutgoingMessage(f"{i}".ljust(size), f"g{i % groups}", f"id-{i}") for i in range(count)]


def successful(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"Id": entry["Id"], "MessageId": f"m-{entry['MessageBody'].strip()}"} for entry in entries]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("services.queue.sqs.time.sleep", slept.append)
    return slept


def test_no_message_overtakes_one_of_its_group_that_was_refused_for_the_moment(no_waiting: list[float]) -> None:
    """Each entry of a call may be refused or taken by itself, so that order is that of the taking."""
    chance = random.Random(1)
    taken: list[str] = []

    def answer(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        assert len({entry["MessageGroupId"] for entry in entries}) == len(entries), "a later one would overtake"
        refused = [entry for entry in entries if chance.random() < 0.2]
        good = [entry for entry in entries if entry not in refused]
        taken.extend(entry["MessageBody"] for entry in good)
        failed = [{"Id": entry["Id"], "Code": "InternalError", "SenderFault": False} for entry in refused]
        return {"Successful": successful(good), "Failed": failed}

    sqs = Sqs(answer)
    sent = queue(sqs).send(messages(300, groups=12))
    assert [s.message_id for s in sent] == [f"m-{i}" for i in range(300)]
    assert sorted(taken, key=int) == [str(i) for i in range(300)], "each once"
    for group in range(12):
        assert [int(body) for body in taken if int(body) % 12 == group] == list(range(group, 300, 12))
    assert no_waiting, "nothing was refused"
    assert all(0 <= pause <= 6.4 for pause in no_waiting)


class WithoutDeadLetters(Sqs):
    """The queue is there, and its dead-letter queue is not."""

    def get_queue_attributes(self, **request: Any) -> dict[str, Any]:
        if request["QueueUrl"] == URL:
            return {"Attributes": {"ApproximateNumberOfMessages": "0"}}
        raise self.gone()

    def receive_message(self, **request: Any) -> dict[str, Any]:
        raise self.gone()

    def gone(self) -> ClientError:
        return ClientError({"Error": {"Code": "QueueDoesNotExist", "Message": "no"}}, "any")


def test_a_dead_letter_queue_that_is_not_there_is_named_by_its_own_setting() -> None:
    def gone(_: object) -> dict[str, Any]:
        raise ClientError({"Error": {"Code": "QueueDoesNotExist", "Message": "no"}}, "SendMessageBatch")

    dead = URL.replace(".fifo", "_dead.fifo")
    found = SqsQueue(WithoutDeadLetters(gone), URL, dead_letter_queue_url=dead)  # type: ignore[arg-type]
    letter = DeadLetter("{", "g", "not JSON")
    for use in (found.depth, found.list_dead_letters, lambda: found.send_dead_letter(letter)):
        with pytest.raises(NotConfiguredError, match=f"no queue at {dead}.*: set SQS_DEAD_LETTER_QUEUE_URL"):
            use()


def test_what_is_taken_at_last_costs_no_further_waiting(no_waiting: list[float]) -> None:
    refusals = 5

    def answer(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            return {"Failed": [{"Id": entries[0]["Id"], "Code": "InternalError", "SenderFault": False}]}
        return {"Successful": successful(entries)}

    sqs = Sqs(answer)
    assert [s.message_id for s in queue(sqs).send(messages(2))] == ["m-0", "m-1"]
    assert sqs.batches == [["0"]] * 6 + [["1"]]
    assert len(no_waiting) == 5


def test_what_keeps_failing_is_unavailable(no_waiting: list[float]) -> None:
    sqs = Sqs(lambda entries: {"Failed": [{"Id": entries[0]["Id"], "Code": "InternalError", "SenderFault": False}]})
    with pytest.raises(DependencyUnavailableError, match="took only a part"):
        queue(sqs).send(messages(1))
    assert len(sqs.batches) == 6
    assert len(no_waiting) == 5


def test_what_aws_refuses_for_good_is_not_tried_again() -> None:
    failure = {"Id": "0", "Code": "InvalidMessageContents", "Message": "bad character", "SenderFault": True}
    sqs = Sqs(lambda entries: {"Failed": [failure]})
    with pytest.raises(DependencyUnavailableError, match="refuses a message: InvalidMessageContents bad character"):
        queue(sqs).send(messages(1))
    assert len(sqs.batches) == 1


def test_calls_carry_at_most_ten_groups_one_message_each_and_the_bytes_allowed() -> None:
    sqs = Sqs(lambda entries: {"Successful": successful(entries)})
    queue(sqs).send(messages(23, groups=23))
    queue(sqs).send(messages(5, size=100_000, groups=5))
    assert [len(batch) for batch in sqs.batches] == [10, 10, 3, 2, 2, 1]
    sqs.batches.clear()
    queue(sqs).send([*messages(20, groups=20), *messages(40, groups=4)])
    assert len(sqs.batches) == 11, "the longest groups first: the others fill the calls beside them"
    queue(sqs).send(messages(3))
    assert sqs.batches[11:] == [["0"], ["1"], ["2"]]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            ClientError({"Error": {"Code": "AWS.SimpleQueueService.NonExistentQueue"}}, "SendMessageBatch"),
            NotConfiguredError,
            "there is no queue at .* set SQS_QUEUE_URL",
        ),
        (
            ClientError({"Error": {"Code": "AccessDenied"}}, "SendMessageBatch"),
            NotConfiguredError,
            "AWS refuses the use of .*sqs:SendMessage",
        ),
        (
            ClientError({"Error": {"Code": "ExpiredToken"}}, "SendMessageBatch"),
            NotConfiguredError,
            "AWS credentials have expired",
        ),
        (SSOTokenLoadError(error_msg="gone"), NotConfiguredError, "cannot be renewed .*aws sso login"),
        (NoRegionError(), NotConfiguredError, "region of .* set AWS_REGION"),
        (NoCredentialsError(), NotConfiguredError, "AWS credentials are missing .* set AWS_PROFILE"),
        (
            ClientError({"Error": {"Code": "ThrottlingException", "Message": "slow"}}, "SendMessageBatch"),
            DependencyUnavailableError,
            "slow",
        ),
        (EndpointConnectionError(endpoint_url=URL), DependencyUnavailableError, "Could not connect"),
    ],
)
def test_errors_of_aws_are_sentences(error: Exception, kind: type[Exception], message: str) -> None:
    def answer(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        raise error

    with pytest.raises(kind, match=message):
        queue(Sqs(answer)).send(messages(1))


def test_a_queue_that_is_missing_or_not_fifo_is_refused_on_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with pytest.raises(NotConfiguredError, match="is no FIFO queue"):
        SqsQueue.connect(URL.removesuffix(".fifo"), region="us-east-1")
    with mock_aws(), pytest.raises(NotConfiguredError, match="there is no queue at"):
        SqsQueue.connect(URL)  # the URL names its region


def test_a_dead_letter_without_a_dead_letter_queue_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        client = boto3.client("sqs", region_name="us-east-1")
        url = client.create_queue(QueueName="q.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
        with pytest.raises(NotConfiguredError, match="set SQS_DEAD_LETTER_QUEUE_URL"):
            SqsQueue(client, url).send_dead_letter(DeadLetter("{}", "g", "why"))
        dead = client.create_queue(QueueName="dead.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
        configured = SqsQueue(client, url, dead_letter_queue_url=dead)
        configured.send_dead_letter(DeadLetter("{}", "g", "why\x00" + "y" * 2_000))
        (letter,) = configured.list_dead_letters()
        assert letter.reason.startswith("why\ufffdy")
        assert len(letter.reason) == 1_000
