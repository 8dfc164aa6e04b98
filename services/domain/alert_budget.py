"""How many alerts a threshold gives, and which threshold an alert budget allows.

Alerts are counted, not bars: detections of one series and typology within the alert window are one alert, as in
`services.domain.alert`. A score below the threshold that it was judged at has no typology on record; lowering the
threshold past it is counted as joining whatever alert of its series is within the window, and as a new one otherwise.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.domain.errors import FieldViolation, InvalidRequestError
from services.domain.threshold import PER_DAY, SYMBOLS_OF_A_BUDGET

CURVE_REACH = 30.0
"""The trade-off is followed until it gives this many times the budget."""
BELOW_THE_LINE_LOG_ODDS = 2.0
"""How far below the threshold the sample reaches, in log-odds."""


@dataclass(frozen=True, slots=True)
class ScoredBars:
    """n scores of one model version that may alert: none of them with too little history.

    `quote_id` and `series` str (n,); `day` str (n,), the UTC date; `symbol` str (n,); `time` int64 (n,), microseconds;
    `window` int64 (n,), the alert window in microseconds; `ensemble` float64 (n,); `typology` int64 (n,), 0 where it is
    not on record.
    """

    quote_id: NDArray[np.object_]
    series: NDArray[np.object_]
    symbol: NDArray[np.object_]
    day: NDArray[np.object_]
    time: NDArray[np.int64]
    window: NDArray[np.int64]
    ensemble: NDArray[np.float64]
    typology: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ensemble)

    @property
    def symbol_days(self) -> int:
        """Distinct pairs of symbol and day."""
        return len(set(zip(self.symbol.tolist(), self.day.tolist(), strict=True)))

    def exposure(self, unit: str) -> float:
        """What alerts are divided by to get the budget's unit: days, or 500 symbols times days."""
        if unit == PER_DAY:
            return float(len(set(self.day.tolist())))
        return self.symbol_days / SYMBOLS_OF_A_BUDGET


class _Alerts:
    """Counts alerts while detections are added one by one, in any order."""

    def __init__(self) -> None:
        self._times: dict[str, dict[int, list[int]]] = {}
        self.count = 0

    def add(self, series: str, typology: int, time: int, window: int) -> None:
        by_typology = self._times.setdefault(series, {})
        if not typology:
            near = (t for t, times in by_typology.items() if _near(times, time, window))
            typology = next(near, 0)
        times = by_typology.setdefault(typology, [])
        at = bisect_left(times, time)
        before = at > 0 and time - times[at - 1] <= window
        after = at < len(times) and times[at] - time <= window
        if before and after:
            self.count -= times[at] - times[at - 1] > window  # it closes the gap between two alerts
        elif not before and not after:
            self.count += 1
        times.insert(at, time)


def _near(times: Sequence[int], time: int, window: int) -> bool:
    at = bisect_left(times, time)
    return (at > 0 and time - times[at - 1] <= window) or (at < len(times) and times[at] - time <= window)


def count_alerts(bars: ScoredBars, threshold: float) -> int:
    """Alerts at a threshold."""
    alerts = _Alerts()
    for i in np.flatnonzero(bars.ensemble >= threshold).tolist():
        alerts.add(bars.series[i], int(bars.typology[i]), int(bars.time[i]), int(bars.window[i]))
    return alerts.count


@dataclass(frozen=True, slots=True)
class TradeOff:
    """Alerts over threshold: `alerts[i]` per unit at `thresholds[i]`, descending; `detections[i]` bars behind them."""

    thresholds: NDArray[np.float64]
    alerts: NDArray[np.float64]
    detections: NDArray[np.int64]


def trade_off(bars: ScoredBars, unit: str, budget: float) -> TradeOff:
    """The curve at every distinct score, from the highest down to CURVE_REACH times the budget."""
    order = np.argsort(-bars.ensemble, kind="stable")
    ensemble = bars.ensemble[order]
    exposure = bars.exposure(unit)
    alerts = _Alerts()
    points: list[tuple[float, float, int]] = []
    for n, i in enumerate(order.tolist()):
        alerts.add(bars.series[i], int(bars.typology[i]), int(bars.time[i]), int(bars.window[i]))
        if n + 1 < len(order) and ensemble[n + 1] == ensemble[n]:
            continue
        points.append((float(ensemble[n]), alerts.count / exposure, n + 1))
        if alerts.count / exposure > CURVE_REACH * budget:
            break
    thresholds, rates, detections = zip(*points, strict=True)
    return TradeOff(np.array(thresholds), np.array(rates), np.array(detections, dtype=np.int64))


def threshold_for(curve: TradeOff, budget: float) -> tuple[float, float]:
    """The lowest threshold down to which no threshold gives more than the budget, and its alerts per unit.

    It lies halfway between the lowest score that may alert and the next one.

    Raises:
        InvalidRequestError: Every score may alert within the budget, or not even the highest.
    """
    over = np.flatnonzero(curve.alerts > budget)
    if not len(over):
        raise _unusable(f"{budget:g} is more than all scores together give; a lower one is needed")
    first = int(over[0])
    if first == 0:
        raise _unusable(
            f"{budget:g} is less than one alert on these scores ({curve.alerts[0]:.3g}); more scores or a higher one "
            "is needed"
        )
    allowed, refused = float(curve.thresholds[first - 1]), float(curve.thresholds[first])
    halfway = (allowed + refused) / 2
    threshold = halfway if refused < halfway <= allowed else allowed
    return min(threshold, math.nextafter(1.0, 0.0)), float(curve.alerts[first - 1])


def _unusable(why: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("budget", why)])


def log_odds(score: float) -> float:
    """ln(p / (1 - p)), with p kept away from 0 and 1."""
    bounded = min(max(score, 1e-12), 1.0 - 1e-12)
    return math.log(bounded) - math.log1p(-bounded)


def lowest_of_sample(threshold: float) -> float:
    """Where the below-the-line sample begins."""
    return 1.0 / (1.0 + math.exp(BELOW_THE_LINE_LOG_ODDS - log_odds(threshold)))


def below_the_line(bars: ScoredBars, threshold: float, size: int, seed: int) -> NDArray[np.int64]:
    """A sample of the scores just below the threshold, as row numbers, highest score first.

    Those whose hash of seed and quote_id is lowest: the same sample in every run, and further scores displace only a
    few of it.
    """
    low = lowest_of_sample(threshold)
    rows = np.flatnonzero((bars.ensemble >= low) & (bars.ensemble < threshold)).tolist()
    rows.sort(key=lambda i: hashlib.blake2b(f"{seed}|{bars.quote_id[i]}".encode(), digest_size=8).digest())
    return np.array(sorted(rows[:size], key=lambda i: -bars.ensemble[i]), dtype=np.int64)
