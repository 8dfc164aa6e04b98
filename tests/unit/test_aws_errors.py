"""AWS's refusals as sentences that name the resource, the permission and what to set; loops that go on slowly."""

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, InvalidRegionError, NoRegionError

from services.domain.errors import DependencyUnavailableError, NotConfiguredError, TapewatchError
from services.queue.event_source import consume
from services.queue.ports import DeadLetter, OutgoingMessage, QueueDepth, ReceivedMessage, SentMessage
from services.runtime.aws import THROTTLED, AwsResource
from services.runtime.backoff import LONGEST_SECONDS, REPAIR_SECONDS, pause_seconds

QUEUE = AwsResource(
    "queue", "queue", "https://q.fifo", "SQS_QUEUE_URL", ("sqs:SendMessage", "sqs:ReceiveMessage"), "eu-central-1"
)


def failure(code: str, text: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": text}}, "ReceiveMessage")


DENIED = "User: arn:aws:iam::1:user/u is not authorized to perform: sqs:ReceiveMessage on resource: q"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            failure("AccessDenied", DENIED),
            NotConfiguredError,
            r"the queue https://q\.fifo in eu-central-1 .*allow sqs:Rec",
        ),
        (failure("AccessDenied"), NotConfiguredError, "allow sqs:SendMessage and sqs:ReceiveMessage$"),
        (failure("InvalidClientTokenId", "no"), NotConfiguredError, "does not accept these credentials .*AWS_PROFILE"),
        (failure("SignatureDoesNotMatch"), NotConfiguredError, "does not accept these credentials .*clock"),
        (failure("ExpiredToken"), NotConfiguredError, r"have expired .*https://q\.fifo"),
        (failure("QueueDoesNotExist"), NotConfiguredError, "no queue at .*SQS_QUEUE_URL .*or AWS_REGION"),
        (failure("PermanentRedirect"), NotConfiguredError, "in another region .*AWS_REGION"),
        (failure("InvalidAddress", "not for this endpoint"), NotConfiguredError, "in another region .*AWS_REGION"),
        (InvalidRegionError(region_name="eu west"), NotConfiguredError, "'eu west'.*set AWS_REGION to one like"),
        (NoRegionError(), NotConfiguredError, "is not known: set AWS_REGION$"),
        (
            EndpointConnectionError(endpoint_url="https://sqs.mars-1"),
            DependencyUnavailableError,
            "eu-central-1 a region",
        ),
        (failure("OverLimit", "in flight"), DependencyUnavailableError, "throttles the queue https.*in flight"),
        (failure("InternalError", "sorry"), DependencyUnavailableError, "sorry"),
    ],
)
def test_a_refusal_says_what_to_do(error: Exception, kind: type[TapewatchError], message: str) -> None:
    with pytest.raises(kind, match=message), QUEUE.translated():
        raise error


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_an_endpoint_that_is_not_reached_names_the_region_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for each in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(each, raising=False)
    away = EndpointConnectionError(endpoint_url="https://sqs.mars-1")
    anywhere = AwsResource("queue", "queue", "https://q.fifo", "SQS_QUEUE_URL", ("sqs:SendMessage",))
    with pytest.raises(DependencyUnavailableError, match="is the configured region a region"), anywhere.translated():
        raise away
    monkeypatch.setenv(variable, "mars-1")
    with pytest.raises(DependencyUnavailableError, match="is mars-1 a region"), anywhere.translated():
        raise away


@pytest.mark.parametrize("code", sorted(THROTTLED))
def test_every_throttle_is_tried_again_later(code: str) -> None:
    raised = QUEUE.error_of({"Code": code})
    assert isinstance(raised, DependencyUnavailableError)
    assert raised.retry_delay_seconds >= 2.0


def test_pauses_grow_with_jitter_to_a_cap() -> None:
    throttled = DependencyUnavailableError("queue", "throttled")
    denied = NotConfiguredError("queue", "a permission")
    for error, cap in ((throttled, LONGEST_SECONDS), (denied, REPAIR_SECONDS)):
        pauses = [pause_seconds(error, failures) for failures in range(1, 200)]
        assert all(0.04 < pause <= cap for pause in pauses)
        assert min(pauses[50:]) >= cap / 2
        assert len(set(pauses[50:])) > 100, "jitter"


class Refusing:
    """A queue that somebody may not use until `mended`, and that gives one message then."""

    def __init__(self, error: TapewatchError) -> None:
        self.error = error
        self.asked: list[float] = []
        self.mended = threading.Event()
        self.acknowledged = threading.Event()

    def receive(self, max_messages: int, visibility_seconds: float, wait_seconds: float = 0) -> list[ReceivedMessage]:
        self.asked.append(time.monotonic())
        if not self.mended.is_set():
            raise self.error
        time.sleep(0.01)
        return []

    def send(self, messages: Sequence[OutgoingMessage]) -> list[SentMessage]:
        raise self.error

    def acknowledge(self, receipt_handles: Sequence[str]) -> None:
        self.acknowledged.set()

    def change_visibility(self, receipt_handles: Sequence[str], visibility_seconds: float) -> None: ...

    def depth(self) -> QueueDepth:
        raise self.error

    def check(self) -> None:
        raise self.error

    def send_dead_letter(self, letter: DeadLetter) -> None:
        raise self.error

    def list_dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        raise self.error

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "error", [DependencyUnavailableError("queue", "AWS throttles it"), NotConfiguredError("the queue", "a permission")]
)
async def test_the_event_source_asks_a_queue_that_refuses_ever_more_slowly_and_goes_on(error: TapewatchError) -> None:
    queue, draining = Refusing(error), asyncio.Event()

    async def handler(event: dict[str, object]) -> None: ...

    consuming = asyncio.create_task(consume(queue, handler, draining=draining, concurrency=2))

    async def until_asked(times: int) -> None:
        async with asyncio.timeout(60):
            while len(queue.asked) < times:  # noqa: ASYNC110 - asked from another thread
                await asyncio.sleep(0.05)

    await until_asked(5)
    assert not consuming.done(), "it goes on"
    asked = list(queue.asked)
    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert all(gap > 0.049 * 2**i for i, gap in enumerate(gaps[:4])), "no tight loop"
    queue.mended.set()
    await until_asked(len(asked) + 3)
    draining.set()
    await consuming
