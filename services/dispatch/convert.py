"""Canary reports and task mode's batches to protos."""

from services.dispatch.batch import Entry
from services.dispatch.canary_watch import CanaryReport
from services.domain.canary import CanaryOutcome
from services.wire.time import duration_to_proto, timestamp_to_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb
from tapewatch.dispatch.v1 import task_pb2


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


def task_to_proto(entry: Entry) -> task_pb2.Task:
    """A batch of the ledger as its proto."""
    task = task_pb2.Task(
        task_id=entry.id,
        state=entry.state.value,  # type: ignore[arg-type]
        attempt=entry.attempt,
        message_count=entry.messages,
        settled_count=entry.settled,
        dead_letter_count=len(entry.dead),
        attempt_message_count=entry.attempt_messages,
        lanes=entry.lanes,
        predecessors=entry.after,
        launcher_task=entry.task,
        entered_time=timestamp_to_proto(entry.entered_time),
        reason=entry.reason,
    )
    for field, moment in (
        ("launch_time", entry.launch_time),
        ("start_time", entry.start_time),
        ("stop_time", entry.stop_time),
        ("next_attempt_time", entry.not_before),
    ):
        if moment is not None:
            getattr(task, field).CopyFrom(timestamp_to_proto(moment))
    return task
