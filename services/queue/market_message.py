"""The queue's JSON: one quote per message, in the format of the system that this one replaces.

    {"message_type": "MARKET_DATA", "symbol": "AAPL", "source": "yahoo_finance",
     "data": {"symbol": "AAPL", "timestamp": "2026-11-20T15:31:00Z", "open": …, "high": …, "low": …, "close": …,
              "volume": 123, "previous_close": … or null},
     "ingestion_timestamp": "…Z", "batch_id": "<uuid4>"}

`previous_close` may be absent, unknown fields are ignored, and `data` may also hold tape ("live" where absent),
interval_seconds (60), revision (0), currency, trades, buy_volume, split_ratio, benchmark_return,
benchmark_volume_ratio, peer_return and peer_volume_ratio. The trace context travels in the message attributes
`traceparent` and `tracestate`; in a batch, whose messages have no attributes, as the message's own member
`traceparent`. No other module knows this format.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from services.domain.errors import FieldViolation, InvalidQuoteError
from services.domain.quote import LIVE_TAPE, Quote, format_time, violations
from services.queue.ports import DeadLetter, OutgoingMessage

MESSAGE_TYPE: Final = "MARKET_DATA"
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
MAX_DEDUPLICATION_ID: Final = 128
"""Characters, SQS's limit."""

_DEFAULT_INTERVAL_SECONDS = 60
_EXACT_INTEGER = 2**53
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_GROUP_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""What SQS takes as a MessageGroupId: ASCII letters, digits and punctuation."""

_LONGEST_REJECTED_TEXT = 1_000
"""Characters of a rejected quote's text that its dead letter keeps, to fit SQS's limit on a body."""

_BATCH_ID = re.compile(r"[\x20-\x7e]{0,128}")
_TEXTS = ("tape", "source", "symbol", "currency", "batch_id")
_PATHS = {"source": "source", "event_time": "data.timestamp", "interval": "data.interval_seconds"}
"""Where a quote's field stands in the message, when that is not `data.<field>`."""


def group_id(quote: Quote) -> str:
    """The FIFO group: one per symbol on the live tape, one per tape and symbol elsewhere.

    A replay never waits for live quotes, nor they for it. Of a rejected quote, whose symbol may be anything, the group
    is hashed when SQS would refuse it.
    """
    group = f"market-data-{quote.symbol}" if quote.tape == LIVE_TAPE else f"{quote.tape}/{quote.symbol}"
    if _GROUP_ID.fullmatch(group):
        return group
    return f"sha256-{hashlib.sha256(group.encode(errors='backslashreplace')).hexdigest()}"


def encode(quote: Quote, *, tracestate: str = "") -> OutgoingMessage:
    """The message of a valid quote.

    The deduplication id holds the quote's identity and a hash of what the market printed, so that the same print sent
    again adds nothing, whenever and by whomever it was ingested, and a changed one is not swallowed.
    """
    data = _data(quote)
    attributes = {}
    if _TRACEPARENT.fullmatch(quote.traceparent):
        attributes[TRACEPARENT] = quote.traceparent
        if tracestate:
            attributes[TRACESTATE] = tracestate
    return OutgoingMessage(
        body=json.dumps(_body(quote, data), separators=(",", ":"), allow_nan=False),
        group_id=group_id(quote),
        deduplication_id=_deduplication_id(quote, data),
        attributes=attributes,
    )


def rejected(quote: Quote, reason: str) -> DeadLetter:
    """A quote that can never be scored, as the dead letter that keeps it; NaN and the like as Python writes them.

    Of texts that are absurdly long it keeps the beginning.
    """
    texts = {name: getattr(quote, name)[:_LONGEST_REJECTED_TEXT] for name in _TEXTS}
    kept = replace(quote, **texts)
    return DeadLetter(json.dumps(_body(kept, _data(kept))), group_id(quote), reason)


def _body(quote: Quote, data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "message_type": MESSAGE_TYPE,
        "symbol": quote.symbol,
        "data": data,
        "source": quote.source,
        "ingestion_timestamp": None if quote.ingest_time is None else format_time(quote.ingest_time),
        "batch_id": quote.batch_id,
    }


def _data(quote: Quote) -> dict[str, Any]:
    data: dict[str, Any] = {
        "symbol": quote.symbol,
        "timestamp": format_time(quote.event_time),
        "open": quote.open,
        "high": quote.high,
        "low": quote.low,
        "close": quote.close,
        "volume": _number(quote.volume),
        "previous_close": quote.previous_close,
    }
    added = {
        "tape": (quote.tape, LIVE_TAPE),
        "interval_seconds": (quote.interval_seconds, _DEFAULT_INTERVAL_SECONDS),
        "revision": (quote.revision, 0),
        "currency": (quote.currency, ""),
        "trades": (quote.trades, None),
        "buy_volume": (quote.buy_volume, None),
        "split_ratio": (quote.split_ratio, None),
        "benchmark_return": (quote.benchmark_return, None),
        "benchmark_volume_ratio": (quote.benchmark_volume_ratio, None),
        "peer_return": (quote.peer_return, None),
        "peer_volume_ratio": (quote.peer_volume_ratio, None),
    }
    return data | {name: value for name, (value, default) in added.items() if value != default}


def _number(volume: float) -> int | float:
    """Whole shares as an integer, as the old consumers expect; never at the cost of a bit."""
    whole = volume.is_integer() and 0 < volume <= _EXACT_INTEGER
    return int(volume) if whole else volume


def _deduplication_id(quote: Quote, data: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(data, separators=(",", ":")).encode()).hexdigest()[:32]
    plain = f"{quote.quote_id}#{digest}"
    if len(plain) <= MAX_DEDUPLICATION_ID:
        return plain
    return f"{hashlib.sha256(quote.quote_id.encode()).hexdigest()}#{digest}"


def decode(body: str, attributes: Mapping[str, str], *, now: datetime | None = None) -> Quote:
    """The quote in a message. `now` is the clock for event times in the future, by default this machine's.

    What only describes the ingestion (`ingestion_timestamp`, `batch_id`, trace context) never makes a message invalid:
    unreadable counts as absent.

    Raises: InvalidQuoteError for anything that can never be scored, with every wrong field.
    """
    message = _parse(body)
    wrong: list[FieldViolation] = []
    if message.get("message_type") != MESSAGE_TYPE:
        wrong.append(FieldViolation("message_type", f"must be {MESSAGE_TYPE}"))
    data = message.get("data")
    if not isinstance(data, dict):
        wrong.append(FieldViolation("data", "must be an object"))
        raise InvalidQuoteError(wrong)

    read = _Reader(data, wrong)
    symbol = read.text("symbol", message.get("symbol"))
    if "symbol" in message and message["symbol"] != symbol and symbol is not None:
        wrong.append(FieldViolation("symbol", "contradicts data.symbol"))
    source = message.get("source")
    if not isinstance(source, str):
        wrong.append(FieldViolation("source", "must be a text"))
    values: dict[str, Any] = {
        "symbol": symbol,
        "source": source,
        "event_time": read.time("timestamp"),
        "open": read.decimal("open"),
        "high": read.decimal("high"),
        "low": read.decimal("low"),
        "close": read.decimal("close"),
        "volume": read.decimal("volume"),
        "previous_close": read.optional("previous_close", read.decimal),
        "tape": read.optional("tape", read.text, LIVE_TAPE),
        "interval_seconds": read.optional("interval_seconds", read.integer, _DEFAULT_INTERVAL_SECONDS),
        "revision": read.optional("revision", read.integer, 0),
        "currency": read.optional("currency", read.text, ""),
        "trades": read.optional("trades", read.integer),
        "buy_volume": read.optional("buy_volume", read.decimal),
        "split_ratio": read.optional("split_ratio", read.decimal),
        "benchmark_return": read.optional("benchmark_return", read.decimal),
        "benchmark_volume_ratio": read.optional("benchmark_volume_ratio", read.decimal),
        "peer_return": read.optional("peer_return", read.decimal),
        "peer_volume_ratio": read.optional("peer_volume_ratio", read.decimal),
    }
    if wrong:
        raise InvalidQuoteError(wrong)

    batch_id = message.get("batch_id")
    traceparent = attributes.get(TRACEPARENT) or message.get(TRACEPARENT)
    quote = Quote(
        **values,
        ingest_time=_time(message.get("ingestion_timestamp")),
        batch_id=batch_id if isinstance(batch_id, str) and _BATCH_ID.fullmatch(batch_id) else "",
        traceparent=traceparent if isinstance(traceparent, str) and _TRACEPARENT.fullmatch(traceparent) else "",
    )
    if found := violations(quote, datetime.now(UTC) if now is None else now):
        paths = [FieldViolation(_PATHS.get(v.field, f"data.{v.field}"), v.description) for v in found]
        raise InvalidQuoteError(paths, quote_id=_printable(quote.quote_id))
    return quote


def batch_member(body: str, attributes: Mapping[str, str]) -> dict[str, Any]:
    """The message of a body that `decode` takes, as a member of a batch: a JSON object with its trace context in it."""
    message = _parse(body)
    traceparent = attributes.get(TRACEPARENT, "")
    return message | {TRACEPARENT: traceparent} if _TRACEPARENT.fullmatch(traceparent) else message


def dead_letter(member: Mapping[str, Any], quote: Quote, reason: str) -> DeadLetter:
    """A batch's member that can never be scored, as the dead letter that keeps it."""
    body = {name: value for name, value in member.items() if name != TRACEPARENT}
    attributes = {TRACEPARENT: quote.traceparent} if quote.traceparent else {}
    return DeadLetter(json.dumps(body, separators=(",", ":")), group_id(quote), reason, attributes)


def _parse(body: str) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except RecursionError:
        raise InvalidQuoteError([FieldViolation("", "is nested too deeply")]) from None
    except ValueError as error:
        raise InvalidQuoteError([FieldViolation("", f"is not JSON: {error}")]) from None
    if not isinstance(message, dict):
        raise InvalidQuoteError([FieldViolation("", "must be a JSON object")])
    return message


class _Reader:
    """Takes typed values out of `data` and notes what is wrong with it; None stands for a wrong value."""

    def __init__(self, data: Mapping[str, Any], wrong: list[FieldViolation]) -> None:
        self._data = data
        self._wrong = wrong

    def _refuse(self, name: str, description: str) -> None:
        self._wrong.append(FieldViolation(f"data.{name}", "is required" if name not in self._data else description))

    def optional(self, name: str, read: Callable[[str], Any], default: Any = None) -> Any:
        """The value, or the default where it is absent or null."""
        return default if self._data.get(name) is None else read(name)

    def decimal(self, name: str) -> float | None:
        """A number; JSON has no other kind, but Python would take true, and writes NaN."""
        value = self._data.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                pass
        self._refuse(name, "must be a number")
        return None

    def integer(self, name: str) -> int | None:
        """A whole number within 64 bits."""
        value = self._data.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
            return value
        self._refuse(name, "must be a whole number")
        return None

    def text(self, name: str, fallback: object = None) -> str | None:
        """A text that can be written again; `fallback` where it is absent."""
        value = self._data.get(name, fallback)
        if isinstance(value, str) and _encodable(value):
            return value
        self._refuse(name, "must be a text")
        return None

    def time(self, name: str) -> datetime | None:
        """An ISO 8601 time with its offset."""
        moment = _time(self._data.get(name))
        if moment is None:
            self._refuse(name, "must be an ISO 8601 time with Z or an offset")
        return moment


def _time(value: object) -> datetime | None:
    """The time in UTC, or None when the text is no time or does not say its offset."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return None if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _encodable(text: str) -> bool:
    """Whether UTF-8 can hold the text: JSON may name half of a surrogate pair, which breaks every later hop."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _printable(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()[:256]
