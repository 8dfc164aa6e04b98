"""The gateway's services over a real server: every method, refusals by state, the watch, the drain."""

import asyncio
import base64
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from services.archive import lake as layout
from services.domain.score import ScoredQuote
from services.domain.typology import NOT_OBSERVABLE, Typology
from services.wire.quote import quote_from_proto, quote_to_proto
from services.wire.score import score_from_proto, score_to_proto
from services.wire.time import timestamp_to_proto
from tapewatch.gateway.v1 import alert_pb2, alert_service_pb2, detection_service_pb2
from tapewatch.market.v1 import quote_pb2
from tests.gateway_quotes import START, TRACE_ID, scored, spike
from tests.integration.gateway_server import KNOWN, Gateway, details, message, refusal, running_gateway, updating

CREATED = detection_service_pb2.RECORD_OUTCOME_CREATED
UNCHANGED = detection_service_pb2.RECORD_OUTCOME_UNCHANGED
DIFFERENT = detection_service_pb2.RECORD_OUTCOME_DIFFERENT


async def record(gateway: Gateway, *items: ScoredQuote) -> list[detection_service_pb2.RecordResult]:
    request = detection_service_pb2.RecordScoresRequest(items=[message(item) for item in items])
    return list((await gateway.detections.RecordScores(request)).results)


async def open_alert(gateway: Gateway, minute: int = 0) -> alert_pb2.Alert:
    (result,) = await record(gateway, spike(minute))
    answer = await gateway.alerts.GetAlert(alert_service_pb2.GetAlertRequest(alert_id=result.recorded.alert_id))
    return answer.alert


async def read(stream: Any) -> alert_service_pb2.WatchAlertsResponse:
    """The stream's next response; fails after thirty seconds."""
    response = await asyncio.wait_for(stream.read(), 30)
    assert isinstance(response, alert_service_pb2.WatchAlertsResponse)
    return response


async def read_change(stream: Any) -> alert_pb2.AlertChange:
    """The stream's next change: on a busy machine a heartbeat may come before it."""
    while (response := await read(stream)).WhichOneof("event") != "change":
        pass
    return response.change


async def test_record_and_read_back(gateway: Gateway) -> None:
    items = [scored(0), spike(1), scored(2)]
    first = await record(gateway, *items)
    assert [r.quote_id for r in first] == [i.quote.quote_id for i in items]
    assert [r.recorded.outcome for r in first] == [CREATED] * 3
    again = await record(gateway, items[0], spike(1, 0.95), items[2])
    assert [r.recorded.outcome for r in again] == [UNCHANGED, DIFFERENT, UNCHANGED]
    assert again[1].recorded.alert_id == first[1].recorded.alert_id != ""

    answer = await gateway.detections.ListQuotes(detection_service_pb2.ListQuotesRequest(symbol="AAPL"))
    assert [(quote_from_proto(q.quote), score_from_proto(q.score)) for q in answer.quotes] == [
        (i.quote, i.score) for i in items
    ]
    assert [(q.record_count, q.mismatch_count) for q in answer.quotes] == [(2, 0), (2, 1), (2, 0)]
    found = await gateway.detections.GetDetection(
        detection_service_pb2.GetDetectionRequest(quote_id=items[1].quote.quote_id)
    )
    assert found.detection.alert_id == first[1].recorded.alert_id
    assert score_from_proto(found.detection.score) == items[1].score


async def test_malformed_items_are_answered_beside_good_ones(gateway: Gateway) -> None:
    good = [message(scored(i)) for i in range(2)]
    without_quote = detection_service_pb2.ScoredQuote(score=score_to_proto(scored(2).score))
    without_score = detection_service_pb2.ScoredQuote(quote=quote_to_proto(scored(3).quote))
    mixed = detection_service_pb2.ScoredQuote(
        quote=quote_to_proto(scored(4).quote), score=score_to_proto(scored(5).score)
    )
    wild = message(scored(6))
    wild.quote.close = float("nan")
    wild.score.ensemble = 1.5
    odd = message(scored(7))
    odd.score.typology = 99  # type: ignore[assignment]
    nameless = message(spike(8))
    nameless.score.typology = 0  # type: ignore[assignment]
    contradicting = message(scored(9))
    contradicting.quote.symbol = "MSFT"
    verbose = message(scored(10))
    verbose.score.model_version = "v" * 201
    verbose.score.reasons.add(feature="close", text="x" * 1_001)
    rambling = message(scored(11))
    for _ in range(17):
        rambling.score.reasons.add(feature="close", text="moved")
    wrong_ones = [without_quote, without_score, mixed, wild, odd, nameless, contradicting, verbose, rambling]
    items = [good[0], *wrong_ones, good[1]]
    answer = await gateway.detections.RecordScores(detection_service_pb2.RecordScoresRequest(items=items))
    assert [r.WhichOneof("outcome") for r in answer.results] == ["recorded", *["error"] * 9, "recorded"]
    wrong = [details(r.error) for r in answer.results[1:-1]]
    assert {reason for reason, _ in wrong} == {"INVALID_QUOTE"}
    assert [fields for _, fields in wrong] == [
        {"quote"},
        {"score"},
        {"score.quote_id"},
        {"quote.close", "score.ensemble"},
        {"score"},
        {"score.typology"},
        {"quote.quote_id"},
        {"score.model_version", "score.reasons[0].text"},
        {"score.reasons"},
    ]
    assert answer.results[4].quote_id == scored(6).quote.quote_id


async def test_page_token_of_other_conditions_is_refused(gateway: Gateway) -> None:
    await record(gateway, *(scored(i) for i in range(3)))
    first = await gateway.detections.ListQuotes(detection_service_pb2.ListQuotesRequest(symbol="AAPL", page_size=1))
    assert first.next_page_token
    request = detection_service_pb2.ListQuotesRequest(symbol="AAPL", descending=True, page_token=first.next_page_token)
    assert (await refusal(gateway.detections.ListQuotes(request)))[2] == {"page_token"}
    request = detection_service_pb2.ListQuotesRequest(symbol="AAPL", page_size=9, page_token=first.next_page_token)
    following = await gateway.detections.ListQuotes(request)
    assert len(following.quotes) == 2
    assert following.next_page_token == ""


@pytest.mark.parametrize("name", ["alert", "detection"])
async def test_unknown_names_are_not_found(gateway: Gateway, name: str) -> None:
    await record(gateway, scored(0))
    if name == "alert":
        calls: list[Awaitable[Any]] = [
            gateway.alerts.GetAlert(alert_service_pb2.GetAlertRequest(alert_id="al_x")),
            gateway.alerts.ListAlertEvents(alert_service_pb2.ListAlertEventsRequest(alert_id="al_x")),
            gateway.alerts.GetEvidence(alert_service_pb2.GetEvidenceRequest(alert_id="al_x")),
            gateway.alerts.UpdateAlert(updating(KNOWN, "state")),
        ]
    else:
        quote_ids = ["nonsense", scored(0).quote.quote_id]
        calls = [
            gateway.detections.GetDetection(detection_service_pb2.GetDetectionRequest(quote_id=i)) for i in quote_ids
        ]
    for call in calls:
        assert (await refusal(call))[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_cursors_in_the_requests_order(gateway: Gateway) -> None:
    await record(gateway, scored(3), scored(5, symbol="MSFT"))
    series = [quote_pb2.Series(symbol=s, source="test") for s in ("MSFT", "IBM", "AAPL", "MSFT")]
    answer = await gateway.detections.GetCursors(detection_service_pb2.GetCursorsRequest(series=series))
    assert [c.series.symbol for c in answer.cursors] == ["MSFT", "IBM", "AAPL", "MSFT"]
    assert [c.HasField("last_event_time") for c in answer.cursors] == [True, False, True, True]
    assert answer.cursors[2].last_event_time == timestamp_to_proto(scored(3).quote.event_time)


async def test_triage_by_etag_with_its_trail(gateway: Gateway) -> None:
    alert = await open_alert(gateway)
    stale = alert_pb2.Alert()
    stale.CopyFrom(alert)
    alert.state = alert_pb2.ALERT_STATE_INVESTIGATING
    alert.assignee = "ben"
    alert.summary = "not to be taken over"
    updated = (await gateway.alerts.UpdateAlert(updating(alert, "state", "assignee"))).alert
    assert (updated.state, updated.assignee) == (alert_pb2.ALERT_STATE_INVESTIGATING, "ben")
    assert updated.etag != alert.etag
    assert updated.summary == stale.summary

    stale.state = alert_pb2.ALERT_STATE_ACKNOWLEDGED
    code, reason, _ = await refusal(gateway.alerts.UpdateAlert(updating(stale, "state")))
    assert (code, reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")

    back = alert_pb2.Alert(alert_id=alert.alert_id, etag=updated.etag, state=alert_pb2.ALERT_STATE_NEW)
    code, reason, _ = await refusal(gateway.alerts.UpdateAlert(updating(back, "state")))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION")

    closing = alert_pb2.Alert(alert_id=alert.alert_id, etag=updated.etag, state=alert_pb2.ALERT_STATE_CLOSED)
    _, _, fields = await refusal(gateway.alerts.UpdateAlert(updating(closing, "state")))
    assert fields == {"alert.disposition", "comment"}
    closing.disposition = alert_pb2.DISPOSITION_CONFIRMED
    await gateway.alerts.UpdateAlert(updating(closing, "state", "disposition", comment="pumped"))

    trail = await gateway.alerts.ListAlertEvents(alert_service_pb2.ListAlertEventsRequest(alert_id=alert.alert_id))
    assert [(e.actor, e.to_state, e.comment) for e in trail.events] == [
        ("system", alert_pb2.ALERT_STATE_NEW, ""),
        ("ann", alert_pb2.ALERT_STATE_INVESTIGATING, ""),
        ("ann", alert_pb2.ALERT_STATE_CLOSED, "pumped"),
    ]


async def test_one_of_two_analysts_wins(gateway: Gateway) -> None:
    alert = await open_alert(gateway)
    alert.state = alert_pb2.ALERT_STATE_ACKNOWLEDGED
    calls = [gateway.alerts.UpdateAlert(updating(alert, "state", actor=f"person {i}")) for i in range(8)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    failed = [o for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
    assert len(failed) == 7
    assert {error.code() for error in failed} == {grpc.StatusCode.ABORTED}


async def test_evidence_is_what_an_analyst_files(gateway: Gateway) -> None:
    quiet = scored(23, 0.9, typology=Typology.PRICE_SPIKE, traceparent="")
    await record(gateway, *(scored(i) for i in range(20)), spike(20), scored(21), spike(22), quiet)
    await record(gateway, *(scored(i) for i in range(24, 40)), scored(21, symbol="MSFT"), spike(21, tape="canary"))
    alerts = await gateway.alerts.ListAlerts(
        alert_service_pb2.ListAlertsRequest(filter=alert_service_pb2.AlertFilter(tape="live"))
    )
    (alert,) = alerts.alerts
    evidence = await gateway.alerts.GetEvidence(
        alert_service_pb2.GetEvidenceRequest(alert_id=alert.alert_id, context_quotes=3)
    )
    assert evidence.alert == alert
    minutes = [(q.quote.event_time.seconds - int(START.timestamp())) // 60 for q in evidence.quotes]
    assert minutes == [17, 18, 19, 20, 21, 22, 23, 24, 25, 26]
    assert {q.quote.symbol for q in evidence.quotes} == {"AAPL"}
    assert [d.quote_id for d in evidence.detections] == [i.quote.quote_id for i in (spike(20), spike(22), quiet)]
    assert list(evidence.trace_ids) == [TRACE_ID, TRACE_ID, ""]
    assert len(evidence.events) == 3
    assert list(evidence.model_versions) == ["m1"]
    assert [t.name for t in evidence.not_observable] == list(NOT_OBSERVABLE)
    assert not evidence.truncated


async def test_canary_alerts_reach_only_who_asks_for_their_tape(gateway: Gateway) -> None:
    def watching(tape: str, seconds: int = 1) -> Any:
        wanted = alert_service_pb2.AlertFilter(tape=tape)
        request = alert_service_pb2.WatchAlertsRequest(filter=wanted, from_start=True)
        request.heartbeat_interval.seconds = seconds
        return gateway.alerts.WatchAlerts(request)

    default, asking = watching(""), watching("canary")
    for stream in (default, asking):
        assert (await read(stream)).WhichOneof("event") == "heartbeat"
    await record(gateway, spike(0, tape="canary"), spike(0, symbol="MSFT"), spike(1, tape="canary"))
    for tape in ("", "canary"):
        listed = await gateway.alerts.ListAlerts(
            alert_service_pb2.ListAlertsRequest(filter=alert_service_pb2.AlertFilter(tape=tape))
        )
        detections = await gateway.detections.ListDetections(detection_service_pb2.ListDetectionsRequest(tape=tape))
        expected = "canary" if tape else "live"
        assert {alert.tape for alert in listed.alerts} == {expected}
        assert {detection.quote.tape for detection in detections.detections} == {expected}
    assert [(await read_change(asking)).alert.tape for _ in range(2)] == ["canary", "canary"]
    assert (await read_change(default)).alert.symbol == "MSFT"
    beat = await read(default)
    assert beat.WhichOneof("event") == "heartbeat"
    resumed = gateway.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest(resume_token=beat.resume_token))
    assert (await read(resumed)).resume_token == beat.resume_token, "the canaries were passed over, not left behind"
    for stream in (default, asking, resumed):
        stream.cancel()


async def test_watch_sees_the_past_and_what_follows(gateway: Gateway) -> None:
    await record(gateway, spike(0))
    stream = gateway.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest(from_start=True))
    assert (await read(stream)).WhichOneof("event") == "heartbeat"
    assert (await read_change(stream)).kind == alert_pb2.ALERT_CHANGE_KIND_OPENED
    await record(gateway, spike(1))
    change = await read_change(stream)
    assert (change.sequence, change.kind) == (2, alert_pb2.ALERT_CHANGE_KIND_DETECTION_ADDED)
    assert change.alert.detection_count == 2
    stream.cancel()


async def test_watch_begins_now_and_resumes(gateway: Gateway) -> None:
    await record(gateway, spike(0))
    stream = gateway.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest())
    token = (await read(stream)).resume_token
    stream.cancel()
    await record(gateway, spike(1), spike(2))
    resumed = gateway.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest(resume_token=token, from_start=True))
    await read(resumed)
    assert [(await read_change(resumed)).sequence for _ in range(2)] == [2, 3]
    resumed.cancel()


async def test_heartbeats_advance_the_token_past_what_is_filtered_out(gateway: Gateway) -> None:
    only_msft = alert_service_pb2.AlertFilter(symbols=["MSFT"])
    request = alert_service_pb2.WatchAlertsRequest(filter=only_msft, heartbeat_interval=Duration(seconds=1))
    stream = gateway.alerts.WatchAlerts(request)
    first = await read(stream)
    await record(gateway, spike(0), spike(1))
    while (second := await read(stream)).resume_token == first.resume_token:
        assert second.WhichOneof("event") == "heartbeat", "of a moment before the first change"
    assert second.WhichOneof("event") == "heartbeat"
    stream.cancel()
    await record(gateway, spike(0, symbol="MSFT"))
    request.resume_token = second.resume_token
    resumed = gateway.alerts.WatchAlerts(request)
    assert (await read_change(resumed)).sequence == 3
    resumed.cancel()


async def test_token_of_another_store_is_out_of_range(gateway: Gateway, tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "other") as other:
        stream = other.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest())
        token = (await read(stream)).resume_token
        stream.cancel()
    watch = gateway.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest(resume_token=token))
    assert (await refusal(read(watch)))[:2] == (grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_INVALID")


async def test_token_ahead_of_the_log_is_out_of_range(gateway: Gateway) -> None:
    stream = gateway.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest())
    store_id = base64.urlsafe_b64decode((await read(stream)).resume_token).decode().partition(":")[0]
    stream.cancel()
    ahead = base64.urlsafe_b64encode(f"{store_id}:7".encode()).decode()
    watch = gateway.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest(resume_token=ahead))
    assert (await refusal(read(watch)))[0] == grpc.StatusCode.OUT_OF_RANGE


async def test_drain_ends_watches_with_unavailable_and_archives_the_rest(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        await record(gateway, scored(0), spike(1))
        stream = gateway.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest())
        await read(stream)
        gateway.lifetime.draining.set()
        code, reason, _ = await refusal(read_change(stream))
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    assert layout.read_quotes(str(tmp_path / "lake")) == [scored(0).quote, spike(1).quote]
    assert len(list((tmp_path / "lake" / "changes").rglob("*.parquet"))) == 1


async def test_restart_keeps_everything_and_resumes(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        await record(gateway, spike(0))
        stream = gateway.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest())
        token = (await read(stream)).resume_token
        stream.cancel()
    async with running_gateway(tmp_path) as gateway:
        (again,) = await record(gateway, spike(0))
        assert again.recorded.outcome == UNCHANGED
        await record(gateway, spike(1))
        resumed = gateway.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest(resume_token=token))
        await read(resumed)
        assert (await read_change(resumed)).sequence == 2
        resumed.cancel()
