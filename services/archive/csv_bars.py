"""CSV files of bars, in either of two forms.

- Kaggle's "Stock Market Dataset": one file per symbol, named after it, with Date, Open, High, Low, Close, Adj Close and
  Volume. Yahoo's prices there are adjusted for splits already; Adj Close tells the dividends.
- Any other: symbol, timestamp (or date), open, high, low, close, volume, and where known adj_close, split_ratio,
  interval_seconds, currency. Times without an offset are read as UTC.
"""

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from services.archive.bars import Bars
from services.archive.errors import unreadable
from services.archive.problems import Problem
from services.archive.table_bars import NUMBERS, bars_of, column_name

_HEADER_ROWS = 1


def read(path: Path, problems: list[Problem] | None = None, *, growing: bool = False) -> list[Bars]:
    """The file's bars by symbol, ordered by time; `table_bars` has the rules, `problems` what they left out.

    Rows are numbered as in an editor: the header is row 1. Of a `growing` file a last line without a newline is left
    out: its writer may be half-way through it.

    Raises: InvalidRequestError when the file is not CSV, is empty, or lacks a column; the message names it, and the row
    where there is one.
    """
    try:
        content = _whole_lines(path) if growing else None
        with path.open("rb") if content is None else io.BytesIO(content) as file:
            header = next(csv.reader(io.TextIOWrapper(file, newline="", encoding="utf-8-sig")), None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, f"is not a readable CSV file: {error}") from error
    if not header:
        raise unreadable(path, "is empty")
    known = {name: column_name(name) for name in header}
    ragged: list[int] = []

    def parse(numbers: pa.DataType) -> pa.Table:
        ragged.clear()

        def skip(row: pacsv.InvalidRow) -> Literal["skip"]:
            ragged.append(row.number or 0)  # numbered, because one thread reads
            return "skip"

        return pacsv.read_csv(
            path if content is None else io.BytesIO(content),
            read_options=pacsv.ReadOptions(use_threads=False, column_names=header, skip_rows=_HEADER_ROWS),
            parse_options=pacsv.ParseOptions(invalid_row_handler=skip),
            convert_options=pacsv.ConvertOptions(
                column_types={
                    name: numbers if known[name] in NUMBERS else pa.string()
                    for name in header
                    if known[name] in (*NUMBERS, "symbol", "currency")
                },
                null_values=["", "null", "NaN", "nan", "None"],
            ),
        )

    try:
        try:
            table = parse(pa.float64())
        except pa.ArrowInvalid:  # something is no number: slower, and only its row is left out
            table = parse(pa.string())
    except pa.ArrowException as error:
        raise unreadable(path, f"is not a readable CSV file: {error}") from error
    problems = [] if problems is None else problems
    if ragged:
        more = f" (and {len(ragged) - 1:,} more)" if len(ragged) > 1 else ""
        problems.append(
            Problem(
                f"{path}, row {ragged[0]}{more}:",
                f"has not the header's {len(header)} columns; left out",
                kind="has not the header's columns; left out",
            )
        )
    rows = np.arange(1 + _HEADER_ROWS, 1 + _HEADER_ROWS + table.num_rows + len(ragged))
    symbol = None if "symbol" in known.values() else path.stem.strip().upper()
    return bars_of(table, path, problems, numbers=rows[~np.isin(rows, ragged)], symbol=symbol)


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
