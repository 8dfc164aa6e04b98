"""The summary of a run: what the source held against what the gateway keeps, key by key."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc

from services.domain.quote import Quote, violations
from tapewatch.gateway.v1 import alert_service_pb2 as alert_pb2
from tapewatch.gateway.v1 import detection_service_pb2 as detection_pb2
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tapewatch.gateway.v1.detection_service_pb2_grpc import DetectionServiceStub

_QUOTES_PAGE = 5_000
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of one tape.

    `published`, `rejected`: quotes that ingest made durable in the queue, and those it refused. `scored`, `stored`:
    distinct keys kept with a score, and kept. `lost`: valid keys of the source that are not kept, and detections that
    are not listed as such. `duplicated`: keys and detections listed more than once, re-recorded scores that differed
    from the first, alert counts that are not those of their distinct detections, and `unexpected`: keys kept that the
    source does not have, or has as invalid. `redelivered`: quotes whose score was recorded again, to the same value.
    """

    published: int
    scored: int
    stored: int
    rejected: int
    lost: int
    duplicated: int
    unexpected: int
    redelivered: int
    alerts: int
    detections: int

    @property
    def complete(self) -> bool:
        """Whether every published quote is kept with its score, once, and nothing else is."""
        return self.published == self.scored == self.stored and self.lost == self.duplicated == self.unexpected == 0

    def last_line(self, seconds: float) -> str:
        """The line that ends a run."""
        return (
            f"tapewatch: published={self.published} scored={self.scored} stored={self.stored} lost={self.lost} "
            f"duplicated={self.duplicated} alerts={self.alerts} seconds={seconds:.1f}"
        )


async def pages(call: Callable[[Any], Awaitable[Any]], request: Any, field: str) -> AsyncIterator[Any]:
    """Every item of a paginated list."""
    while True:
        response = await call(request)
        for item in getattr(response, field):
            yield item
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def valid_keys(quotes: Iterable[Quote], now: datetime) -> set[str]:
    """The quote_ids of a source's quotes that ingest accepts: those that a complete run keeps."""
    return {quote.quote_id for quote in quotes if not violations(quote, now)}


async def take(
    channel: grpc.aio.Channel, tape: str, source_keys: Iterable[str], published: int, rejected: int
) -> Tally:
    """Compare the source's valid quote_ids (`valid_keys`) with what the gateway at `channel` keeps of the tape.

    `published` and `rejected` are the replay's own counts. `rejected` is told and explains no missing key: a count
    cannot say which key it stands for.

    Raises: grpc.aio.AioRpcError when the gateway cannot be read.
    """
    quotes = DetectionServiceStub(channel)
    watched = AlertServiceStub(channel)
    expected = set(source_keys)
    kept: Counter[str] = Counter()
    scored = 0
    mismatches = 0
    redelivered = 0
    detections_of_scores = set()
    async for recorded in pages(
        quotes.ListQuotes, detection_pb2.ListQuotesRequest(tape=tape, page_size=_QUOTES_PAGE), "quotes"
    ):
        quote_id = recorded.quote.quote_id
        kept[quote_id] += 1
        scored += kept[quote_id] == 1 and recorded.score.quote_id == quote_id
        mismatches += recorded.mismatch_count
        redelivered += recorded.record_count > 1 + recorded.mismatch_count
        if recorded.score.detection:
            detections_of_scores.add(quote_id)
    counted: Counter[str] = Counter()
    detections: Counter[str] = Counter()
    async for detection in pages(
        quotes.ListDetections, detection_pb2.ListDetectionsRequest(tape=tape, page_size=_PAGE), "detections"
    ):
        detections[detection.quote_id] += 1
        counted[detection.alert_id] += detections[detection.quote_id] == 1
    miscounted = 0
    alerts = 0
    everything = alert_pb2.ListAlertsRequest(filter=alert_pb2.AlertFilter(tape=tape), page_size=_PAGE)
    async for alert in pages(watched.ListAlerts, everything, "alerts"):
        alerts += 1
        miscounted += abs(alert.detection_count - counted.pop(alert.alert_id, 0))
    unexpected = len(kept.keys() - expected)
    repeated = kept.total() - len(kept) + detections.total() - len(detections)
    return Tally(
        published=published,
        scored=scored,
        stored=len(kept),
        rejected=rejected,
        lost=len(expected - kept.keys()) + len(detections_of_scores - detections.keys()),
        duplicated=repeated + mismatches + miscounted + counted.total() + unexpected,
        unexpected=unexpected,
        redelivered=redelivered,
        alerts=alerts,
        detections=len(detections),
    )
