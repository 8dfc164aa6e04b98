"""Causal columns of a chunk of trades against hours and days before it, from bars of 5 seconds.

Every column of a chunk reads bars that ended by its end and began at most `HISTORY_SECONDS` before its begin; none
knows how much history there is beyond that, nor where in the recording the chunk lies.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEP = 5
"""Seconds of the finest bars."""

HISTORY_SECONDS = 70 * 3_600

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_MEANS = (5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 8 * _HOUR, _DAY, HISTORY_SECONDS)
_PEAKS = (2 * _MINUTE, 10 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 8 * _HOUR, _DAY, HISTORY_SECONDS)
_SUMS = (2, 4, 12)
"""Chunks taken together, the judged one last."""

_MOVES = (_MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 6 * _HOUR, _DAY)
_USUAL_SECONDS = _DAY
_SATOSHI = 1e-8

PRICE_AND_VOLUME = ("volume", "active", "path", "rise")
"""Quantities that any feed of bars has."""

TRADES = ("bought", "sold", "trades", "buys", "rush")
"""Quantities that need trades and the takers' side: bought and sold volume, trades, buys, rush orders."""


@dataclass(frozen=True, slots=True)
class Tape:
    """One recording on a grid of 5 seconds without holes, n cells from `begin` (seconds since 1970).

    Prices are logarithms, carried over cells without trades; the quantities are 0 there. `sums` holds for each
    quantity of PRICE_AND_VOLUME and TRADES the cumulated sum, float64 (n + 1,).
    """

    begin: int
    opened: Array
    high: Array
    low: Array
    close: Array
    values: dict[str, Array]
    sums: dict[str, Array]


def tape(seconds: NDArray[np.int64], bars: dict[str, Array]) -> Tape:
    """A grid of bars with trades.

    Args:
        seconds: int64 (m,), begins of the bars, since 1970, increasing, multiples of 5.
        bars: float64 (m,) each: open, high, low, close; volume and bought in the quote currency; trades, buys, rush.
    """
    begin = int(seconds[0])
    place = (seconds - begin) // STEP
    n = int(place[-1]) + 1
    last = np.zeros(n, np.int64)
    last[place] = np.arange(len(place))
    last = np.maximum.accumulate(last)
    traded = np.zeros(n, bool)
    traded[place] = True
    close = np.log(bars["close"])[last]
    prices = {name: np.where(traded, np.log(bars[name])[last], close) for name in ("open", "high", "low")}
    values = {}
    for name in ("volume", "bought", "trades", "buys", "rush"):
        values[name] = np.zeros(n)
        values[name][place] = bars[name]
    values["sold"] = np.maximum(values["volume"] - values["bought"], 0.0)
    values["active"] = traded.astype(np.float64)
    before = np.concatenate([close[:1], close[:-1]])
    values["path"] = np.maximum(prices["high"], before) - np.minimum(prices["low"], before)
    values["rise"] = np.maximum(prices["high"] - before, 0.0)
    sums = {name: np.concatenate([[0.0], np.cumsum(values[name])]) for name in (*PRICE_AND_VOLUME, *TRADES)}
    return Tape(begin, prices["open"], prices["high"], prices["low"], close, values, sums)


def _window(cumulated: Array, stop: NDArray[np.int64], cells: int) -> Array:
    """Sum of the `cells` before each stop."""
    found: Array = cumulated[stop] - cumulated[np.maximum(stop - cells, 0)]
    return np.maximum(found, 0.0)


def _peak_before(values: Array, cells: int) -> Array:
    """At i the highest of values[i - cells + 1 .. i], as far as there are any."""
    found, held = values.copy(), 1
    while held < cells:
        # Two spans of `held` cells, overlapping where the wanted span is shorter than both.
        step = min(held, cells - held)
        found[step:] = np.maximum(found[step:], found[:-step])
        held += step
    return found


def _dip_before(values: Array, cells: int) -> Array:
    return -_peak_before(-values, cells)


def compute(on: Tape, begins: NDArray[np.int64], cells: int, *, trades: bool = True) -> dict[str, NDArray[np.float32]]:
    """The columns of chunks of `cells` 5-second bars.

    Args:
        on: The recording; it must begin HISTORY_SECONDS before the first chunk.
        begins: int64 (m,), begins of the chunks in seconds since 1970.
        cells: Bars a chunk, 5 for chunks of 25 s and 1 for bars of 5 s.
        trades: Whether the quantities of TRADES are known.

    Returns:
        float32 (m,) each, by name, all finite.
    """
    start = (begins - on.begin) // STEP
    stop = start + cells
    quantities = (*PRICE_AND_VOLUME, *TRADES) if trades else PRICE_AND_VOLUME
    found: dict[str, Array] = {}
    for name in quantities:
        found |= _quantity(on, name, start, stop, cells)
    found |= _prices(on, start, stop, cells)
    found |= _shape(on, start, stop, cells, trades=trades)
    found |= _clock(begins)
    return {name: np.nan_to_num(values).astype(np.float32) for name, values in found.items()}


def _quantity(on: Tape, name: str, start: NDArray[np.int64], stop: NDArray[np.int64], cells: int) -> dict[str, Array]:
    """One quantity of the chunk and of the chunks together with it, against its means and its peaks before."""
    cumulated = on.sums[name]
    now = _window(cumulated, stop, cells)
    history = _window(cumulated, start, HISTORY_SECONDS // STEP)
    chunks = HISTORY_SECONDS // STEP / cells
    active = np.maximum(_window(on.sums["active"], start, HISTORY_SECONDS // STEP), 1.0)
    # A tenth of an active bar's usual, so that ratios of next to nothing to nothing stay small.
    floor = 0.1 * history / active + 1e-9
    found = {f"{name}_usual": np.log(history / chunks + 1e-9), f"{name}_now": np.log1p(now / (10.0 * floor))}
    for seconds in _MEANS:
        mean = _window(cumulated, start, seconds // STEP) / (seconds / STEP / cells)
        found[f"{name}_mean_{seconds}"] = np.log((now + floor) / (mean + floor))
    sliding = cumulated[cells:] - cumulated[:-cells]
    for seconds in _PEAKS:
        # sliding[i] ends before cell i + cells: the last one that has ended by `start` is at start - cells.
        peak = _peak_before(sliding, seconds // STEP)[np.maximum(start - cells, 0)]
        found[f"{name}_peak_{seconds}"] = np.log((now + floor) / (np.maximum(peak, 0.0) + floor))
    for many in _SUMS:
        together = _window(cumulated, stop, many * cells)
        mean = _window(cumulated, stop - many * cells, _DAY // STEP) / (_DAY / STEP / (many * cells))
        found[f"{name}_sum_{many}"] = np.log((together + floor) / (mean + floor))
        found[f"{name}_share_{many}"] = (now + 1e-12) / (together + 1e-9)
    highest = _peak_before(on.values[name], cells)[stop - 1]
    found[f"{name}_burst"] = highest / (now + 1e-9)
    found[f"{name}_late"] = on.values[name][stop - 1] / (now + 1e-9)
    days_before = sum(_window(cumulated, start - (day * _DAY - _HOUR) // STEP, 2 * _HOUR // STEP) for day in (1, 2))
    hour = _window(cumulated, stop, _HOUR // STEP)
    found[f"{name}_hour_of_day"] = np.log((hour + floor) / (days_before / 4.0 + floor))
    return found


def _prices(on: Tape, start: NDArray[np.int64], stop: NDArray[np.int64], cells: int) -> dict[str, Array]:
    """Moves of the price, in usual moves of the chunk and as they are."""
    steps = np.diff(on.close, prepend=on.close[0])
    squared = np.concatenate([[0.0], np.cumsum(steps**2)])
    usual = np.sqrt(_window(squared, start, _USUAL_SECONDS // STEP) / (_USUAL_SECONDS / STEP / cells)) + 1e-4
    close, before = on.close[stop - 1], on.close[start - 1]
    top, bottom = _peak_before(on.high, cells)[stop - 1], _dip_before(on.low, cells)[stop - 1]
    first = on.opened[start]
    found = {
        "usual_move": np.log(usual),
        "tick": np.log(_SATOSHI) - close,
        "move": close - before,
        "move_z": (close - before) / usual,
        "gap_z": (first - before) / usual,
        "top_z": (top - before) / usual,
        "top": top - before,
        "bottom_z": (bottom - before) / usual,
        "close_location": (close - bottom) / np.maximum(top - bottom, 1e-9) - 0.5,
        "last_step_z": (close - on.close[stop - 2]) / usual,
        "largest_step_z": _peak_before(steps, cells)[stop - 1] / usual,
    }
    for many in _SUMS:
        found[f"move_{many}_z"] = (close - on.close[stop - 1 - many * cells]) / (usual * np.sqrt(many))
        found[f"before_{many}_z"] = (before - on.close[start - 1 - many * cells]) / (usual * np.sqrt(many))
    moves = on.close[cells:] - on.close[:-cells]
    for seconds in _MOVES:
        past = on.close[start - 1 - seconds // STEP]
        found[f"before_{seconds}"] = before - past
        highest = _peak_before(on.high, seconds // STEP)[start - 1]
        lowest = _dip_before(on.low, seconds // STEP)[start - 1]
        found[f"over_high_{seconds}"] = top - highest
        found[f"over_low_{seconds}"] = before - lowest
        found[f"move_over_peak_{seconds}_z"] = (
            close - before - _peak_before(moves, seconds // STEP)[start - 1 - cells]
        ) / usual
    return found


def _shape(
    on: Tape, start: NDArray[np.int64], stop: NDArray[np.int64], cells: int, *, trades: bool
) -> dict[str, Array]:
    """What the chunk is made of: takers' side, sizes, and how much the price gave way."""
    volume = _window(on.sums["volume"], stop, cells)
    day = _DAY // STEP
    daily = _window(on.sums["volume"], start, day)
    path = _window(on.sums["path"], stop, cells)
    found = {
        "impact": np.log((path + 1e-4) / (volume + 1e-4)),
        "impact_ratio": np.log((path + 1e-4) / (volume + 1e-4))
        - np.log((_window(on.sums["path"], start, day) + 1e-4) / (daily + 1e-4)),
        "quiet": np.log1p((start - 1 - _last_active(on)[start - 1]).astype(np.float64)),
    }
    if trades:
        count = _window(on.sums["trades"], stop, cells)
        for many in (1, 2, 12):
            part = _window(on.sums["volume"], stop, many * cells)
            found[f"buy_share_{many}"] = (_window(on.sums["bought"], stop, many * cells) + 1e-9) / (part + 2e-9)
        found["buy_share_day"] = (_window(on.sums["bought"], start, day) + 1e-9) / (daily + 2e-9)
        found["buys_share"] = _window(on.sums["buys"], stop, cells) / np.maximum(count, 1.0)
        size = np.log((volume + 1e-6) / np.maximum(count, 1.0))
        found["trade_size"] = size
        found["trade_size_ratio"] = size - np.log(
            (daily + 1e-6) / np.maximum(_window(on.sums["trades"], start, day), 1)
        )
        found["rush_a_buy"] = _window(on.sums["rush"], stop, cells) / np.maximum(
            _window(on.sums["buys"], stop, cells), 1.0
        )
        found["net_bought_ratio"] = (2.0 * _window(on.sums["bought"], stop, cells) - volume) / (
            daily / (day / cells) + 1e-6
        )
    return found


def _last_active(on: Tape) -> NDArray[np.int64]:
    """Index of the last cell with trades at or before each."""
    return np.maximum.accumulate(np.where(on.values["active"] > 0, np.arange(len(on.close)), 0))


def _clock(begins: NDArray[np.int64]) -> dict[str, Array]:
    """Time of day and place within round times: pumps are announced for full hours and half hours."""
    day = 2 * np.pi * (begins % _DAY) / _DAY
    hour = 2 * np.pi * (begins % _HOUR) / _HOUR
    found = {
        "day_sin": np.sin(day),
        "day_cos": np.cos(day),
        "hour_sin": np.sin(hour),
        "hour_cos": np.cos(hour),
    }
    for seconds in (_MINUTE, 5 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE, _HOUR):
        # Centred: a begin shortly before the round time is close to it, too.
        found[f"round_{seconds}"] = ((begins + seconds // 2) % seconds - seconds // 2).astype(np.float64)
    return found
