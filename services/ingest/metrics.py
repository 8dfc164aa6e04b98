"""What ingest measures: whether the feeds that it expects are heard."""

import asyncio

from opentelemetry import metrics

from services.domain.quote import LIVE_TAPE
from services.ingest.coverage import CoverageBook, Freshness
from services.runtime import telemetry_names as names
from services.runtime.stopping import stopped_within

MEASURE_SECONDS = 15.0


def silent_series(book: CoverageBook) -> int:
    """How many live series are not heard. Replays end by right, so they do not count."""
    return sum(coverage.freshness is not Freshness.FRESH for coverage in book.list(tape=LIVE_TAPE))


async def measure_silence(book: CoverageBook, draining: asyncio.Event, every_seconds: float = MEASURE_SECONDS) -> None:
    """Keep the gauge of silent series up to date until the drain; on the event loop, which the book belongs to."""
    gauge = metrics.get_meter("tapewatch").create_gauge(names.SILENT_SERIES, unit="{series}")
    gauge.set(silent_series(book))
    while not await stopped_within(every_seconds, draining):
        gauge.set(silent_series(book))
