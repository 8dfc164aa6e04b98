import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.domain.errors import DependencyUnavailableError, InvalidQuoteError
from services.domain.quote import Quote, Series
from services.ingest.coverage import CoverageBook, Freshness
from services.ingest.ports import TraceContext
from services.ingest.service import IngestService, Published
from services.ingest.settings import IngestSettings
from services.ingest.subscribers import Subscribers
from services.ingest.universe import DEFAULT, LARGE_CAPS
from services.queue import market_message
from services.queue.ports import OutgoingMessage, SentMessage
from services.queue.sqlite import SqliteQueue

NOW = datetime(2026, 11, 20, 15, 31, tzinfo=UTC)


class NumberedTraces:
    """A trace context per quote, numbered."""

    def __init__(self) -> None:
        self.count = 0
        self.open = 0

    @contextmanager
    def publishing(self, quotes: Sequence[Quote]) -> Iterator[list[TraceContext]]:
        self.open += 1
        contexts = []
        for _ in quotes:
            self.count += 1
            contexts.append(TraceContext(f"00-{self.count:032x}-{self.count:016x}-01", "vendor=1"))
        yield contexts
        self.open -= 1


def quote(minute: int = 0, symbol: str = "AAPL", **fields: object) -> Quote:
    base = Quote(
        symbol=symbol,
        event_time=NOW - timedelta(hours=2) + timedelta(minutes=minute),
        open=10.0,
        high=12.0,
        low=9.0,
        close=11.0,
        volume=100.0,
        source="test",
    )
    return replace(base, **fields)  # type: ignore[arg-type]


@pytest.fixture
def queue(tmp_path: Path) -> SqliteQueue:
    return SqliteQueue(tmp_path / "queue.db")


@pytest.fixture
def service(queue: SqliteQueue) -> IngestService:
    return IngestService(queue, CoverageBook(lambda: NOW), Subscribers(), NumberedTraces(), lambda: NOW)


async def test_a_published_quote_is_stamped_and_durable(service: IngestService, queue: SqliteQueue) -> None:
    (outcome,) = await service.publish([quote()])
    assert isinstance(outcome, Published)
    assert outcome.quote.ingest_time == NOW
    assert outcome.quote.batch_id
    (message,) = queue.receive(10, 30)
    assert market_message.decode(message.body, message.attributes, now=NOW) == outcome.quote
    assert message.attributes == {"traceparent": outcome.quote.traceparent, "tracestate": "vendor=1"}


async def test_a_given_batch_id_is_kept_and_others_share_one(service: IngestService) -> None:
    outcomes = await service.publish([quote(0, batch_id="mine"), quote(1), quote(2)])
    ids = [o.quote.batch_id for o in outcomes if isinstance(o, Published)]
    assert ids[0] == "mine"
    assert ids[1] == ids[2] != ""


async def test_each_quote_has_a_trace_of_its_own(service: IngestService) -> None:
    outcomes = await service.publish([quote(i) for i in range(3)])
    assert len({o.quote.traceparent for o in outcomes if isinstance(o, Published)}) == 3


async def test_an_invalid_quote_does_not_touch_its_neighbours(service: IngestService, queue: SqliteQueue) -> None:
    outcomes = await service.publish([quote(0), quote(1, high=1.0), quote(2)])
    assert [type(o) for o in outcomes] == [Published, InvalidQuoteError, Published]
    assert queue.depth().ready == 2
    (coverage,) = service.coverage.list()
    assert (coverage.accepted_quotes, coverage.rejected_quotes) == (2, 1)


async def test_the_same_quote_again_is_deduplicated(service: IngestService, queue: SqliteQueue) -> None:
    await service.publish([quote()])
    (again,) = await service.publish([quote()])
    assert isinstance(again, Published)
    assert again.deduplicated
    assert queue.depth().ready == 1


class AwayQueue(SqliteQueue):
    """Is away for the first few sends."""

    outages = 2

    def send(self, messages: Sequence[OutgoingMessage]) -> list[SentMessage]:
        if self.outages:
            self.outages -= 1
            raise DependencyUnavailableError("queue", "away")
        return super().send(messages)


async def test_valid_quotes_may_be_tried_again_when_the_queue_is_away(tmp_path: Path) -> None:
    service = IngestService(
        AwayQueue(tmp_path / "q.db"), CoverageBook(lambda: NOW), Subscribers(), NumberedTraces(), lambda: NOW
    )
    outcomes = await service.publish([quote(0), quote(1, close=-1.0)])
    assert [type(o) for o in outcomes] == [DependencyUnavailableError, InvalidQuoteError]
    assert service.coverage.list() == []


async def test_a_source_waits_for_the_queue_and_buries_what_is_invalid(tmp_path: Path) -> None:
    queue = AwayQueue(tmp_path / "q.db")
    service = IngestService(queue, CoverageBook(lambda: NOW), Subscribers(), NumberedTraces(), lambda: NOW)
    counts = await service.publish_all([quote(0), quote(1, volume=float("inf")), quote(2)], asyncio.Event())
    assert counts == (2, 1)
    (letter,) = queue.list_dead_letters()
    assert "volume: inf is not a finite volume" in letter.reason
    assert json.loads(letter.body)["data"]["timestamp"] == "2026-11-20T13:32:00Z"
    assert letter.group_id == "market-data-AAPL"


async def test_a_source_gives_up_when_told_to_stop(tmp_path: Path) -> None:
    queue = AwayQueue(tmp_path / "q.db")
    queue.outages = 1_000
    service = IngestService(queue, CoverageBook(lambda: NOW), Subscribers(), NumberedTraces(), lambda: NOW)
    stop = asyncio.Event()
    waiting = asyncio.create_task(service.publish_all([quote()], stop))
    await asyncio.sleep(0.2)
    stop.set()
    assert await asyncio.wait_for(waiting, 60) is None


async def test_subscribers_get_what_they_asked_for(service: IngestService) -> None:
    with (
        service.subscribers.subscribe() as every,
        service.subscribers.subscribe({"MSFT"}) as microsoft,
        service.subscribers.subscribe(tape="run-1") as replay,
    ):
        await service.publish([quote(0), quote(0, "MSFT"), quote(0, "MSFT", tape="run-1"), quote(1, close=-1.0)])
        taken = []
        for subscription in (every, microsoft, replay):
            await subscription.wait()
            taken.append([q.quote_id for q in iter(subscription.take, None)])
    assert [len(ids) for ids in taken] == [3, 2, 1]
    await service.publish([quote(5)])
    assert every.take() is None


def test_a_slow_subscriber_is_given_up() -> None:
    subscribers = Subscribers(max_behind=10)
    with subscribers.subscribe() as subscription:
        subscribers.publish([quote(i) for i in range(10)])
        assert not subscription.overrun
        subscribers.publish([quote(11)])
        assert subscription.overrun
        assert subscription.take() is None


def test_coverage_tells_fresh_from_stale_from_never_seen() -> None:
    now = NOW
    book = CoverageBook(lambda: now)
    book.expect(Series("live", "yahoo_finance", "TSLA", 60))
    book.accepted(quote(0, ingest_time=NOW))
    book.accepted(quote(0, "MSFT", interval_seconds=86_400, ingest_time=NOW))
    now = NOW + timedelta(minutes=10)
    assert {c.series.symbol: c.freshness for c in book.list()} == {
        "AAPL": Freshness.STALE,
        "MSFT": Freshness.FRESH,
        "TSLA": Freshness.NEVER_SEEN,
    }
    aapl = book.list({"AAPL"})[0]
    assert aapl.silence == timedelta(minutes=10)
    assert aapl.last_event_time == quote(0).event_time
    assert [c.series.symbol for c in book.list(tape="live")] == ["AAPL", "MSFT", "TSLA"]
    assert book.list(tape="run-1") == []


def test_coverage_counts_gaps_and_errors() -> None:
    book = CoverageBook(lambda: NOW)
    for day in (0, 1, 2, 10, 13, 30):
        book.accepted(quote(day * 1_440, interval_seconds=86_400, ingest_time=NOW))
    series = quote(interval_seconds=86_400).series
    assert book.list()[0].gaps == 2
    book.failed(series, "timeout")
    book.failed(series, "HTTP 500")
    assert (book.list()[0].consecutive_errors, book.list()[0].last_error) == (2, "HTTP 500")
    book.succeeded(series)
    assert (book.list()[0].consecutive_errors, book.list()[0].last_error) == (0, "")


def test_coverage_counts_rejections_of_known_series_only() -> None:
    book = CoverageBook(lambda: NOW, max_series=3)
    book.accepted(quote(0, "A", ingest_time=NOW))
    book.expect(quote(0, "B").series)
    for i in range(10):
        book.rejected(quote(0, f"ODD {i}"), "symbol: no")
    for symbol in ("A", "B", "B"):
        book.rejected(quote(0, symbol), "why" * 1_000_000)
    assert [(c.series.symbol, c.accepted_quotes, c.rejected_quotes) for c in book.list()] == [("A", 1, 1), ("B", 0, 2)]
    book.failed(quote(0, "A").series, "why" * 1_000_000)
    assert {len(c.last_error) for c in book.list()} == {501}


async def test_a_symbol_of_a_megabyte_is_answered_shortly(service: IngestService) -> None:
    (outcome,) = await service.publish([quote(0, "A" * 1_000_000)])
    assert isinstance(outcome, InvalidQuoteError)
    assert len(outcome.message) < 300
    assert service.coverage.list() == []


def test_coverage_forgets_the_series_longest_unheard_of() -> None:
    book = CoverageBook(lambda: NOW, max_series=3)
    for symbol in ("A", "B", "C", "A", "D"):
        book.accepted(quote(0, symbol, ingest_time=NOW))
    assert [c.series.symbol for c in book.list()] == ["A", "C", "D"]


def test_the_default_universe_is_the_old_systems() -> None:
    assert len(DEFAULT) == len(set(DEFAULT)) == 29
    assert len(set(LARGE_CAPS)) == len(LARGE_CAPS) > 90
    assert IngestSettings().polled_symbols == DEFAULT
    assert IngestSettings(symbols="msft, AAPL,,msft").polled_symbols == ("MSFT", "AAPL")
    assert IngestSettings(symbols="large_caps").polled_symbols == LARGE_CAPS
