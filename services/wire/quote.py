"""Quotes, series and cursors: protos to domain values and back."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from services.domain.errors import FieldViolation, InvalidQuoteError, InvalidRequestError
from services.domain.quote import LIVE_TAPE, Quote, Series, series_violations
from services.wire.time import (
    duration_to_proto,
    optional_timestamp,
    timestamp_from_proto,
    timestamp_to_proto,
)
from tapewatch.market.v1 import quote_pb2 as pb

DEFAULT_SOURCE = "grpc"
DEFAULT_INTERVAL_SECONDS = 60


def quote_to_proto(quote: Quote) -> pb.Quote:
    """The quote as its proto, quote_id included."""
    message = pb.Quote(
        quote_id=quote.quote_id,
        tape=quote.tape,
        source=quote.source,
        symbol=quote.symbol,
        event_time=timestamp_to_proto(quote.event_time),
        revision=quote.revision,
        open=quote.open,
        high=quote.high,
        low=quote.low,
        close=quote.close,
        volume=quote.volume,
        previous_close=quote.previous_close,
        currency=quote.currency,
        trades=quote.trades,
        buy_volume=quote.buy_volume,
        split_ratio=quote.split_ratio,
        benchmark_return=quote.benchmark_return,
        benchmark_volume_ratio=quote.benchmark_volume_ratio,
        peer_return=quote.peer_return,
        peer_volume_ratio=quote.peer_volume_ratio,
        batch_id=quote.batch_id,
        traceparent=quote.traceparent,
    )
    message.interval.seconds = quote.interval_seconds
    if quote.ingest_time is not None:
        message.ingest_time.CopyFrom(timestamp_to_proto(quote.ingest_time))
    return message


def _optional(message: pb.Quote, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None  # type: ignore[arg-type]


def quote_from_proto(message: pb.Quote) -> Quote:
    """The quote with its defaults filled in. Values are not judged here: `services.domain.quote.violations` does that.

    Raises: InvalidQuoteError when no quote can be formed (no or absurd event_time, fractional interval), or when a
    given quote_id contradicts the other fields.
    """
    wrong = []
    if not message.HasField("event_time"):
        wrong.append(FieldViolation("event_time", "is required"))
    if message.HasField("interval") and message.interval.nanos:
        wrong.append(FieldViolation("interval", "must be whole seconds"))
    try:
        event_time = timestamp_from_proto(message.event_time)
        ingest_time = optional_timestamp(message, "ingest_time")
    except (OverflowError, ValueError):
        wrong.append(FieldViolation("event_time", "is no time within years 1 to 9999"))
    if wrong:
        raise InvalidQuoteError(wrong, quote_id=message.quote_id)
    quote = Quote(
        symbol=message.symbol,
        event_time=event_time,
        open=message.open,
        high=message.high,
        low=message.low,
        close=message.close,
        volume=message.volume,
        interval_seconds=message.interval.seconds if message.HasField("interval") else DEFAULT_INTERVAL_SECONDS,
        tape=message.tape or LIVE_TAPE,
        source=message.source or DEFAULT_SOURCE,
        revision=message.revision,
        previous_close=_optional(message, "previous_close"),
        currency=message.currency,
        trades=message.trades if message.HasField("trades") else None,
        buy_volume=_optional(message, "buy_volume"),
        split_ratio=_optional(message, "split_ratio"),
        benchmark_return=_optional(message, "benchmark_return"),
        benchmark_volume_ratio=_optional(message, "benchmark_volume_ratio"),
        peer_return=_optional(message, "peer_return"),
        peer_volume_ratio=_optional(message, "peer_volume_ratio"),
        ingest_time=ingest_time,
        batch_id=message.batch_id,
        traceparent=message.traceparent,
    )
    if message.quote_id and message.quote_id != quote.quote_id:
        violation = FieldViolation("quote_id", f"{message.quote_id!r} contradicts the other fields: {quote.quote_id!r}")
        raise InvalidQuoteError([violation], quote_id=message.quote_id)
    return quote


def quotes_from_proto(messages: Iterable[pb.Quote]) -> list[Quote | InvalidQuoteError]:
    """Each message as a quote, or why it is none: one bad quote must not spoil a batch."""
    formed: list[Quote | InvalidQuoteError] = []
    for message in messages:
        try:
            formed.append(quote_from_proto(message))
        except InvalidQuoteError as error:
            formed.append(error)
    return formed


def series_to_proto(series: Series) -> pb.Series:
    """The series as its proto."""
    return pb.Series(
        tape=series.tape,
        source=series.source,
        symbol=series.symbol,
        interval=duration_to_proto(series.interval_seconds),
    )


def series_from_proto(message: pb.Series, field: str = "series") -> Series:
    """The series, with a quote's defaults filled in.

    Raises: InvalidRequestError when it names no symbol, or can be no series; `field` is its path in the request.
    """
    if not message.symbol:
        raise InvalidRequestError([FieldViolation(f"{field}.symbol", "is required")])
    seconds = message.interval.seconds if message.HasField("interval") else DEFAULT_INTERVAL_SECONDS
    series = Series(message.tape or LIVE_TAPE, message.source or DEFAULT_SOURCE, message.symbol, seconds)
    wrong = series_violations(series)
    if message.interval.nanos:
        wrong.append(FieldViolation("interval", "is no whole number of seconds"))
    if wrong:
        raise InvalidRequestError([FieldViolation(f"{field}.{v.field}", v.description) for v in wrong])
    return series


def cursors_to_proto(cursors: Mapping[Series, datetime | None]) -> list[pb.Cursor]:
    """Cursors, one message per series."""
    messages = []
    for series, last_event_time in cursors.items():
        message = pb.Cursor(series=series_to_proto(series))
        if last_event_time is not None:
            message.last_event_time.CopyFrom(timestamp_to_proto(last_event_time))
        messages.append(message)
    return messages


def cursors_from_proto(messages: Iterable[pb.Cursor]) -> dict[Series, datetime | None]:
    """Cursors by series.

    Raises: InvalidRequestError when one names no symbol.
    """
    cursors = {}
    for i, message in enumerate(messages):
        series = series_from_proto(message.series, f"cursors[{i}].series")
        try:
            cursors[series] = optional_timestamp(message, "last_event_time")
        except (OverflowError, ValueError) as error:
            violation = FieldViolation(f"cursors[{i}].last_event_time", "is no time within years 1 to 9999")
            raise InvalidRequestError([violation]) from error
    return cursors
