"""The value that every hop carries: one bar of one instrument, with its identity."""

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from services.domain.errors import FieldViolation, shown

DAY_SECONDS = 86_400
LIVE_TAPE = "live"
CANARY_TAPE = "canary"
MAX_CLOCK_SKEW = timedelta(minutes=5)
MAX_INTERVAL_SECONDS = 7 * 24 * 3600
EARLIEST_EVENT = datetime(1900, 1, 1, tzinfo=UTC)

TAPE_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SOURCE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
SYMBOL_PATTERN = re.compile(r"[A-Z0-9^][A-Z0-9.=^-]{0,31}")
_NAMES = {"tape": TAPE_PATTERN, "source": _SOURCE, "symbol": SYMBOL_PATTERN}
_CURRENCY = re.compile(r"[A-Za-z0-9]{0,12}")
_BATCH_ID = re.compile(r"[\x20-\x7e]{0,128}")
MAX_PRICE = 1e12
MAX_VOLUME = 1e15


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with as many digits as needed.

    >>> format_time(datetime(2026, 11, 20, 15, 31, tzinfo=UTC))
    '2026-11-20T15:31:00Z'
    """
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Series:
    """The stream of bars that one scorer state belongs to. `interval_seconds` is the bars' length."""

    tape: str
    source: str
    symbol: str
    interval_seconds: int

    @property
    def key(self) -> str:
        """The first four parts of the quote_id of each of the series' quotes."""
        return f"{self.tape}/{self.source}/{self.symbol}/{self.interval_seconds}s"


@dataclass(frozen=True, slots=True)
class Quote:
    """One bar. Prices in the instrument's currency, volumes in shares, times aware and in UTC.

    `split_ratio` is the number of new shares per old share that take effect with this bar, 1.0 for none, None when the
    source cannot say. `quote_id` follows from the identity fields. See proto/tapewatch/market/v1/quote.proto.
    """

    symbol: str
    event_time: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float
    interval_seconds: int = 60
    tape: str = LIVE_TAPE
    source: str = "grpc"
    revision: int = 0
    previous_close: float | None = None
    currency: str = ""
    trades: int | None = None
    buy_volume: float | None = None
    split_ratio: float | None = None
    benchmark_return: float | None = None
    benchmark_volume_ratio: float | None = None
    peer_return: float | None = None
    peer_volume_ratio: float | None = None
    ingest_time: datetime | None = None
    batch_id: str = ""
    traceparent: str = ""
    series: Series = field(init=False, repr=False, compare=False)
    quote_id: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        series = Series(self.tape, self.source, self.symbol, self.interval_seconds)
        object.__setattr__(self, "series", series)
        object.__setattr__(self, "quote_id", f"{series.key}/{format_time(self.event_time)}/{self.revision}")


def name_violations(**names: str) -> list[FieldViolation]:
    """One violation for each of `tape`, `source` and `symbol` given that can be none."""
    return [
        FieldViolation(name, f"{shown(value)} does not match {_NAMES[name].pattern}")
        for name, value in names.items()
        if not _NAMES[name].fullmatch(value)
    ]


def series_violations(series: Series) -> list[FieldViolation]:
    """What makes a series one that cannot be, one entry per wrong field; empty when it is good."""
    found = name_violations(tape=series.tape, source=series.source, symbol=series.symbol)
    if not 1 <= series.interval_seconds <= MAX_INTERVAL_SECONDS:
        found.append(FieldViolation("interval", f"{series.interval_seconds} s is not within 1 s to 7 days"))
    return found


def violations(quote: Quote, now: datetime) -> tuple[FieldViolation, ...]:
    """What makes a quote impossible to score, one entry per wrong field; empty when it is good.

    `now` is the clock against which event times in the future are judged.
    """
    found = series_violations(quote.series)

    def refuse(name: str, description: str) -> None:
        found.append(FieldViolation(name, description))

    for name, value, pattern in (("currency", quote.currency, _CURRENCY), ("batch_id", quote.batch_id, _BATCH_ID)):
        if not pattern.fullmatch(value):
            refuse(name, f"{shown(value)} does not match {pattern.pattern}")
    if not 0 <= quote.revision < 2**31:
        refuse("revision", "must be 0 or more")
    if quote.event_time < EARLIEST_EVENT:
        refuse("event_time", f"{format_time(quote.event_time)} lies before 1900")
    elif quote.event_time > now + MAX_CLOCK_SKEW:
        refuse("event_time", f"{format_time(quote.event_time)} is more than 5 minutes in the future")

    prices_good = True
    for name in ("open", "high", "low", "close"):
        price = getattr(quote, name)
        if not (math.isfinite(price) and 0 < price <= MAX_PRICE):
            refuse(name, f"{price} is not a positive, finite price")
            prices_good = False
    if prices_good:
        if quote.high < quote.low:
            refuse("high", f"{quote.high} is below low {quote.low}")
        else:
            for name in ("open", "close"):
                price = getattr(quote, name)
                if not quote.low <= price <= quote.high:
                    refuse(name, f"{price} lies outside low {quote.low} to high {quote.high}")
    if not (math.isfinite(quote.volume) and 0 <= quote.volume <= MAX_VOLUME):
        refuse("volume", f"{quote.volume} is not a finite volume of 0 or more")
    for name in ("previous_close", "split_ratio", "benchmark_volume_ratio", "peer_volume_ratio"):
        value = getattr(quote, name)
        if value is not None and not (math.isfinite(value) and 0 < value <= MAX_PRICE):
            refuse(name, f"{value} is not positive and finite")
    for name in ("benchmark_return", "peer_return"):
        value = getattr(quote, name)
        if value is not None and not (math.isfinite(value) and value > -1):
            refuse(name, f"{value} is not a return above -100 %")
    if quote.trades is not None and not 0 <= quote.trades < 2**63:
        refuse("trades", "must be 0 or more, within 64 bits")
    if quote.buy_volume is not None and not (math.isfinite(quote.buy_volume) and 0 <= quote.buy_volume <= MAX_VOLUME):
        refuse("buy_volume", f"{quote.buy_volume} is not a finite volume of 0 or more")
    return tuple(found)
