"""What is usual at which time of a US session: a table, because a state of 61 bars does not reach back to yesterday.

Bars from 09:30 to 16:00 in New York, Monday to Friday, in 78 steps of five minutes. The table was measured once, on
one-minute bars of 80 US tickers on the training side of the split (December 2019 to October 2021), and is part of the
features' definition. Holidays and short days are not told apart. Other markets keep other hours: there, and for any
series that trades around the clock, features that use this table mean little.
"""

import numpy as np
from numpy.typing import NDArray

from services.domain.quote import DAY_SECONDS

Array = NDArray[np.float64]

LONGEST_INTERVAL_SECONDS = 900
"""Longer bars than these span too much of the profile to be set against it."""

_STEP_SECONDS = 300
_OPEN_SECONDS, _STANDARD_OFFSET = 34_200, 18_000

LOG_VOLUME = np.array(
    [
        1.14,
        0.71,
        0.51,
        0.43,
        0.42,
        0.33,
        0.48,
        0.24,
        0.33,
        0.19,
        0.18,
        0.17,
        0.21,
        0.1,
        0.06,
        0.14,
        0.04,
        0.08,
        0.15,
        0.11,
        0.06,
        0.03,
        0,
        -0.03,
        0.08,
        -0.06,
        -0.11,
        -0.11,
        -0.2,
        -0.2,
        -0.13,
        -0.16,
        -0.17,
        -0.23,
        -0.26,
        -0.28,
        -0.26,
        -0.31,
        -0.29,
        -0.34,
        -0.31,
        -0.22,
        -0.23,
        -0.37,
        -0.32,
        -0.34,
        -0.34,
        -0.34,
        -0.27,
        -0.23,
        -0.28,
        -0.31,
        -0.31,
        -0.25,
        -0.13,
        -0.21,
        -0.2,
        -0.23,
        -0.25,
        -0.13,
        -0.12,
        -0.13,
        -0.12,
        -0.13,
        -0.15,
        -0.09,
        0,
        -0.11,
        -0.08,
        0.04,
        0.03,
        0.07,
        0.25,
        0.2,
        0.35,
        0.59,
        0.9,
        1.59,
    ]
)
"""ln(volume / median volume of the symbol's session), median over symbols and days, float64 (78,)."""

LOG_MOVE = np.array(
    [
        1,
        0.7,
        0.47,
        0.36,
        0.25,
        0.23,
        0.37,
        0.2,
        0.23,
        0.19,
        0.14,
        0.08,
        0.16,
        0.12,
        -0.02,
        0.03,
        -0.04,
        0.06,
        0.04,
        -0.04,
        0.07,
        -0.03,
        -0.11,
        -0.06,
        0.05,
        -0.07,
        -0.11,
        -0.13,
        -0.17,
        -0.14,
        -0.19,
        -0.24,
        -0.19,
        -0.22,
        -0.22,
        -0.27,
        -0.3,
        -0.26,
        -0.27,
        -0.29,
        -0.26,
        -0.19,
        -0.24,
        -0.33,
        -0.3,
        -0.29,
        -0.31,
        -0.34,
        -0.29,
        -0.16,
        -0.26,
        -0.26,
        -0.31,
        -0.34,
        -0.19,
        -0.29,
        -0.34,
        -0.34,
        -0.33,
        -0.26,
        -0.3,
        -0.34,
        -0.37,
        -0.36,
        -0.34,
        -0.29,
        -0.26,
        -0.33,
        -0.26,
        -0.19,
        -0.25,
        -0.26,
        -0.12,
        -0.22,
        -0.21,
        -0.11,
        0.1,
        0.27,
    ]
)
"""ln(mean |log return| / its mean over the symbol's session), mean over symbols and days, float64 (78,)."""


def steps(event_seconds: Array) -> NDArray[np.int64]:
    """The session's step that each moment lies in, 0 to 77; -1 outside a session and for NaN.

    Args:
        event_seconds: Seconds since 1970 in UTC, of any shape; a bar's start.

    >>> steps(np.array([1_615_818_600.0, 1_615_559_400.0, 1_615_559_399.0]))  # 15, 12 and 12 March 2021
    array([12,  0, -1])
    """
    known = np.isfinite(event_seconds)
    moments = np.where(known, event_seconds, 0.0).astype(np.int64)
    local = moments - _STANDARD_OFFSET + 3_600 * _summer(moments)
    day, second = np.divmod(local, DAY_SECONDS)
    weekday = (day + 3) % 7  # 1970 began on a Thursday; Monday is 0
    step = (second - _OPEN_SECONDS) // _STEP_SECONDS
    inside = known & (weekday < 5) & (step >= 0) & (step < len(LOG_VOLUME))
    found: NDArray[np.int64] = np.where(inside, step, -1)
    return found


def _summer(moments: NDArray[np.int64]) -> NDArray[np.int64]:
    """1 where US daylight saving time holds: from the second Sunday of March to the first of November, since 2007."""
    year = moments.astype("datetime64[s]").astype("datetime64[Y]")
    start = _sunday(year, 2, 14) * DAY_SECONDS + 7 * 3_600
    stop = _sunday(year, 10, 7) * DAY_SECONDS + 6 * 3_600
    summer: NDArray[np.int64] = ((moments >= start) & (moments < stop)).astype(np.int64)
    return summer


def _sunday(year: NDArray[np.datetime64], month: int, latest: int) -> NDArray[np.int64]:
    """The last Sunday up to this day of the month (0 is January), in days since 1970."""
    months = year.astype("datetime64[M]") + np.timedelta64(month, "M")
    last = months.astype("datetime64[D]").astype(np.int64) + latest - 1
    sunday: NDArray[np.int64] = last - (last + 4) % 7
    return sunday
