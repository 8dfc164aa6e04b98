"""The market's return beside each bar: what the symbols of one archive did on the median.

A bar's benchmark is known when the bar is: it looks on bars of the same time and on those before them. It follows from
the archive alone, so that a replay stamps the same whether it was stopped in between or not, and so that a training on
the archive sees what a replay of it sees.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.archive.bars import Bars

MIN_SERIES = 10
"""Fewest bars of one time whose median stands for the market."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The market's return at m times in ascending order, for bars of one length.

    `event_time` is datetime64[us] (m,), `simple_return` float64 (m,), a fraction.
    """

    event_time: NDArray[np.datetime64]
    simple_return: NDArray[np.float64]

    def beside(self, bars: Bars) -> NDArray[np.float64]:
        """The benchmark's return over each bar, float64 (n,); NaN where it is not known."""
        if not len(self.event_time):
            return np.full(len(bars), np.nan)
        at = np.minimum(np.searchsorted(self.event_time, bars.event_time), len(self.event_time) - 1)
        return np.where(self.event_time[at] == bars.event_time, self.simple_return[at], np.nan)


def benchmarks(history: Iterable[Bars]) -> Mapping[int, Benchmark]:
    """The benchmark of each bar length, seconds, in an archive.

    Its return at a time is the median over all series with a bar of that time of ln(close / close of the bar before),
    splits taken out; times at which fewer than MIN_SERIES series print have none.
    """
    times: dict[int, list[NDArray[np.datetime64]]] = {}
    steps: dict[int, list[NDArray[np.float64]]] = {}
    for bars in history:
        ratio = np.where(np.isnan(bars.split_ratio[1:]), 1.0, bars.split_ratio[1:])
        times.setdefault(bars.interval_seconds, []).append(bars.event_time[1:])
        steps.setdefault(bars.interval_seconds, []).append(np.diff(np.log(bars.close)) + np.log(ratio))
    return {seconds: _median(np.concatenate(times[seconds]), np.concatenate(steps[seconds])) for seconds in times}


def _median(time: NDArray[np.datetime64], step: NDArray[np.float64]) -> Benchmark:
    order = np.lexsort((step, time))
    time, step = time[order], step[order]
    moments, first, count = np.unique(time, return_index=True, return_counts=True)
    enough = count >= MIN_SERIES
    moments, first, count = moments[enough], first[enough], count[enough]
    middle = 0.5 * (step[first + (count - 1) // 2] + step[first + count // 2])
    return Benchmark(moments, np.expm1(middle))
