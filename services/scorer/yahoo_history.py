"""A series' history from Yahoo Finance: the last resort when the gateway has none."""

import asyncio
from datetime import datetime, timedelta

from services.archive.yahoo import INTERVALS, Download
from services.domain.errors import DependencyUnavailableError
from services.domain.quote import Quote, Series

_TRADING_SHARE = 0.15
"""Share of wall time in which a market trades, with a margin: how far back `limit` bars may reach."""


class YahooHistory:
    """Implements the port History on a download of Yahoo's bars."""

    def __init__(self, download: Download) -> None:
        self._download = download

    async def before(self, series: Series, event_time: datetime, limit: int) -> list[Quote]:
        """The last `limit` bars before `event_time`, oldest first; none for an interval that Yahoo does not have."""
        if series.interval_seconds not in INTERVALS or limit <= 0:
            return []
        reach = timedelta(seconds=limit * series.interval_seconds / _TRADING_SHARE) + timedelta(days=4)
        try:
            bars = await asyncio.to_thread(
                self._download, series.symbol, series.interval_seconds, event_time - reach, event_time
            )
        except Exception as error:  # yfinance raises whatever its transport raises
            raise DependencyUnavailableError("Yahoo Finance", f"{series.symbol}: {error}") from error
        return [bar.quote(series) for bar in bars if bar.complete and bar.event_time < event_time][-limit:]
