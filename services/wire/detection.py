"""Scored and recorded quotes: domain values to protos and back."""

from services.domain.errors import FieldViolation, InvalidQuoteError
from services.domain.score import RecordedQuote, ScoredQuote
from services.wire.quote import quote_from_proto, quote_to_proto
from services.wire.score import score_from_proto, score_to_proto
from services.wire.time import timestamp_to_proto
from tapewatch.gateway.v1 import detection_service_pb2 as pb


def scored_from_proto(message: pb.ScoredQuote) -> ScoredQuote:
    """The quote with its score. Values are not judged here.

    Raises: InvalidQuoteError when one is absent or cannot be formed, or the score is another quote's.
    """
    missing = [name for name in ("quote", "score") if not message.HasField(name)]
    if missing:
        raise InvalidQuoteError([FieldViolation(name, "is required") for name in missing])
    try:
        quote = quote_from_proto(message.quote)
    except InvalidQuoteError as error:
        raise InvalidQuoteError(
            [FieldViolation(f"quote.{v.field}", v.description) for v in error.violations], **error.metadata
        ) from error
    try:
        score = score_from_proto(message.score)
    except (ValueError, OverflowError) as error:
        raise InvalidQuoteError([FieldViolation("score", str(error))], quote_id=quote.quote_id) from error
    if score.quote_id != quote.quote_id:
        violation = FieldViolation("score.quote_id", f"{score.quote_id!r} is not the quote's, {quote.quote_id!r}")
        raise InvalidQuoteError([violation], quote_id=quote.quote_id)
    return ScoredQuote(quote, score)


def recorded_to_proto(recorded: RecordedQuote) -> pb.RecordedQuote:
    """The recorded quote as its proto."""
    return pb.RecordedQuote(
        quote=quote_to_proto(recorded.scored.quote),
        score=score_to_proto(recorded.scored.score),
        record_time=timestamp_to_proto(recorded.record_time),
        record_count=recorded.record_count,
        mismatch_count=recorded.mismatch_count,
    )


def detection_to_proto(recorded: RecordedQuote) -> pb.Detection:
    """The detection as its proto."""
    return pb.Detection(
        quote_id=recorded.scored.quote.quote_id,
        alert_id=recorded.alert_id,
        quote=quote_to_proto(recorded.scored.quote),
        score=score_to_proto(recorded.scored.score),
        record_time=timestamp_to_proto(recorded.record_time),
    )
