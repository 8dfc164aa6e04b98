"""Yahoo Finance's bars through yfinance: what live polling and the scorer's fallback history stand on.

For personal use only, by Yahoo's terms. Prices are Yahoo's own, splits are said with the bar on which they take effect.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from services.domain.errors import NotConfiguredError
from services.domain.quote import Quote, Series

INTERVALS: Final = {60: "1m", 120: "2m", 300: "5m", 900: "15m", 1_800: "30m", 3_600: "60m", 86_400: "1d"}
"""Lengths of bars that Yahoo has, seconds to its name."""

_REQUEST_SECONDS = 20.0


class TooManyRequestsError(Exception):
    """Yahoo answered 429."""


@dataclass(frozen=True, slots=True)
class YahooBar:
    """One row of Yahoo's history; missing values are NaN. `split_ratio` is 0 where nothing happened."""

    event_time: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float
    split_ratio: float = 0.0
    currency: str = ""
    previous_close: float | None = None

    @property
    def complete(self) -> bool:
        """Whether every price is there."""
        return all(math.isfinite(price) for price in (self.open, self.high, self.low, self.close))

    def quote(self, series: Series) -> Quote:
        """The bar as a quote of the series; a missing volume is 0, which the features treat as missing."""
        return Quote(
            symbol=series.symbol,
            event_time=self.event_time,
            open=self.open,
            high=self.high,
            low=self.low,
            close=self.close,
            volume=self.volume if math.isfinite(self.volume) else 0.0,
            interval_seconds=series.interval_seconds,
            tape=series.tape,
            source=series.source,
            currency=self.currency,
            previous_close=self.previous_close,
            split_ratio=self.split_ratio if self.split_ratio > 0 else 1.0,
        )


class Download(Protocol):
    """Bars of a symbol; blocks. Raises TooManyRequestsError, or whatever the transport raises."""

    def __call__(
        self, symbol: str, interval_seconds: int, start: datetime | None = None, end: datetime | None = None
    ) -> Sequence[YahooBar]:
        """The bars in [start, end), oldest first; without a range those of the last session."""
        ...


def yfinance_download(setting: str) -> Download:
    """The download through yfinance. Raises: NotConfiguredError, naming `setting`, when it is not installed."""
    try:
        import yfinance
        from yfinance.exceptions import YFRateLimitError
    except ImportError as error:
        raise NotConfiguredError(
            "Yahoo Finance needs yfinance", f"install it (pip install -e '.[yahoo]'), or change {setting} to do without"
        ) from error
    yfinance.config.debug.hide_exceptions = False  # else failures are logged and look like silence

    def download(
        symbol: str, interval_seconds: int, start: datetime | None = None, end: datetime | None = None
    ) -> list[YahooBar]:
        ticker = yfinance.Ticker(symbol)
        reach = {"period": "1d"} if start is None else {"start": start, "end": end}
        try:
            frame = ticker.history(
                **reach, interval=INTERVALS[interval_seconds], auto_adjust=False, actions=True, timeout=_REQUEST_SECONDS
            )
        except YFRateLimitError as error:
            raise TooManyRequestsError(str(error)) from error
        return rows_of(frame, ticker.history_metadata or {})

    return download


def rows_of(frame: Any, metadata: Mapping[str, Any]) -> list[YahooBar]:
    """A pandas frame of yfinance's `history` as bars."""
    previous = metadata.get("previousClose")
    return [
        YahooBar(
            event_time=moment.to_pydatetime().astimezone(UTC),
            open=float(row["Open"]),
            high=float(row["High"]),
            low=float(row["Low"]),
            close=float(row["Close"]),
            volume=float(row["Volume"]),
            split_ratio=float(row.get("Stock Splits", 0.0)),
            currency=str(metadata.get("currency") or ""),
            previous_close=float(previous) if previous else None,
        )
        for moment, row in frame.iterrows()
    ]
