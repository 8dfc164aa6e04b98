"""DetectionService over gRPC."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from services.domain.errors import InvalidQuoteError, TapewatchError
from services.domain.quote import LIVE_TAPE
from services.domain.score import ScoredQuote
from services.gateway import requests
from services.gateway.metrics import GatewayMetrics
from services.gateway.ports import DetectionQuery, QuoteQuery
from services.gateway.service import GatewayService, Recorded
from services.pipeline.ports import RecordOutcome
from services.runtime.errors import status_of
from services.wire import checks, paging
from services.wire.detection import detection_to_proto, recorded_to_proto
from services.wire.quote import cursors_to_proto, series_from_proto
from tapewatch.gateway.v1 import detection_service_pb2 as pb
from tapewatch.gateway.v1.detection_service_pb2_grpc import DetectionServiceServicer


def _outcome(recorded: Recorded) -> RecordOutcome:
    if recorded.created:
        return RecordOutcome.CREATED
    return RecordOutcome.UNCHANGED if recorded.same else RecordOutcome.DIFFERENT


def _result(quote_id: str, result: Recorded | TapewatchError) -> pb.RecordResult:
    if isinstance(result, TapewatchError):
        return pb.RecordResult(quote_id=quote_id, error=status_of(result))
    recorded = pb.Recorded(outcome=_outcome(result).value, alert_id=result.alert_id)  # type: ignore[arg-type]
    return pb.RecordResult(quote_id=quote_id, recorded=recorded)


def _form(messages: Iterable[pb.ScoredQuote]) -> list[ScoredQuote | InvalidQuoteError]:
    """Each item, or what is wrong with it."""
    now = datetime.now(UTC)
    formed: list[ScoredQuote | InvalidQuoteError] = []
    for message in messages:
        try:
            formed.append(requests.scored_quote(message, now))
        except InvalidQuoteError as error:
            formed.append(error)
    return formed


class DetectionServicer(DetectionServiceServicer):
    """Recording, and reading what is recorded."""

    def __init__(self, service: GatewayService) -> None:
        self._service = service
        self._metrics = GatewayMetrics()

    async def RecordScores(self, request: pb.RecordScoresRequest, context: Any) -> pb.RecordScoresResponse:
        """Record a batch."""
        checks.check_count("items", request.items)
        formed = await asyncio.to_thread(_form, request.items)
        items = [each for each in formed if isinstance(each, ScoredQuote)]
        done = await self._service.record(items)
        self._metrics.count(items, done)
        answers = iter(done)
        return pb.RecordScoresResponse(
            results=[
                _result(each.quote.quote_id, next(answers))
                if isinstance(each, ScoredQuote)
                else _result(message.quote.quote_id, each)
                for message, each in zip(request.items, formed, strict=True)
            ]
        )

    async def GetCursors(self, request: pb.GetCursorsRequest, context: Any) -> pb.GetCursorsResponse:
        """How far series have been recorded."""
        checks.check_count("series", request.series)
        series = [series_from_proto(message, f"series[{i}]") for i, message in enumerate(request.series)]
        cursors = await self._service.cursors(series)
        messages = dict(zip(cursors, cursors_to_proto(cursors), strict=True))
        return pb.GetCursorsResponse(cursors=[messages[each] for each in series])

    async def GetDetection(self, request: pb.GetDetectionRequest, context: Any) -> pb.GetDetectionResponse:
        """One detection."""
        recorded = await self._service.get_detection(checks.check_id("quote_id", request.quote_id))
        return pb.GetDetectionResponse(detection=detection_to_proto(recorded))

    async def ListDetections(self, request: pb.ListDetectionsRequest, context: Any) -> pb.ListDetectionsResponse:
        """Detections, newest event first."""
        checks.check_filter(tape=request.tape, symbol=request.symbol)
        checks.check_names({"alert_id": request.alert_id}, checks.ID_CHARACTERS_LIMIT)
        start, end = requests.time_range(request)
        query = DetectionQuery(
            tape=request.tape,
            symbol=request.symbol,
            typology=requests.typology_of(request.typology, "typology"),
            alert_id=request.alert_id,
            start_time=start,
            end_time=end,
        )
        size = paging.page_size(request.page_size, 100, 1_000)
        page = await asyncio.to_thread(self._service.store.list_detections, query, size, paging.page_position(request))
        return pb.ListDetectionsResponse(
            detections=[detection_to_proto(recorded) for recorded in page.items],
            next_page_token=paging.page_token(request, page.next),
        )

    async def ListQuotes(self, request: pb.ListQuotesRequest, context: Any) -> pb.ListQuotesResponse:
        """Quotes with their scores."""
        checks.check_filter(tape=request.tape, symbol=request.symbol, source=request.source)
        start, end = requests.time_range(request)
        if not request.symbol and (start or end or request.descending):
            raise checks.invalid("symbol", "is required with times or in descending order")
        if request.interval_seconds < 0:
            raise checks.invalid("interval_seconds", "must be 0 or more")
        query = QuoteQuery(
            tape=request.tape or LIVE_TAPE,
            symbol=request.symbol,
            source=request.source,
            interval_seconds=request.interval_seconds,
            start_time=start,
            end_time=end,
            descending=request.descending,
        )
        size = paging.page_size(request.page_size, 500, 5_000)
        position = paging.page_position(request)

        def answer() -> pb.ListQuotesResponse:
            page = self._service.store.list_quotes(query, size, position)
            return pb.ListQuotesResponse(
                quotes=[recorded_to_proto(recorded) for recorded in page.items],
                next_page_token=paging.page_token(request, page.next),
            )

        return await asyncio.to_thread(answer)  # thousands of quotes: the loop serves others meanwhile
