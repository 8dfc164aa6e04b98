"""Alerts, changes and audit events: domain values to protos and back."""

from services.domain.alert import Alert, AlertChange, AlertChangeKind, AlertEvent, AlertState, Disposition
from services.domain.typology import Typology
from services.wire.score import reason_from_proto, reason_to_proto
from services.wire.time import timestamp_from_proto, timestamp_to_proto
from tapewatch.gateway.v1 import alert_pb2 as pb


def alert_to_proto(alert: Alert) -> pb.Alert:
    """The alert as its proto."""
    return pb.Alert(
        alert_id=alert.alert_id,
        tape=alert.tape,
        symbol=alert.symbol,
        source=alert.source,
        interval_seconds=alert.interval_seconds,
        typology=alert.typology.value,  # type: ignore[arg-type]
        state=alert.state.value,  # type: ignore[arg-type]
        disposition=alert.disposition.value,  # type: ignore[arg-type]
        assignee=alert.assignee,
        first_event_time=timestamp_to_proto(alert.first_event_time),
        last_event_time=timestamp_to_proto(alert.last_event_time),
        detection_count=alert.detection_count,
        peak_score=alert.peak_score,
        peak_quote_id=alert.peak_quote_id,
        reasons=[reason_to_proto(reason) for reason in alert.reasons],
        summary=alert.summary,
        etag=alert.etag,
        create_time=timestamp_to_proto(alert.create_time),
        update_time=timestamp_to_proto(alert.update_time),
        regulatory_reference=alert.typology.regulatory_reference(alert.interval_seconds),
    )


def alert_from_proto(message: pb.Alert) -> Alert:
    """The alert, as `alert_to_proto` wrote it. Raises: ValueError for values that this version does not know."""
    return Alert(
        alert_id=message.alert_id,
        tape=message.tape,
        source=message.source,
        symbol=message.symbol,
        interval_seconds=message.interval_seconds,
        typology=Typology(message.typology),
        first_event_time=timestamp_from_proto(message.first_event_time),
        last_event_time=timestamp_from_proto(message.last_event_time),
        detection_count=message.detection_count,
        peak_score=message.peak_score,
        peak_quote_id=message.peak_quote_id,
        reasons=tuple(reason_from_proto(reason) for reason in message.reasons),
        summary=message.summary,
        create_time=timestamp_from_proto(message.create_time),
        update_time=timestamp_from_proto(message.update_time),
        state=AlertState(message.state),
        disposition=Disposition(message.disposition),
        assignee=message.assignee,
        version=int(message.etag.strip('"')),
    )


def change_to_proto(change: AlertChange) -> pb.AlertChange:
    """The change as its proto."""
    return pb.AlertChange(
        sequence=change.sequence,
        kind=change.kind.value,  # type: ignore[arg-type]
        alert=alert_to_proto(change.alert),
        quote_id=change.quote_id,
        change_time=timestamp_to_proto(change.change_time),
    )


def event_to_proto(event: AlertEvent) -> pb.AlertEvent:
    """The audit event as its proto."""
    return pb.AlertEvent(
        sequence=event.sequence,
        alert_id=event.alert_id,
        kind=event.kind.value,  # type: ignore[arg-type]
        actor=event.actor,
        from_state=event.from_state.value if event.from_state else 0,  # type: ignore[arg-type]
        to_state=event.to_state.value,  # type: ignore[arg-type]
        disposition=event.disposition.value,  # type: ignore[arg-type]
        assignee=event.assignee,
        comment=event.comment,
        quote_id=event.quote_id,
        event_time=timestamp_to_proto(event.event_time),
    )


def event_from_proto(message: pb.AlertEvent) -> AlertEvent:
    """The audit event. Raises: ValueError for values that this version does not know."""
    return AlertEvent(
        sequence=message.sequence,
        alert_id=message.alert_id,
        kind=AlertChangeKind(message.kind),
        actor=message.actor,
        from_state=AlertState(message.from_state) if message.from_state else None,
        to_state=AlertState(message.to_state),
        disposition=Disposition(message.disposition),
        assignee=message.assignee,
        comment=message.comment,
        quote_id=message.quote_id,
        event_time=timestamp_from_proto(message.event_time),
    )
