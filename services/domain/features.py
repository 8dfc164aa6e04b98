"""The features of a bar: one causal implementation for live, replay, back-test and training.

`compute` is a pure function of the last `WINDOW` raw bars, vectorised over windows. It holds no running sums, so that a
state rebuilt from recorded history gives the same features bit for bit. See `feature_definitions` for the formulas.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from services.domain import session_profile
from services.domain.feature_definitions import (
    BAR_FIELDS,
    FEATURE_HASH,
    FEATURE_NAMES,
    FEATURES,
    LAGS,
    WINDOW,
    FeatureDefinition,
    lagged,
)
from services.domain.series_state import SeriesState, bar_row

__all__ = [
    "BAR_FIELDS",
    "FEATURES",
    "FEATURE_HASH",
    "FEATURE_NAMES",
    "WINDOW",
    "BarColumns",
    "FeatureDefinition",
    "SeriesState",
    "bar_row",
    "bar_rows",
    "bars_windows",
    "compute",
]

Array = NDArray[np.float64]

_COLUMN = {name: i for i, name in enumerate(BAR_FIELDS)}
_MIN_OBSERVATIONS = 5
_MAX_DEVIATIONS = 60.0
_MAX_LOG_RATIO = 12.0
_RETURN_FLOOR = 1e-4
_LOG_VOLUME_FLOOR = 0.2
_JUMP_DEVIATIONS = 5.0
_MIN_BENCHMARK_OBSERVATIONS = 20
_USUAL_GAMMA = 0.5
"""Move of a symbol beyond the market's for one of its peers', about the median over daily bars."""

_USUAL_GAP = 4.0
"""Bars this many times further apart than usual still count as neighbours: a weekend in daily bars."""


def _quiet_max(values: Array) -> Array:
    """Row maximum that ignores NaN; NaN for rows of NaN only."""
    highest: Array = np.fmax.reduce(values, axis=1)
    return highest


def _quiet_min(values: Array) -> Array:
    """Row minimum that ignores NaN; NaN for rows of NaN only."""
    lowest: Array = np.fmin.reduce(values, axis=1)
    return lowest


def _sum(values: Array) -> Array:
    """Row sum that counts NaN as 0."""
    total: Array = np.where(np.isnan(values), 0.0, values).sum(axis=1)
    return total


def _count(values: Array) -> NDArray[np.int64]:
    """Row count of values that are not NaN."""
    counted: NDArray[np.int64] = np.count_nonzero(~np.isnan(values), axis=1)
    return counted


def _median(values: Array, count: NDArray[np.int64]) -> Array:
    """Row median that ignores NaN; NaN for rows of NaN only. np.sort puts NaN last."""
    ordered = np.sort(values, axis=1)
    rows = np.arange(len(values))
    low = ordered[rows, np.maximum(count - 1, 0) // 2]
    high = ordered[rows, np.minimum(count // 2, values.shape[1] - 1)]
    middle: Array = 0.5 * (low + high)
    return middle


def _deviation(distances: Array, count: NDArray[np.int64]) -> Array:
    """Robust deviation from absolute distances: 1.4826 x their median, at least half of what their mean says.

    The mean's part keeps a series of which most bars do not move from having a deviation of zero.
    """
    mean = _sum(distances) / np.maximum(count, 1)
    return np.fmax(1.4826 * _median(distances, count), 0.5 * 1.2533 * mean)


def _standard_deviation(values: Array) -> Array:
    """Row standard deviation that ignores NaN; 0 for rows of NaN only."""
    count = np.maximum(_count(values), 1)
    mean = _sum(values) / count
    found: Array = np.sqrt(_sum((values - mean[:, None]) ** 2) / count)
    return found


@dataclass(frozen=True, slots=True)
class _Usual:
    """Median and robust deviation of each window's history; `known` where it holds enough observations."""

    median: Array
    deviation: Array
    known: NDArray[np.bool_]


def _usual(history: Array) -> _Usual:
    count = _count(history)
    median = _median(history, count)
    deviation = _deviation(np.abs(history - median[:, None]), count)
    return _Usual(median, deviation, count >= _MIN_OBSERVATIONS)


def _adjust_splits(windows: Array) -> tuple[Array, Array]:
    """Logarithms of open, high, low, close (n, 4, WINDOW) and volumes (n, WINDOW) in the shares of the last bar."""
    prices = np.ascontiguousarray(windows[:, :, :4].transpose(0, 2, 1))
    volume = np.ascontiguousarray(windows[:, :, _COLUMN["volume"]])
    ratio = windows[:, :, _COLUMN["split_ratio"]]
    ratio = np.where(np.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    later = np.ones(ratio.shape)
    later[:, :-1] = np.cumprod(ratio[:, :0:-1], axis=1)[:, ::-1]
    return np.log(prices / later[:, None, :]), volume * later


def compute(windows: Array) -> NDArray[np.float32]:
    """Features of the last bar of each window.

    Args:
        windows: float64 (n, WINDOW, len(BAR_FIELDS)), bars in order of time, rows before the first bar all NaN.

    Returns:
        float32 (n, len(FEATURES)), columns in FEATURE_NAMES order, all finite. Each row depends on its own window
        only, bit for bit, whatever n is.
    """
    n = len(windows)
    if n == 0:
        return np.empty((0, len(FEATURES)), dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = _values(windows)
    matrix = np.empty((n, len(FEATURES)), dtype=np.float32)
    for i, feature in enumerate(FEATURES):
        matrix[:, i] = values[feature.name]
    return matrix


def _bounded(values: Array, low: float, high: float, known: NDArray[np.bool_] | bool = True) -> Array:
    """The values within bounds; 0 where they are unknown or not a number."""
    return np.where(known & ~np.isnan(values), np.clip(values, low, high), 0.0)


def _deviations(values: Array, known: NDArray[np.bool_] | bool = True) -> Array:
    return _bounded(values, -_MAX_DEVIATIONS, _MAX_DEVIATIONS, known)


def _log_ratio(values: Array, known: NDArray[np.bool_] | bool = True) -> Array:
    return _bounded(values, -_MAX_LOG_RATIO, _MAX_LOG_RATIO, known)


def _values(windows: Array) -> dict[str, Array]:
    """Every feature by name, each (n,)."""
    logs, volume = _adjust_splits(windows)
    seconds = np.ascontiguousarray(windows[:, :, _COLUMN["event_seconds"]])
    interval = np.ascontiguousarray(windows[:, -1, _COLUMN["interval_seconds"]])
    close = np.ascontiguousarray(logs[:, 3])
    returns = close[:, 1:] - close[:, :-1]
    elapsed = seconds[:, 1:] - seconds[:, :-1]
    usual_elapsed = _median(elapsed[:, :-1].copy(), _count(elapsed[:, :-1]))
    usual_elapsed = np.where(np.isnan(usual_elapsed) | (usual_elapsed <= 0), interval, usual_elapsed)
    apart = elapsed / usual_elapsed[:, None]
    stretch = np.sqrt(np.fmax(1.0, apart / _USUAL_GAP))
    scaled = returns / stretch
    history = np.abs(scaled[:, :-1])
    count = _count(history)
    known = count >= _MIN_OBSERVATIONS
    sigma = np.fmax(_deviation(history, count), _RETURN_FLOOR)

    found = _price_values(logs, returns, stretch, sigma, known)
    found |= _movement_values(returns, scaled, stretch, history, sigma, known)
    found |= _relative_values(windows, logs, returns, stretch, sigma, known)
    found |= _volume_values(volume, returns, scaled, sigma, known, found["return_z"])
    found |= _market_values(windows, volume)
    found |= _session_values(seconds, interval, volume, scaled)
    found["elapsed_log_ratio"] = _bounded(np.log(apart[:, -1]), 0.0, 9.0)
    found["bar_length"] = _bounded(np.log(interval / 60.0), -5.0, 10.0)
    found |= _flow_values(windows, volume)
    return found


def _price_values(
    logs: Array, returns: Array, stretch: Array, sigma: Array, known: NDArray[np.bool_]
) -> dict[str, Array]:
    """What one bar's prices, and the path of the last bars, say."""
    opened, high, low, close = (np.ascontiguousarray(logs[:, i]) for i in range(4))
    o, h, lo, c = opened[:, -1], high[:, -1], low[:, -1], close[:, -1]
    step = stretch[:, -1] * sigma
    spread = high - low
    usual_spread = _usual(spread[:, :-1].copy())
    floor = 0.1 * sigma
    found = {
        "return_z": _deviations(returns[:, -1] / step, known),
        "gap_z": _deviations((o - close[:, -2]) / step, known),
        "body_z": _deviations((c - o) / sigma, known),
        "range_z": _deviations(
            (spread[:, -1] - usual_spread.median) / np.fmax(usual_spread.deviation, 0.25 * sigma), known
        ),
        "range_log_ratio": _log_ratio(
            np.log((spread[:, -1] + floor) / (usual_spread.median + floor)), known & usual_spread.known
        ),
        "upper_shadow_z": _deviations((h - np.maximum(o, c)) / sigma, known),
        "lower_shadow_z": _deviations((np.minimum(o, c) - lo) / sigma, known),
        # Differences of logarithms: within a bar's range nearly the same as of prices, and free of their unit.
        "close_location": _bounded(((c - lo) - (h - c)) / (h - lo), -1.0, 1.0),
    }
    for bars in (3, 5, 10, 20):
        scale = sigma * np.sqrt((stretch[:, -bars:] ** 2).sum(axis=1))
        base = close[:, -1 - bars]
        found[f"runup_{bars}_z"] = _deviations((c - base) / scale, known)
        if bars in (3, 10):
            peak = _quiet_max(high[:, -bars:])
            dip = _quiet_min(low[:, -bars:])
            back = np.minimum(peak - base, peak - c) / scale
            up = np.minimum(base - dip, c - dip) / scale
            found[f"peak_reversal_{bars}_z"] = _bounded(back, 0.0, _MAX_DEVIATIONS, known)
            found[f"dip_recovery_{bars}_z"] = _bounded(up, 0.0, _MAX_DEVIATIONS, known)
    return found


def _movement_values(
    returns: Array, scaled: Array, stretch: Array, history: Array, sigma: Array, known: NDArray[np.bool_]
) -> dict[str, Array]:
    """How the series has been moving."""
    last = returns[:, -10:]
    total = _sum(np.abs(last))
    moved = known & (total > 0)
    recent = scaled[:, -5:]
    spread = np.sqrt(_sum(recent**2) / np.maximum(_count(recent), 1))
    extreme = _quiet_max(history)
    jumped = history > _JUMP_DEVIATIONS * sigma[:, None]
    since = np.where(jumped.any(axis=1), np.argmax(jumped[:, ::-1], axis=1) + 1.0, float(WINDOW - 1))
    return {
        "trend_share_10": _bounded(_sum(np.sign(last)) / 10.0, -1.0, 1.0, known),
        "efficiency_10": _bounded(_sum(last) / total, -1.0, 1.0, moved),
        "largest_step_share_10": _bounded(_quiet_max(np.abs(last)) / total, 0.0, 1.0, moved),
        "volatility_log_ratio": _bounded(np.log(spread / sigma), -3.0, 4.0, known),
        "usual_move": _bounded(np.log(100.0 * stretch[:, -1] * sigma), -5.0, 6.0, known),
        "return_standard_z": _deviations(
            scaled[:, -1] / np.fmax(_standard_deviation(scaled[:, :-1].copy()), _RETURN_FLOOR), known
        ),
        "past_extreme_z": _bounded(extreme / sigma, 0.0, _MAX_DEVIATIONS, known),
        "return_over_past_extreme": _bounded(
            np.log(np.abs(scaled[:, -1]) / np.fmax(extreme, _RETURN_FLOOR)), -3.0, 4.0, known
        ),
        "bars_since_jump": _bounded(since, 0.0, float(WINDOW - 1)),
        "unchanged_share": _bounded(
            np.count_nonzero(history == 0.0, axis=1) / np.maximum(_count(history), 1), 0.0, 1.0, known
        ),
    }


def _relative_values(
    windows: Array, logs: Array, returns: Array, stretch: Array, sigma: Array, known: NDArray[np.bool_]
) -> dict[str, Array]:
    """What is left of the moves once the benchmark's, and then the peers', are taken out.

    A bar without a benchmark counts as a flat market, one without peers as peers that move with the market.
    """
    close = np.ascontiguousarray(logs[:, 3])
    bound = _JUMP_DEVIATIONS * sigma[:, None] * stretch[:, :-1]
    step = stretch[:, -1] * sigma

    def slope(course: Array, moves: Array, usual: float, most: float) -> tuple[Array, Array]:
        """Slope of the moves' past on the course's through the origin, a third of the way drawn to `usual`."""
        seen = known & (_count(course[:, :-1]) >= _MIN_BENCHMARK_OBSERVATIONS)
        flat = np.where(np.isnan(course), 0.0, course)
        before = flat[:, :-1].copy()
        past = np.fmax(np.fmin(moves[:, :-1], bound), -bound)
        square = _sum(before * before)
        drawn = (usual + 2.0 * _sum(before * past) / square) / 3.0
        return np.where(seen & (square > 0), np.clip(drawn, -1.0, most), usual), flat

    benchmark = np.log1p(np.ascontiguousarray(windows[:, 1:, _COLUMN["benchmark_return"]]))
    beta, flat = slope(benchmark, returns, 1.0, 4.0)
    market = beta[:, None] * flat
    peer = np.log1p(np.ascontiguousarray(windows[:, 1:, _COLUMN["peer_return"]])) - flat
    gamma, apart = slope(peer, returns - market, _USUAL_GAMMA, 3.0)
    group = gamma[:, None] * apart
    found = {
        "benchmark_move_z": _deviations(market[:, -1] / step, known),
        "peer_move_z": _deviations(group[:, -1] / step, known),
    }
    for prefix, taken in (("relative", market), ("peer_relative", market + group)):
        scaled = (returns - taken) / stretch
        history = np.abs(scaled[:, :-1])
        own = np.fmax(_deviation(history, _count(history)), _RETURN_FLOOR)
        standard = np.fmax(_standard_deviation(scaled[:, :-1].copy()), _RETURN_FLOOR)
        found |= {
            f"{prefix}_return_z": _deviations(scaled[:, -1] / own, known),
            f"{prefix}_return_over_past_extreme": _bounded(
                np.log(np.abs(scaled[:, -1]) / np.fmax(_quiet_max(history), _RETURN_FLOOR)), -3.0, 4.0, known
            ),
            f"{prefix}_volatility_log_ratio": _bounded(np.log(own / sigma), -3.0, 3.0, known),
            f"{prefix}_return_standard_z": _deviations(scaled[:, -1] / standard, known),
        }
        for bars in (3, 10):
            scale = own * np.sqrt((stretch[:, -bars:] ** 2).sum(axis=1))
            moved = close[:, -1] - close[:, -1 - bars] - taken[:, -bars:].sum(axis=1)
            found[f"{prefix}_runup_{bars}_z"] = _deviations(moved / scale, known)
    # Bar by bar, all in one unit: what came over night is the move beyond the body's.
    opened, high, low = (np.ascontiguousarray(logs[:, i]) for i in range(3))
    courses = {
        "peer_relative_return_standard_z": scaled,
        "body_standard_z": close - opened,
        "upper_shadow_standard_z": high - np.maximum(opened, close),
        "lower_shadow_standard_z": np.minimum(opened, close) - low,
    }
    for name, course in courses.items():
        for lag in range(1, LAGS + 1):
            found[lagged(name, lag)] = _deviations(course[:, -1 - lag] / standard, known)
    return found


def _session_values(seconds: Array, interval: Array, volume: Array, scaled: Array) -> dict[str, Array]:
    """Volume and price change against what is usual at this time of the session."""
    found = dict.fromkeys(("session_volume_z", "session_return_z"), np.zeros(len(volume)))
    short = interval <= session_profile.LONGEST_INTERVAL_SECONDS
    if not short.any():
        return found
    step = session_profile.steps(seconds)
    inside = step >= 0
    judged = short & inside[:, -1]
    logs = np.where(inside, np.log(volume) - session_profile.LOG_VOLUME[step], np.nan)
    usual = _usual(logs[:, :-1].copy())
    deviation = np.fmax(usual.deviation, _LOG_VOLUME_FLOOR)
    found["session_volume_z"] = _deviations((logs[:, -1] - usual.median) / deviation, judged & usual.known)
    moves = np.where(inside[:, 1:], scaled / np.exp(session_profile.LOG_MOVE[step[:, 1:]]), np.nan)
    history = np.abs(moves[:, :-1])
    count = _count(history)
    sigma = np.fmax(_deviation(history, count), _RETURN_FLOOR)
    found["session_return_z"] = _deviations(moves[:, -1] / sigma, judged & (count >= _MIN_OBSERVATIONS))
    return found


def _volume_values(
    volume: Array, returns: Array, scaled: Array, sigma: Array, known: NDArray[np.bool_], return_z: Array
) -> dict[str, Array]:
    """How much was traded, against the usual and against the price's move."""
    logs = np.log(volume)
    past_logs = logs[:, :-1].copy()
    usual = _usual(past_logs)
    deviation = np.fmax(usual.deviation, _LOG_VOLUME_FLOOR)
    now = logs[:, -1]
    present = usual.known & ~np.isnan(now)

    def recent_z(part: Array) -> Array:
        mean = _sum(part) / np.maximum(_count(part), 1)
        return _deviations((mean - usual.median) / deviation, usual.known & (_count(part) > 0))

    volume_z = _deviations((now - usual.median) / deviation, present)
    impact = np.log(np.abs(scaled) + 0.1 * sigma[:, None]) - logs[:, 1:]
    past = impact[:, :-1].copy()
    past_count = _count(past)
    ten = volume[:, -10:]
    traded = _sum(ten)
    bars = _count(volume[:, :-1])
    closes = _count(returns[:, :-1]) + 1
    mean = _sum(past_logs) / np.maximum(_count(past_logs), 1)
    spread = np.fmax(_standard_deviation(past_logs), _LOG_VOLUME_FLOOR)
    lags = {
        lagged("volume_standard_z", lag): _deviations((logs[:, -1 - lag] - mean) / spread, usual.known)
        for lag in range(1, LAGS + 1)
    }
    return lags | {
        "volume_log_ratio": _log_ratio(now - usual.median, present),
        "volume_z": volume_z,
        "volume_standard_z": _deviations((now - mean) / spread, present),
        "volume_5_z": recent_z(logs[:, -5:]),
        "volume_before_z": recent_z(logs[:, -6:-1]),
        "volume_over_past_extreme": _log_ratio(now - _quiet_max(logs[:, :-1]), present),
        "volume_price_divergence": np.where(present, _deviations(volume_z - np.abs(return_z)), 0.0),
        "impact_log_ratio": _log_ratio(
            impact[:, -1] - _median(past, past_count), present & known & (past_count >= _MIN_OBSERVATIONS)
        ),
        "signed_volume_10": _bounded(_sum(np.sign(returns[:, -10:]) * ten) / traded, -1.0, 1.0, known & (traded > 0)),
        "missing_volume_share": _bounded(1.0 - bars / closes, 0.0, 1.0, known),
    }


def _market_values(windows: Array, volume: Array) -> dict[str, Array]:
    """How busy the market and the peers are, and the volume beyond that; what is missing counts as usual."""
    found = {}
    market = _busy(windows, "benchmark_volume_ratio", np.zeros(volume.shape))
    group = _busy(windows, "peer_volume_ratio", market)
    found["benchmark_volume_log_ratio"] = _bounded(market[:, -1], -4.0, 4.0)
    found["peer_volume_log_ratio"] = _bounded(group[:, -1] - market[:, -1], -4.0, 4.0)
    for name, busy in (("relative_volume_z", market), ("peer_relative_volume_z", group)):
        beyond = np.log(volume) - busy
        usual = _usual(beyond[:, :-1].copy())
        deviation = np.fmax(usual.deviation, _LOG_VOLUME_FLOOR)
        present = usual.known & ~np.isnan(beyond[:, -1])
        found[name] = _deviations((beyond[:, -1] - usual.median) / deviation, present)
    return found


def _busy(windows: Array, field: str, otherwise: Array) -> Array:
    """Logarithm of a volume ratio (n, WINDOW); `otherwise` where it is missing."""
    ratio = np.ascontiguousarray(windows[:, :, _COLUMN[field]])
    return np.where(ratio > 0, np.log(np.where(ratio > 0, ratio, 1.0)), otherwise)


def _flow_values(windows: Array, volume: Array) -> dict[str, Array]:
    """Trade counts and the takers' side, where the feed has them."""
    n = len(windows)
    found = dict.fromkeys(("trades_log_ratio", "trade_size_log_ratio", "buy_share", "buy_share_change"), np.zeros(n))
    trades = np.ascontiguousarray(windows[:, :, _COLUMN["trades"]])
    trades = np.where(trades > 0, trades, np.nan)
    if not np.isnan(trades[:, -1]).all():
        for name, values in (
            ("trades_log_ratio", np.log(trades)),
            ("trade_size_log_ratio", np.log(volume / trades)),
        ):
            past = values[:, :-1].copy()
            count = _count(past)
            found[name] = _log_ratio(values[:, -1] - _median(past, count), count >= _MIN_OBSERVATIONS)
    bought = np.ascontiguousarray(windows[:, :, _COLUMN["buy_volume"]])
    if not np.isnan(bought[:, -1]).all():
        # Unadjusted over unadjusted: a split cancels.
        share = bought / np.ascontiguousarray(windows[:, :, _COLUMN["volume"]])
        past = share[:, :-1].copy()
        count = _count(past)
        found["buy_share"] = _bounded(2.0 * share[:, -1] - 1.0, -1.0, 1.0)
        found["buy_share_change"] = _bounded(share[:, -1] - _median(past, count), -1.0, 1.0, count >= _MIN_OBSERVATIONS)
    return found


class BarColumns(Protocol):
    """One symbol's bars as columns, in order of time, as `services.archive.bars.Bars` holds them."""

    @property
    def interval_seconds(self) -> int: ...  # noqa: D102
    @property
    def event_time(self) -> NDArray[np.datetime64]: ...  # noqa: D102
    @property
    def open(self) -> Array: ...  # noqa: D102
    @property
    def high(self) -> Array: ...  # noqa: D102
    @property
    def low(self) -> Array: ...  # noqa: D102
    @property
    def close(self) -> Array: ...  # noqa: D102
    @property
    def volume(self) -> Array: ...  # noqa: D102
    @property
    def split_ratio(self) -> Array: ...  # noqa: D102


def bar_rows(bars: BarColumns, more: Mapping[str, Array] = MappingProxyType({})) -> Array:
    """All bars of a series as `bar_row` makes them of quotes: float64 (n, len(BAR_FIELDS)).

    Args:
        bars: The columns.
        more: Further BAR_FIELDS by name (trades, the benchmark's), float64 (n,) each, NaN where unknown.
    """
    columns = dict.fromkeys(BAR_FIELDS, np.full(len(bars.open), np.nan)) | {
        "open": bars.open,
        "high": bars.high,
        "low": bars.low,
        "close": bars.close,
        "volume": np.where(bars.volume > 0, bars.volume, np.nan),
        "split_ratio": np.where(np.isnan(bars.split_ratio), 1.0, bars.split_ratio),
        "event_seconds": bars.event_time.astype("datetime64[us]").astype(np.int64) / 1e6,
        "interval_seconds": np.full(len(bars.open), float(bars.interval_seconds)),
        **more,
    }
    return np.stack([columns[name] for name in BAR_FIELDS], axis=1)


def bars_windows(rows: Array, chunk: int = 8_192) -> Iterator[Array]:
    """The windows of a whole series in chunks: float64 (m, WINDOW, len(BAR_FIELDS)) views, m <= chunk.

    Args:
        rows: float64 (n, len(BAR_FIELDS)), all bars of one series in order of time, as `bar_row` makes them.
        chunk: Most windows at a time.
    """
    padded = np.concatenate([np.full((WINDOW - 1, len(BAR_FIELDS)), np.nan), rows])
    view = sliding_window_view(padded, WINDOW, axis=0).transpose(0, 2, 1)
    for start in range(0, len(rows), chunk):
        yield view[start : start + chunk]
