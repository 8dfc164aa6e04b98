"""Parquet files of bars of many symbols: columns symbol, date or time or timestamp, open, high, low, close, volume.

`adj_close`, where present, gives the ratio of splits and dividends causally (`causal_split_ratio`); without it, and
without `split_ratio`, the ratio is unknown. `interval_seconds` and `currency` are used where present.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from services.archive.bars import Bars
from services.archive.errors import unreadable
from services.archive.problems import Problem
from services.archive.table_bars import bars_of


def read(path: Path, problems: list[Problem] | None = None) -> list[Bars]:
    """The file's bars by symbol, ordered by time; `table_bars` has the rules, `problems` what they left out.

    Raises: InvalidRequestError when the file is not Parquet, is empty, or lacks a column; the message names it.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, f"is not a readable Parquet file: {error}") from error
    return bars_of(table, path, [] if problems is None else problems)
