"""The lake: every scored quote in Parquet, as the gateway writes it and as replay and training read it.

Layout under the lake's root: `quotes/dt=YYYY-MM-DD/part-<first>-<last>.parquet`. `dt` is the UTC day of record_time,
`first` and `last` are the lowest and highest sequence in the part (12 digits); rows are sorted by symbol, then
event_time. A name follows from the content, so writing a part twice is harmless.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from services.archive.bars import Bars
from services.archive.errors import unreadable
from services.archive.filesystem import explain, open_filesystem
from services.archive.problems import Problem, joined, several_currencies
from services.domain.errors import NotConfiguredError
from services.domain.quote import CANARY_TAPE, LIVE_TAPE, TAPE_PATTERN, Quote
from services.domain.score import RecordedQuote

FOLDER = "quotes"
_TIME = pa.timestamp("us", tz="UTC")
_REASON = pa.struct(
    [
        ("feature", pa.string()),
        ("value", pa.float64()),
        ("usual_low", pa.float64()),
        ("usual_high", pa.float64()),
        ("contribution", pa.float64()),
        ("text", pa.string()),
    ]
)
_QUOTE_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("quote_id", pa.string(), nullable=False),
    pa.field("tape", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("symbol", pa.string(), nullable=False),
    pa.field("interval_seconds", pa.int32(), nullable=False),
    pa.field("event_time", _TIME, nullable=False),
    pa.field("revision", pa.int32(), nullable=False),
    pa.field("open", pa.float64(), nullable=False),
    pa.field("high", pa.float64(), nullable=False),
    pa.field("low", pa.float64(), nullable=False),
    pa.field("close", pa.float64(), nullable=False),
    pa.field("volume", pa.float64(), nullable=False),
    pa.field("previous_close", pa.float64()),
    pa.field("currency", pa.string(), nullable=False),
    pa.field("trades", pa.int64()),
    pa.field("buy_volume", pa.float64()),
    pa.field("split_ratio", pa.float64()),
    pa.field("benchmark_return", pa.float64()),
    pa.field("benchmark_volume_ratio", pa.float64()),
    pa.field("peer_return", pa.float64()),
    pa.field("peer_volume_ratio", pa.float64()),
    pa.field("ingest_time", _TIME),
    pa.field("batch_id", pa.string(), nullable=False),
    pa.field("traceparent", pa.string(), nullable=False),
]
_SCORE_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("ensemble", pa.float64(), nullable=False),
    pa.field("threshold", pa.float64(), nullable=False),
    pa.field("detection", pa.bool_(), nullable=False),
    pa.field("model_version", pa.string(), nullable=False),
    pa.field("feature_hash", pa.string(), nullable=False),
    pa.field("score_time", _TIME, nullable=False),
    pa.field("autoencoder_percentile", pa.float64()),
    pa.field("classifier_probability", pa.float64()),
    pa.field("typology", pa.string(), nullable=False),
    pa.field("typology_confidence", pa.float64(), nullable=False),
    pa.field("reasons", pa.list_(_REASON), nullable=False),
    pa.field("quality", pa.list_(pa.string()), nullable=False),
    pa.field("history_quotes", pa.int32(), nullable=False),
]
SCHEMA = pa.schema(
    [
        *_QUOTE_FIELDS,
        *_SCORE_FIELDS,
        pa.field("record_time", _TIME, nullable=False),
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("alert_id", pa.string(), nullable=False),
    ]
)
"""Prices in the instrument's currency, volumes in shares, times UTC; typology and quality by their names."""

INGESTED: Final = [field.name for field in _QUOTE_FIELDS if field.name != "quote_id"]
"""The columns that make a Quote; its identity follows from them."""

_REASON_NAMES = [_REASON.field(i).name for i in range(_REASON.num_fields)]
_ORDER: list[tuple[str, Literal["ascending", "descending"]]] = [
    ("symbol", "ascending"),
    ("event_time", "ascending"),
    ("revision", "ascending"),
    ("sequence", "ascending"),
]


def _row(recorded: RecordedQuote) -> dict[str, Any]:
    quote, score = recorded.scored.quote, recorded.scored.score
    row: dict[str, Any] = {field.name: getattr(quote, field.name) for field in _QUOTE_FIELDS}
    row |= {field.name: getattr(score, field.name) for field in _SCORE_FIELDS}
    row["typology"] = score.typology.name
    row["reasons"] = [{name: getattr(reason, name) for name in _REASON_NAMES} for reason in score.reasons]
    row["quality"] = [quality.name for quality in score.quality]
    return row | {
        "record_time": recorded.record_time,
        "sequence": recorded.sequence,
        "alert_id": recorded.alert_id,
    }


def to_table(recorded: Sequence[RecordedQuote]) -> pa.Table:
    """The quotes as rows of SCHEMA, sorted by symbol, then event_time."""
    return pa.Table.from_pylist([_row(item) for item in recorded], schema=SCHEMA).sort_by(_ORDER)


def part_path(day: str, first: int, last: int, folder: str = FOLDER) -> str:
    """Where a part lies under the lake's root.

    >>> part_path("2026-11-20", 1, 5000)
    'quotes/dt=2026-11-20/part-000000000001-000000005000.parquet'
    """
    return f"{folder}/dt={day}/part-{first:012d}-{last:012d}.parquet"


def parts(recorded: Sequence[RecordedQuote]) -> dict[str, pa.Table]:
    """The quotes as the parts to write: path under the lake's root to rows; one part per UTC day of record_time."""
    by_day: dict[str, list[RecordedQuote]] = defaultdict(list)
    for item in recorded:
        by_day[item.record_time.astimezone(UTC).date().isoformat()].append(item)
    return {
        part_path(day, min(i.sequence for i in items), max(i.sequence for i in items)): to_table(items)
        for day, items in by_day.items()
    }


def _open(location: str) -> tuple[fs.FileSystem, str]:
    """The file system and the folder with the `dt=` folders, for a lake's root or that folder itself."""
    filesystem, root = open_filesystem(location)
    below = f"{root}/{FOLDER}"
    is_root = filesystem.get_file_info(below).type == fs.FileType.Directory
    return filesystem, below if is_root else root


def split_tape(location: str) -> tuple[str, str]:
    """The lake, and the tape in it that `LAKE#TAPE` names; an empty one where it names none.

    >>> split_tape("s3://bucket/lake#run-1"), split_tape("s3://bucket/lake")
    (('s3://bucket/lake', 'run-1'), ('s3://bucket/lake', ''))
    """
    place, mark, tape = location.rpartition("#")
    named = mark and TAPE_PATTERN.fullmatch(tape) and not os.path.exists(location)
    return (place, tape) if named else (location, "")


def is_lake(location: str) -> bool:
    """Whether the folder, or `quotes` in it, holds `dt=` folders."""
    filesystem, folder = _open(location)
    infos = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return any(info.type == fs.FileType.Directory and info.base_name.startswith("dt=") for info in infos)


def part_paths(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """The finished parts below a folder, in order."""
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(info.path for info in infos if info.base_name.endswith(".parquet"))


def open_parts(location: str) -> tuple[fs.FileSystem, list[str]]:
    """The lake's file system and finished parts. Raises: InvalidRequestError when it cannot be read, or has none."""
    try:
        filesystem, folder = _open(location)
        paths = part_paths(filesystem, folder)
    except (OSError, NotConfiguredError) as error:
        raise unreadable(location, f"cannot be read: {explain(error, location)}") from error
    if not paths:
        raise unreadable(location, "holds no parts of a lake (quotes/dt=…/part-….parquet)")
    return filesystem, paths


def choose_tape(location: str, tape: str, tapes: Sequence[str]) -> str:
    """The tape, or the one of the lake's that an empty name means (`read_table`).

    Raises: InvalidRequestError when it is not there or not clear.
    """
    if not tape:
        others = [name for name in tapes if name != CANARY_TAPE]  # canaries are no market
        if LIVE_TAPE not in others and len(others) > 1:
            names = ", ".join(tapes)
            raise unreadable(
                location, f"holds the tapes {names} and not {LIVE_TAPE}: name one, as {location}#{others[0]}"
            )
        tape = LIVE_TAPE if LIVE_TAPE in others or not others else others[0]
    if tape not in tapes:
        raise unreadable(location, f"does not hold the tape {tape}, but {', '.join(tapes) or 'none'}")
    return tape


def read_table(location: str, tape: str = "") -> pa.Table:
    """The rows of one tape in order of symbol and event_time, each quote once: its lowest sequence.

    `tape` empty means the one of `LAKE#TAPE` (`split_tape`), else `live`, or the lake's only one beside `canary`.

    Raises: InvalidRequestError when there are no parts, one is damaged, or the tape is not there or not clear.
    """
    if not tape:
        location, tape = split_tape(location)
    filesystem, paths = open_parts(location)
    tables = []
    for path in paths:
        try:
            # ParquetFile, not read_table: the latter would add dt from the path.
            with filesystem.open_input_file(path) as source:
                tables.append(with_schema(pq.ParquetFile(source).read()))
        except (pa.ArrowException, KeyError, OSError) as error:
            raise unreadable(path, f"is not a part of a lake: {error}") from error
    table = pa.concat_tables(tables)
    tapes = sorted(str(name) for name in table["tape"].unique().to_pylist())
    tape = choose_tape(location, tape, tapes)
    table = table.filter(pc.field("tape") == tape).sort_by("sequence")
    _, first = np.unique(table["quote_id"].to_numpy(), return_index=True)
    return table.take(np.sort(first)).sort_by(_ORDER)


def check_columns(names: Sequence[str]) -> None:
    """Raises: KeyError naming a column that no row can be without, and that a part has not."""
    for field in SCHEMA:
        if not field.nullable and field.name not in names:
            raise KeyError(field.name)


def with_schema(table: pa.Table, names: Sequence[str] = SCHEMA.names) -> pa.Table:
    """The columns as SCHEMA has them. One that a part lacks, as it is older than the column, is unknown throughout.

    Raises: KeyError when it is one that no row can be without.
    """
    schema = pa.schema([SCHEMA.field(name) for name in names])
    for field in schema:
        if field.nullable and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


def read_quotes(location: str, tape: str = "") -> list[Quote]:
    """The quotes of one tape as they were ingested, in order of event_time, then symbol and revision.

    Raises: InvalidRequestError as `read_table`.
    """
    rows = read_table(location, tape).select(INGESTED).to_pylist()
    found = [Quote(**row) for row in rows]
    return sorted(found, key=lambda quote: (quote.event_time, quote.symbol, quote.revision))


def read(location: str, tape: str = "", problems: list[Problem] | None = None) -> list[Bars]:
    """The bars of one tape, one history per symbol and interval; of a revised bar the newest revision.

    Where two sources have one symbol and interval, the longer history is used; a history with several currencies is
    left out; `problems` says so.

    Raises: InvalidRequestError as `read_table`, and when no history is left.
    """
    series: dict[tuple[str, int], dict[str, dict[Any, Quote]]] = defaultdict(lambda: defaultdict(dict))
    for quote in read_quotes(location, tape):
        series[quote.symbol, quote.interval_seconds][quote.source][quote.event_time] = quote
    found: list[Problem] = [] if problems is None else problems
    history = []
    for (symbol, interval_seconds), sources in sorted(series.items()):
        source = max(sources, key=lambda name: (len(sources[name]), name))
        if len(sources) > 1:
            others = ", ".join(sorted(set(sources) - {source}))
            found.append(Problem(location, f"has several sources; {source} is used, {others} not", symbol))
        bars = list(sources[source].values())
        currencies = sorted({quote.currency for quote in bars} - {""})  # a feed may leave one out now and then
        if len(currencies) > 1:
            found.append(several_currencies(location, symbol, currencies))
            continue
        history.append(_bars(symbol, interval_seconds, bars))
    if not history:
        raise unreadable(location, f"holds nothing usable: {joined(found)}")
    return history


def _bars(symbol: str, interval_seconds: int, quotes: Sequence[Quote]) -> Bars:
    def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([getattr(quote, name) for quote in quotes], dtype=np.float64)

    times = [quote.event_time.astimezone(UTC).replace(tzinfo=None) for quote in quotes]
    return Bars(
        symbol=symbol,
        interval_seconds=interval_seconds,
        event_time=np.array(times, dtype="datetime64[us]"),
        open=column("open"),
        high=column("high"),
        low=column("low"),
        close=column("close"),
        volume=column("volume"),
        split_ratio=column("split_ratio"),
        currency=quotes[-1].currency,
    )
