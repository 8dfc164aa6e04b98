"""Every malformed request to the gateway names its fields."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tapewatch.gateway.v1 import alert_pb2, alert_service_pb2, detection_service_pb2
from tapewatch.market.v1 import quote_pb2
from tests.gateway_quotes import scored
from tests.integration.gateway_server import KNOWN, Gateway, message, refusal, updating


def listing(size: int) -> Callable[[Gateway], Awaitable[Any]]:
    return lambda g: g.detections.ListQuotes(detection_service_pb2.ListQuotesRequest(page_size=size))


LONG = "x" * 501
LONG_TOKEN = base64.urlsafe_b64encode(bytes(4_000)).decode()
EVER = Timestamp(seconds=10**15)

MALFORMED: list[tuple[str, Callable[[Gateway], Awaitable[Any]], set[str]]] = [
    (
        "no items",
        lambda g: g.detections.RecordScores(detection_service_pb2.RecordScoresRequest()),
        {"items"},
    ),
    (
        "1,001 items",
        lambda g: g.detections.RecordScores(
            detection_service_pb2.RecordScoresRequest(items=[message(scored(0))] * 1_001)
        ),
        {"items"},
    ),
    (
        "no series",
        lambda g: g.detections.GetCursors(detection_service_pb2.GetCursorsRequest()),
        {"series"},
    ),
    (
        "series without symbol",
        lambda g: g.detections.GetCursors(
            detection_service_pb2.GetCursorsRequest(series=[quote_pb2.Series(symbol="A"), quote_pb2.Series()])
        ),
        {"series[1].symbol"},
    ),
    (
        "no quote_id",
        lambda g: g.detections.GetDetection(detection_service_pb2.GetDetectionRequest()),
        {"quote_id"},
    ),
    ("negative page", listing(-1), {"page_size"}),
    ("huge page", listing(5_001), {"page_size"}),
    (
        "huge page of detections",
        lambda g: g.detections.ListDetections(detection_service_pb2.ListDetectionsRequest(page_size=1_001)),
        {"page_size"},
    ),
    (
        "tape backwards",
        lambda g: g.detections.ListQuotes(detection_service_pb2.ListQuotesRequest(descending=True)),
        {"symbol"},
    ),
    (
        "tape by time",
        lambda g: g.detections.ListQuotes(detection_service_pb2.ListQuotesRequest(start_time=Timestamp(seconds=1))),
        {"symbol"},
    ),
    (
        "negative interval",
        lambda g: g.detections.ListQuotes(detection_service_pb2.ListQuotesRequest(interval_seconds=-1)),
        {"interval_seconds"},
    ),
    (
        "absurd time",
        lambda g: g.detections.ListQuotes(detection_service_pb2.ListQuotesRequest(symbol="A", end_time=EVER)),
        {"end_time"},
    ),
    (
        "garbage page token",
        lambda g: g.detections.ListQuotes(detection_service_pb2.ListQuotesRequest(page_token="what?")),
        {"page_token"},
    ),
    (
        "names that nothing has",
        lambda g: g.detections.ListQuotes(
            detection_service_pb2.ListQuotesRequest(tape="B A D", symbol="a b", source="!")
        ),
        {"tape", "symbol", "source"},
    ),
    (
        "names that no detection has",
        lambda g: g.detections.ListDetections(detection_service_pb2.ListDetectionsRequest(tape="B A D", symbol="a b")),
        {"tape", "symbol"},
    ),
    (
        "names that no alert has",
        lambda g: g.alerts.ListAlerts(
            alert_service_pb2.ListAlertsRequest(
                filter=alert_service_pb2.AlertFilter(tape="B A D", symbols=["A", "b d"])
            )
        ),
        {"filter.tape", "filter.symbols[1]"},
    ),
    (
        "nothing between the times",
        lambda g: g.detections.ListDetections(
            detection_service_pb2.ListDetectionsRequest(start_time=Timestamp(seconds=2), end_time=Timestamp(seconds=2))
        ),
        {"end_time"},
    ),
    (
        "a series that cannot be",
        lambda g: g.detections.GetCursors(
            detection_service_pb2.GetCursorsRequest(
                series=[quote_pb2.Series(symbol="AAPL", tape="!!", interval=Duration(seconds=-7))]
            )
        ),
        {"series[0].tape", "series[0].interval"},
    ),
    (
        "endless page token",
        lambda g: g.alerts.ListAlerts(alert_service_pb2.ListAlertsRequest(page_token=LONG_TOKEN)),
        {"page_token"},
    ),
    (
        "endless resume token",
        lambda g: g.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest(resume_token=LONG_TOKEN)).read(),
        {"resume_token"},
    ),
    (
        "page token of nobody",
        lambda g: g.alerts.ListAlerts(
            alert_service_pb2.ListAlertsRequest(page_token=base64.urlsafe_b64encode(b"0123456789abcdef[1]").decode())
        ),
        {"page_token"},
    ),
    (
        "unknown typology",
        lambda g: g.detections.ListDetections(
            detection_service_pb2.ListDetectionsRequest(typology=99)  # type: ignore[arg-type]
        ),
        {"typology"},
    ),
    (
        "unknown state",
        lambda g: g.alerts.ListAlerts(
            alert_service_pb2.ListAlertsRequest(
                filter=alert_service_pb2.AlertFilter(states=[1, 77])  # type: ignore[list-item]
            )
        ),
        {"filter.states[1]"},
    ),
    (
        "score out of range",
        lambda g: g.alerts.ListAlerts(
            alert_service_pb2.ListAlertsRequest(filter=alert_service_pb2.AlertFilter(min_peak_score=float("nan")))
        ),
        {"filter.min_peak_score"},
    ),
    *(
        (
            f"1,001 {name} in a filter",
            lambda g, name=name, entry=entry: g.alerts.ListAlerts(
                alert_service_pb2.ListAlertsRequest(
                    filter=alert_service_pb2.AlertFilter(**{name: [entry] * 1_001})  # type: ignore[arg-type]
                )
            ),
            {f"filter.{name}"},
        )
        for name, entry in (("symbols", "A"), ("typologies", 1), ("states", 1))
    ),
    (
        "long names in a filter",
        lambda g: g.alerts.WatchAlerts(
            alert_service_pb2.WatchAlertsRequest(filter=alert_service_pb2.AlertFilter(tape=LONG, symbols=["A", LONG]))
        ).read(),
        {"filter.tape", "filter.symbols[1]"},
    ),
    (
        "long alert_id",
        lambda g: g.alerts.GetAlert(alert_service_pb2.GetAlertRequest(alert_id=LONG)),
        {"alert_id"},
    ),
    (
        "long alert_id of a trail",
        lambda g: g.alerts.ListAlertEvents(alert_service_pb2.ListAlertEventsRequest(alert_id=LONG)),
        {"alert_id"},
    ),
    (
        "long alert_id of evidence",
        lambda g: g.alerts.GetEvidence(alert_service_pb2.GetEvidenceRequest(alert_id=LONG)),
        {"alert_id"},
    ),
    (
        "long quote_id",
        lambda g: g.detections.GetDetection(detection_service_pb2.GetDetectionRequest(quote_id=LONG)),
        {"quote_id"},
    ),
    (
        "long names of detections",
        lambda g: g.detections.ListDetections(detection_service_pb2.ListDetectionsRequest(tape=LONG, symbol=LONG)),
        {"tape", "symbol"},
    ),
    (
        "long alert_id of detections",
        lambda g: g.detections.ListDetections(detection_service_pb2.ListDetectionsRequest(alert_id=LONG)),
        {"alert_id"},
    ),
    (
        "long names of quotes",
        lambda g: g.detections.ListQuotes(detection_service_pb2.ListQuotesRequest(tape=LONG, symbol=LONG, source=LONG)),
        {"tape", "symbol", "source"},
    ),
    (
        "long names of a series",
        lambda g: g.detections.GetCursors(
            detection_service_pb2.GetCursorsRequest(series=[quote_pb2.Series(symbol="A", tape=LONG)])
        ),
        {"series[0].tape"},
    ),
    (
        "long names in an update",
        lambda g: g.alerts.UpdateAlert(
            updating(
                alert_pb2.Alert(alert_id=LONG, etag=LONG, assignee=LONG, state=alert_pb2.ALERT_STATE_ACKNOWLEDGED),
                "state",
                actor=LONG,
            )
        ),
        {"alert.alert_id", "alert.etag", "alert.assignee", "actor"},
    ),
    ("no alert_id", lambda g: g.alerts.GetAlert(alert_service_pb2.GetAlertRequest()), {"alert_id"}),
    (
        "no alert_id of a trail",
        lambda g: g.alerts.ListAlertEvents(alert_service_pb2.ListAlertEventsRequest()),
        {"alert_id"},
    ),
    (
        "too much context",
        lambda g: g.alerts.GetEvidence(alert_service_pb2.GetEvidenceRequest(alert_id="al_x", context_quotes=501)),
        {"context_quotes"},
    ),
    (
        "empty update",
        lambda g: g.alerts.UpdateAlert(alert_service_pb2.UpdateAlertRequest()),
        {"alert.alert_id", "alert.etag", "actor", "update_mask"},
    ),
    ("unknown path", lambda g: g.alerts.UpdateAlert(updating(KNOWN, "peak_score", "state")), {"update_mask"}),
    ("no mask", lambda g: g.alerts.UpdateAlert(updating(KNOWN)), {"update_mask"}),
    ("posing as the system", lambda g: g.alerts.UpdateAlert(updating(KNOWN, "state", actor="system")), {"actor"}),
    (
        "state without value",
        lambda g: g.alerts.UpdateAlert(updating(alert_pb2.Alert(alert_id="al_x", etag='"1"'), "state")),
        {"alert.state"},
    ),
    (
        "hasty heartbeat",
        lambda g: g.alerts.WatchAlerts(
            alert_service_pb2.WatchAlertsRequest(heartbeat_interval=Duration(nanos=1))
        ).read(),
        {"heartbeat_interval"},
    ),
    (
        "lazy heartbeat",
        lambda g: g.alerts.WatchAlerts(
            alert_service_pb2.WatchAlertsRequest(heartbeat_interval=Duration(seconds=301))
        ).read(),
        {"heartbeat_interval"},
    ),
    (
        "garbage resume token",
        lambda g: g.alerts.WatchAlerts(alert_service_pb2.WatchAlertsRequest(resume_token="what?")).read(),
        {"resume_token"},
    ),
    (
        "bad filter of a watch",
        lambda g: g.alerts.WatchAlerts(
            alert_service_pb2.WatchAlertsRequest(
                filter=alert_service_pb2.AlertFilter(typologies=[0])  # type: ignore[list-item]
            )
        ).read(),
        {"filter.typologies"},
    ),
]


@pytest.mark.parametrize(("call", "fields"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
async def test_malformed_request_names_its_fields(
    gateway: Gateway, call: Callable[[Gateway], Awaitable[Any]], fields: set[str]
) -> None:
    assert await refusal(call(gateway)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", fields)
