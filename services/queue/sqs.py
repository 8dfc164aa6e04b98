"""The SQS FIFO queue.

Visibility is in whole seconds there (rounded up), a receive takes at most 10 messages (this adapter asks on until it
has what the caller wants), and depth is approximate.
"""

import hashlib
import heapq
import json
import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.queue.ports import DeadLetter, OutgoingMessage, QueueDepth, ReceivedMessage, SentMessage
from services.runtime.aws import AwsResource, open_client
from services.runtime.backoff import backoff_seconds

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

BATCH_LIMIT: Final = 10
BATCH_BYTES_LIMIT: Final = 256 * 1024
REASON_ATTRIBUTE: Final = "DeadLetterReason"
_ATTEMPTS = 6
_MAX_VISIBILITY_SECONDS = 43_200
_MAX_WAIT_SECONDS = 20
_MAX_REASON_CHARACTERS = 1_000
_PEEK_SECONDS = 1
_AWS_URL = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com")
_SETTING = "SQS_QUEUE_URL"
_DEAD_LETTER_SETTING = "SQS_DEAD_LETTER_QUEUE_URL"
_PERMISSIONS = (
    "sqs:SendMessage",
    "sqs:ReceiveMessage",
    "sqs:DeleteMessage",
    "sqs:ChangeMessageVisibility",
    "sqs:GetQueueUrl",
    "sqs:GetQueueAttributes",
)


class SqsQueue:
    """A `Queue` on SQS FIFO. `client` is a boto3 SQS client, which is safe to share between threads.

    `setting` is what names the queue in the environment, for messages.
    """

    def __init__(
        self, client: "SQSClient", queue_url: str, *, dead_letter_queue_url: str = "", setting: str = _SETTING
    ) -> None:
        self._client = client
        self._url = queue_url
        self._dead_letter_url = dead_letter_queue_url
        self._setting = setting

    @classmethod
    def connect(cls, queue_url: str, *, dead_letter_queue_url: str = "", region: str = "") -> "SqsQueue":
        """The queue at `queue_url`, checked to be there and to be FIFO.

        Without `region` it is the one that AWS's own URLs name, else the AWS configuration's.

        Raises: NotConfiguredError when boto3, credentials, region, permission or the queue is missing;
        DependencyUnavailableError when AWS cannot be reached.
        """
        if not queue_url.endswith(".fifo"):
            raise NotConfiguredError(f"{queue_url} is no FIFO queue", f"set {_SETTING} to one (its name ends in .fifo)")
        client = open_client(
            "sqs",
            region or _region_of(queue_url),
            _resource(queue_url, _SETTING),
            "set QUEUE_BACKEND=sqlite",
            read_seconds=_MAX_WAIT_SECONDS + 10,
        )
        queue = cls(client, queue_url, dead_letter_queue_url=dead_letter_queue_url)
        queue.depth()
        return queue

    def send(self, messages: Sequence[OutgoingMessage]) -> list[SentMessage]:
        """Make messages durable, each group's in order; what SQS refuses for the moment is sent again with jitter.

        A call carries ten messages at most, and of one group a single one: SQS may refuse an entry and take a later one
        of its group, which would be before it for good. SQS does not say whether a message was a duplicate.
        """
        waiting: dict[str, deque[int]] = {}
        for i, message in enumerate(messages):
            waiting.setdefault(message.group_id, deque()).append(i)
        ids: dict[int, str] = {}
        refusals: Counter[int] = Counter()
        while waiting:
            batch = _next_batch(messages, waiting)
            ids |= self._send_batch({i: messages[i] for i in batch})
            for i in batch:
                group = messages[i].group_id
                if i not in ids:
                    refusals[i] += 1
                elif len(waiting[group]) > 1:
                    waiting[group].popleft()
                else:
                    del waiting[group]
            if refused := [refusals[i] for i in batch if i not in ids]:
                _pause(self._url, max(refused))
        return [SentMessage(ids[i]) for i in range(len(messages))]

    def _send_batch(self, messages: Mapping[int, OutgoingMessage]) -> dict[int, str]:
        """Ids of those that SQS took. Raises: DependencyUnavailableError when it refuses one for good."""
        entries = [
            {
                "Id": str(i),
                "MessageBody": message.body,
                "MessageGroupId": message.group_id,
                "MessageDeduplicationId": message.deduplication_id,
                "MessageAttributes": _to_attributes(message.attributes),
            }
            for i, message in messages.items()
        ]
        with self._translated():
            response = self._client.send_message_batch(QueueUrl=self._url, Entries=entries)  # type: ignore[arg-type]
        for item in response.get("Failed", []):
            if item.get("SenderFault"):
                code, text = item.get("Code", ""), item.get("Message", "")
                raise DependencyUnavailableError("queue", f"{self._url} refuses a message: {code} {text}")
        return {int(item["Id"]): item["MessageId"] for item in response.get("Successful", [])}

    def receive(self, max_messages: int, visibility_seconds: float, wait_seconds: float = 0) -> list[ReceivedMessage]:
        """Up to `max_messages`; only the first of the calls behind it waits."""
        received: list[ReceivedMessage] = []
        wait = min(math.ceil(wait_seconds), _MAX_WAIT_SECONDS)
        while len(received) < max_messages:
            wanted = min(BATCH_LIMIT, max_messages - len(received))
            try:
                with self._translated():
                    response = self._client.receive_message(
                        QueueUrl=self._url,
                        MaxNumberOfMessages=wanted,
                        VisibilityTimeout=_whole_seconds(visibility_seconds),
                        WaitTimeSeconds=0 if received else wait,
                        MessageSystemAttributeNames=["All"],
                        MessageAttributeNames=["All"],
                    )
            except DependencyUnavailableError:
                if received:
                    return received  # they are ours now: hand over what came
                raise
            messages = response.get("Messages", [])
            received += [_received(message) for message in messages]
            if len(messages) < wanted:
                break
        return received

    def acknowledge(self, receipt_handles: Sequence[str]) -> None:
        """Delete delivered messages; handles that are not the current ones are ignored."""
        for start in range(0, len(receipt_handles), BATCH_LIMIT):
            entries = [
                {"Id": str(i), "ReceiptHandle": handle}
                for i, handle in enumerate(receipt_handles[start : start + BATCH_LIMIT])
            ]
            self._until_done(
                entries,
                lambda pending: self._client.delete_message_batch(QueueUrl=self._url, Entries=list(pending)),  # type: ignore[arg-type]
            )

    def change_visibility(self, receipt_handles: Sequence[str], visibility_seconds: float) -> None:
        """Keep delivered messages invisible for that much longer from now; 0 releases them at once."""
        seconds = _whole_seconds(visibility_seconds)
        for start in range(0, len(receipt_handles), BATCH_LIMIT):
            entries = [
                {"Id": str(i), "ReceiptHandle": handle, "VisibilityTimeout": seconds}
                for i, handle in enumerate(receipt_handles[start : start + BATCH_LIMIT])
            ]
            self._until_done(
                entries,
                lambda pending: self._client.change_message_visibility_batch(
                    QueueUrl=self._url,
                    Entries=list(pending),  # type: ignore[arg-type]
                ),
            )

    def depth(self) -> QueueDepth:
        """What waits, approximately. `dead_letters` is 0 where no dead-letter queue is configured."""
        attributes = self._attributes()
        dead_letters = 0
        if dead := self._dead_letters(attributes):
            dead_letters = int(dead._attributes().get("ApproximateNumberOfMessages", 0))
        return QueueDepth(
            ready=int(attributes.get("ApproximateNumberOfMessages", 0)),
            in_flight=int(attributes.get("ApproximateNumberOfMessagesNotVisible", 0)),
            dead_letters=dead_letters,
        )

    def check(self) -> None:
        """A request to the queue; a right that only another call needs is not seen by it."""
        self._attributes()

    def _attributes(self) -> Mapping[str, str]:
        with self._translated():
            response = self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=["All"])
        return {str(name): value for name, value in response.get("Attributes", {}).items()}

    def _dead_letters(self, attributes: Mapping[str, str] | None = None) -> "SqsQueue | None":
        """The dead-letter queue that the setting names, else the redrive policy; None where neither does."""
        if not self._dead_letter_url:
            policy = (self._attributes() if attributes is None else attributes).get("RedrivePolicy", "")
            if policy:
                arn = json.loads(policy)["deadLetterTargetArn"].split(":")
                with _resource(arn[5], _DEAD_LETTER_SETTING).translated():
                    response = self._client.get_queue_url(QueueName=arn[5], QueueOwnerAWSAccountId=arn[4])
                self._dead_letter_url = response["QueueUrl"]
        url = self._dead_letter_url
        return SqsQueue(self._client, url, setting=_DEAD_LETTER_SETTING) if url else None

    def _translated(self) -> AbstractContextManager[None]:
        return _resource(self._url, self._setting).translated()

    def send_dead_letter(self, letter: DeadLetter) -> None:
        """Send the letter to the dead-letter queue, its reason and group as attributes."""
        dead = self._dead_letters()
        if dead is None:
            raise NotConfiguredError(
                "nobody knows where the dead-letter queue is",
                f"set {_DEAD_LETTER_SETTING}, or a redrive policy on the queue",
            )
        digest = hashlib.sha256("\0".join((letter.group_id, letter.reason, letter.body)).encode()).hexdigest()
        attributes = dict(letter.attributes)
        attributes[REASON_ATTRIBUTE] = _sendable(letter.reason)[:_MAX_REASON_CHARACTERS]
        message = OutgoingMessage(
            letter.body, letter.group_id or "dead-letters", digest, dict(list(attributes.items())[-BATCH_LIMIT:])
        )
        dead.send([message])

    def list_dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Some of the dead letters, hidden for a second while they are read; of each group the first ten at least."""
        dead = self._dead_letters()
        if dead is None:
            return []
        found = dead.receive(limit, _PEEK_SECONDS)
        dead.change_visibility([message.receipt_handle for message in found], 0)
        return [
            DeadLetter(
                body=message.body,
                group_id=message.group_id,
                reason=message.attributes.get(REASON_ATTRIBUTE, "delivered too often (redrive policy)"),
                attributes={k: v for k, v in message.attributes.items() if k != REASON_ATTRIBUTE},
            )
            for message in found
        ]

    def _until_done(
        self, entries: Sequence[Mapping[str, Any]], call: Callable[[Sequence[Mapping[str, Any]]], Any]
    ) -> None:
        """Call with entries in no order, again with those that failed for the moment, with jitter.

        What SQS refuses for good, such as a receipt handle that is not the current one, is left.

        Raises: DependencyUnavailableError when some still fail.
        """
        pending = list(entries)
        attempt = 0
        while pending:
            with self._translated():
                response = call(pending)
            again = {item["Id"] for item in response.get("Failed", []) if not item.get("SenderFault")}
            pending = [entry for entry in pending if entry["Id"] in again]
            if pending:
                attempt += 1
                _pause(self._url, attempt)

    def close(self) -> None:
        """Release connections."""
        self._client.close()


def _next_batch(messages: Sequence[OutgoingMessage], waiting: Mapping[str, Sequence[int]]) -> list[int]:
    """The first messages of at most ten groups, within SQS's limit on a call's bytes.

    Those of the longest groups, so that calls stay full to the end.
    """
    batch: list[int] = []
    size = 0
    for group in heapq.nlargest(BATCH_LIMIT, waiting.values(), key=len):
        message = messages[group[0]]
        size += len(message.body.encode()) + sum(len(k) + len(v.encode()) + 6 for k, v in message.attributes.items())
        if batch and size > BATCH_BYTES_LIMIT:
            break
        batch.append(group[0])
    return batch


def _pause(url: str, attempt: int) -> None:
    """Wait before the next attempt. Raises: DependencyUnavailableError after the last one."""
    if attempt == _ATTEMPTS:
        raise DependencyUnavailableError("queue", f"{url} took only a part of the messages after {_ATTEMPTS} attempts")
    time.sleep(backoff_seconds(attempt))


def _received(message: Mapping[str, Any]) -> ReceivedMessage:
    system = message["Attributes"]
    given = message.get("MessageAttributes", {})
    return ReceivedMessage(
        message_id=message["MessageId"],
        receipt_handle=message["ReceiptHandle"],
        body=message["Body"],
        group_id=system["MessageGroupId"],
        deduplication_id=system["MessageDeduplicationId"],
        sequence_number=system["SequenceNumber"],
        receive_count=int(system["ApproximateReceiveCount"]),
        sent_time=datetime.fromtimestamp(int(system["SentTimestamp"]) / 1_000, UTC),
        attributes={name: value["StringValue"] for name, value in given.items() if "StringValue" in value},
    )


def _to_attributes(attributes: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items() if value}


def _sendable(text: str) -> str:
    """The text without what SQS refuses: control characters and halves of surrogate pairs."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _whole_seconds(seconds: float) -> int:
    return min(math.ceil(seconds), _MAX_VISIBILITY_SECONDS)


def _region_of(url: str) -> str:
    """The region in one of AWS's own URLs; empty in any other.

    >>> _region_of("https://sqs.eu-central-1.amazonaws.com/123456789012/market_queue.fifo")
    'eu-central-1'
    """
    match = _AWS_URL.match(url)
    return match[1] if match else ""


def _resource(url: str, setting: str) -> AwsResource:
    return AwsResource("queue", "queue", url, setting, _PERMISSIONS)
