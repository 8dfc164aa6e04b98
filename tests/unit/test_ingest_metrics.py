"""The gauge of silent series: expected or heard before, live, and not heard now."""

import asyncio
from datetime import UTC, datetime, timedelta

from services.domain.quote import Quote, Series
from services.ingest.coverage import CoverageBook
from services.ingest.metrics import silent_series

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def quote(symbol: str, tape: str = "live") -> Quote:
    return Quote(tape=tape, source="test", symbol=symbol, interval_seconds=60, event_time=NOON, revision=0,
                 open=1, high=1, low=1, close=1, volume=1, ingest_time=NOON)  # fmt: skip


def test_silence_counts_expected_and_stale_live_series_only() -> None:
    now = NOON
    book = CoverageBook(lambda: now)
    book.expect(Series("live", "test", "NEVER", 60))
    for symbol, tape in (("AAPL", "live"), ("MSFT", "live"), ("IBM", "replay-1")):
        book.accepted(quote(symbol, tape))
    assert silent_series(book) == 1
    now = NOON + timedelta(minutes=5)
    assert silent_series(book) == 3, "the replay has ended, and does not count"


async def test_the_gauge_stops_with_the_drain() -> None:
    from services.ingest.metrics import measure_silence

    draining = asyncio.Event()
    task = asyncio.create_task(measure_silence(CoverageBook(lambda: NOON), draining, every_seconds=0.01))
    await asyncio.sleep(0.05)
    assert not task.done()
    draining.set()
    await asyncio.wait_for(task, 1)
