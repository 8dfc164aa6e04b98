"""From a table of rows to bars: the one set of rules for what a CSV or Parquet file may hold.

A file that lacks a column or has no usable row is refused. Otherwise what is good is used, and each thing that is not
is named in `problems`:
- a row without a time, or with a price that is missing, no number, not positive or outside low to high, is left out;
- of rows of one symbol and time the last one counts; rows out of order are sorted;
- a volume that is missing, no number or negative counts as 0, which the features treat as missing;
- a symbol without a usable row, or with several currencies, is left out.
"""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.archive.bars import Bars, causal_split_ratio
from services.archive.errors import unreadable
from services.archive.problems import Problem

PRICES = ("open", "high", "low", "close")
NUMBERS = (*PRICES, "volume", "adj_close", "split_ratio", "interval_seconds")
TIMES = ("event_time", "timestamp", "time", "date")
_TIME = pa.timestamp("us", "UTC")
_ROUNDING = 1e-9
"""Adjusted prices are products: a close may lie above its high by this fraction without meaning anything."""

Columns = dict[str, NDArray[np.float64]]


def column_name(name: str) -> str:
    """A column's name as these readers know it: "Adj Close" is adj_close."""
    return name.strip().lower().replace(" ", "_").removeprefix("\ufeff")


def bars_of(
    table: pa.Table,
    path: Path,
    problems: list[Problem],
    *,
    numbers: NDArray[np.int64] | None = None,
    symbol: str | None = None,
) -> list[Bars]:
    """The table's bars, by symbol and interval, which is 0 where no column states it.

    Args:
        table: The rows.
        path: The file, for messages.
        problems: Takes what was left out, and why.
        numbers: int64 (rows,), by which a reader finds each row in the file; from 1 without.
        symbol: Whose rows they are; None where a column says it.

    Raises:
        InvalidRequestError: The file cannot be used at all.
    """
    if numbers is None:
        numbers = np.arange(1, table.num_rows + 1)
    table = table.rename_columns([column_name(str(name)) for name in table.column_names])
    names = set(table.column_names)
    moment = next((name for name in TIMES if name in names), None)
    missing = [name for name in (*PRICES, "volume") if name not in names]
    if "symbol" not in names and symbol is None:
        missing.insert(0, "symbol")
    if moment is None:
        missing.append("date or timestamp")
    if missing or moment is None:
        raise unreadable(path, f"lacks the column(s) {', '.join(missing)}")
    if table.num_rows == 0:
        raise unreadable(path, "holds no rows")

    times = _times(table.column(moment), path)
    columns = {name: _numbers(table.column(name)) for name in NUMBERS if name in names}
    if symbol is None:
        symbols, codes = _codes(table.column("symbol"), path)
    else:
        symbols, codes = [symbol], np.zeros(table.num_rows, dtype=np.int64)
    currencies, currency_codes = (
        _codes(table.column("currency"), path)
        if "currency" in names
        else ([""], np.zeros(table.num_rows, dtype=np.int64))
    )
    history = []
    # One stable sort, so that a big file is not searched once per symbol.
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(symbols) + 1))
    for code, name in enumerate(symbols):
        rows = order[bounds[code] : bounds[code + 1]]
        report = _Report(path, name, problems, numbers)
        used = sorted({currencies[i] for i in np.unique(currency_codes[rows])})
        if len(used) > 1:
            report.all(rows, f"is left out: it has the currencies {', '.join(used)}")
            continue
        history += _symbol_bars(name, used[0] if used else "", times[rows], columns, rows, report)
    if not history:
        raise unreadable(path, f"holds no usable row: {problems[-1] if problems else 'all are empty'}")
    return history


class _Report:
    """Says what is wrong with one symbol's rows, once a kind, with the first row's number."""

    def __init__(self, path: Path, symbol: str, problems: list[Problem], numbers: NDArray[np.int64]) -> None:
        self._path = path
        self._symbol = symbol
        self._problems = problems
        self._numbers = numbers

    def all(self, rows: NDArray[np.int64], what: str) -> None:
        """Something about the symbol."""
        self._problems.append(Problem(f"{self._path}, row {self._numbers[rows[0]]}", what, self._symbol))

    def some(self, rows: NDArray[np.int64], bad: NDArray[np.bool_], what: str) -> None:
        """Something about the rows that are `bad`."""
        count = int(bad.sum())
        if count:
            first = self._numbers[rows[bad].min()]
            more = f" (and {count - 1:,} more)" if count > 1 else ""
            self._problems.append(Problem(f"{self._path}, row {first}{more}", what, self._symbol))


def _symbol_bars(
    symbol: str,
    currency: str,
    times: NDArray[np.datetime64],
    columns: Columns,
    rows: NDArray[np.int64],
    report: _Report,
) -> list[Bars]:
    values = {name: column[rows] for name, column in columns.items()}
    good = _good_rows(times, values)
    report.some(rows, ~good, "has no usable time and prices; left out")
    if not good.any():
        report.all(rows, "is left out: none of its rows is usable")
        return []
    times, rows = times[good], rows[good]
    values = {name: column[good] for name, column in values.items()}
    report.some(rows[1:], times[1:] < times[:-1], "is not in order of time; sorted")
    stated = values.get("interval_seconds")
    interval = np.zeros(len(times)) if stated is None else np.where(np.isfinite(stated), stated, 0)
    history = []
    for seconds in np.unique(interval):
        chosen = np.flatnonzero(interval == seconds)
        chosen = chosen[np.argsort(times[chosen], kind="stable")]
        last = np.append(times[chosen][1:] != times[chosen][:-1], True)
        report.some(rows[chosen], ~last, "has a later row of the same time; that one counts")
        chosen = chosen[last]
        part = {name: column[chosen] for name, column in values.items()}
        history.append(_bars(symbol, currency, int(seconds), times[chosen], part))
    return history


def _good_rows(times: NDArray[np.datetime64], values: Columns) -> NDArray[np.bool_]:
    prices = np.stack([values[name] for name in PRICES])
    opened, high, low, close = prices
    slack = _ROUNDING * np.abs(close)
    good: NDArray[np.bool_] = (
        ~np.isnat(times)
        & np.isfinite(prices).all(axis=0)
        & (prices > 0).all(axis=0)
        & (high + slack >= np.maximum(opened, close))
        & (low - slack <= np.minimum(opened, close))
    )
    return good


def _bars(symbol: str, currency: str, interval: int, times: NDArray[np.datetime64], values: Columns) -> Bars:
    opened, high, low, close = (values[name] for name in PRICES)
    if "split_ratio" in values:
        ratio = values["split_ratio"]
    elif "adj_close" in values:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = causal_split_ratio(close, values["adj_close"])
    else:
        ratio = np.full(len(times), np.nan)
    volume = values["volume"]
    return Bars(
        symbol=symbol,
        interval_seconds=interval,
        event_time=times,
        open=opened,
        high=np.maximum(high, np.maximum(opened, close)),
        low=np.minimum(low, np.minimum(opened, close)),
        close=close,
        volume=np.where(np.isfinite(volume) & (volume > 0), volume, 0.0),
        split_ratio=np.where(np.isfinite(ratio) & (ratio > 0), ratio, np.nan),
        currency=currency,
    )


def _times(column: "pa.ChunkedArray[Any]", path: Path) -> NDArray[np.datetime64]:
    """Times in UTC, NaT for what is none; those without an offset are read as UTC."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.array([_time(text) for text in column.to_pylist()], "M8[us]")
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise unreadable(path, f"holds {column.type} where times should be")
    naive = column if pa.types.is_timestamp(column.type) else column.cast(pa.timestamp("us"))
    zoned = naive.cast(_TIME, safe=False) if naive.type.tz else naive.cast(pa.timestamp("us"), safe=False)
    return np.asarray(zoned.to_numpy()).astype("datetime64[us]")


def _time(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None


def _numbers(column: "pa.ChunkedArray[Any]") -> NDArray[np.float64]:
    """The column as float64, NaN for what is no number."""
    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except (pa.ArrowException, ValueError):
        return np.array([_number(value) for value in column.to_pylist()])


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _codes(column: "pa.ChunkedArray[Any]", path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts of a column, sorted, and each row's place in them."""
    try:
        encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    except pa.ArrowException as error:
        raise unreadable(path, f"holds no texts where names should be: {error}") from error
    texts = ["" if text is None else str(text) for text in encoded.dictionary.to_pylist()]
    codes = np.asarray(encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False), dtype=np.int64)
    distinct, places = np.unique([*texts, ""], return_inverse=True)
    used, compact = np.unique(places[codes], return_inverse=True)
    return [str(distinct[i]) for i in used], compact
