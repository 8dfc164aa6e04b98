"""Bars at rest: one symbol's history as columns, as every reader of this package gives it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.domain.quote import DAY_SECONDS, Quote

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RATIO_NOISE = 5e-4
"""Adjusted closes are printed rounded; smaller ratios are that rounding, not a corporate action."""


@dataclass(frozen=True, slots=True)
class Bars:
    """n bars of one symbol in order of event_time, without duplicates.

    `event_time` is datetime64[us] in UTC; prices are float64 in `currency`, `volume` float64 in shares; `split_ratio`
    is float64, new shares per old share, 1.0 for none and NaN where the source cannot say. `interval_seconds` is the
    bars' length, 0 while it is only known by `usual_interval`.
    """

    symbol: str
    interval_seconds: int
    event_time: NDArray[np.datetime64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    split_ratio: NDArray[np.float64]
    currency: str = ""

    def __len__(self) -> int:
        return len(self.event_time)


def usual_interval(times: NDArray[np.datetime64]) -> int:
    """The bars' length in seconds by their times: the usual distance of neighbours, at most a day."""
    if len(times) < 2:
        return DAY_SECONDS
    usual = float(np.median(np.diff(times).astype(np.int64))) / 1e6
    return int(min(max(1.0, round(usual)), DAY_SECONDS))


def causal_split_ratio(close: NDArray[np.float64], adj_close: NDArray[np.float64]) -> NDArray[np.float64]:
    """New shares per old share that take effect with each bar, from raw and back-adjusted closes.

    The ratio of neighbouring adjusted closes does not change with later adjustments (those scale both), so that
    (adj[t] / adj[t-1]) / (close[t] / close[t-1]) knows nothing of the future, though `adj_close` itself does.

    >>> causal_split_ratio(np.array([100.0, 51.0]), np.array([50.0, 51.0])).tolist()
    [1.0, 2.0]
    """
    ratio = np.ones(len(close))
    ratio[1:] = (adj_close[1:] / adj_close[:-1]) / (close[1:] / close[:-1])
    return np.where(np.abs(ratio - 1.0) > _RATIO_NOISE, np.round(ratio, 6), 1.0)


def quotes(
    history: Sequence[Bars],
    *,
    tape: str,
    source: str,
    benchmark: Callable[[Bars], Mapping[str, NDArray[np.float64]]] = lambda _: {},
) -> Iterator[Quote]:
    """The bars of all symbols as quotes, in order of event_time, then of symbol.

    `benchmark` gives the market beside each of a symbol's bars: fields of Quote, float64 (n,), NaN where not known.
    """
    history = sorted(history, key=lambda bars: bars.symbol)
    if not history:
        return
    microseconds = np.concatenate([bars.event_time.astype(np.int64) for bars in history])
    which = np.repeat(np.arange(len(history)), [len(bars) for bars in history])
    position = np.concatenate([np.arange(len(bars)) for bars in history])
    market = [benchmark(bars) for bars in history]
    for row in np.lexsort((which, microseconds)):
        bars, i = history[which[row]], position[row]
        ratio = bars.split_ratio[i]
        yield Quote(
            symbol=bars.symbol,
            event_time=_EPOCH + timedelta(microseconds=int(microseconds[row])),
            open=float(bars.open[i]),
            high=float(bars.high[i]),
            low=float(bars.low[i]),
            close=float(bars.close[i]),
            volume=float(bars.volume[i]),
            interval_seconds=bars.interval_seconds,
            tape=tape,
            source=source,
            currency=bars.currency,
            split_ratio=None if np.isnan(ratio) else float(ratio),
            **_known(market[which[row]], i),
        )


def _known(columns: Mapping[str, NDArray[np.float64]], i: int) -> dict[str, Any]:
    return {name: float(values[i]) for name, values in columns.items() if not np.isnan(values[i])}
