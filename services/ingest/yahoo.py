"""Yahoo Finance as a live source: each symbol's closed one-minute bars, polled politely.

One symbol a request, through a token bucket. A symbol that fails is tried again with exponential backoff and full
jitter, then reported and left for the next round; it never stops the others. Too many requests (429) end the round and
lengthen the pause before the next one. A benchmark symbol, if there is one, and the symbols that stand for sectors are
asked for first in each round, and their returns and volumes over the same minute are stamped on the other symbols'
quotes; a quote is never held back for them, but what closes during a round waits for the next one. No news, as when the
market is closed, is no error. A volume of 0 is passed on as it is: Yahoo prints random zeros, and the features treat 0
as missing.
"""

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from services.archive.benchmark import usual_before
from services.archive.yahoo import Download, TooManyRequestsError, YahooBar
from services.domain.quote import LIVE_TAPE, Quote, Series
from services.ingest.ports import SourceBatch

_log = logging.getLogger(__name__)
SOURCE: Final = "yahoo_finance"
BAR_SECONDS: Final = 60
_ATTEMPTS = 3
_FIRST_BACKOFF_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 900.0
_BUCKET_REQUESTS = 5.0


class TokenBucket:
    """Lets through `per_second` on average and a few at once."""

    def __init__(self, per_second: float, capacity: float = _BUCKET_REQUESTS) -> None:
        self._per_second = per_second
        self._capacity = capacity
        self._tokens = capacity
        self._updated: float | None = None

    def delay(self, now: float) -> float:
        """Take a token; seconds until it may be used."""
        if self._updated is not None:
            self._tokens = min(self._capacity, self._tokens + (now - self._updated) * self._per_second)
        self._updated = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_second)


class YahooSource:
    """A `QuoteSource` of the symbols' closed one-minute bars.

    `benchmark_symbol` stands for the market, empty for none; `sectors` has the symbol that stands for each symbol's
    sector, of those that have one; `seen` is the newest event_time of each series that was
    published before; `sleep` and `jitter` (0 to 1) are given by tests.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        download: Download,
        *,
        interval_seconds: float,
        requests_per_second: float,
        seen: Mapping[Series, datetime],
        clock: Callable[[], datetime],
        benchmark_symbol: str = "",
        sectors: Mapping[str, str] = MappingProxyType({}),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._download = download
        self._interval = interval_seconds
        self._bucket = TokenBucket(requests_per_second)
        self._clock = clock
        self._benchmark_symbol = benchmark_symbol
        self._sectors = {symbol: sectors[symbol] for symbol in symbols if symbol in sectors}
        self._movements: dict[str, Mapping[datetime, Movement]] = {}
        self._sleep = sleep
        self._jitter = jitter
        self._series = {symbol: Series(LIVE_TAPE, SOURCE, symbol, BAR_SECONDS) for symbol in symbols}
        self._seen = dict(seen)
        self._refusals = 0

    @property
    def expected(self) -> Sequence[Series]:
        """One series per symbol."""
        return tuple(self._series.values())

    async def batches(self) -> AsyncIterator[SourceBatch]:
        """One batch per symbol and round, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            async for batch in self._round():
                yield batch
            if self._refusals:
                longest = min(_LONGEST_PAUSE_SECONDS, self._interval * 2.0**self._refusals)
                await self._sleep(self._interval + longest * self._jitter())
            else:
                await self._sleep(max(0.0, self._interval - (loop.time() - started)))

    async def _round(self) -> AsyncIterator[SourceBatch]:
        asked = list(self._series.values())
        # Of one moment for all: a bar that closes during the round has no closed bar of the market beside it yet.
        closed = self._clock() - timedelta(seconds=BAR_SECONDS)
        for symbol in sorted({self._benchmark_symbol, *self._sectors.values()} - {""}):
            try:
                bars = await self._fetch(symbol, attempts=1)  # the quotes do not wait for it
                self._movements[symbol] = movements(bar for bar in bars if bar.event_time <= closed)
            except TooManyRequestsError as error:
                self._refusals += 1
                yield SourceBatch((), dict.fromkeys(asked, f"Yahoo Finance asks to slow down: {error}"))
                return
            except Exception as error:  # yfinance raises whatever its transport raises
                _log.warning("nothing beside quotes this round: %s: %s: %s", symbol, type(error).__name__, error)
        for i, series in enumerate(asked):
            try:
                bars = await self._fetch(series.symbol)
            except TooManyRequestsError as error:
                self._refusals += 1
                yield SourceBatch((), dict.fromkeys(asked[i:], f"Yahoo Finance asks to slow down: {error}"))
                return
            except Exception as error:  # yfinance raises whatever its transport raises
                yield SourceBatch((), {series: f"{type(error).__name__}: {error}"})
                continue
            quotes = self._news(series, bars, closed)
            yield SourceBatch(quotes)
            if quotes:
                self._seen[series] = quotes[-1].event_time
        self._refusals = 0

    async def _fetch(self, symbol: str, attempts: int = _ATTEMPTS) -> Sequence[YahooBar]:
        attempt = 0
        while True:
            await self._sleep(self._bucket.delay(asyncio.get_running_loop().time()))
            try:
                return await asyncio.to_thread(self._download, symbol, BAR_SECONDS)
            except TooManyRequestsError:
                raise
            except Exception:
                attempt += 1
                if attempt >= attempts:
                    raise
                await self._sleep(_FIRST_BACKOFF_SECONDS * 2.0**attempt * self._jitter())

    def _news(self, series: Series, bars: Sequence[YahooBar], closed: datetime) -> list[Quote]:
        """The bars up to `closed` that are complete and not given yet, oldest first."""
        seen = self._seen.get(series)
        quotes = [
            replace(bar.quote(series), **self._beside(series.symbol, bar.event_time))
            for bar in bars
            if bar.event_time <= closed and (seen is None or bar.event_time > seen) and bar.complete
        ]
        return sorted(quotes, key=lambda quote: quote.event_time)

    def _beside(self, symbol: str, event_time: datetime) -> dict[str, Any]:
        """What market and sector did over a bar: fields of Quote. Nothing moves beside itself.

        The sector only beside the market: no model has learnt it without.
        """
        found: dict[str, Any] = {}
        for prefix, beside in (("benchmark", self._benchmark_symbol), ("peer", self._sectors.get(symbol, ""))):
            movement = None if beside == symbol else self._movements.get(beside, {}).get(event_time)
            if movement is None:
                break
            found |= {f"{prefix}_return": movement.simple_return, f"{prefix}_volume_ratio": movement.volume_ratio}
        return found


@dataclass(frozen=True, slots=True)
class Movement:
    """A bar's return as a fraction, splits taken out, and its volume as a multiple of the usual where that is known."""

    simple_return: float
    volume_ratio: float | None


def movements(bars: Iterable[YahooBar]) -> dict[datetime, Movement]:
    """The movement of each bar but the first, by its event_time."""
    whole = sorted((bar for bar in bars if bar.complete), key=lambda bar: bar.event_time)
    logs = np.array([math.log(bar.volume) if bar.volume > 0 else math.nan for bar in whole])
    ratios = np.exp(logs - usual_before(logs))
    found: dict[datetime, Movement] = {}
    for (before, bar), ratio in zip(pairwise(whole), ratios[1:].tolist(), strict=True):
        split = bar.split_ratio if bar.split_ratio > 0 else 1.0
        found[bar.event_time] = Movement(bar.close * split / before.close - 1.0, None if math.isnan(ratio) else ratio)
    return found
