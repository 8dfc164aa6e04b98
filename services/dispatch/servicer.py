"""DispatchService over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

from services.dispatch.batch import Entry, TaskState
from services.dispatch.canary_watch import CanaryReport, CanaryState, CanaryWatch
from services.dispatch.convert import canaries_to_proto, task_to_proto
from services.dispatch.ports import Ledger
from services.dispatch.service import DispatchMode, DispatchService
from services.dispatch.settings import DispatchSettings
from services.dispatch.task_carrier import MAX_OPEN_BATCHES
from services.dispatch.task_watch import Synchronized, watch
from services.domain.errors import (
    DependencyUnavailableError,
    FieldViolation,
    InvalidRequestError,
    NotConfiguredError,
    NotFoundError,
    TapewatchError,
)
from services.domain.quote import Quote
from services.domain.score import Score
from services.pipeline.warm_pool import WarmPool
from services.queue.ports import Queue
from services.runtime.errors import status_of
from services.wire.checks import check_count, check_id, heartbeat_seconds, invalid
from services.wire.paging import page_position, page_size, page_token
from services.wire.quote import quotes_from_proto
from services.wire.score import score_to_proto
from services.wire.time import timestamp_to_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import DispatchServiceServicer

_LONGEST_WAIT_SECONDS: Final = 60.0
_SPARE_SECONDS: Final = 0.5
"""What is left of a call's deadline when waiting for a task ends, to answer."""


def _result(quote_id: str, result: Score | TapewatchError) -> pb.DispatchResult:
    if isinstance(result, Score):
        return pb.DispatchResult(quote_id=quote_id, score=score_to_proto(result))
    return pb.DispatchResult(quote_id=quote_id, error=status_of(result))


class DispatchServicer(DispatchServiceServicer):
    """Converts, calls, converts. Streams end with UNAVAILABLE once `draining` is set."""

    def __init__(
        self,
        service: DispatchService,
        pool: WarmPool,
        queue: Queue,
        settings: DispatchSettings,
        draining: asyncio.Event,
        canaries: CanaryWatch | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._service = service
        self._pool = pool
        self._queue = queue
        self._settings = settings
        self._draining = draining
        self._canaries = canaries
        self._ledger_or_none = ledger

    @property
    def _ledger(self) -> Ledger:
        """The ledger. Raises: NotConfiguredError in warm mode."""
        if self._ledger_or_none is None:
            raise NotConfiguredError("this server is not in task mode", "set its DISPATCH_MODE to task or auto")
        return self._ledger_or_none

    async def Dispatch(self, request: pb.DispatchRequest, context: Any) -> pb.DispatchResponse:
        """Score and record a batch."""
        check_count("quotes", request.quotes)
        try:
            mode = DispatchMode(request.mode) if request.mode else None
        except ValueError as error:
            raise InvalidRequestError([FieldViolation("mode", f"{request.mode} is not a mode")]) from error
        formed = quotes_from_proto(request.quotes)
        quotes = [each for each in formed if isinstance(each, Quote)]
        remaining = context.time_remaining()
        seconds = _LONGEST_WAIT_SECONDS if remaining is None else min(_LONGEST_WAIT_SECONDS, remaining - _SPARE_SECONDS)
        done = iter(await self._service.dispatch(quotes, mode, seconds))
        return pb.DispatchResponse(
            results=[
                _result(each.quote_id, next(done)) if isinstance(each, Quote) else _result(message.quote_id, each)
                for message, each in zip(request.quotes, formed, strict=True)
            ]
        )

    async def GetCapacity(self, request: pb.GetCapacityRequest, context: Any) -> pb.GetCapacityResponse:
        """The warm pool, the backlog and the limits."""
        serving = await self._pool.serving()
        response = pb.GetCapacityResponse(
            scorers=[pb.WarmScorer(address=address, serving=up) for address, up in serving.items()],
            batch_size_limit=self._settings.dispatch_batch_size,
            concurrency_limit=self._settings.dispatch_concurrency,
            mode=self._service.mode.value,  # type: ignore[arg-type]
        )
        depth = await asyncio.to_thread(self._queue.depth)  # before the ledger: what moves between them is in one
        response.backlog.ready_messages = depth.ready
        response.backlog.in_flight_messages = depth.in_flight
        response.backlog.dead_letters = depth.dead_letters
        if self._ledger_or_none is not None:
            entries = await asyncio.to_thread(self._ledger_or_none.open)
            response.tasks.open_batches = len(entries)
            response.tasks.open_messages = sum(entry.messages - entry.settled for entry in entries)
            response.tasks.running_tasks = sum(entry.holds_place for entry in entries)
            response.tasks.running_tasks_limit = self._settings.max_concurrent_tasks
            response.tasks.open_batches_limit = MAX_OPEN_BATCHES
            if entries:
                oldest = min(entry.entered_time for entry in entries)
                response.tasks.oldest_entered_time.CopyFrom(timestamp_to_proto(oldest))
        return response

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        """The batches of task mode, newest first."""
        size = page_size(request.page_size, 100, 1_000)
        try:
            states = [TaskState(request.state)] if request.state else []
        except ValueError as error:
            raise invalid("state", f"{request.state} is not a state") from error
        position = page_position(request)
        before = "" if position is None else str(position[0])
        entries = await asyncio.to_thread(self._ledger.list, size + 1, before, states)
        more = (entries[size - 1].id,) if len(entries) > size else None
        tasks = [task_to_proto(entry) for entry in entries[:size]]
        return pb.ListTasksResponse(tasks=tasks, next_page_token=page_token(request, more))

    async def GetTask(self, request: pb.GetTaskRequest, context: Any) -> pb.GetTaskResponse:
        """One batch of task mode."""
        task_id = check_id("task_id", request.task_id)
        entry = await asyncio.to_thread(self._ledger.get, task_id)
        if entry is None:
            raise NotFoundError("task", task_id)
        return pb.GetTaskResponse(task=task_to_proto(entry))

    async def WatchTasks(self, request: pb.WatchTasksRequest, context: Any) -> AsyncIterator[pb.WatchTasksResponse]:
        """The batches of task mode as they change, until the server drains."""
        heartbeat = heartbeat_seconds(request)
        async for event in watch(self._ledger, heartbeat, self._draining):
            response = pb.WatchTasksResponse()
            if isinstance(event, Entry):
                response.task.CopyFrom(task_to_proto(event))
            elif isinstance(event, Synchronized):
                response.synchronized.open_batches = event.open_batches
            else:
                response.heartbeat.time.CopyFrom(timestamp_to_proto(datetime.now(UTC)))
            yield response
        raise DependencyUnavailableError("dispatch", "is shutting down; call again")

    async def GetCanaries(self, request: pb.GetCanariesRequest, context: Any) -> pb.GetCanariesResponse:
        """How the canaries did."""
        report = self._canaries.report if self._canaries is not None else CanaryReport(CanaryState.OFF)
        return canaries_to_proto(report)
