"""The canaries themselves: well-formed, alike in every play, and alarming to the shipped model at any time."""

import itertools
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from services.domain import session_profile
from services.domain.canary import CANARIES, QUIET_BARS, Canary, at, choose
from services.domain.quote import violations
from services.domain.score import Score
from services.ingest.coverage import CoverageBook
from services.scorer.registry import ModelRegistry
from services.scorer.service import ScoringService

NOON = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)
MOMENTS = [NOON + timedelta(hours=h, minutes=17 * h) for h in range(0, 24 * 7, 5)]
"""Over a week: sessions, evenings, nights and a weekend."""
each_canary = pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)


@each_canary
def test_bars_are_valid_and_of_one_series_in_order(canary: Canary) -> None:
    played = at(canary, NOON)
    bars = [*played.history, *played.manipulated]
    step = timedelta(seconds=canary.interval_seconds)
    assert [violations(quote, NOON) for quote in bars] == [()] * len(bars)
    assert {quote.series for quote in bars} == {played.series}
    assert played.series.tape == "canary"
    assert [b.event_time - a.event_time for a, b in itertools.pairwise(bars)] == [step] * (len(bars) - 1)
    assert len(played.history) == QUIET_BARS


@each_canary
def test_two_plays_share_no_series_but_every_price(canary: Canary) -> None:
    one, other = at(canary, NOON), at(canary, NOON + timedelta(microseconds=1))
    assert one.series != other.series
    prices = [[(q.open, q.high, q.low, q.close, q.volume) for q in p.history + p.manipulated] for p in (one, other)]
    assert prices[0] == prices[1]


@each_canary
async def test_it_alerts_at_any_hour_and_its_history_never_does(canary: Canary) -> None:
    service = ScoringService(ModelRegistry().load(), None, clock=lambda: MOMENTS[-1])
    for moment in MOMENTS:
        played = at(canary, moment)
        results = await service.score([*played.history, *played.manipulated], {})
        scores = [result for result in results if isinstance(result, Score)]
        assert len(scores) == len(results)
        assert not any(score.detection for score in scores[:QUIET_BARS]), moment
        assert any(score.detection for score in scores[QUIET_BARS:]), moment
    service.close()


def test_days_end_now_and_minutes_in_the_middle_of_the_last_session() -> None:
    for canary, moment in itertools.product(CANARIES, MOMENTS):
        played = at(canary, moment)
        bars = [*played.history, *played.manipulated]
        assert moment - timedelta(days=3) <= bars[-1].event_time <= moment
        if canary.interval_seconds == 60:
            steps = session_profile.steps(np.array([bar.event_time.timestamp() for bar in bars]))
            assert (steps >= 0).all()
        else:
            assert bars[-1].event_time == moment


def test_every_typology_is_played_in_both_lengths_on_a_symbol_of_its_own() -> None:
    assert len({canary.symbol for canary in CANARIES}) == len({canary.name for canary in CANARIES}) == len(CANARIES)
    daily, minutes = ({c.typology for c in CANARIES if c.interval_seconds == s} for s in (86_400, 60))
    assert daily == minutes


def test_canaries_are_chosen_by_name() -> None:
    assert choose([]) == CANARIES
    assert [canary.name for canary in choose(["price-spike"])] == ["price-spike"]
    with pytest.raises(ValueError, match="no canary named x; there are pump-and-dump"):
        choose(["x", "price-spike"])


def test_canaries_leave_no_trace_in_coverage() -> None:
    """Each play is a series of its own, which would be a silent feed ever after."""
    book = CoverageBook(lambda: NOON)
    for quote in at(CANARIES[0], NOON).history:
        book.accepted(quote)
    assert book.list() == []
