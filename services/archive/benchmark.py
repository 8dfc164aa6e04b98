"""The market beside each bar: what the symbols of one archive did on the median, all of them and a symbol's peers.

A bar's benchmark is known when the bar is: it looks on bars of the same time and on those before them. It follows from
the archive alone, so that a replay stamps the same whether it was stopped in between or not, and so that a training on
the archive sees what a replay of it sees.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from services.archive.bars import Bars
from services.archive.peers import Course, Peers, peers

Array = NDArray[np.float64]

MIN_SERIES = 10
"""Fewest bars of one time whose median stands for the market."""

USUAL_BARS = 60
"""Bars before one that say what is usual for it."""

_LEAST_BARS = 20


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The market at m times in ascending order, for bars of one length.

    `event_time` is datetime64[us] (m,). `simple_return`, a fraction, and `volume_ratio`, a multiple of the usual, are
    float64 (m,), the latter NaN where there is too little before to know what is usual. `peers` has the symbols' own.
    """

    event_time: NDArray[np.datetime64]
    simple_return: Array
    volume_ratio: Array
    peers: Mapping[str, Peers] = field(default_factory=dict)

    def beside(self, bars: Bars) -> Mapping[str, Array]:
        """The fields of Quote that say what the market, and the symbol's peers, did over each bar.

        float64 (n,) each, NaN where it is not known; peers are known only where the market is.
        """
        found = {
            "benchmark_return": _at(bars, self.event_time, self.simple_return),
            "benchmark_volume_ratio": _at(bars, self.event_time, self.volume_ratio),
        }
        if (group := self.peers.get(bars.symbol)) is not None:
            unknown = np.isnan(found["benchmark_return"])
            for name, values in (("peer_return", group.simple_return), ("peer_volume_ratio", group.volume_ratio)):
                found[name] = np.where(unknown, np.nan, _at(bars, group.event_time, values))
        return found


def _at(bars: Bars, times: NDArray[np.datetime64], values: Array) -> Array:
    """The values at the bars' times, float64 (n,); NaN where there is none."""
    if not len(times):
        return np.full(len(bars), np.nan)
    at = np.minimum(np.searchsorted(times, bars.event_time), len(times) - 1)
    return np.where(times[at] == bars.event_time, values[at], np.nan)


def benchmarks(history: Iterable[Bars], sectors: Mapping[str, str] = MappingProxyType({})) -> Mapping[int, Benchmark]:
    """The benchmark of each bar length, seconds, in an archive, and the symbols' peers (`sectors`: by symbol).

    Its return at a time is the median over all series with a bar of that time of r = ln(close / close of the bar
    before), splits taken out; times at which fewer than MIN_SERIES series print have none. Its volume ratio is the
    median of volume / geometric mean of the series' last USUAL_BARS.
    """
    by_length: dict[int, list[Bars]] = {}
    for bars in history:
        by_length.setdefault(bars.interval_seconds, []).append(bars)
    return {seconds: _benchmark(series, sectors) for seconds, series in by_length.items()}


def usual_before(values: Array) -> Array:
    """Mean of up to USUAL_BARS values before each, float64 (n,); NaN with fewer than 20 known. NaN is unknown.

    >>> usual_before(np.arange(1.0, 23.0))[[19, 20, 21]].tolist()
    [nan, 10.5, 11.0]
    """
    known = ~np.isnan(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    stop = np.arange(len(values))
    start = np.maximum(stop - USUAL_BARS, 0)
    counted = count[stop] - count[start]
    return np.where(counted >= _LEAST_BARS, (total[stop] - total[start]) / np.maximum(counted, 1), np.nan)


def _benchmark(history: list[Bars], sectors: Mapping[str, str]) -> Benchmark:
    steps, surprises = [], []
    for bars in history:
        ratio = np.where(np.isnan(bars.split_ratio[1:]), 1.0, bars.split_ratio[1:])
        steps.append(np.diff(np.log(bars.close)) + np.log(ratio))
        traded = np.where(bars.volume > 0, bars.volume, np.nan)
        shares = np.log(traded) - np.concatenate([[0.0], np.cumsum(np.log(ratio))])[: len(bars)]
        surprises.append((shares - usual_before(shares))[1:])
    time = np.concatenate([bars.event_time[1:] for bars in history])
    moments, market = _medians(time, np.concatenate(steps))
    surprise = np.concatenate(surprises)
    printed = ~np.isnan(surprise)
    busy, median = _medians(time[printed], surprise[printed])
    volume = np.full(len(moments), np.nan)
    volume[np.searchsorted(moments, busy)] = median
    courses = []
    for bars, step, beyond in zip(history, steps, surprises, strict=True):
        beside = _at(bars, moments, market)[1:]
        excess = step - np.where(np.isnan(beside), 0.0, beside)
        courses.append(Course(bars.symbol, bars.event_time[1:], step, beyond, excess))
    return Benchmark(moments, np.expm1(market), np.exp(volume), peers(courses, sectors))


def _medians(time: NDArray[np.datetime64], values: Array) -> tuple[NDArray[np.datetime64], Array]:
    """Each time that MIN_SERIES values or more are of, and their median."""
    order = np.lexsort((values, time))
    time, values = time[order], values[order]
    moments, first, count = np.unique(time, return_index=True, return_counts=True)
    enough = count >= MIN_SERIES
    moments, first, count = moments[enough], first[enough], count[enough]
    return moments, 0.5 * (values[first + (count - 1) // 2] + values[first + count // 2])
