"""The gateway as recorder and as history, over gRPC."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import grpc

from services.domain.errors import TapewatchError
from services.domain.quote import Quote, Series
from services.domain.score import Score, ScoredQuote
from services.pipeline.ports import Cursors, RecordOutcome
from services.runtime.errors import error_from_status, unavailable_from_rpc
from services.wire.quote import cursors_from_proto, quote_from_proto, quote_to_proto, series_to_proto
from services.wire.score import score_from_proto, score_to_proto
from services.wire.time import timestamp_to_proto
from tapewatch.gateway.v1 import detection_service_pb2 as pb
from tapewatch.gateway.v1.detection_service_pb2_grpc import DetectionServiceStub

PEER = "gateway"
HEALTH_SERVICE = "tapewatch.gateway.v1.DetectionService"
_PAGE_SIZE_LIMIT = 5_000


class GatewayClient:
    """Implements the ports Recorder, Record and History."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._detections = DetectionServiceStub(channel)

    async def cursors(self, series: Sequence[Series]) -> Cursors:
        """How far the series have been recorded."""
        request = pb.GetCursorsRequest(series=[series_to_proto(s) for s in series])
        try:
            response = await self._detections.GetCursors(request)
        except grpc.aio.AioRpcError as error:
            raise unavailable_from_rpc(error, PEER) from error
        return cursors_from_proto(response.cursors)

    async def record(self, items: Sequence[ScoredQuote]) -> list[RecordOutcome | TapewatchError]:
        """One result per item."""
        request = pb.RecordScoresRequest(
            items=[pb.ScoredQuote(quote=quote_to_proto(i.quote), score=score_to_proto(i.score)) for i in items]
        )
        try:
            response = await self._detections.RecordScores(request)
        except grpc.aio.AioRpcError as error:
            raise unavailable_from_rpc(error, PEER) from error
        return [
            RecordOutcome(result.recorded.outcome)
            if result.WhichOneof("outcome") == "recorded"
            else error_from_status(result.error, PEER)
            for result in response.results
        ]

    async def before(self, series: Series, event_time: datetime, limit: int) -> list[Quote]:
        """The last `limit` recorded quotes before `event_time`, oldest first, the newest revision of each bar."""
        request = pb.ListQuotesRequest(
            tape=series.tape,
            symbol=series.symbol,
            source=series.source,
            interval_seconds=series.interval_seconds,
            end_time=timestamp_to_proto(event_time),
            descending=True,
            page_size=min(limit, _PAGE_SIZE_LIMIT),
        )
        newest: dict[datetime, Quote] = {}
        while True:
            response = await self._list_quotes(request)
            for recorded in response.quotes:
                quote = quote_from_proto(recorded.quote)
                known = newest.get(quote.event_time)
                if known is None or known.revision < quote.revision:
                    newest[quote.event_time] = quote
            if len(newest) >= limit or not response.next_page_token:
                return sorted(newest.values(), key=lambda quote: quote.event_time)[-limit:]
            request.page_token = response.next_page_token

    async def _list_quotes(self, request: pb.ListQuotesRequest) -> pb.ListQuotesResponse:
        try:
            return await self._detections.ListQuotes(request)
        except grpc.aio.AioRpcError as error:
            raise unavailable_from_rpc(error, PEER) from error

    async def scores(self, quotes: Sequence[Quote]) -> Mapping[str, Score]:
        """By the cursors, and by the range of each series that has one."""
        wanted: dict[Series, list[Quote]] = defaultdict(list)
        for quote in quotes:
            wanted[quote.series].append(quote)
        if not wanted:
            return {}
        cursors = await self.cursors(list(wanted))
        begun = [series for series in wanted if cursors.get(series) is not None]
        found = await asyncio.gather(*(self._scores_within(series, wanted[series]) for series in begun))
        return {quote_id: score for part in found for quote_id, score in part.items()}

    async def _scores_within(self, series: Series, quotes: Sequence[Quote]) -> dict[str, Score]:
        times = [quote.event_time for quote in quotes]
        request = pb.ListQuotesRequest(
            tape=series.tape,
            symbol=series.symbol,
            source=series.source,
            interval_seconds=series.interval_seconds,
            start_time=timestamp_to_proto(min(times)),
            end_time=timestamp_to_proto(max(times) + timedelta(microseconds=1)),
            page_size=_PAGE_SIZE_LIMIT,
        )
        ids = {quote.quote_id for quote in quotes}
        found: dict[str, Score] = {}
        while True:
            response = await self._list_quotes(request)
            for recorded in response.quotes:
                if recorded.score.quote_id in ids:
                    found[recorded.score.quote_id] = score_from_proto(recorded.score)
            if not response.next_page_token:
                return found
            request.page_token = response.next_page_token
