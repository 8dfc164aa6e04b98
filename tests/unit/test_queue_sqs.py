"""What only the SQS adapter does: partial failures, limits, and AWS's errors as sentences."""

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


def messages(count: int, size: int = 1) -> list[OutgoingMessage]:
    return [OutgoingMessage(f"{i}".ljust(size), "g", f"id-{i}") for i in range(count)]


def successful(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"Id": entry["Id"], "MessageId": f"m-{entry['MessageBody'].strip()}"} for entry in entries]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("services.queue.sqs.time.sleep", slept.append)
    return slept


def test_what_failed_for_the_moment_is_sent_again_in_order(no_waiting: list[float]) -> None:
    failures = 2

    def answer(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        nonlocal failures
        if not failures:
            return {"Successful": successful(entries)}
        failures -= 1
        return {
            "Successful": successful([*entries[:1], *entries[2:]]),
            "Failed": [{"Id": entries[1]["Id"], "Code": "InternalError", "SenderFault": False}],
        }

    sqs = Sqs(answer)
    sent = queue(sqs).send(messages(4))
    assert [s.message_id for s in sent] == ["m-0", "m-1", "m-2", "m-3"]
    # What came after the failed one goes again as well: a group's order must hold.
    assert sqs.batches == [["0", "1", "2", "3"], ["1", "2", "3"], ["2", "3"]]
    assert len(no_waiting) == 2
    assert all(0 <= pause <= 0.4 for pause in no_waiting)


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


def test_batches_stay_within_ten_messages_and_the_byte_limit() -> None:
    sqs = Sqs(lambda entries: {"Successful": successful(entries)})
    queue(sqs).send(messages(23))
    queue(sqs).send(messages(5, size=100_000))
    assert [len(batch) for batch in sqs.batches] == [10, 10, 3, 2, 2, 1]


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
