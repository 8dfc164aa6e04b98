"""Recording: exactly once, in order per series, detections into alerts, whatever fails in between."""

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.domain.alert import AlertState, Disposition
from services.domain.errors import ConflictError, DependencyUnavailableError, PredecessorFailedError, TapewatchError
from services.domain.score import RecordedQuote, ScoredQuote
from services.domain.typology import Typology
from services.gateway.change_feed import ChangeFeed
from services.gateway.ports import AlertQuery, AlertWrite, DetectionQuery
from services.gateway.service import GatewayService, Recorded, Triage
from services.gateway.sqlite import SqliteStore
from tests.gateway_quotes import scored, spike

AWAY = DependencyUnavailableError("the store", "away for a moment")


class FailingStore(SqliteStore):
    """The embedded store, away at chosen writes: before them, or after, so that only the answer is lost."""

    def __init__(self, path: Path, failures: Iterator[str]) -> None:
        super().__init__(path)
        self.failures = failures

    def _fail(self, wanted: str, failure: str) -> None:
        if failure == wanted:
            raise AWAY

    def put_scores(self, items: Sequence[ScoredQuote], now: datetime) -> list[RecordedQuote | None]:
        failure = next(self.failures, "")
        self._fail("before", failure)
        result = super().put_scores(items, now)
        self._fail("after", failure)
        return result

    def commit_detection(self, item: ScoredQuote, write: AlertWrite, now: datetime) -> RecordedQuote | None:
        failure = next(self.failures, "")
        self._fail("before", failure)
        if failure == "conflict":
            raise ConflictError("lost a race")
        result = super().commit_detection(item, write, now)
        self._fail("after", failure)
        return result


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "store.db")
    yield made
    made.close()


@pytest.fixture
def service(store: SqliteStore) -> GatewayService:
    return GatewayService(store, ChangeFeed(store))


def failing(path: Path, *failures: str) -> GatewayService:
    store = FailingStore(path / "store.db", iter(failures))
    return GatewayService(store, ChangeFeed(store))


def alerts(service: GatewayService) -> list[tuple[str, str, int, float]]:
    found = service.store.list_alerts(AlertQuery(), 1_000, None).items
    return sorted((a.symbol, a.typology.name, a.detection_count, a.peak_score) for a in found)


async def test_created_then_unchanged_then_different(service: GatewayService) -> None:
    assert await service.record([scored(0, 0.2)]) == [Recorded(created=True, same=True, alert_id="")]
    assert await service.record([scored(0, 0.2)]) == [Recorded(created=False, same=True, alert_id="")]
    assert await service.record([scored(0, 0.4)]) == [Recorded(created=False, same=False, alert_id="")]


async def test_one_quote_twice_in_a_batch(service: GatewayService) -> None:
    first, second, third = await service.record([scored(0), scored(0), scored(1)])
    assert isinstance(first, Recorded)
    assert isinstance(second, Recorded)
    assert (first.created, second.created, second.same) == (True, False, True)
    assert isinstance(third, Recorded)
    assert service.store.last_quote() == 2


async def test_detections_within_the_window_are_one_alert(service: GatewayService) -> None:
    results = await service.record([spike(0, 0.85), scored(1), spike(2, 0.95), spike(32, 0.9)])
    first, between, second, third = results
    assert isinstance(first, Recorded)
    assert first.opened
    assert first.alert_id
    assert isinstance(between, Recorded)
    assert between.alert_id == ""
    assert second == third == Recorded(created=True, same=True, alert_id=first.alert_id)
    assert alerts(service) == [("AAPL", "PRICE_SPIKE", 3, 0.95)]


async def test_detection_beyond_the_window_opens_another_alert(service: GatewayService) -> None:
    first, second = await service.record([spike(0), spike(31)])
    assert isinstance(first, Recorded)
    assert isinstance(second, Recorded)
    assert first.alert_id != second.alert_id
    assert second.opened


async def test_typologies_symbols_and_tapes_have_alerts_of_their_own(service: GatewayService) -> None:
    ramp = scored(1, 0.9, typology=Typology.RAMPING)
    await service.record([spike(0), ramp, spike(1, symbol="MSFT"), spike(1, tape="replay-1"), spike(2)])
    assert alerts(service) == [
        ("AAPL", "PRICE_SPIKE", 1, 0.9),
        ("AAPL", "PRICE_SPIKE", 2, 0.9),
        ("AAPL", "RAMPING", 1, 0.9),
        ("MSFT", "PRICE_SPIKE", 1, 0.9),
    ]


async def test_redelivered_detection_raises_and_counts_nothing(service: GatewayService) -> None:
    batch = [spike(0), spike(1), scored(2), spike(3)]
    before = await service.record(batch)
    for _ in range(3):
        again = await service.record(batch)
        assert [(r.created, r.same) for r in again if isinstance(r, Recorded)] == [(False, True)] * 4
        assert [r.alert_id for r in again if isinstance(r, Recorded)] == [
            r.alert_id for r in before if isinstance(r, Recorded)
        ]
    assert alerts(service) == [("AAPL", "PRICE_SPIKE", 3, 0.9)]
    assert service.store.last_change() == 3


async def test_redelivered_detection_of_a_closed_alert_opens_none(service: GatewayService) -> None:
    (result,) = await service.record([spike(0)])
    assert isinstance(result, Recorded)
    await service.update_alert(Triage(result.alert_id, '"1"', "ann", "noise", AlertState.CLOSED, Disposition.DISMISSED))
    (again,) = await service.record([spike(0)])
    assert again == Recorded(created=False, same=True, alert_id=result.alert_id)
    assert len(alerts(service)) == 1


async def test_new_detection_after_closing_opens_another_alert(service: GatewayService) -> None:
    (result,) = await service.record([spike(0)])
    assert isinstance(result, Recorded)
    await service.update_alert(Triage(result.alert_id, '"1"', "ann", "noise", AlertState.CLOSED, Disposition.DISMISSED))
    (second,) = await service.record([spike(1)])
    assert isinstance(second, Recorded)
    assert second.opened
    assert second.alert_id != result.alert_id


async def test_after_an_error_the_series_waits_and_others_do_not(tmp_path: Path) -> None:
    service = failing(tmp_path, "", "before")
    batch = [scored(0), spike(1), scored(2), scored(0, symbol="MSFT"), spike(3), scored(1, symbol="MSFT")]
    results = await service.record(batch)
    assert isinstance(results[0], Recorded)
    assert results[1] is AWAY
    for i in (2, 4):
        error = results[i]
        assert isinstance(error, PredecessorFailedError)
        assert error.metadata == {"quote_id": batch[1].quote.quote_id}
    assert isinstance(results[3], Recorded)
    assert isinstance(results[5], Recorded)
    assert service.store.get_quote(batch[2].quote.quote_id) is None
    assert service.store.cursors([batch[0].quote.series]) == [batch[0].quote.event_time]


async def test_failed_batch_fails_each_series_once(tmp_path: Path) -> None:
    service = failing(tmp_path, "before")
    results = await service.record([scored(0), scored(0, symbol="MSFT"), scored(1), scored(1, symbol="MSFT")])
    assert [type(r) for r in results] == [DependencyUnavailableError] * 2 + [PredecessorFailedError] * 2
    assert service.store.last_quote() == 0


async def test_lost_race_is_tried_again(tmp_path: Path) -> None:
    service = failing(tmp_path, "conflict", "conflict", "conflict")
    (result,) = await service.record([spike(0)])
    assert isinstance(result, Recorded)
    assert alerts(service) == [("AAPL", "PRICE_SPIKE", 1, 0.9)]


async def test_endless_race_ends_in_an_error_that_may_be_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.service._PAUSE_SECONDS", 0.0)
    service = failing(tmp_path, *["conflict"] * 100)
    result, later = await service.record([spike(0), scored(1)])
    assert isinstance(result, DependencyUnavailableError)
    assert isinstance(later, PredecessorFailedError)


async def test_two_gateways_racing_on_one_series_open_one_alert(tmp_path: Path) -> None:
    stores = [SqliteStore(tmp_path / "store.db") for _ in range(2)]
    services = [GatewayService(store, ChangeFeed(store)) for store in stores]

    async def play(number: int) -> list[Recorded | TapewatchError]:
        results = []
        for minute in range(12):
            results += await services[number].record([spike(2 * minute + number)])
        return results

    both = await asyncio.gather(play(0), play(1))
    assert all(isinstance(result, Recorded) for results in both for result in results)
    assert alerts(services[0]) == [("AAPL", "PRICE_SPIKE", 24, 0.9)]
    for store in stores:
        store.close()


KINDS = st.sampled_from(["plain", "plain", "plain", "spike", "ramp"])
FAILURES = st.sampled_from(["", "", "", "before", "after", "conflict"])


def _item(symbol: str, minute: int, kind: str) -> ScoredQuote:
    if kind == "plain":
        return scored(minute, 0.1, symbol=symbol)
    typology = Typology.PRICE_SPIKE if kind == "spike" else Typology.RAMPING
    return scored(minute, 0.8 + (minute * 7 % 13) / 100, symbol=symbol, typology=typology)


def _contents(service: GatewayService) -> tuple[object, ...]:
    """Everything but when and in which order it was recorded, and how often."""
    quotes = {r.scored.quote.quote_id: (r.scored, r.alert_id) for r in service.store.quotes_after(0, 10_000)}
    found = service.store.list_alerts(AlertQuery(), 10_000, None).items
    kept = {
        a.alert_id: (a.detection_count, a.peak_score, a.peak_quote_id, a.first_event_time, a.last_event_time, a.summary)
        for a in found
    }
    counted = {
        a.alert_id: len(service.store.list_detections(DetectionQuery(alert_id=a.alert_id), 10_000, None).items)
        for a in found
    }
    return quotes, kept, counted, service.store.last_quote(), service.store.last_change()


SYMBOLS = st.sampled_from(["AAPL", "IBM", "MSFT"])
TAPES = st.dictionaries(SYMBOLS, st.lists(st.tuples(st.integers(1, 20), KINDS), min_size=1, max_size=12), min_size=1)
DELIVERIES = st.lists(
    st.tuples(
        st.lists(st.tuples(SYMBOLS, st.integers(0, 3), st.integers(1, 6)), max_size=3, unique_by=lambda part: part[0]),
        st.booleans(),
    ),
    max_size=12,
)
"""Of each symbol: how many quotes before the next one come again, and how many follow. Then: is the answer lost?"""


@settings(max_examples=60)
@given(tape=TAPES, failures=st.lists(FAILURES, max_size=30), deliveries=DELIVERIES)
def test_any_redelivery_gives_the_same_store(
    tape: dict[str, list[tuple[int, str]]],
    failures: list[str],
    deliveries: list[tuple[list[tuple[str, int, int]], bool]],
) -> None:
    lanes = {}
    for symbol, steps in tape.items():
        minute = 0
        lane = []
        for step, kind in steps:
            minute += step
            lane.append(_item(symbol, minute, kind))
        lanes[symbol] = lane

    async def straight(service: GatewayService) -> None:
        for lane in lanes.values():
            assert all(isinstance(r, Recorded) for r in await service.record(lane))

    async def at_least_once(service: GatewayService) -> None:
        """A dispatcher that gets errors, loses answers and delivers again, in order per series, until all is done."""
        position = dict.fromkeys(lanes, 0)
        to_the_end = [([(symbol, 0, len(lane)) for symbol, lane in lanes.items()], False)] * (len(failures) + 1)
        for parts, lost in [*deliveries, *to_the_end]:
            batch: list[tuple[str, int]] = []
            for symbol, back, size in parts:
                if symbol in lanes:
                    start = max(0, position[symbol] - back)
                    batch += [(symbol, i) for i in range(start, min(position[symbol] + size, len(lanes[symbol])))]
            results = await service.record([lanes[symbol][i] for symbol, i in batch])
            for (symbol, i), result in zip(batch, results, strict=True):
                if isinstance(result, Recorded) and i == position[symbol] and not lost:
                    position[symbol] = i + 1
        assert position == {symbol: len(lane) for symbol, lane in lanes.items()}

    async def both(folder: Path) -> None:
        plain = SqliteStore(folder / "straight.db")
        torn = FailingStore(folder / "torn.db", iter(failures))
        first, second = (GatewayService(store, ChangeFeed(store)) for store in (plain, torn))
        await straight(first)
        await at_least_once(second)
        try:
            assert _contents(second) == _contents(first)
            assert all(r.mismatch_count == 0 for r in torn.quotes_after(0, 10_000))
        finally:
            plain.close()
            torn.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(both(Path(folder)))
