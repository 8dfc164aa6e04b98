"""The client's bytes are protobuf's: what betterproto2 writes, upb reads as the same, and the other way round."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tapewatch.gateway.v1 import alert_service_pb2
from tapewatch.market.v1 import quote_pb2
from tapewatch.scorer.v1 import score_pb2, scorer_service_pb2
from tapewatch_client.generated.tapewatch.gateway.v1 import AlertFilter, AlertState, WatchAlertsRequest
from tapewatch_client.generated.tapewatch.market.v1 import Quote
from tapewatch_client.generated.tapewatch.scorer.v1 import Quality, Reason, Score, ScoreStreamRequest, Typology

numbers = st.floats(allow_nan=False)
texts = st.text(st.characters(codec="utf-8"), max_size=30)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(lambda d: d.replace(tzinfo=UTC))
quotes = st.builds(
    Quote,
    quote_id=texts,
    tape=texts,
    source=texts,
    symbol=texts,
    interval=st.none() | st.integers(1, 604_800).map(lambda s: timedelta(seconds=s)),
    event_time=st.none() | moments,
    revision=st.integers(-(2**31), 2**31 - 1),
    open=numbers,
    high=numbers,
    low=numbers,
    close=numbers,
    volume=numbers,
    previous_close=st.none() | numbers,
    trades=st.none() | st.integers(-(2**63), 2**63 - 1),
    split_ratio=st.none() | numbers,
)


@given(quotes)
def test_quote(quote: Quote) -> None:
    written = bytes(quote)
    theirs = quote_pb2.Quote.FromString(written)
    assert theirs.SerializeToString() == written
    assert Quote.parse(theirs.SerializeToString()) == quote
    assert theirs.HasField("previous_close") == (quote.previous_close is not None)


@given(st.lists(quotes, max_size=3))
def test_stream_request(batch: list[Quote]) -> None:
    written = bytes(ScoreStreamRequest(quotes=batch))
    theirs = scorer_service_pb2.ScoreStreamRequest.FromString(written)
    assert theirs.SerializeToString() == written
    assert len(theirs.quotes) == len(batch)


@given(
    st.builds(
        Score,
        quote_id=texts,
        ensemble=numbers,
        autoencoder_percentile=st.none() | numbers,
        detection=st.booleans(),
        typology=st.sampled_from(list(Typology)),
        quality=st.lists(st.sampled_from(list(Quality))),
        reasons=st.lists(st.builds(Reason, feature=texts, value=numbers, text=texts), max_size=3),
        score_time=moments,
    )
)
def test_score(score: Score) -> None:
    written = bytes(score)
    assert score_pb2.Score.FromString(written).SerializeToString() == written
    assert Score.parse(written) == score


def test_nested_request() -> None:
    request = WatchAlertsRequest(
        filter=AlertFilter(symbols=["AAPL", "MSFT"], states=[AlertState.NEW], min_peak_score=0.5),
        from_start=True,
        heartbeat_interval=timedelta(seconds=2.5),
    )
    theirs = alert_service_pb2.WatchAlertsRequest.FromString(bytes(request))
    assert theirs.SerializeToString() == bytes(request)
    assert theirs.heartbeat_interval.nanos == 500_000_000
    assert list(theirs.filter.symbols) == ["AAPL", "MSFT"]
