"""What ingest measures: whether the feeds that it expects are heard."""

import asyncio
from collections.abc import Callable
from datetime import datetime

from opentelemetry import metrics

from services.domain.quote import LIVE_TAPE
from services.ingest.coverage import CoverageBook, Freshness
from services.ingest.ports import Market
from services.runtime import telemetry_names as names
from services.runtime.stopping import stopped_within

MEASURE_SECONDS = 15.0


def silent_series(book: CoverageBook) -> int:
    """How many live series are not heard. Replays end by right, so they do not count."""
    return sum(coverage.freshness is not Freshness.FRESH for coverage in book.list(tape=LIVE_TAPE))


async def measure_silence(
    book: CoverageBook,
    market: Market,
    clock: Callable[[], datetime],
    draining: asyncio.Event,
    every_seconds: float = MEASURE_SECONDS,
) -> None:
    """Keep the gauge of silent series up to date until the drain; on the event loop, which the book belongs to.

    While the market is closed no series is silent: an alarm must not page on a holiday.
    """
    gauge = metrics.get_meter("tapewatch").create_gauge(names.SILENT_SERIES, unit="{series}")
    while True:
        expected = await asyncio.to_thread(market.is_open, clock())
        gauge.set(silent_series(book) if expected else 0)
        if await stopped_within(every_seconds, draining):
            return
