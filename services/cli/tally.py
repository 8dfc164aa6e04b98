"""The summary of a run: what the source held against what the gateway keeps, key by key."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from tapewatch.gateway.v1 import alert_service_pb2 as alert_pb2
from tapewatch.gateway.v1 import detection_service_pb2 as detection_pb2
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tapewatch.gateway.v1.detection_service_pb2_grpc import DetectionServiceStub

_QUOTES_PAGE = 5_000
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of one tape.

    `published`: quotes that ingest made durable in the queue. `scored`, `stored`: distinct keys kept with a
    score, and kept. `lost`: keys of the source that are neither kept nor rejected. `duplicated`: keys kept more than
    once, re-recorded scores that differed from the first, and alert counts beyond their distinct detections.
    `redelivered`: quotes whose score was recorded again, to the same value.
    """

    published: int
    scored: int
    stored: int
    rejected: int
    lost: int
    duplicated: int
    redelivered: int
    alerts: int
    detections: int

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


async def take(
    channel: grpc.aio.Channel, tape: str, source_keys: Iterable[str], published: int, rejected: int
) -> Tally:
    """Compare the source's quote_ids with what the gateway at `channel` keeps of the tape.

    `published` and `rejected` are the replay's own counts.
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
        redelivered += recorded.record_count > 1
        if recorded.score.detection:
            detections_of_scores.add(quote_id)
    counted: Counter[str] = Counter()
    detections = set()
    async for detection in pages(
        quotes.ListDetections, detection_pb2.ListDetectionsRequest(tape=tape, page_size=_PAGE), "detections"
    ):
        detections.add(detection.quote_id)
        counted[detection.alert_id] += 1
    surplus = 0
    alerts = 0
    everything = alert_pb2.ListAlertsRequest(filter=alert_pb2.AlertFilter(tape=tape), page_size=_PAGE)
    async for alert in pages(watched.ListAlerts, everything, "alerts"):
        alerts += 1
        surplus += abs(alert.detection_count - counted.pop(alert.alert_id, 0))
    missing = expected - kept.keys()
    return Tally(
        published=published,
        scored=scored,
        stored=len(kept),
        rejected=rejected,
        lost=max(0, len(missing) - rejected) + len(detections_of_scores - detections),
        duplicated=kept.total() - len(kept) + mismatches + surplus + counted.total(),
        redelivered=redelivered,
        alerts=alerts,
        detections=len(detections),
    )
