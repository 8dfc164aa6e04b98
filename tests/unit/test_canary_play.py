"""Playing canaries on a path that works, lies, or is away; and the schedule that turns red and green."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.dispatch.canary_watch import CanaryReport, CanaryState, CanaryWatch
from services.dispatch.convert import canaries_to_proto
from services.dispatch.metrics import CanaryMetrics
from services.dispatch.settings import DispatchSettings
from services.domain.alert import Alert, add_detection, open_alert
from services.domain.canary import CANARIES
from services.domain.errors import DependencyUnavailableError, FieldViolation, InvalidQuoteError
from services.domain.quote import Quote, Series
from services.domain.score import Score, ScoredQuote
from services.domain.typology import Typology
from services.pipeline.canary_play import play
from services.pipeline.ports import Cursors
from services.runtime import telemetry_names as names
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb

START = datetime(2026, 11, 20, 15, 30, tzinfo=UTC)


def now() -> datetime:
    return START + timedelta(seconds=asyncio.get_running_loop().time())


@pytest.fixture(autouse=True)
async def idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's time passes only while all wait, and at once: a busy machine takes none of it."""
    loop: Any = asyncio.get_running_loop()
    select, passed = loop._selector.select, 0.0

    def skip(seconds: float | None) -> Any:
        nonlocal passed
        passed += seconds or 0.0
        return select(seconds and 0.0)

    monkeypatch.setattr(loop, "time", lambda: passed)
    monkeypatch.setattr(loop._selector, "select", skip)


def alert_of(quote: Quote, typology: Typology = Typology.PRICE_SPIKE) -> Alert:
    score = Score(quote.quote_id, 0.97, 0.5, True, "m1", "f1", quote.event_time, typology=typology)
    return open_alert(ScoredQuote(quote, score), quote.event_time)


class Path:
    """A mesh in memory: what is published is recorded at once, and the symbols in `blind` raise no alert."""

    def __init__(self) -> None:
        self.blind: set[str] = set()
        self.away = False
        self.refuses = False
        self.records = True
        self.recorded: dict[Series, datetime] = {}
        self.found: list[Alert] = []
        self.published: list[Quote] = []
        self.failures = 0

    async def publish(self, quotes: Sequence[Quote]) -> None:
        if self.refuses:
            raise InvalidQuoteError([FieldViolation("high", "is below low")])
        if self.away:
            self.failures += 1
            raise DependencyUnavailableError("ingest", "is away")
        self.published += quotes
        for quote in quotes:
            if self.records:
                self.recorded[quote.series] = quote.event_time
            if (quote.volume > 200_000 or quote.close > 1.05 * quote.open) and quote.symbol not in self.blind:
                self.found.append(alert_of(quote))

    async def cursors(self, series: Sequence[Series]) -> Cursors:
        return {each: self.recorded.get(each) for each in series}

    async def scores(self, quotes: Sequence[Quote]) -> dict[str, Score]:
        """The later the bar, the higher its score."""
        return {
            q.quote_id: Score(q.quote_id, 0.1 + 0.01 * i, 0.4, False, "m1", "f1", now()) for i, q in enumerate(quotes)
        }

    async def alerts(self, symbol: str) -> Sequence[Alert]:
        return [alert for alert in reversed(self.found) if alert.symbol == symbol]


async def test_all_alert() -> None:
    path = Path()
    outcomes = await play(path, CANARIES, now, 5.0)
    assert [outcome.name for outcome in outcomes] == [canary.name for canary in CANARIES]
    for outcome in outcomes:
        assert outcome.delay_seconds is not None
        assert 0.0 <= outcome.delay_seconds < 5.0
        assert outcome.alert_id
        assert outcome.peak_score == 0.97


async def test_one_that_is_recorded_without_an_alert_is_missed_at_once() -> None:
    path = Path()
    path.blind = {"CANARY.TRASH"}
    begun = asyncio.get_running_loop().time()
    outcomes = {outcome.name: outcome for outcome in await play(path, CANARIES, now, 30.0)}
    assert asyncio.get_running_loop().time() - begun < 5.0, "it need not wait for the deadline"
    assert {name for name, outcome in outcomes.items() if not outcome.alerted} == {"trash-and-cash"}
    assert outcomes["trash-and-cash"].problem.endswith(
        "none is a detection: the highest score is 0.180, by model m1 at threshold 0.4"
    )


async def test_alerts_of_other_plays_and_of_the_history_do_not_count() -> None:
    path = Path()
    await play(path, CANARIES, now, 5.0)
    path.blind = {canary.symbol for canary in CANARIES}
    original = path.publish

    async def publish(quotes: Sequence[Quote]) -> None:
        await original(quotes)
        path.found += [alert_of(quote) for quote in quotes if quote.volume < 60_000 and len(quotes) > 100]

    path.publish = publish  # type: ignore[method-assign]
    outcomes = await play(path, CANARIES, lambda: now() + timedelta(seconds=1), 5.0)
    assert not any(outcome.alerted for outcome in outcomes)


async def test_an_alert_that_the_history_opened_counts_once_the_manipulation_is_in_it() -> None:
    path = Path()
    path.blind = {CANARIES[2].symbol}
    original = path.publish

    async def publish(quotes: Sequence[Quote]) -> None:
        await original(quotes)
        if path.found:
            quote = quotes[0]
            score = Score(quote.quote_id, 0.9, 0.5, True, "m1", "f1", now(), typology=Typology.PRICE_SPIKE)
            path.found = [add_detection(path.found[0], ScoredQuote(quote, score), now())]
        else:
            path.found = [alert_of(quotes[-1])]

    path.publish = publish  # type: ignore[method-assign]
    (outcome,) = await play(path, CANARIES[2:3], now, 5.0)
    assert outcome.alerted


@pytest.mark.parametrize("what", ["away", "refuses", "records"])
async def test_a_broken_path_is_a_miss_with_its_reason_in_time(what: str) -> None:
    path = Path()
    setattr(path, what, what != "records")
    if what == "records":
        path.blind = {canary.symbol for canary in CANARIES}
    begun = asyncio.get_running_loop().time()
    outcomes = await play(path, CANARIES, now, 1.2)
    assert asyncio.get_running_loop().time() - begun < 2.5
    words = {"away": "is away", "refuses": "high", "records": "not all recorded"}[what]
    assert all(words in outcome.problem and not outcome.alerted for outcome in outcomes)
    assert path.failures == 0 or path.failures >= 2, "it is tried again"


async def test_a_path_that_hangs_ends_at_the_deadline() -> None:
    path = Path()

    async def publish(quotes: Sequence[Quote]) -> None:
        await asyncio.sleep(60)

    path.publish = publish  # type: ignore[method-assign]
    (outcome,) = await play(path, CANARIES[:1], now, 0.5)
    assert "not published in time" in outcome.problem


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    made = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[made])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    yield made
    provider.shutdown()


def read(reader: InMemoryMetricReader) -> dict[str, list[object]]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    scopes = data.resource_metrics[0].scope_metrics
    return {
        metric.name: [getattr(point, "value", None) for point in metric.data.data_points]
        for scope in scopes
        for metric in scope.metrics
    }


async def test_a_missed_canary_is_red_within_two_intervals_and_green_again_after(
    reader: InMemoryMetricReader,
) -> None:
    path, interval = Path(), 0.8
    reports: list[CanaryReport] = []

    async def tell(report: CanaryReport) -> None:
        reports.append(report)
        counted.count(report)

    watch = CanaryWatch(path, interval, now, tell)
    counted = CanaryMetrics(lambda: watch.report)
    draining = asyncio.Event()
    running = asyncio.create_task(watch.run(draining))
    loop = asyncio.get_running_loop()

    async def seconds_until(state: CanaryState) -> float:
        begun = loop.time()
        while watch.report.state is not state:
            assert loop.time() - begun < 10
            await asyncio.sleep(0.01)
        return loop.time() - begun

    assert watch.report.state is CanaryState.NOT_PLAYED
    assert names.CANARY_HEALTHY not in read(reader)
    await seconds_until(CanaryState.GREEN)
    assert read(reader)[names.CANARY_HEALTHY] == [1]
    path.blind = {"CANARY.PUMP"}
    assert await seconds_until(CanaryState.RED) <= 2 * interval
    assert read(reader)[names.CANARY_HEALTHY] == [0]
    assert canaries_to_proto(watch.report).state == pb.CANARY_STATE_RED
    path.blind = set()
    assert await seconds_until(CanaryState.GREEN) <= 2 * interval
    path.away = True
    assert await seconds_until(CanaryState.RED) <= 2 * interval
    draining.set()
    await asyncio.wait_for(running, 2)
    assert watch.report.plays == len(reports)
    assert watch.report.missed == sum(not o.alerted for r in reports for o in r.outcomes)
    starts = [report.play_time for report in reports]
    steps = [b - a for a, b in itertools.pairwise(starts) if a and b]
    assert all(timedelta(seconds=interval * 0.4) < step < timedelta(seconds=interval * 2) for step in steps)


@pytest.mark.parametrize(
    ("mode", "given", "seconds"),
    [("warm", 0.0, 120.0), ("task", 0.0, 1800.0), ("auto", 0.0, 1800.0), ("task", 240.0, 240.0)],
)
def test_the_deadline_follows_the_mode(mode: str, given: float, seconds: float) -> None:
    settings = DispatchSettings(dispatch_mode=mode, canary_deadline_seconds=given)
    assert settings.canary_deadline == seconds


@pytest.mark.parametrize(("interval", "deadline", "words"), [(30.0, 0.4, "within 0 s"), (1.0, 60.0, "within 1 s")])
async def test_a_play_ends_at_its_deadline_and_before_the_next(interval: float, deadline: float, words: str) -> None:
    path = Path()
    path.records = False
    path.blind = {canary.symbol for canary in CANARIES}
    told: list[CanaryReport] = []

    async def tell(report: CanaryReport) -> None:
        told.append(report)
        draining.set()

    draining = asyncio.Event()
    begun = asyncio.get_running_loop().time()
    await asyncio.wait_for(CanaryWatch(path, interval, now, tell, deadline).run(draining), 10)
    assert asyncio.get_running_loop().time() - begun < 5.0
    assert all(words in outcome.problem for outcome in told[0].outcomes)


async def test_a_play_that_the_drain_cuts_short_says_nothing() -> None:
    path = Path()
    path.away = True
    told: list[CanaryReport] = []

    async def tell(report: CanaryReport) -> None:
        told.append(report)

    watch = CanaryWatch(path, 30.0, now, tell)
    draining = asyncio.Event()
    running = asyncio.create_task(watch.run(draining))
    await asyncio.sleep(0.3)
    draining.set()
    await asyncio.wait_for(running, 2)
    assert not told
    assert watch.report.state is CanaryState.NOT_PLAYED
