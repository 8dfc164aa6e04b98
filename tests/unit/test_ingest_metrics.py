"""The gauge of silent series: expected or heard before, live, and not heard now."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.domain.quote import Quote, Series
from services.ingest.coverage import CoverageBook
from services.ingest.metrics import measure_silence, silent_series

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


class Hours:
    """A market that opens when it is told to."""

    opened = False

    def is_open(self, moment: datetime) -> bool:
        assert moment == NOON
        return self.opened


async def test_nobody_is_silent_while_the_market_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gauge itself, until the drain."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    book, market, draining = CoverageBook(lambda: NOON), Hours(), asyncio.Event()
    book.expect(Series("live", "test", "NEVER", 60))
    task = asyncio.create_task(measure_silence(book, market, lambda: NOON, draining, every_seconds=0.01))

    async def becomes(value: int) -> None:
        async with asyncio.timeout(60):
            while True:
                data = reader.get_metrics_data()
                if data is not None and data.resource_metrics:
                    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
                    (point,) = metric.data.data_points
                    if point.value == value:  # type: ignore[union-attr]
                        return
                await asyncio.sleep(0.01)

    await becomes(0)
    market.opened = True
    await becomes(1)
    market.opened = False
    await becomes(0)
    draining.set()
    await asyncio.wait_for(task, 60)
    provider.shutdown()
