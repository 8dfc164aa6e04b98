"""The peers beside each bar: what the symbols of its sector, or those that move like it, did on the median.

Where a symbol's sector is known, its peers are the sector's other symbols. Otherwise, and while a sector has too few,
they are found in the archive itself: the symbols whose returns beyond the market's went most with its own over the bars
before. Peer groups as a measure of what is unusual for one account or stock: Bolton and Hand 2001; for stock price
manipulation Kim and Sohn 2012.

As the benchmark's, what a bar's peers did follows from the archive alone and from no bar after it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Times = NDArray[np.datetime64]

MOST_PEERS = 10
"""Symbols whose median stands for a symbol without a sector."""

LEAST_PEERS = 3
"""Fewest peers with a bar of one time whose median counts."""

ESTIMATION_BARS = 500
"""Bars over which returns are compared to find peers."""

RENEWAL_BARS = 250
"""Bars after which peers are looked for anew: a year of daily bars."""

_LEAST_SHARED = 120
_LEAST_CORRELATION = 0.15
_LARGEST_MOVE = 3.0
"""Robust deviations that a return counts at most when peers are looked for: one jump makes no peers."""


@dataclass(frozen=True, slots=True)
class Peers:
    """What a symbol's peers did at m times in ascending order.

    `event_time` is datetime64[us] (m,). `simple_return`, a fraction, and `volume_ratio`, a multiple of the usual, are
    float64 (m,), NaN where fewer than LEAST_PEERS say it.
    """

    event_time: Times
    simple_return: Array
    volume_ratio: Array


@dataclass(frozen=True, slots=True)
class Course:
    """What the peers' measures are made of: one symbol's n bars, of which none has the archive's first.

    `event_time` datetime64[us] (n,), ascending; `log_return` and `volume_surprise`, ln of volume over its usual,
    float64 (n,), NaN where unknown; `excess` is the return beyond the market's.
    """

    symbol: str
    event_time: Times
    log_return: Array
    volume_surprise: Array
    excess: Array


def peers(courses: Sequence[Course], sectors: Mapping[str, str]) -> Mapping[str, Peers]:
    """The peers of each symbol that has any.

    Args:
        courses: All symbols of an archive with bars of one length.
        sectors: Sector by symbol, for those that have one.
    """
    if len(courses) <= LEAST_PEERS:
        return {}
    sector = [sectors.get(course.symbol, "") for course in courses]
    listed = np.array([course.event_time[0] if len(course.event_time) else np.datetime64("NaT") for course in courses])
    times = np.unique(np.concatenate([course.event_time for course in courses]))
    parts: dict[int, list[Peers]] = {}
    for start in range(0, len(times), RENEWAL_BARS):
        now = times[start : start + RENEWAL_BARS]
        before = times[max(0, start - ESTIMATION_BARS) : start]
        size = Counter(name for name, since in zip(sector, listed, strict=True) if since <= now[0])
        known = [name if size[name] > LEAST_PEERS else "" for name in sector]
        groups = dict(_sector_groups(known)) | dict(_alike(_table(courses, before, "excess"), known))
        if not groups:
            continue
        returns, surprises = _table(courses, now, "log_return"), _table(courses, now, "volume_surprise")
        for number, members in groups.items():
            parts.setdefault(number, []).append(
                Peers(now, np.expm1(_median(returns[:, members])), np.exp(_median(surprises[:, members])))
            )
    return {
        courses[number].symbol: Peers(
            np.concatenate([part.event_time for part in found]),
            np.concatenate([part.simple_return for part in found]),
            np.concatenate([part.volume_ratio for part in found]),
        )
        for number, found in parts.items()
    }


def _table(courses: Sequence[Course], times: Times, name: str) -> Array:
    """One measure of all symbols at these neighbouring times, float64 (len(times), len(courses)); NaN is none."""
    table = np.full((len(times), len(courses)), np.nan)
    if len(times):
        for number, course in enumerate(courses):
            part = slice(*np.searchsorted(course.event_time, [times[0], times[-1] + np.timedelta64(1, "us")]))
            table[np.searchsorted(times, course.event_time[part]), number] = getattr(course, name)[part]
    return table


def _median(values: Array) -> Array:
    """Row median of values that are not NaN, float64 (n,); NaN of fewer than LEAST_PEERS."""
    count = np.count_nonzero(~np.isnan(values), axis=1)
    ordered = np.sort(values, axis=1)  # NaN last
    rows = np.arange(len(values))
    last = values.shape[1] - 1
    middle = 0.5 * (ordered[rows, np.maximum(count - 1, 0) // 2] + ordered[rows, np.minimum(count // 2, last)])
    return np.where(count >= LEAST_PEERS, middle, np.nan)


def _sector_groups(sectors: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
    """The others of its sector, for each symbol that has one."""
    for number, sector in enumerate(sectors):
        if sector:
            yield number, [other for other, its in enumerate(sectors) if its == sector and other != number]


def _alike(excess: Array, sectors: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
    """For each symbol without a sector those whose excess returns (n, symbols) go most with its own."""
    if len(excess) < _LEAST_SHARED:
        return
    printed = ~np.isnan(excess)
    counted = np.count_nonzero(printed, axis=0)
    seen = np.flatnonzero(counted >= _LEAST_SHARED)
    if len(seen) <= LEAST_PEERS:
        return
    excess, printed = excess[:, seen], printed[:, seen]
    deviation = 1.4826 * np.nanmedian(np.abs(excess), axis=0) + 1e-5
    moves = np.where(printed, np.clip(excess / deviation, -_LARGEST_MOVE, _LARGEST_MOVE), 0.0)
    both = printed.astype(np.float64)
    shared = both.T @ both
    square = (moves * moves).T @ both
    # Rounded, so that the last bits of a sum, which differ between machines, decide nothing.
    correlation = np.round(moves.T @ moves / np.sqrt(np.maximum(square * square.T, 1e-9)), 6)
    correlation[shared < _LEAST_SHARED] = -1.0
    np.fill_diagonal(correlation, -1.0)
    for place, number in enumerate(seen.tolist()):
        if not sectors[number]:
            nearest = np.argsort(-correlation[place], kind="stable")[:MOST_PEERS]
            found = nearest[correlation[place, nearest] >= _LEAST_CORRELATION]
            if len(found) >= LEAST_PEERS:
                yield number, seen[found].tolist()
