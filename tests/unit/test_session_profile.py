"""The session profile: New York's clock, and features that it takes the day's U-shape out of."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from services.domain import session_profile
from services.domain.feature_definitions import BAR_FIELDS, FEATURE_NAMES, WINDOW
from services.domain.features import compute


def test_steps_follow_new_yorks_clock_through_both_changes_of_the_hour() -> None:
    start = int(datetime(2021, 1, 1, tzinfo=UTC).timestamp())
    moments = np.arange(start, start + 366 * 86_400, 1_234)
    clock = ZoneInfo("America/New_York")

    def expected(moment: int) -> int:
        local = datetime.fromtimestamp(moment, clock)
        step = (local.hour * 60 + local.minute - 570) // 5
        return step if local.weekday() < 5 and 0 <= step < 78 else -1

    assert session_profile.steps(moments.astype(np.float64)).tolist() == [expected(int(m)) for m in moments]


def test_the_table_has_the_days_u_shape_and_a_step_for_every_five_minutes() -> None:
    for table in (session_profile.LOG_VOLUME, session_profile.LOG_MOVE):
        assert table.shape == (78,)
        assert table[0] > 0.5 > 0 > table[39]
    assert session_profile.LOG_VOLUME[-1] > 1.0
    assert session_profile.steps(np.array([np.nan])).tolist() == [-1]


def day(close_at: int, interval: float = 60.0) -> dict[str, float]:
    """Features of the last bar of a session that follows the profile but for noise, ending at this minute of it."""
    rng = np.random.default_rng(5)
    start = datetime(2021, 3, 16, 13, 30, tzinfo=UTC).timestamp()
    minute = np.arange(close_at - WINDOW + 1, close_at + 1)
    seconds = start + 60.0 * minute
    step = minute // 5
    rows = np.full((WINDOW, len(BAR_FIELDS)), np.nan)
    move = np.exp(session_profile.LOG_MOVE[step]) * rng.normal(0.0, 0.001, WINDOW)
    close = 50.0 * np.exp(np.cumsum(move))
    rows[:, 0] = rows[:, 3] = close
    rows[:, 1], rows[:, 2] = close * 1.001, close * 0.999
    rows[:, 4] = 1e5 * np.exp(session_profile.LOG_VOLUME[step] + rng.normal(0.0, 0.2, WINDOW))
    rows[:, 5], rows[:, 9], rows[:, 10] = 1.0, seconds, interval
    return dict(zip(FEATURE_NAMES, compute(rows[None])[0].tolist(), strict=True))


def test_the_rush_before_the_close_is_unusual_only_without_the_profile() -> None:
    found = day(389)
    assert found["volume_z"] > 3.5
    assert abs(found["session_volume_z"]) < 2.5


@pytest.mark.parametrize("interval", [86_400.0, 3_600.0])
def test_longer_bars_have_no_place_in_it(interval: float) -> None:
    found = day(389, interval)
    assert found["session_volume_z"] == found["session_return_z"] == 0.0
