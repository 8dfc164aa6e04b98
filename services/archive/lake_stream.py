"""A lake's quotes for a replay, in bounded memory: slice by slice of event time.

A quote's event_time is part of its identity, so that each slice is made unique and sorted by itself. Three passes read
columns only as far as they need them: how many rows each minute has, from which the slices follow; how many quotes each
slice has; and, as they are taken, the quotes.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.archive import lake
from services.archive.errors import unreadable
from services.domain.quote import Quote

_T = TypeVar("_T")
SLICE_ROWS: Final = 25_000
"""Rows that a slice has at most, unless one minute has more: about 10 MB, and as much again while it is sorted."""

_READ_ROWS = 8_192
_OBJECT_ROWS = 1_000
_MINUTE_US = 60_000_000
_MERGE_MINUTES = 200_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ORDER: list[tuple[str, Any]] = [
    ("event_time", "ascending"),
    ("symbol", "ascending"),
    ("revision", "ascending"),
    ("sequence", "ascending"),
]


@dataclass(frozen=True, slots=True)
class _Span:
    """Part of the tape in one file: its first and last event_time, microseconds since 1970."""

    path: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class _Slice:
    """Event times from `first` to before `end`, microseconds since 1970, and the quotes in it."""

    first: int
    end: int
    total: int = 0


class _Minutes:
    """How many rows each minute has."""

    def __init__(self) -> None:
        self._minutes: list[NDArray[np.int64]] = []
        self._rows: list[NDArray[np.int64]] = []
        self._waiting = 0

    def add(self, microseconds: NDArray[np.int64]) -> None:
        minutes, rows = np.unique(microseconds // _MINUTE_US, return_counts=True)
        self._minutes.append(minutes)
        self._rows.append(rows)
        self._waiting += len(minutes)
        if self._waiting > _MERGE_MINUTES:
            self._waiting = -len(self.merged()[0])  # what is merged waits for as many as it has itself

    def merged(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The minutes in order, and their rows."""
        minutes, which = np.unique(np.concatenate(self._minutes), return_inverse=True)
        rows = np.bincount(which, weights=np.concatenate(self._rows)).astype(np.int64)
        self._minutes, self._rows = [minutes], [rows]
        return minutes, rows


@dataclass(slots=True)
class _Tape:
    """What one look at all files found of a tape."""

    minutes: _Minutes = field(default_factory=_Minutes)
    spans: list[_Span] = field(default_factory=list)
    symbols: set[str] = field(default_factory=set)


class LakeStream:
    """The quotes of one tape as they were ingested, in order of event_time, then symbol and revision, each once.

    The order, and so the position of each quote, is that of `lake.read_quotes`. What the lake gets later is not seen.

    Attributes:
        total: Quotes of the symbols from `start` to before `end`.
        symbols: The tape's symbols, whether asked for or not.

    Raises: InvalidRequestError as `lake.read_table`, also while quotes are taken. Reading blocks.
    """

    def __init__(
        self,
        location: str,
        tape: str = "",
        *,
        symbols: Collection[str] = (),
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> None:
        if not tape:
            location, tape = lake.split_tape(location)
        self._filesystem, paths = lake.open_parts(location)
        self._wanted = pa.array(sorted(symbols), pa.string()) if symbols else None
        self._first = None if start is None else _microseconds(start)
        self._end = None if end is None else _microseconds(end)
        tapes = self._survey(paths)
        self._tape = lake.choose_tape(location, tape, sorted(tapes))
        found = tapes[self._tape]
        self.symbols: Collection[str] = found.symbols
        self._spans = found.spans
        self._slices = [self._counted(each) for each in _slices(*found.minutes.merged())] if found.spans else []
        self.total = sum(each.total for each in self._slices)

    def quotes(self, first_row: int = 0) -> Iterator[Quote]:
        """The quotes from the row on, 0 the first."""
        skip = first_row
        for each in self._slices:
            if skip >= each.total:
                skip -= each.total
                continue
            table = self._load(each, lake.INGESTED).sort_by(_ORDER).select(lake.INGESTED).slice(skip)
            skip = 0
            for batch in table.to_batches(max_chunksize=_OBJECT_ROWS):
                for row in batch.to_pylist():
                    yield Quote(**row)

    def _survey(self, paths: list[str]) -> dict[str, _Tape]:
        tapes: dict[str, _Tape] = {}
        for path in paths:
            for name, times, symbols in self._read(path, ["tape", "symbol", "event_time"], _by_tape):
                tape = tapes.setdefault(name, _Tape())
                tape.symbols.update(map(str, symbols.unique().to_pylist()))
                keep = np.ones(len(times), dtype=bool)
                if self._first is not None:
                    keep &= times >= self._first
                if self._end is not None:
                    keep &= times < self._end
                if self._wanted is not None:
                    keep &= pc.is_in(symbols, value_set=self._wanted).to_numpy(zero_copy_only=False)
                if len(times := times[keep]):
                    tape.minutes.add(times)
                    tape.spans.append(_Span(path, int(times.min()), int(times.max())))
        return tapes

    def _counted(self, part: _Slice) -> _Slice:
        return _Slice(part.first, part.end, self._load(part, []).num_rows)

    def _load(self, part: _Slice, names: list[str]) -> pa.Table:
        """The slice's rows, each quote once: its lowest sequence."""
        first = part.first if self._first is None else max(part.first, self._first)
        end = part.end if self._end is None else min(part.end, self._end)
        wanted = (
            (pc.field("tape") == self._tape)
            & (pc.field("event_time") >= _moment(first))
            & (pc.field("event_time") < _moment(end))
        )
        if self._wanted is not None:
            wanted &= pc.field("symbol").isin(self._wanted)
        paths = dict.fromkeys(span.path for span in self._spans if span.first < end and span.last >= first)
        columns = list(dict.fromkeys(["tape", "symbol", "event_time", "quote_id", "sequence", *names]))
        kept = [table for path in paths for table in self._read(path, columns, lambda rows: [rows.filter(wanted)])]
        table = pa.concat_tables(kept).sort_by("sequence")
        _, lowest = np.unique(table["quote_id"].to_numpy(), return_index=True)
        return table.take(np.sort(lowest))

    def _read(self, path: str, columns: list[str], use: Callable[[pa.Table], list[_T]]) -> Iterator[_T]:
        """What `use` makes of the file's rows, some thousand at a time. Raises: InvalidRequestError naming the file."""
        try:
            with self._filesystem.open_input_file(path) as source:
                file = pq.ParquetFile(source)
                lake.check_columns(file.schema_arrow.names)
                there = [name for name in columns if name in file.schema_arrow.names]
                for batch in file.iter_batches(_READ_ROWS, columns=there):
                    yield from use(lake.with_schema(pa.Table.from_batches([batch]), columns))
        except (pa.ArrowException, KeyError, OSError) as error:
            raise unreadable(path, f"is not a part of a lake: {error}") from error


def _by_tape(table: pa.Table) -> "list[tuple[str, NDArray[np.int64], pa.ChunkedArray[Any]]]":
    found = []
    for name in table["tape"].unique().to_pylist():
        rows = table.filter(pc.field("tape") == name)
        found.append((str(name), rows["event_time"].cast(pa.int64()).to_numpy(), rows["symbol"]))
    return found


def _slices(minutes: NDArray[np.int64], rows: NDArray[np.int64]) -> list[_Slice]:
    """Slices of whole minutes."""
    found, first, held = [], int(minutes[0]), 0
    for minute, more in zip(minutes.tolist(), rows.tolist(), strict=True):
        if held and held + more > SLICE_ROWS:
            found.append(_Slice(first * _MINUTE_US, minute * _MINUTE_US))
            first, held = minute, 0
        held += more
    return [*found, _Slice(first * _MINUTE_US, (int(minutes[-1]) + 1) * _MINUTE_US)]


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _moment(microseconds: int) -> "pa.Scalar[Any]":
    return pa.scalar(microseconds, pa.timestamp("us", tz="UTC"))
