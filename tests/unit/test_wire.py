"""Protos to domain values and back: nothing is lost, enums agree, defaults are filled in."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.domain.alert import AlertChangeKind, AlertState, Disposition
from services.domain.errors import InvalidQuoteError
from services.domain.quote import Quote
from services.domain.score import Quality, Reason, Score
from services.domain.typology import Typology
from services.pipeline.ports import RecordOutcome
from services.wire.quote import quote_from_proto, quote_to_proto
from services.wire.score import score_from_proto, score_to_proto
from services.wire.time import timestamp_from_proto, timestamp_to_proto
from tapewatch.gateway.v1 import alert_pb2, detection_service_pb2
from tapewatch.market.v1 import quote_pb2
from tapewatch.scorer.v1 import score_pb2

moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(lambda d: d.replace(tzinfo=UTC))
numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(codec="utf-8"), max_size=20)
quotes = st.builds(
    Quote,
    symbol=names,
    event_time=moments,
    open=numbers,
    high=numbers,
    low=numbers,
    close=numbers,
    volume=numbers,
    interval_seconds=st.integers(1, 604_800),
    tape=names.filter(bool),
    source=names.filter(bool),
    revision=st.integers(0, 2**31 - 1),
    previous_close=st.none() | numbers,
    currency=names,
    trades=st.none() | st.integers(0, 2**62),
    buy_volume=st.none() | numbers,
    split_ratio=st.none() | numbers,
    benchmark_return=st.none() | numbers,
    benchmark_volume_ratio=st.none() | numbers,
    peer_return=st.none() | numbers,
    peer_volume_ratio=st.none() | numbers,
    ingest_time=st.none() | moments,
    batch_id=names,
    traceparent=names,
)


@given(quotes)
def test_quote_survives_the_wire(quote: Quote) -> None:
    there = quote_to_proto(quote).SerializeToString()
    back = quote_from_proto(quote_pb2.Quote.FromString(there))
    assert back == quote
    assert back.quote_id == quote.quote_id


@given(
    st.builds(
        Score,
        quote_id=names,
        ensemble=numbers,
        threshold=numbers,
        detection=st.booleans(),
        model_version=names,
        feature_hash=names,
        score_time=moments,
        autoencoder_percentile=st.none() | numbers,
        classifier_probability=st.none() | numbers,
        typology=st.sampled_from(Typology),
        typology_confidence=numbers,
        reasons=st.lists(
            st.builds(
                Reason,
                feature=names,
                value=numbers,
                usual_low=numbers,
                usual_high=numbers,
                contribution=numbers,
                text=names,
            ),
            max_size=3,
        ).map(tuple),
        quality=st.lists(st.sampled_from(Quality), unique=True).map(tuple),
        history_quotes=st.integers(0, 1_000),
    )
)
def test_score_survives_the_wire(score: Score) -> None:
    there = score_to_proto(score).SerializeToString()
    assert score_from_proto(score_pb2.Score.FromString(there)) == score


@given(moments)
def test_times_are_exact_to_the_microsecond(moment: datetime) -> None:
    assert timestamp_from_proto(timestamp_to_proto(moment)) == moment


def test_enums_have_the_protos_numbers_and_names() -> None:
    for ours, theirs, prefix in (
        (Typology, score_pb2.Typology, "TYPOLOGY_"),
        (Quality, score_pb2.Quality, "QUALITY_"),
        (AlertState, alert_pb2.AlertState, "ALERT_STATE_"),
        (Disposition, alert_pb2.Disposition, "DISPOSITION_"),
        (AlertChangeKind, alert_pb2.AlertChangeKind, "ALERT_CHANGE_KIND_"),
        (RecordOutcome, detection_service_pb2.RecordOutcome, "RECORD_OUTCOME_"),
    ):
        expected = {n.removeprefix(prefix): v for n, v in theirs.items()}
        mine = {member.name: member.value for member in ours}
        assert {"UNSPECIFIED": 0, **mine} == expected


def test_defaults_are_filled_in() -> None:
    message = quote_pb2.Quote(symbol="AAPL", event_time=timestamp_to_proto(datetime(2026, 1, 5, tzinfo=UTC)))
    quote = quote_from_proto(message)
    assert quote.quote_id == "live/grpc/AAPL/60s/2026-01-05T00:00:00Z/0"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (quote_pb2.Quote(symbol="AAPL"), "event_time"),
        (quote_pb2.Quote(symbol="AAPL", event_time=Timestamp(seconds=10**15)), "event_time"),
        (quote_pb2.Quote(symbol="AAPL", event_time=Timestamp(seconds=1), interval=Duration(nanos=5)), "interval"),
        (quote_pb2.Quote(symbol="AAPL", event_time=Timestamp(seconds=1), quote_id="live/other"), "quote_id"),
    ],
)
def test_what_cannot_be_a_quote_names_its_field(message: quote_pb2.Quote, field: str) -> None:
    with pytest.raises(InvalidQuoteError) as caught:
        quote_from_proto(message)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_event_time_keeps_order_across_the_wire() -> None:
    first = datetime(2026, 1, 5, tzinfo=UTC)
    stamps = [timestamp_to_proto(first + timedelta(microseconds=i)) for i in range(3)]
    assert sorted(stamps, key=lambda s: (s.seconds, s.nanos)) == stamps
