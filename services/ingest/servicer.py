"""IngestService on the wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc

from services.domain.errors import (
    DependencyUnavailableError,
    TapewatchError,
)
from services.domain.quote import Quote
from services.ingest.convert import coverage_to_proto, replay_to_proto
from services.ingest.replay import Replays
from services.ingest.service import IngestService, Outcome, Published
from services.ingest.subscribers import Subscription
from services.runtime.errors import status_of
from services.runtime.read_ahead import read_ahead
from services.wire.checks import check_count, check_filter, invalid, time_of
from services.wire.quote import quote_from_proto, quote_to_proto
from services.wire.time import timestamp_to_proto
from tapewatch.ingest.v1 import ingest_service_pb2 as pb
from tapewatch.ingest.v1.ingest_service_pb2_grpc import IngestServiceServicer
from tapewatch.market.v1 import quote_pb2

READ_AHEAD_REQUESTS: Final = 4


class IngestServicer(IngestServiceServicer):
    """Converts, calls, converts. Streams end with UNAVAILABLE once `draining` is set."""

    def __init__(self, service: IngestService, replays: Replays, draining: asyncio.Event) -> None:
        self._service = service
        self._replays = replays
        self._draining = draining

    async def PublishQuotes(
        self, request_iterator: AsyncIterator[pb.PublishQuotesRequest], context: Any
    ) -> AsyncIterator[pb.PublishQuotesResponse]:
        """Answer each request once its quotes are durable, reading a few requests ahead."""
        ahead = read_ahead(request_iterator, READ_AHEAD_REQUESTS, self._draining, _draining_error)
        async with aclosing(ahead) as requests:
            async for request in requests:
                yield await self._publish(request)

    async def _publish(self, request: pb.PublishQuotesRequest) -> pb.PublishQuotesResponse:
        check_count("quotes", request.quotes)
        results: dict[int, pb.PublishResult] = {}
        quotes: dict[int, Quote] = {}
        for i, message in enumerate(request.quotes):
            try:
                quotes[i] = _formed(message)
            except TapewatchError as error:
                results[i] = pb.PublishResult(quote_id=message.quote_id, error=status_of(error))
        outcomes = await self._service.publish(list(quotes.values()))
        for (i, quote), outcome in zip(quotes.items(), outcomes, strict=True):
            results[i] = _result(quote.quote_id, outcome)
        return pb.PublishQuotesResponse(results=[results[i] for i in range(len(request.quotes))])

    async def StreamQuotes(
        self, request: pb.StreamQuotesRequest, context: Any
    ) -> AsyncIterator[pb.StreamQuotesResponse]:
        """Quotes as they are accepted, until the listener is too slow or the server drains."""
        check_filter(tape=request.tape, symbols=request.symbols)
        with self._service.subscribers.subscribe(request.symbols, request.tape) as subscription:
            await context.send_initial_metadata(())  # tells the caller that it is listening now
            while await self._arrived(subscription):
                while (quote := subscription.take()) is not None:
                    yield pb.StreamQuotesResponse(quote=quote_to_proto(quote))
                if subscription.overrun:
                    behind = f"fell more than {self._service.subscribers.max_behind:,} quotes behind"
                    await context.abort(
                        grpc.StatusCode.RESOURCE_EXHAUSTED, f"{behind}: read faster, or ask for fewer symbols"
                    )
        raise _draining_error()

    async def _arrived(self, subscription: Subscription) -> bool:
        """Wait for quotes. False when the server drains."""
        arrival = asyncio.create_task(subscription.wait())
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait({arrival, draining}, return_when=asyncio.FIRST_COMPLETED)
            return not draining.done()
        finally:
            arrival.cancel()
            draining.cancel()

    async def StartReplay(self, request: pb.StartReplayRequest, context: Any) -> pb.StartReplayResponse:
        """Start a replay, or go on with one."""
        if self._draining.is_set():
            raise _draining_error()
        replay = await self._replays.start(
            request.location,
            request.tape,
            list(request.symbols),
            request.speed,
            time_of(request, "start_time"),
            time_of(request, "end_time"),
        )
        return pb.StartReplayResponse(replay=replay_to_proto(replay))

    async def GetReplay(self, request: pb.GetReplayRequest, context: Any) -> pb.GetReplayResponse:
        """How far a replay is."""
        replay = await self._replays.get(_tape(request.tape))
        return pb.GetReplayResponse(replay=replay_to_proto(replay))

    async def CancelReplay(self, request: pb.CancelReplayRequest, context: Any) -> pb.CancelReplayResponse:
        """Stop a replay."""
        replay = await self._replays.cancel(_tape(request.tape))
        return pb.CancelReplayResponse(replay=replay_to_proto(replay))

    async def GetCoverage(self, request: pb.GetCoverageRequest, context: Any) -> pb.GetCoverageResponse:
        """What ingest hears."""
        check_filter(tape=request.tape, symbols=request.symbols)
        coverages = self._service.coverage.list(set(request.symbols), request.tape)
        return pb.GetCoverageResponse(coverages=[coverage_to_proto(coverage) for coverage in coverages])


def _formed(message: quote_pb2.Quote) -> Quote:
    """The quote without what only ingest may set."""
    message.ClearField("ingest_time")
    message.ClearField("traceparent")
    return quote_from_proto(message)


def _result(quote_id: str, outcome: Outcome) -> pb.PublishResult:
    if isinstance(outcome, Published):
        moment = outcome.quote.ingest_time
        acknowledgement = pb.PublishAcknowledgement(
            ingest_time=None if moment is None else timestamp_to_proto(moment), deduplicated=outcome.deduplicated
        )
        return pb.PublishResult(quote_id=quote_id, acknowledgement=acknowledgement)
    return pb.PublishResult(quote_id=quote_id, error=status_of(outcome))


def _tape(value: str) -> str:
    if not value:
        raise invalid("tape", "is required")
    check_filter(tape=value)
    return value


def _draining_error() -> DependencyUnavailableError:
    return DependencyUnavailableError("ingest", "is shutting down; call again")
