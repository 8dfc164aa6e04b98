"""Canary reports to protos."""

from services.dispatch.canary_watch import CanaryReport
from services.domain.canary import CanaryOutcome
from services.wire.time import duration_to_proto, timestamp_to_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb


def canaries_to_proto(report: CanaryReport) -> pb.GetCanariesResponse:
    """The report as its proto."""
    return pb.GetCanariesResponse(
        state=report.state.value,  # type: ignore[arg-type]
        interval=duration_to_proto(report.interval_seconds) if report.interval_seconds else None,
        play_time=None if report.play_time is None else timestamp_to_proto(report.play_time),
        results=[_outcome_to_proto(outcome) for outcome in report.outcomes],
        plays=report.plays,
        missed=report.missed,
    )


def _outcome_to_proto(outcome: CanaryOutcome) -> pb.CanaryResult:
    return pb.CanaryResult(
        name=outcome.name,
        alerted=outcome.alerted,
        delay=None if outcome.delay_seconds is None else duration_to_proto(outcome.delay_seconds),
        alert_id=outcome.alert_id,
        typology=outcome.typology.value,  # type: ignore[arg-type]
        peak_score=outcome.peak_score,
        problem=outcome.problem,
    )
