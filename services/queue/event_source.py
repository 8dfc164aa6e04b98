"""The embedded event source: a loop that builds real SQS FIFO events and calls the handler that the Lambda wraps.

As Lambda's event source mapping does, it acknowledges what the handler did not report in `batchItemFailures`, and
everything comes again when the handler raises, times out, or answers with identifiers that were not in the event.
"""

import asyncio
import functools
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeVar

from services.domain.errors import UNUSABLE, DependencyUnavailableError, TapewatchError
from services.queue.ports import Queue, ReceivedMessage
from services.queue.redelivery import Returned, deliver_again
from services.runtime.backoff import backoff_seconds, pause_seconds

_log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[Mapping[str, Any] | None]]
EMBEDDED_ARN: Final = "arn:aws:sqs:us-east-1:000000000000:market_queue.fifo"
VISIBILITY_SECONDS: Final = 3.0
"""Short, because a heartbeat extends it: a killed consumer's messages come again after this long."""

_LONGEST_PAUSE_SECONDS = 1.0
_RECEIVE_WAIT_SECONDS = 1.0
_HEARTBEATS_PER_VISIBILITY = 3

_P = ParamSpec("_P")
_T = TypeVar("_T")


def sqs_event(messages: Sequence[ReceivedMessage], arn: str = EMBEDDED_ARN) -> dict[str, Any]:
    """The event that Lambda would give the handler for these messages."""
    region = arn.split(":")[3]
    return {
        "Records": [
            {
                "messageId": message.message_id,
                "receiptHandle": message.receipt_handle,
                "body": message.body,
                "attributes": {
                    "ApproximateReceiveCount": str(message.receive_count),
                    "ApproximateFirstReceiveTimestamp": str(int(message.sent_time.timestamp() * 1_000)),
                    "SentTimestamp": str(int(message.sent_time.timestamp() * 1_000)),
                    "SequenceNumber": message.sequence_number,
                    "MessageGroupId": message.group_id,
                    "MessageDeduplicationId": message.deduplication_id,
                    "SenderId": "tapewatch",
                },
                "messageAttributes": {
                    name: {
                        "stringValue": value,
                        "stringListValues": [],
                        "binaryListValues": [],
                        "dataType": "String",
                    }
                    for name, value in message.attributes.items()
                },
                "md5OfBody": hashlib.md5(message.body.encode(), usedforsecurity=False).hexdigest(),
                "eventSource": "aws:sqs",
                "eventSourceARN": arn,
                "awsRegion": region,
            }
            for message in messages
        ]
    }


async def consume(
    queue: Queue,
    handler: Handler,
    *,
    draining: asyncio.Event,
    batch_size: int = 100,
    concurrency: int = 4,
    visibility_seconds: float = VISIBILITY_SECONDS,
    timeout_seconds: float = 30.0,
    arn: str = EMBEDDED_ARN,
) -> None:
    """Feed the handler until `draining` is set; then finish what is in flight, and return.

    Args:
        queue: Where messages come from. It never delivers one group to two batches at once.
        handler: The Lambda handler.
        draining: Set when to stop.
        batch_size: Most messages in one event.
        concurrency: Most events at once.
        visibility_seconds: How long a message stays hidden after its consumer died.
        timeout_seconds: How long the handler may take with one event.
        arn: What events name as their queue.

    A queue that cannot be used, because it is away or somebody took a permission, is asked again after a growing pause.
    """
    source = _EventSource(queue, handler, concurrency, visibility_seconds, timeout_seconds, arn)
    await source.run(batch_size, draining)


class _EventSource:
    def __init__(
        self,
        queue: Queue,
        handler: Handler,
        concurrency: int,
        visibility_seconds: float,
        timeout_seconds: float,
        arn: str,
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._visibility = visibility_seconds
        self._timeout = timeout_seconds
        self._arn = arn
        self._slots = asyncio.Semaphore(concurrency)
        # Threads of its own: a long poll must not hold up the process's other blocking calls.
        self._threads = ThreadPoolExecutor(concurrency * 2 + 1, thread_name_prefix="event-source")
        self._failed_in_a_row = 0
        self._pause_seconds = 0.0

    async def run(self, batch_size: int, draining: asyncio.Event) -> None:
        """Receive and process until the drain."""
        stop = asyncio.create_task(draining.wait())
        batches: set[asyncio.Task[None]] = set()
        try:
            while not draining.is_set():
                await self._either(self._slots.acquire(), stop)
                if draining.is_set():
                    break
                messages = await self._receive(batch_size, stop)
                if not messages:
                    self._slots.release()
                elif draining.is_set():
                    await self._release(messages)
                else:
                    batch = asyncio.create_task(self._process(messages))
                    batches.add(batch)
                    batch.add_done_callback(batches.discard)
                    batch.add_done_callback(lambda _: self._slots.release())
            await asyncio.gather(*batches)
        finally:
            stop.cancel()
            for batch in batches:
                batch.cancel()
            await asyncio.gather(*batches, return_exceptions=True)
            self._threads.shutdown(wait=False)

    async def _either(self, work: Awaitable[object], stop: asyncio.Task[Any]) -> None:
        """Wait for the work or the drain, whichever comes first."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _call(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        work = functools.partial(method, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _receive(self, batch_size: int, stop: asyncio.Task[Any]) -> list[ReceivedMessage]:
        if self._failed_in_a_row:
            await self._either(asyncio.sleep(self._pause_seconds), stop)
        try:
            return await self._call(self._queue.receive, batch_size, self._visibility, _RECEIVE_WAIT_SECONDS)
        except UNUSABLE as error:
            self._failed(error)
            _log.warning("cannot receive: %s", error.message)
            return []

    def _failed(self, error: TapewatchError) -> None:
        self._failed_in_a_row += 1
        self._pause_seconds = pause_seconds(error, self._failed_in_a_row, _LONGEST_PAUSE_SECONDS)

    async def _process(self, messages: Sequence[ReceivedMessage]) -> None:
        heartbeat = asyncio.create_task(self._heartbeat([message.receipt_handle for message in messages]))
        try:
            failed = await self._handle(messages)
            done = [message.receipt_handle for message in messages if message.message_id not in failed]
            if done:
                await self._call(self._queue.acknowledge, done)
            # Only after the acknowledgement: a heartbeat must not hide again what is released now.
            heartbeat.cancel()
            await asyncio.gather(heartbeat, return_exceptions=True)
            if failed:
                await self._retry_later([message for message in messages if message.message_id in failed])
            if done:
                self._failed_in_a_row = 0
            else:
                self._failed(DependencyUnavailableError("handler", "returned every message"))
        except UNUSABLE as error:
            self._failed(error)
            _log.warning("%d messages come again: %s", len(messages), error.message)
        except asyncio.CancelledError:
            await self._release(messages)
            raise
        finally:
            heartbeat.cancel()

    async def _handle(self, messages: Sequence[ReceivedMessage]) -> set[str]:
        """The ids of the messages that must come again."""
        every = {message.message_id for message in messages}
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._handler(sqs_event(messages, self._arn))
            failed = {item["itemIdentifier"] for item in (answer or {}).get("batchItemFailures") or ()}
        except TimeoutError:
            _log.warning("the handler took longer than %.0f s with %d messages", self._timeout, len(messages))
            return every
        except Exception:
            _log.exception("the handler failed with %d messages", len(messages))
            return every
        if not failed <= every:
            _log.error("the handler answered with identifiers that were not in the event; all messages come again")
            return every
        return failed

    async def _heartbeat(self, handles: Sequence[str]) -> None:
        while True:
            await asyncio.sleep(self._visibility / _HEARTBEATS_PER_VISIBILITY)
            try:
                await self._call(self._queue.change_visibility, handles, self._visibility)
            except UNUSABLE as error:
                _log.warning("cannot extend the visibility of %d messages: %s", len(handles), error.message)

    async def _retry_later(self, failed: Sequence[ReceivedMessage]) -> None:
        """Make failed messages visible after a backoff."""
        returned = [Returned(message.receipt_handle, message.group_id, message.receive_count) for message in failed]
        await self._call(deliver_again, returned, backoff_seconds, self._queue.change_visibility)

    async def _release(self, messages: Sequence[ReceivedMessage]) -> None:
        with suppress(*UNUSABLE):
            await self._call(self._queue.change_visibility, [message.receipt_handle for message in messages], 0)
