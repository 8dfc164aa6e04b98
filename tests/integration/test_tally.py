"""The proof that ends a run: whatever is lost, double, foreign or miscounted must be seen by the tally."""

import dataclasses
import math
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.cli.tally import Tally, take, valid_keys
from services.domain.alert import AlertChangeKind
from services.domain.score import ScoredQuote
from services.gateway.ports import AlertQuery, AlertWrite
from services.gateway.sqlite import SqliteStore
from services.wire.quote import quote_to_proto
from services.wire.score import score_to_proto
from tapewatch.gateway.v1 import alert_pb2, alert_service_pb2
from tapewatch.gateway.v1 import detection_service_pb2 as pb
from tests.gateway_quotes import NOW, audit, scored, spike
from tests.integration.gateway_server import Gateway

TAPE = "run-1"
TAPED = [scored(i, tape=TAPE) for i in range(5)] + [spike(i, tape=TAPE) for i in range(5, 8)]
KEYS = [item.quote.quote_id for item in TAPED]


def messages(items: Sequence[ScoredQuote]) -> list[pb.ScoredQuote]:
    return [pb.ScoredQuote(quote=quote_to_proto(i.quote), score=score_to_proto(i.score)) for i in items]


async def record(gateway: Gateway, items: Sequence[ScoredQuote]) -> None:
    response = await gateway.detections.RecordScores(pb.RecordScoresRequest(items=messages(items)))
    assert all(result.WhichOneof("outcome") == "recorded" for result in response.results)


async def tally(gateway: Gateway, keys: Collection[str] = KEYS, published: int = len(KEYS), rejected: int = 0) -> Tally:
    return await take(gateway.channel, TAPE, keys, published, rejected)


async def test_a_whole_tape_is_complete_and_other_tapes_do_not_count(gateway: Gateway) -> None:
    await record(gateway, TAPED)
    await record(gateway, [scored(0, tape="other"), spike(9, tape="other")])
    found = await tally(gateway)
    assert found == Tally(8, 8, 8, 0, lost=0, duplicated=0, unexpected=0, redelivered=0, alerts=1, detections=3)
    assert found.complete
    assert found.last_line(1.25) == (
        "tapewatch: published=8 scored=8 stored=8 lost=0 duplicated=0 alerts=1 seconds=1.2"
    )


async def test_a_redelivery_with_the_same_score_is_no_fault(gateway: Gateway) -> None:
    await record(gateway, TAPED)
    await record(gateway, TAPED[2:6])
    found = await tally(gateway)
    assert found.complete
    assert found.redelivered == 4


async def test_a_loss_is_seen(gateway: Gateway) -> None:
    await record(gateway, TAPED[:3] + TAPED[4:])
    found = await tally(gateway)
    assert (found.stored, found.lost, found.duplicated) == (7, 1, 0)
    assert not found.complete


async def test_a_count_of_rejections_hides_no_lost_key(gateway: Gateway) -> None:
    source = [item.quote for item in TAPED]
    source[3] = dataclasses.replace(source[3], close=math.nan)
    await record(gateway, TAPED[:3] + TAPED[4:])
    found = await tally(gateway, valid_keys(source, NOW), published=7, rejected=1)
    assert (found.rejected, found.lost) == (1, 0)
    assert found.complete
    source[3:5] = [TAPED[3].quote, dataclasses.replace(source[4], close=math.nan)]
    found = await tally(gateway, valid_keys(source, NOW), published=7, rejected=1)
    assert (found.lost, found.unexpected) == (1, 1), "the fourth is lost; the fifth is kept though it is invalid"
    assert not found.complete


async def test_what_ingest_published_but_nobody_stored_is_not_complete(gateway: Gateway) -> None:
    await record(gateway, TAPED)
    found = await tally(gateway, published=9)
    assert found.lost == found.duplicated == 0
    assert not found.complete


async def test_another_value_for_a_recorded_quote_is_seen(gateway: Gateway) -> None:
    await record(gateway, TAPED)
    score = dataclasses.replace(TAPED[1].score, ensemble=TAPED[1].score.ensemble + 0.01)
    await record(gateway, [ScoredQuote(TAPED[1].quote, score)])
    found = await tally(gateway)
    assert (found.lost, found.duplicated, found.redelivered) == (0, 1, 0)
    assert not found.complete


async def test_a_key_that_the_source_lacks_is_seen(gateway: Gateway) -> None:
    await record(gateway, [*TAPED, scored(1, tape=TAPE, symbol="MSFT"), scored(2, tape=TAPE, revision=1)])
    found = await tally(gateway, published=10)
    assert (found.lost, found.duplicated, found.unexpected) == (0, 2, 2)
    assert not found.complete


@pytest.mark.parametrize("off", [-1, 1])
async def test_an_alert_that_counts_wrongly_is_seen(gateway: Gateway, tmp_path: Path, off: int) -> None:
    await record(gateway, TAPED)
    store = SqliteStore(tmp_path / "store.db")
    (alert,) = store.list_alerts(AlertQuery(tape=TAPE), 10, None).items
    wrong = dataclasses.replace(alert, detection_count=alert.detection_count + off, version=alert.version + 1)
    store.commit_triage(AlertWrite(wrong, alert, audit(wrong, alert, AlertChangeKind.TRIAGED, "ann")), NOW)
    store.close()
    found = await tally(gateway)
    assert (found.lost, found.duplicated) == (0, 1)
    assert not found.complete


def test_invalid_quotes_are_left_out_by_key() -> None:
    good, bad = TAPED[0].quote, dataclasses.replace(TAPED[1].quote, close=math.nan)
    assert valid_keys([good, bad], NOW) == {KEYS[0]}
    assert valid_keys([bad, TAPED[1].quote], NOW) == {KEYS[1]}, "a valid bar has the key as well"


class Lists:
    """A gateway that lists what it is told to, however wrong, one item per page."""

    def __init__(self) -> None:
        self.quotes = [pb.RecordedQuote(quote=m.quote, score=m.score, record_count=1) for m in messages(TAPED)]
        self.detections = [
            pb.Detection(quote_id=m.quote.quote_id, alert_id="al_1", quote=m.quote, score=m.score)
            for m in messages(TAPED[5:])
        ]
        self.alerts = [alert_pb2.Alert(alert_id="al_1", detection_count=3)]

    def _page(self, items: Sequence[Any], request: Any) -> tuple[Sequence[Any], str]:
        start = int(request.page_token or 0)
        return items[start : start + 1], str(start + 1) if start + 1 < len(items) else ""

    async def ListQuotes(self, request: pb.ListQuotesRequest, context: Any) -> pb.ListQuotesResponse:
        items, token = self._page(self.quotes, request)
        return pb.ListQuotesResponse(quotes=items, next_page_token=token)

    async def ListDetections(self, request: pb.ListDetectionsRequest, context: Any) -> pb.ListDetectionsResponse:
        items, token = self._page(self.detections, request)
        return pb.ListDetectionsResponse(detections=items, next_page_token=token)

    async def ListAlerts(self, request: Any, context: Any) -> alert_service_pb2.ListAlertsResponse:
        items, token = self._page(self.alerts, request)
        return alert_service_pb2.ListAlertsResponse(alerts=items, next_page_token=token)


@asynccontextmanager
async def serving(lists: Lists) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    for service, module, methods in (
        ("tapewatch.gateway.v1.DetectionService", pb, (lists.ListQuotes, lists.ListDetections)),
        ("tapewatch.gateway.v1.AlertService", alert_service_pb2, (lists.ListAlerts,)),
    ):
        handlers = {
            method.__name__: grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=getattr(module, f"{method.__name__}Request").FromString,
                response_serializer=getattr(module, f"{method.__name__}Response").SerializeToString,
            )
            for method in methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


async def listed(lists: Lists) -> Tally:
    async with serving(lists) as channel:
        return await take(channel, TAPE, KEYS, len(KEYS), 0)


async def test_pages_are_read_to_the_end() -> None:
    found = await listed(Lists())
    assert found.complete
    assert (found.stored, found.detections, found.alerts) == (8, 3, 1)


async def test_a_key_kept_twice_is_seen() -> None:
    lists = Lists()
    lists.quotes.append(lists.quotes[2])
    found = await listed(lists)
    assert (found.stored, found.lost, found.duplicated) == (8, 0, 1)
    assert not found.complete


async def test_a_quote_without_its_score_is_seen() -> None:
    lists = Lists()
    lists.quotes[2].ClearField("score")
    found = await listed(lists)
    assert (found.stored, found.scored) == (8, 7)
    assert not found.complete


async def test_a_detection_that_is_not_listed_is_lost() -> None:
    lists = Lists()
    lists.detections.pop()
    lists.alerts[0].detection_count = 2
    found = await listed(lists)
    assert (found.lost, found.duplicated) == (1, 0)
    assert not found.complete


async def test_a_detection_listed_and_counted_twice_is_seen() -> None:
    lists = Lists()
    lists.detections.append(lists.detections[0])
    lists.alerts[0].detection_count = 4
    found = await listed(lists)
    assert (found.lost, found.duplicated) == (0, 2), "the repeated listing, and the count beyond distinct detections"
    assert not found.complete


async def test_detections_whose_alert_is_missing_are_seen() -> None:
    lists = Lists()
    lists.alerts.clear()
    found = await listed(lists)
    assert (found.alerts, found.duplicated) == (0, 3)
    assert not found.complete
