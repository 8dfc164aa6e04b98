"""Carrying quotes in task mode: their batch becomes durable, manifest and entry in the ledger; tasks score it later."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Final

from opentelemetry import trace

from services.dispatch.batch import MAX_LANES, NewBatch
from services.dispatch.ports import Ledger
from services.dispatch.task_environment import manifest_of
from services.domain.errors import UNUSABLE, DependencyUnavailableError, TapewatchError
from services.pipeline.batch_files import BatchFiles, digest_of, manifest_name
from services.pipeline.ports import Carried, Carrier, Entered, QueuedQuote
from services.queue import market_message
from services.runtime import telemetry_names as names
from services.runtime.telemetry import current_trace_context

MAX_OPEN_BATCHES: Final = 500
"""Open batches above which further messages stay in the queue: it is made to hold a backlog, the ledger is not."""

_LOOK_SECONDS = 1.0


def lane(message: QueuedQuote) -> str:
    """The lane of a message's series: its tape and symbol, as the queue's groups."""
    return market_message.group_id(message.quote)


class TaskCarrier:
    """A `Carrier` into the ledger. `entered` is called after a batch has entered."""

    def __init__(self, ledger: Ledger, files: BatchFiles, entered: Callable[[], None] = lambda: None) -> None:
        self._ledger = ledger
        self._files = files
        self._entered = entered
        self._looked = float("-inf")
        self._open = 0
        self._tracer = trace.get_tracer("tapewatch.dispatch")

    async def carry(self, messages: Sequence[QueuedQuote]) -> list[Carried]:
        """One batch, or several where there are more lanes than one may have; the first that fails ends it.

        Raises: DependencyUnavailableError when the ledger is full or away; NotConfiguredError when it cannot be used.
        """
        await self._check_room()
        parts: list[list[int]] = []
        part_of: dict[str, list[int]] = {}
        lanes_in_part = 0
        for i, message in enumerate(messages):
            name = lane(message)
            if name not in part_of:
                if not parts or lanes_in_part == MAX_LANES:
                    parts.append([])
                    lanes_in_part = 0
                part_of[name] = parts[-1]
                lanes_in_part += 1
            part_of[name].append(i)
        results: dict[int, Carried] = {}
        failure: TapewatchError | None = None
        for part in parts:
            try:
                if failure is None:
                    with self._span(len(part)) as span:
                        batch_id = await asyncio.to_thread(self._enter, [messages[i] for i in part])
                        span.set_attribute(names.ATTRIBUTE_BATCH, batch_id)
                    results |= dict.fromkeys(part, Entered(batch_id))
            except TapewatchError as error:
                failure = DependencyUnavailableError("ledger", error.message)
            if failure is not None:
                results |= dict.fromkeys((i for i in part if i not in results), failure)
        self._entered()
        return [results[i] for i in range(len(messages))]

    async def _check_room(self) -> None:
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._open = len(await asyncio.to_thread(self._ledger.open))
            self._looked = now
        if self._open >= MAX_OPEN_BATCHES:
            raise DependencyUnavailableError("ledger", f"holds {self._open} open batches; messages wait in the queue")

    def _span(self, messages: int) -> AbstractContextManager[trace.Span]:
        """The batch's entrance; its launches and its tasks are below it in the trace, whenever they come."""
        return self._tracer.start_as_current_span(
            names.SPAN_ENTER, kind=trace.SpanKind.PRODUCER, attributes={names.ATTRIBUTE_BATCH_MESSAGES: messages}
        )

    def _enter(self, messages: Sequence[QueuedQuote]) -> str:
        """Manifest first, then ledger: what the ledger names is there."""
        manifest = manifest_of([market_message.batch_member(each.body, each.attributes) for each in messages])
        digest = digest_of(manifest)
        self._files.put(manifest_name(digest), manifest)
        context = current_trace_context()
        batch = NewBatch(
            digest=digest,
            lanes=tuple(sorted({lane(each) for each in messages})),
            messages=len(messages),
            traceparent=context.get("traceparent", ""),
            tracestate=context.get("tracestate", ""),
        )
        self._open += 1
        return self._ledger.enter(batch, datetime.now(UTC)).id


class AutoCarrier:
    """A `Carrier` by the warm pool while a scorer is serving, else by tasks; a lane with an open batch goes by tasks.

    `serving` says whether a scorer is; asked once a second.
    """

    def __init__(self, warm: Carrier, tasks: Carrier, ledger: Ledger, serving: Callable[[], Awaitable[bool]]) -> None:
        self._warm = warm
        self._tasks = tasks
        self._ledger = ledger
        self._ask = serving
        self._asked = float("-inf")
        self._serving = False

    async def carry(self, messages: Sequence[QueuedQuote]) -> list[Carried]:
        """Part the messages, so that no quote overtakes one of its lane that a task has."""
        if not await self._is_serving():
            return list(await self._tasks.carry(messages))
        busy = {name for entry in await asyncio.to_thread(self._ledger.open) for name in entry.lanes}
        by_task = [lane(message) in busy for message in messages]
        results: dict[int, Carried] = {}
        for wanted, carrier in ((False, self._warm), (True, self._tasks)):
            part = [i for i, is_task in enumerate(by_task) if is_task is wanted]
            if part:
                results |= zip(part, await self._carry(carrier, [messages[i] for i in part]), strict=True)
        return [results[i] for i in range(len(messages))]

    async def _carry(self, carrier: Carrier, messages: Sequence[QueuedQuote]) -> Sequence[Carried]:
        try:
            return await carrier.carry(messages)
        except UNUSABLE as error:
            self._asked = float("-inf")
            return [error] * len(messages)

    async def _is_serving(self) -> bool:
        now = time.monotonic()
        if now - self._asked > _LOOK_SECONDS:
            self._serving = await self._ask()
            self._asked = time.monotonic()
        return self._serving
