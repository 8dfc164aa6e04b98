import json
import re
import struct
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.domain.errors import InvalidQuoteError
from services.domain.quote import Quote, violations
from services.queue import market_message
from services.queue.ports import MAX_BODY_BYTES

EVENTS = Path(__file__).parent.parent / "events"
NOW = datetime(2026, 11, 20, 15, 31, tzinfo=UTC)
SQS_ID = re.compile(r"[A-Za-z0-9!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]{1,128}")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

QUOTE = Quote(
    symbol="AAPL",
    event_time=datetime(2025, 11, 20, 15, 31, tzinfo=UTC),
    open=268.5,
    high=269.25,
    low=268.11,
    close=269.02,
    volume=48_213.0,
    source="yahoo_finance",
    previous_close=268.56,
)

DATA_FIELDS = (
    *("symbol", "timestamp", "open", "high", "low", "close", "volume", "previous_close"),
    *("tape", "interval_seconds", "revision", "currency", "trades", "buy_volume", "split_ratio", "benchmark_return"),
    *("benchmark_volume_ratio", "peer_return", "peer_volume_ratio"),
)


@st.composite
def valid_quotes(draw: st.DrawFn) -> Quote:
    price = st.floats(5e-324, 1e12)
    low, *others, high = sorted(draw(st.lists(price, min_size=4, max_size=4)))
    moments = st.datetimes(datetime(1900, 1, 1), NOW.replace(tzinfo=None), timezones=st.just(UTC))
    quote = Quote(
        symbol=draw(st.from_regex(r"\A[A-Z0-9^][A-Z0-9.=^-]{0,31}\Z")),
        event_time=draw(moments),
        open=others[0],
        high=high,
        low=low,
        close=others[1],
        volume=draw(st.floats(0, 1e15) | st.integers(0, 10**15).map(float) | st.just(-0.0)),
        interval_seconds=draw(st.integers(1, 7 * 86_400)),
        tape=draw(st.sampled_from(["live", "canary"]) | st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,63}\Z")),
        source=draw(st.from_regex(r"\A[a-z0-9][a-z0-9_.-]{0,63}\Z")),
        revision=draw(st.integers(0, 2**31 - 1)),
        previous_close=draw(st.none() | price),
        currency=draw(st.sampled_from(["", "USD", "GBp"])),
        trades=draw(st.none() | st.integers(0, 2**63 - 1)),
        buy_volume=draw(st.none() | st.floats(0, 1e15)),
        split_ratio=draw(st.none() | price),
        benchmark_return=draw(st.none() | st.floats(-1, 1e300, exclude_min=True)),
        benchmark_volume_ratio=draw(st.none() | st.floats(0, 1e12, exclude_min=True)),
        peer_return=draw(st.none() | st.floats(-1, 1e300, exclude_min=True)),
        peer_volume_ratio=draw(st.none() | st.floats(0, 1e12, exclude_min=True)),
        ingest_time=draw(st.none() | moments),
        batch_id=draw(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=128)),
        traceparent=draw(st.sampled_from(["", TRACEPARENT])),
    )
    assert violations(quote, NOW) == ()
    return quote


def bits(quote: Quote) -> list[Any]:
    values = [getattr(quote, field.name) for field in fields(quote)]
    return [struct.pack(">d", value) if isinstance(value, float) else (type(value), value) for value in values]


@given(valid_quotes())
def test_every_valid_quote_comes_back_bit_for_bit(quote: Quote) -> None:
    message = market_message.encode(quote)
    assert bits(market_message.decode(message.body, message.attributes, now=NOW)) == bits(quote)


@given(valid_quotes())
def test_messages_stay_within_the_limits_of_sqs(quote: Quote) -> None:
    message = market_message.encode(quote)
    assert SQS_ID.fullmatch(message.deduplication_id)
    assert SQS_ID.fullmatch(message.group_id)
    assert len(message.body.encode()) < MAX_BODY_BYTES / 10
    assert len(message.attributes) <= 2


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def decodes_or_is_invalid(body: str, attributes: dict[str, str] | None = None) -> None:
    try:
        quote = market_message.decode(body, attributes or {})
    except InvalidQuoteError as error:
        invalid = error
    else:
        again = market_message.encode(quote)
        assert market_message.decode(again.body, again.attributes) == quote
        return
    assert invalid.violations
    invalid.message.encode()


@given(st.text())
@example("")
@example("null")
@example("NaN")
@example("[" * 100_000)
@example("9" * 10_000)
@example("\ud800")
@example('{"message_type":"MARKET_DATA","data":' * 5_000)
def test_any_text_is_a_quote_or_invalid(body: str) -> None:
    decodes_or_is_invalid(body)


@given(json_values)
def test_any_json_is_a_quote_or_invalid(value: object) -> None:
    decodes_or_is_invalid(json.dumps(value))


@settings(max_examples=400)
@given(
    st.dictionaries(
        st.sampled_from(["message_type", "symbol", "source", "ingestion_timestamp", "batch_id"]), json_values
    ),
    st.dictionaries(
        st.sampled_from(
            [
                "symbol",
                "timestamp",
                "open",
                "high",
                "low",
                "close",
                "volume",
                "previous_close",
                "tape",
                "interval_seconds",
                "revision",
                "currency",
                "trades",
                "buy_volume",
                "split_ratio",
                "benchmark_return",
                "benchmark_volume_ratio",
                "peer_return",
                "peer_volume_ratio",
            ]
        ),
        json_values | st.sampled_from([10**400, 2**63, -(2**63) - 1, -0.0, 1e-320, "9999-12-31T23:59:59-14:00"]),
    ),
    st.dictionaries(st.sampled_from(["traceparent", "Symbol"]), st.text()),
)
def test_any_change_to_a_message_is_a_quote_or_invalid(
    top: dict[str, object], data: dict[str, object], attributes: dict[str, str]
) -> None:
    message = json.loads(market_message.encode(QUOTE).body)
    message["data"] |= data
    decodes_or_is_invalid(json.dumps(message | top), attributes)


def test_the_body_is_the_old_format() -> None:
    quote = replace(QUOTE, ingest_time=datetime(2025, 11, 20, 15, 31, 4, tzinfo=UTC), batch_id="b-1")
    message = market_message.encode(quote)
    assert json.loads(message.body) == {
        "message_type": "MARKET_DATA",
        "symbol": "AAPL",
        "data": {
            "symbol": "AAPL",
            "timestamp": "2025-11-20T15:31:00Z",
            "open": 268.5,
            "high": 269.25,
            "low": 268.11,
            "close": 269.02,
            "volume": 48213,
            "previous_close": 268.56,
        },
        "source": "yahoo_finance",
        "ingestion_timestamp": "2025-11-20T15:31:04Z",
        "batch_id": "b-1",
    }
    assert '"volume":48213,' in message.body
    assert message.group_id == "market-data-AAPL"
    assert message.attributes == {}


def test_the_group_is_the_symbols_own_on_live_and_the_tapes_elsewhere() -> None:
    assert market_message.encode(replace(QUOTE, tape="run-1")).group_id == "run-1/AAPL"
    assert market_message.encode(replace(QUOTE, tape="canary")).group_id == "canary/AAPL"


@pytest.mark.parametrize("symbol", ["BRK B", "é", "A" * 200, "A" * 1_000_000, "", "\ud800", "A\n"])
@pytest.mark.parametrize("tape", ["live", "run 1"])
def test_a_rejected_quote_becomes_a_dead_letter_that_sqs_takes(symbol: str, tape: str) -> None:
    letter = market_message.rejected(replace(QUOTE, symbol=symbol, tape=tape), "because")
    assert re.fullmatch(r"[\x21-\x7e]{1,128}", letter.group_id)
    assert len(letter.body.encode()) < MAX_BODY_BYTES / 10
    assert json.loads(letter.body)["symbol"] == symbol[:1_000]
    other = market_message.rejected(replace(QUOTE, symbol=f"{symbol}x", tape=tape), "because")
    assert other.group_id != letter.group_id


def test_the_deduplication_id_follows_what_the_market_printed_and_nothing_else() -> None:
    def deduplication_id(**changes: Any) -> str:
        return market_message.encode(replace(QUOTE, **changes)).deduplication_id

    same = deduplication_id()
    assert same.startswith(QUOTE.quote_id)
    assert deduplication_id(ingest_time=NOW, batch_id="other", traceparent=TRACEPARENT) == same
    others = {
        deduplication_id(close=269.03),
        deduplication_id(volume=48_214.0),
        deduplication_id(previous_close=None),
        deduplication_id(tape="run-1"),
        deduplication_id(revision=1),
        deduplication_id(split_ratio=1.0),
        deduplication_id(event_time=QUOTE.event_time + timedelta(minutes=1)),
    }
    assert len(others | {same}) == 8


def test_a_long_identity_is_hashed_into_the_deduplication_id() -> None:
    long = replace(QUOTE, tape="t" * 64, source="s" * 64, symbol="S" * 32)
    other = replace(long, symbol="S" * 31)
    ids = {market_message.encode(quote).deduplication_id for quote in (long, other)}
    assert len(ids) == 2
    assert all(len(i) <= 128 for i in ids)


def test_the_trace_context_travels_in_the_attributes() -> None:
    message = market_message.encode(replace(QUOTE, traceparent=TRACEPARENT), tracestate="vendor=1")
    assert message.attributes == {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    assert TRACEPARENT not in message.body
    assert market_message.encode(replace(QUOTE, traceparent="not one\n"), tracestate="v=1").attributes == {}


def test_a_quote_made_for_other_tapes_decodes_as_such() -> None:
    quote = replace(QUOTE, tape="run-1", interval_seconds=86_400, revision=2, trades=7, benchmark_return=-0.0)
    message = market_message.encode(quote)
    assert market_message.decode(message.body, {}, now=NOW) == quote


def test_every_wrong_field_is_named_by_its_path() -> None:
    body = json.loads(market_message.encode(QUOTE).body)
    body["data"] |= {"open": "1", "volume": True, "timestamp": "soon", "interval_seconds": 60.5, "trades": 2**63}
    del body["data"]["close"]
    body["source"] = 7
    with pytest.raises(InvalidQuoteError) as raised:
        market_message.decode(json.dumps(body), {})
    assert {v.field: v.description for v in raised.value.violations} == {
        "source": "must be a text",
        "data.timestamp": "must be an ISO 8601 time with Z or an offset",
        "data.open": "must be a number",
        "data.close": "is required",
        "data.volume": "must be a number",
        "data.interval_seconds": "must be a whole number",
        "data.trades": "must be a whole number",
    }


def records(name: str) -> Iterator[tuple[str, dict[str, str]]]:
    for record in json.loads((EVENTS / f"{name}.json").read_text())["Records"]:
        yield record["body"], {k: v["stringValue"] for k, v in record["messageAttributes"].items()}


VALID = sorted(path.stem for path in EVENTS.glob("valid_*.json"))
INVALID = {
    "invalid_close_missing": "data.close: is required",
    "invalid_close_nan": "data.close: nan is not a positive, finite price",
    "invalid_data_missing": "data: must be an object",
    "invalid_future_time": "data.timestamp: .* more than 5 minutes in the future",
    "invalid_garbage_time": "data.timestamp: must be an ISO 8601 time",
    "invalid_high_below_low": "data.high: 268.0 is below low 268.11",
    "invalid_high_infinity": "data.high: inf is not a positive, finite price",
    "invalid_lower_case_symbol": "data.symbol: 'aapl' does not match",
    "invalid_message_type": "message_type: must be MARKET_DATA",
    "invalid_naive_time": "data.timestamp: must be an ISO 8601 time with Z or an offset",
    "invalid_negative_price": "data.low: -268.11 is not a positive, finite price",
    "invalid_negative_volume": "data.volume: -1.0 is not a finite volume",
    "invalid_not_an_object": "must be a JSON object",
    "invalid_not_json": "is not JSON",
    "invalid_price_text": "data.open: must be a number",
    "invalid_source_missing": "source: must be a text",
    "invalid_symbols_differ": "symbol: contradicts data.symbol",
    "invalid_volume_boolean": "data.volume: must be a number",
}


def test_every_recorded_event_is_tested() -> None:
    assert {path.stem for path in EVENTS.glob("*.json")} == {*VALID, *INVALID, "mixed_batch"}
    assert len(VALID) == 9


@pytest.mark.parametrize("name", VALID)
def test_messages_of_the_old_producers_decode(name: str) -> None:
    ((body, attributes),) = records(name)
    quote = market_message.decode(body, attributes, now=NOW)
    assert quote.quote_id == "live/yahoo_finance/AAPL/60s/2025-11-20T15:31:00Z/0"
    assert (quote.open, quote.high, quote.low, quote.close) == (268.5, 269.25, 268.11, 269.02)
    assert quote.volume == (0 if name == "valid_zero_volume" else 48_213)
    without = ("valid_previous_close_null", "valid_previous_close_absent")
    assert quote.previous_close == (None if name in without else 268.56)
    assert quote.traceparent == (TRACEPARENT if name == "valid_traced" else "")
    provenance = name != "valid_without_provenance"
    assert (quote.ingest_time is not None, bool(quote.batch_id)) == (provenance, provenance)


@pytest.mark.parametrize("name", sorted(INVALID))
def test_messages_that_can_never_be_scored_say_why(name: str) -> None:
    ((body, attributes),) = records(name)
    with pytest.raises(InvalidQuoteError, match=INVALID[name]):
        market_message.decode(body, attributes, now=NOW)


def test_a_poison_message_has_good_neighbours() -> None:
    outcomes: list[float | None] = []
    for body, attributes in records("mixed_batch"):
        try:
            outcomes.append(market_message.decode(body, attributes, now=NOW).close)
        except InvalidQuoteError:
            outcomes.append(None)
    assert outcomes == [269.02, None, 269.02]
