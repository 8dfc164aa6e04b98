"""Times and durations: protobuf's well-known types and Python's."""

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def timestamp_to_proto(moment: datetime) -> Timestamp:
    """An aware datetime as a Timestamp; exact."""
    microseconds = (moment - _EPOCH) // _MICROSECOND
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)


def timestamp_from_proto(stamp: Timestamp) -> datetime:
    """A Timestamp as an aware datetime in UTC, cut to microseconds.

    Raises: OverflowError or ValueError outside years 1 to 9999, or when nanos are not within a second.
    """
    if not 0 <= stamp.nanos < 1_000_000_000:
        raise ValueError(f"{stamp.nanos} nanos are not within a second")
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1_000)


def optional_timestamp(message: Message, field: str) -> datetime | None:
    """The message's Timestamp field as a datetime, or None when it is absent."""
    return timestamp_from_proto(getattr(message, field)) if message.HasField(field) else None


def duration_to_proto(seconds: float) -> Duration:
    """Seconds as a Duration, to the microsecond."""
    whole, rest = divmod(round(seconds * 1_000_000), 1_000_000)
    return Duration(seconds=whole, nanos=rest * 1_000)


def duration_from_proto(duration: Duration) -> float:
    """A Duration in seconds."""
    return duration.seconds + duration.nanos / 1e9
