"""Replays and coverage: domain values to protos."""

from services.ingest.coverage import Coverage
from services.ingest.ports import Replay
from services.wire.quote import series_to_proto
from services.wire.time import duration_to_proto, timestamp_to_proto
from tapewatch.ingest.v1 import coverage_pb2, replay_pb2


def replay_to_proto(replay: Replay) -> replay_pb2.Replay:
    """The replay as its proto."""
    return replay_pb2.Replay(
        tape=replay.tape,
        location=replay.location,
        symbols=replay.symbols,
        speed=replay.speed,
        state=replay.state.value,  # type: ignore[arg-type]
        published_quotes=replay.published_quotes,
        total_quotes=replay.total_quotes,
        rejected_quotes=replay.rejected_quotes,
        position=None if replay.position is None else timestamp_to_proto(replay.position),
        error=replay.error,
        create_time=timestamp_to_proto(replay.create_time),
        update_time=timestamp_to_proto(replay.update_time),
        start_time=None if replay.start is None else timestamp_to_proto(replay.start),
        end_time=None if replay.end is None else timestamp_to_proto(replay.end),
    )


def coverage_to_proto(coverage: Coverage) -> coverage_pb2.Coverage:
    """One series' coverage as its proto."""
    last_event, last_ingest, silence = coverage.last_event_time, coverage.last_ingest_time, coverage.silence
    return coverage_pb2.Coverage(
        series=series_to_proto(coverage.series),
        freshness=coverage.freshness.value,  # type: ignore[arg-type]
        last_event_time=None if last_event is None else timestamp_to_proto(last_event),
        last_ingest_time=None if last_ingest is None else timestamp_to_proto(last_ingest),
        silence=None if silence is None else duration_to_proto(silence.total_seconds()),
        accepted_quotes=coverage.accepted_quotes,
        rejected_quotes=coverage.rejected_quotes,
        gaps=coverage.gaps,
        consecutive_errors=coverage.consecutive_errors,
        last_error=coverage.last_error,
    )
