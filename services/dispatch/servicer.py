"""DispatchService over gRPC."""

import asyncio
from typing import Any

from services.dispatch.canary_watch import CanaryReport, CanaryState, CanaryWatch
from services.dispatch.convert import canaries_to_proto
from services.dispatch.service import DispatchMode, DispatchService
from services.dispatch.settings import DispatchSettings
from services.domain.errors import FieldViolation, InvalidRequestError, TapewatchError
from services.domain.quote import Quote
from services.domain.score import Score
from services.pipeline.warm_pool import WarmPool
from services.queue.ports import Queue
from services.runtime.errors import status_of
from services.wire.checks import check_count
from services.wire.quote import quotes_from_proto
from services.wire.score import score_to_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import DispatchServiceServicer


def _result(quote_id: str, result: Score | TapewatchError) -> pb.DispatchResult:
    if isinstance(result, Score):
        return pb.DispatchResult(quote_id=quote_id, score=score_to_proto(result))
    return pb.DispatchResult(quote_id=quote_id, error=status_of(result))


class DispatchServicer(DispatchServiceServicer):
    """Dispatch, GetCapacity and GetCanaries."""

    def __init__(
        self,
        service: DispatchService,
        pool: WarmPool,
        queue: Queue,
        settings: DispatchSettings,
        canaries: CanaryWatch | None = None,
    ) -> None:
        self._service = service
        self._pool = pool
        self._queue = queue
        self._settings = settings
        self._canaries = canaries

    async def Dispatch(self, request: pb.DispatchRequest, context: Any) -> pb.DispatchResponse:
        """Score and record a batch."""
        check_count("quotes", request.quotes)
        try:
            mode = DispatchMode(request.mode or DispatchMode.WARM)
        except ValueError as error:
            raise InvalidRequestError([FieldViolation("mode", f"{request.mode} is not a mode")]) from error
        formed = quotes_from_proto(request.quotes)
        quotes = [each for each in formed if isinstance(each, Quote)]
        done = iter(await self._service.dispatch(quotes, mode))
        return pb.DispatchResponse(
            results=[
                _result(each.quote_id, next(done)) if isinstance(each, Quote) else _result(message.quote_id, each)
                for message, each in zip(request.quotes, formed, strict=True)
            ]
        )

    async def GetCapacity(self, request: pb.GetCapacityRequest, context: Any) -> pb.GetCapacityResponse:
        """The warm pool, the backlog and the limits."""
        serving = await asyncio.gather(*(self._pool.serving(address) for address in self._pool.addresses))
        response = pb.GetCapacityResponse(
            scorers=[
                pb.WarmScorer(address=address, serving=up)
                for address, up in zip(self._pool.addresses, serving, strict=True)
            ],
            batch_size_limit=self._settings.dispatch_batch_size,
            concurrency_limit=self._settings.dispatch_concurrency,
        )
        depth = await asyncio.to_thread(self._queue.depth)
        response.backlog.ready_messages = depth.ready
        response.backlog.in_flight_messages = depth.in_flight
        response.backlog.dead_letters = depth.dead_letters
        return response

    async def GetCanaries(self, request: pb.GetCanariesRequest, context: Any) -> pb.GetCanariesResponse:
        """How the canaries did."""
        report = self._canaries.report if self._canaries is not None else CanaryReport(CanaryState.OFF)
        return canaries_to_proto(report)
