"""Canaries: well-formed quotes, a series of its own for each play, minutes of a session whenever they are played."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest

from services.domain import session_profile
from services.domain.canary import CANARIES, QUIET_BARS, Canary, at
from services.domain.quote import violations

MOMENTS = (
    datetime(2026, 3, 9, 15, 59, 59, tzinfo=UTC),  # a Monday before 16:00, the first after the clocks changed
    datetime(2026, 7, 5, 3, 31, 7, tzinfo=UTC),  # a Sunday
    datetime(2026, 11, 25, 16, 0, tzinfo=UTC),
)


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
@pytest.mark.parametrize("now", MOMENTS)
def test_every_play_is_a_good_series_that_ends_by_now(canary: Canary, now: datetime) -> None:
    played = at(canary, now)
    quotes = [*played.history, *played.manipulated]
    assert len(played.history) == QUIET_BARS
    assert not any(violations(quote, now) for quote in quotes)
    times = [quote.event_time for quote in quotes]
    step = timedelta(seconds=canary.interval_seconds)
    assert all(later - earlier == step for earlier, later in pairwise(times))
    assert now - timedelta(days=3) <= times[-1] <= now
    assert at(canary, now + timedelta(microseconds=1)).series != played.series


def test_one_minute_canaries_are_in_the_middle_of_a_session() -> None:
    for canary in CANARIES:
        if canary.interval_seconds != 60:
            continue
        for now in MOMENTS:
            played = at(canary, now)
            seconds = np.array([quote.event_time.timestamp() for quote in (*played.history, *played.manipulated)])
            steps = session_profile.steps(seconds)
            assert (steps >= 0).all()
            assert (steps < 77).all()


def test_every_typology_is_played_in_both_lengths_on_a_symbol_of_its_own() -> None:
    assert len({canary.symbol for canary in CANARIES}) == len({canary.name for canary in CANARIES}) == len(CANARIES)
    daily, minutes = ({c.typology for c in CANARIES if c.interval_seconds == s} for s in (86_400, 60))
    assert daily == minutes
