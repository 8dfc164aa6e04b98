"""AlertService over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import trace

from services.domain.score import RecordedQuote
from services.domain.typology import NOT_OBSERVABLE
from services.gateway import requests
from services.gateway.service import Evidence, GatewayService
from services.runtime.telemetry import context_of
from services.wire import checks, paging
from services.wire.alert import alert_to_proto, change_to_proto, event_to_proto
from services.wire.detection import detection_to_proto, recorded_to_proto
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceServicer
from tapewatch.scorer.v1 import model_service_pb2

_CONTEXT_QUOTES = 30
_CONTEXT_QUOTES_LIMIT = 500


def _trace_id(recorded: RecordedQuote) -> str:
    context = trace.get_current_span(context_of({"traceparent": recorded.scored.quote.traceparent})).get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def _evidence_to_proto(evidence: Evidence) -> pb.GetEvidenceResponse:
    return pb.GetEvidenceResponse(
        alert=alert_to_proto(evidence.alert),
        detections=[detection_to_proto(recorded) for recorded in evidence.detections],
        quotes=[recorded_to_proto(recorded) for recorded in evidence.quotes],
        events=[event_to_proto(event) for event in evidence.events],
        model_versions=sorted({recorded.scored.score.model_version for recorded in evidence.detections}),
        trace_ids=[_trace_id(recorded) for recorded in evidence.detections],
        not_observable=[
            model_service_pb2.TypologyCoverage(name=name, observability=model_service_pb2.OBSERVABILITY_NOT_OBSERVABLE)
            for name in NOT_OBSERVABLE
        ],
        truncated=evidence.truncated,
    )


class AlertServicer(AlertServiceServicer):
    """Watching, triage and evidence."""

    def __init__(self, service: GatewayService) -> None:
        self._service = service

    async def WatchAlerts(self, request: pb.WatchAlertsRequest, context: Any) -> AsyncIterator[pb.WatchAlertsResponse]:
        """The change log from a place on, then live."""
        query = requests.alert_query(request.filter)
        heartbeat = checks.heartbeat_seconds(request)
        store = self._service.store
        last = await asyncio.to_thread(store.last_change)
        after = 0 if request.from_start else last
        if request.resume_token:
            after = requests.resume_sequence(request.resume_token, store.store_id, last)
        async for sequence, change in self._service.feed.watch(query, after, heartbeat):
            response = pb.WatchAlertsResponse(resume_token=requests.resume_token(store.store_id, sequence))
            if change is not None:
                response.change.CopyFrom(change_to_proto(change))
            else:
                now = Timestamp()
                now.GetCurrentTime()
                response.heartbeat.time.CopyFrom(now)
            yield response

    async def GetAlert(self, request: pb.GetAlertRequest, context: Any) -> pb.GetAlertResponse:
        """One alert."""
        alert = await self._service.get_alert(checks.check_id("alert_id", request.alert_id))
        return pb.GetAlertResponse(alert=alert_to_proto(alert))

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Any) -> pb.ListAlertsResponse:
        """Alerts, newest change first."""
        size = paging.page_size(request.page_size, 100, 1_000)
        query, position = requests.alert_query(request.filter), paging.page_position(request)
        page = await asyncio.to_thread(self._service.store.list_alerts, query, size, position)
        return pb.ListAlertsResponse(
            alerts=[alert_to_proto(alert) for alert in page.items],
            next_page_token=paging.page_token(request, page.next),
        )

    async def UpdateAlert(self, request: pb.UpdateAlertRequest, context: Any) -> pb.UpdateAlertResponse:
        """A step of triage."""
        alert = await self._service.update_alert(requests.triage(request))
        return pb.UpdateAlertResponse(alert=alert_to_proto(alert))

    async def ListAlertEvents(self, request: pb.ListAlertEventsRequest, context: Any) -> pb.ListAlertEventsResponse:
        """An alert's audit trail."""
        alert = await self._service.get_alert(checks.check_id("alert_id", request.alert_id))
        size = paging.page_size(request.page_size, 100, 1_000)
        position = paging.page_position(request)
        page = await asyncio.to_thread(self._service.store.list_alert_events, alert.alert_id, size, position)
        return pb.ListAlertEventsResponse(
            events=[event_to_proto(event) for event in page.items],
            next_page_token=paging.page_token(request, page.next),
        )

    async def GetEvidence(self, request: pb.GetEvidenceRequest, context: Any) -> pb.GetEvidenceResponse:
        """What an analyst files."""
        alert_id = checks.check_id("alert_id", request.alert_id)
        around = paging.page_size(
            request.context_quotes, _CONTEXT_QUOTES, _CONTEXT_QUOTES_LIMIT, field="context_quotes"
        )
        return await asyncio.to_thread(_evidence_to_proto, await self._service.evidence(alert_id, around))
