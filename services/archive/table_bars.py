"""From a table of rows to bars: the one set of rules for what a CSV or Parquet file may hold.

A file that lacks a column or has no usable row is refused. Otherwise what is good is used, and each thing that is not
is named in `problems`:
- a row without a symbol or a time, or with a price that is missing, no number, not positive or outside low to high, is
  left out; symbols are stripped and put into capitals;
- of rows of one symbol and time the last one counts; rows out of order are sorted;
- a volume that is missing, no number or negative counts as 0, which the features treat as missing;
- a symbol without a usable row, or with several currencies (none is one, too), is left out;
- commas between thousands are taken in volumes, and elsewhere with a decimal point only: "1,234" may be 1.234.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.archive.bars import Bars, causal_split_ratio
from services.archive.errors import unreadable
from services.archive.problems import Problem, joined, several_currencies
from services.domain.errors import shown
from services.domain.quote import SYMBOL_PATTERN

PRICES = ("open", "high", "low", "close")
NUMBERS = (*PRICES, "volume", "adj_close", "split_ratio", "interval_seconds")
TIMES = ("event_time", "timestamp", "time", "date")
_TIME = pa.timestamp("us", "UTC")
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(?P<fraction>\.[0-9]*)?")
"""A number with commas between thousands."""

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
    for name, count in Counter(table.column_names).items():
        if count > 1 and name in (*NUMBERS, *TIMES, "symbol", "currency"):
            raise unreadable(path, f"has the column {name} {'twice' if count == 2 else f'{count} times'}")
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
    columns = {name: _numbers(table.column(name), decimal=name != "volume") for name in NUMBERS if name in names}
    if symbol is None:
        symbols, codes = _symbols(table.column("symbol"), path)
    elif not SYMBOL_PATTERN.fullmatch(symbol):
        raise unreadable(path, "has no column symbol, and its name is no symbol")
    else:
        symbols, codes = [symbol], np.zeros(table.num_rows, dtype=np.int64)
    currencies, currency_codes = (
        _codes(table.column("currency"), path)
        if "currency" in names
        else ([""], np.zeros(table.num_rows, dtype=np.int64))
    )
    history = []
    found: list[Problem] = []
    # One stable sort, so that a big file is not searched once per symbol.
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(symbols) + 1))
    for code, name in enumerate(symbols):
        rows = order[bounds[code] : bounds[code + 1]]
        report = _Report(path, name, found, numbers)
        if not SYMBOL_PATTERN.fullmatch(name):
            report.nameless(rows)
            continue
        used = sorted({currencies[i] for i in np.unique(currency_codes[rows])})
        if len(used) > 1:
            report.currencies(rows, used)
            continue
        history += _symbol_bars(name, used[0] if used else "", times[rows], columns, rows, report)
    if not history:
        clauses = [str(problem).removeprefix(f"{path}, ") for problem in found]
        raise unreadable(path, f"holds no usable row: {joined(clauses)}")
    problems += found
    return history


class _Report:
    """Says what is wrong with one symbol's rows, once a kind, with the first row's number."""

    def __init__(self, path: Path, symbol: str, problems: list[Problem], numbers: NDArray[np.int64]) -> None:
        self._path = path
        self._symbol = symbol
        self._problems = problems
        self._numbers = numbers

    def unusable(self, rows: NDArray[np.int64], first: str) -> None:
        """None of the symbol's rows can be used; `first` says why not the first."""
        kind = "is left out: none of its rows is usable"
        self._problems.append(Problem(self._row(rows), f"{kind}; the first {first}", self._symbol, kind))

    def currencies(self, rows: NDArray[np.int64], used: Sequence[str]) -> None:
        """The symbol has several currencies."""
        named = [currency or "none" for currency in used]
        self._problems.append(several_currencies(self._row(rows), self._symbol, named))

    def nameless(self, rows: NDArray[np.int64]) -> None:
        """The symbol is none."""
        what = f"{shown(self._symbol)} is no symbol; left out"
        self._problems.append(Problem(f"{self._row(rows, len(rows))}:", what, kind="no symbol; left out"))

    def some(self, rows: NDArray[np.int64], bad: NDArray[np.bool_], what: str) -> None:
        """Something about the rows that are `bad`."""
        count = int(bad.sum())
        if count:
            self._problems.append(Problem(self._row(np.sort(rows[bad]), count), what, self._symbol))

    def _row(self, rows: NDArray[np.int64], count: int = 1) -> str:
        more = f" (and {count - 1:,} more)" if count > 1 else ""
        return f"{self._path}, row {self._numbers[rows[0]]}{more}"


def _symbol_bars(
    symbol: str,
    currency: str,
    times: NDArray[np.datetime64],
    columns: Columns,
    rows: NDArray[np.int64],
    report: _Report,
) -> list[Bars]:
    values = {name: column[rows] for name, column in columns.items()}
    faults = _faults(times, values)
    good = ~np.logical_or.reduce(list(faults.values()))
    if not good.any():
        report.unusable(rows, next(what for what, bad in faults.items() if bad[0]))
        return []
    for what, bad in faults.items():
        report.some(rows, bad, f"{what}; left out")
    times, rows = times[good], rows[good]
    values = {name: column[good] for name, column in values.items()}
    report.some(rows[1:], times[1:] < times[:-1], "is not in order of time; sorted")
    unknown = ~np.isfinite(values["volume"]) | (values["volume"] < 0)
    report.some(rows, unknown, "has a volume that is missing, no number or negative; counted as 0")
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


def _faults(times: NDArray[np.datetime64], values: Columns) -> dict[str, NDArray[np.bool_]]:
    """What makes rows unusable, and which, bool (n,): each row has at most one fault, its first."""
    prices = np.stack([values[name] for name in PRICES])
    opened, high, low, close = prices
    slack = _ROUNDING * np.abs(close)
    faults = {
        "has no readable time, such as 2020-01-31 or 2020-01-31T14:30:00Z": np.isnat(times),
        "has a price that is missing or no number": ~np.isfinite(prices).all(axis=0),
        "has a price of 0 or less": ~(prices > 0).all(axis=0),
        "has prices outside its low to high": ~(
            (high + slack >= np.maximum(opened, close)) & (low - slack <= np.minimum(opened, close))
        ),
    }
    before = np.zeros(len(times), dtype=np.bool_)
    for what, bad in faults.items():
        faults[what] = bad & ~before
        before |= bad
    return faults


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


def _numbers(column: "pa.ChunkedArray[Any]", *, decimal: bool) -> NDArray[np.float64]:
    """The column as float64, NaN for what is no number; with `decimal`, thousands need a decimal point, too."""
    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except (pa.ArrowException, ValueError):
        return np.array([_number(value, decimal) for value in column.to_pylist()])


def _number(value: object, decimal: bool) -> float:
    if isinstance(value, str) and (grouped := _GROUPED.fullmatch(value.strip())):
        if decimal and not grouped["fraction"]:
            return math.nan
        value = value.replace(",", "")
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _symbols(column: "pa.ChunkedArray[Any]", path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct symbols of a column as `_codes` has them, stripped and in capitals."""
    texts, codes = _codes(column, path)
    distinct, places = np.unique([text.strip().upper() for text in texts], return_inverse=True)
    return [str(text) for text in distinct], places[codes]


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
