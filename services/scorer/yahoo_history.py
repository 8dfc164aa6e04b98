"""A series' history from Yahoo Finance: the last resort when the gateway has none."""

import asyncio
from datetime import datetime, timedelta

from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.domain.quote import Quote, Series

_INTERVALS = {60: "1m", 120: "2m", 300: "5m", 900: "15m", 1_800: "30m", 3_600: "60m", 86_400: "1d"}
_TRADING_SHARE = 0.15
"""Share of wall time in which a market trades, with a margin: how far back `limit` bars may reach."""


class YahooHistory:
    """Implements the port History on yfinance. Raises: NotConfiguredError when yfinance is not installed."""

    def __init__(self) -> None:
        try:
            import yfinance
        except ImportError as error:
            raise NotConfiguredError(
                "FALLBACK_TO_YFINANCE without yfinance", "it off, or pip install 'tapewatch[yahoo]'"
            ) from error
        self._ticker = yfinance.Ticker

    async def before(self, series: Series, event_time: datetime, limit: int) -> list[Quote]:
        """The last `limit` bars before `event_time`, oldest first; none for an interval that Yahoo does not have."""
        interval = _INTERVALS.get(series.interval_seconds)
        if interval is None or limit <= 0:
            return []
        try:
            return await asyncio.to_thread(self._download, series, interval, event_time, limit)
        except Exception as error:  # yfinance raises whatever its transport raises
            raise DependencyUnavailableError("Yahoo Finance", f"{series.symbol}: {error}") from error

    def _download(self, series: Series, interval: str, event_time: datetime, limit: int) -> list[Quote]:
        reach = timedelta(seconds=limit * series.interval_seconds / _TRADING_SHARE) + timedelta(days=4)
        frame = self._ticker(series.symbol).history(
            start=event_time - reach, end=event_time, interval=interval, auto_adjust=False, actions=True
        )
        quotes = []
        for moment, row in frame.iterrows():
            ratio = float(row.get("Stock Splits", 0.0)) or 1.0
            quote = Quote(
                symbol=series.symbol,
                event_time=moment.to_pydatetime().astimezone(event_time.tzinfo),
                open=float(row["Open"]),
                high=float(row["High"]),
                low=float(row["Low"]),
                close=float(row["Close"]),
                volume=float(row["Volume"]),
                interval_seconds=series.interval_seconds,
                tape=series.tape,
                source=series.source,
                split_ratio=ratio,
            )
            if quote.event_time < event_time and quote.close > 0:
                quotes.append(quote)
        return quotes[-limit:]
