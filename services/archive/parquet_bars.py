"""Parquet files of bars of many symbols: columns symbol, date or time, open, high, low, close, volume.

`adj_close`, where present, gives the ratio of splits and dividends causally (`causal_split_ratio`); without it, and
without `split_ratio`, the ratio is unknown.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.archive.bars import DAY_SECONDS, Bars, causal_split_ratio
from services.domain.errors import FieldViolation, InvalidRequestError

_PRICES = ("open", "high", "low", "close")


def read(path: Path) -> list[Bars]:
    """The file's bars by symbol, ordered by time.

    Bars with a price that is missing, not positive or outside low to high are left out, as the live path refuses them;
    of bars with one time the last one counts.

    Raises:
        InvalidRequestError: The file is not Parquet, is empty, or lacks a column; the message names it.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InvalidRequestError([FieldViolation(str(path), f"is not a readable Parquet file: {error}")]) from error
    names = {str(name).lower(): str(name) for name in table.column_names}
    moment = names.get("time") or names.get("date") or names.get("event_time")
    missing = [name for name in ("symbol", *_PRICES, "volume") if name not in names]
    if missing or moment is None:
        wanted = ", ".join(missing + ([] if moment else ["time or date"]))
        raise InvalidRequestError([FieldViolation(str(path), f"lacks the column(s) {wanted}")])
    if table.num_rows == 0:
        raise InvalidRequestError([FieldViolation(str(path), "holds no rows")])
    encoded = table.column(names["symbol"]).combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    times = table.column(moment).cast(pa.timestamp("us", "UTC") if moment == "time" else pa.timestamp("us"), safe=False)
    event_time = times.to_numpy().astype("datetime64[us]")
    columns = {
        name: np.asarray(table.column(names[name]).to_numpy(), dtype=np.float64)
        for name in (*_PRICES, "volume", "adj_close", "split_ratio")
        if name in names
    }
    order = np.lexsort((event_time, codes))
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    history = []
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        rows = order[start:stop]
        symbol = str(encoded.dictionary[int(codes[rows[0]])].as_py())
        bars = _bars(symbol, event_time[rows], {name: values[rows] for name, values in columns.items()})
        if len(bars):
            history.append(bars)
    return history


def _bars(symbol: str, event_time: NDArray[np.datetime64], columns: dict[str, NDArray[np.float64]]) -> Bars:
    prices = np.stack([columns[name] for name in _PRICES])
    opened, high, low, close = prices
    slack = 1e-9 * np.abs(close)
    good = (
        np.isfinite(prices).all(axis=0)
        & (prices > 0).all(axis=0)
        & (high + slack >= np.maximum(opened, close))
        & (low - slack <= np.minimum(opened, close))
    )
    good[:-1] &= event_time[1:] != event_time[:-1]
    event_time = event_time[good]
    kept = {name: values[good] for name, values in columns.items()}
    if "split_ratio" in kept:
        ratio = kept["split_ratio"]
    elif "adj_close" in kept and len(event_time):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = causal_split_ratio(kept["close"], kept["adj_close"])
        ratio = np.where(np.isfinite(ratio) & (ratio > 0), ratio, np.nan)
    else:
        ratio = np.full(len(event_time), np.nan)
    volume = kept["volume"]
    return Bars(
        symbol=symbol,
        interval_seconds=_interval(event_time),
        event_time=event_time,
        open=kept["open"],
        high=kept["high"],
        low=kept["low"],
        close=kept["close"],
        volume=np.where(np.isfinite(volume) & (volume > 0), volume, 0.0),
        split_ratio=ratio,
    )


def _interval(event_time: NDArray[np.datetime64]) -> int:
    """The bars' length in seconds: the usual distance of neighbours, at most a day."""
    if len(event_time) < 2:
        return DAY_SECONDS
    usual = float(np.median(np.diff(event_time).astype(np.int64))) / 1e6
    return int(min(max(1.0, round(usual)), DAY_SECONDS))
