"""AlertService over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import trace

from services.domain.alert import AlertState, Disposition
from services.domain.score import RecordedQuote
from services.domain.typology import NOT_OBSERVABLE
from services.gateway import requests
from services.gateway.service import GatewayService
from services.runtime.telemetry import context_of
from services.wire.alert import alert_to_proto, change_to_proto, event_to_proto
from services.wire.detection import detection_to_proto, recorded_to_proto
from services.wire.time import duration_from_proto
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceServicer
from tapewatch.scorer.v1 import model_service_pb2

_HEARTBEAT_SECONDS = 15.0
_HEARTBEAT_RANGE_SECONDS = (1.0, 300.0)
_CONTEXT_QUOTES = 30
_UPDATABLE = ("state", "disposition", "assignee")


def _trace_id(recorded: RecordedQuote) -> str:
    context = trace.get_current_span(context_of({"traceparent": recorded.scored.quote.traceparent})).get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


class AlertServicer(AlertServiceServicer):
    """Watching, triage and evidence."""

    def __init__(self, service: GatewayService) -> None:
        self._service = service

    async def WatchAlerts(self, request: pb.WatchAlertsRequest, context: Any) -> AsyncIterator[pb.WatchAlertsResponse]:
        """The change log from a place on, then live."""
        query = requests.alert_query(request.filter)
        heartbeat = _HEARTBEAT_SECONDS
        if request.HasField("heartbeat_interval"):
            heartbeat = duration_from_proto(request.heartbeat_interval)
            low, high = _HEARTBEAT_RANGE_SECONDS
            if not low <= heartbeat <= high:
                raise requests.invalid("heartbeat_interval", f"is {heartbeat:g} s; {low:g} to {high:g} are allowed")
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
        alert = await self._service.get_alert(requests.check_required("alert_id", request.alert_id))
        return pb.GetAlertResponse(alert=alert_to_proto(alert))

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Any) -> pb.ListAlertsResponse:
        """Alerts, newest change first."""
        size = requests.page_size(request.page_size, 100, 1_000)
        query, position = requests.alert_query(request.filter), requests.page_position(request)
        page = await asyncio.to_thread(self._service.store.list_alerts, query, size, position)
        return pb.ListAlertsResponse(
            alerts=[alert_to_proto(alert) for alert in page.items],
            next_page_token=requests.page_token(request, page.next),
        )

    async def UpdateAlert(self, request: pb.UpdateAlertRequest, context: Any) -> pb.UpdateAlertResponse:
        """A step of triage."""
        wanted, paths = request.alert, set(request.update_mask.paths)
        alert_id = requests.check_required("alert.alert_id", wanted.alert_id)
        etag = requests.check_required("alert.etag", wanted.etag)
        actor = requests.check_required("actor", request.actor)
        if unknown := sorted(paths.difference(_UPDATABLE)):
            raise requests.invalid("update_mask", f"names {', '.join(unknown)}; allowed: {', '.join(_UPDATABLE)}")
        if not paths and not request.comment.strip():
            raise requests.invalid("update_mask", "is required, unless there is a comment")
        state = disposition = None
        if "state" in paths:
            if wanted.state not in AlertState._value2member_map_:
                raise requests.invalid("alert.state", f"{wanted.state} is not a state")
            state = AlertState(wanted.state)
        if "disposition" in paths:
            if wanted.disposition not in Disposition._value2member_map_:
                raise requests.invalid("alert.disposition", f"{wanted.disposition} is not a disposition")
            disposition = Disposition(wanted.disposition)
        alert = await self._service.update_alert(
            alert_id,
            etag,
            actor,
            request.comment,
            state=state,
            disposition=disposition,
            assignee=wanted.assignee if "assignee" in paths else None,
        )
        return pb.UpdateAlertResponse(alert=alert_to_proto(alert))

    async def ListAlertEvents(self, request: pb.ListAlertEventsRequest, context: Any) -> pb.ListAlertEventsResponse:
        """An alert's audit trail."""
        alert = await self._service.get_alert(requests.check_required("alert_id", request.alert_id))
        size = requests.page_size(request.page_size, 100, 1_000)
        position = requests.page_position(request)
        page = await asyncio.to_thread(self._service.store.list_alert_events, alert.alert_id, size, position)
        return pb.ListAlertEventsResponse(
            events=[event_to_proto(event) for event in page.items],
            next_page_token=requests.page_token(request, page.next),
        )

    async def GetEvidence(self, request: pb.GetEvidenceRequest, context: Any) -> pb.GetEvidenceResponse:
        """What an analyst files."""
        alert_id = requests.check_required("alert_id", request.alert_id)
        around = requests.page_size(request.context_quotes, _CONTEXT_QUOTES, 500, field="context_quotes")
        evidence = await self._service.evidence(alert_id, around)
        return pb.GetEvidenceResponse(
            alert=alert_to_proto(evidence.alert),
            detections=[detection_to_proto(recorded) for recorded in evidence.detections],
            quotes=[recorded_to_proto(recorded) for recorded in evidence.quotes],
            events=[event_to_proto(event) for event in evidence.events],
            model_versions=sorted({recorded.scored.score.model_version for recorded in evidence.detections}),
            trace_ids=[_trace_id(recorded) for recorded in evidence.detections],
            not_observable=[
                model_service_pb2.TypologyCoverage(
                    name=name, observability=model_service_pb2.OBSERVABILITY_NOT_OBSERVABLE
                )
                for name in NOT_OBSERVABLE
            ],
        )
