"""Where an archive lies decides how it is read: the one door to every reader of this package."""

import logging
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote, urlsplit

import numpy as np

from services.archive import bars, bokeh, csv_bars, lake, parquet_bars
from services.archive.bars import Bars
from services.archive.benchmark import benchmarks
from services.archive.errors import unreadable
from services.archive.filesystem import SCHEMES
from services.archive.lake_stream import LakeStream
from services.archive.problems import Problem
from services.domain.errors import InvalidRequestError, shown
from services.domain.quote import Quote, format_time

_log = logging.getLogger(__name__)
SOURCE: Final = "archive"
"""The source of quotes whose location does not name one."""

_Reader = Callable[[Path, list[Problem]], list[Bars]]
_READERS: dict[str, _Reader] = {".csv": csv_bars.read, ".parquet": parquet_bars.read, ".pq": parquet_bars.read}
_GROWING_READERS = _READERS | {".csv": partial(csv_bars.read, growing=True)}
_LONGEST_LOCATION: Final = 4_096
"""Characters; Linux's longest path."""


def read(
    location: str, problems: list[Problem] | None = None, *, growing: Mapping[str, int] | None = None
) -> list[Bars]:
    """The bars at a location, by symbol: `bokeh`, a CSV file, a Parquet file, a folder of either, or a lake.

    A file in a folder that cannot be used is left out; histories of one symbol in several files are joined, and of bars
    with one time the last file's counts. What was left out is added to `problems`, or logged when that is None. Bars
    whose length no column states have the usual distance of their symbol's bars.

    `growing`, for files that are still being written, has the symbols' lengths in seconds as far as they were found
    before: a length once found stays. It is not guessed from a single bar, unless all other symbols have one length. A
    CSV file's last line counts then once its newline is there.

    Raises: InvalidRequestError when there is nothing to use, naming the file; NotConfiguredError as `check`.
    """
    found = [] if problems is None else problems
    history = _with_lengths(location, _read(location, found, growing is not None), growing, found)
    if problems is None:
        for problem in found:
            _log.warning("%s", problem)
    return history


def check(location: str, symbols: Collection[str] = ()) -> None:
    """A quick look without reading; an object store is not asked, and of symbols only the bundled tape's are known.

    Raises: InvalidRequestError when there is nothing at the location, or something else than a regular file or a
    folder, or when its URI's scheme is none of those that lakes lie on, or when a symbol is not there;
    NotConfiguredError when the bundled tape is not installed.
    """
    if location == bokeh.LOCATION:
        bokeh.check_installed()
        _check_symbols(location, set(symbols), set(bokeh.SYMBOLS))
        return
    if len(location) > _LONGEST_LOCATION:
        raise unreadable(shown(location), f"is longer than {_LONGEST_LOCATION:,} characters")
    place, tape = lake.split_tape(location)
    try:
        if tape and not is_lake(place):
            place = location  # only lakes have tapes
    except OSError as error:
        raise unreadable(shown(location), f"may not be looked at ({error.strerror})") from error
    path = Path(place)
    if "://" in place:
        parts = urlsplit(place)
        if parts.scheme not in SCHEMES:
            raise unreadable(shown(location), f"has none of the schemes {', '.join(SCHEMES)}")
        if parts.scheme != "file":
            return
        path = Path(unquote(parts.path))
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero character
        raise unreadable(shown(location), f"does not exist ({bokeh.LOCATION!r} is the bundled tape)") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise unreadable(shown(location), "is neither a regular file nor a folder")
    if stat.S_ISREG(mode) and path.suffix.lower() not in _READERS:
        raise unreadable(shown(location), f"is none of {', '.join(sorted(_READERS))}")


def _read(location: str, problems: list[Problem], growing: bool) -> list[Bars]:
    if location == bokeh.LOCATION:
        return bokeh.read()
    check(location)
    if is_lake(location):
        return lake.read(location, problems=problems)
    path = Path(location)
    readers = _GROWING_READERS if growing else _READERS
    if path.is_file():
        return readers[path.suffix.lower()](path, problems)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in readers and file.is_file())
    if not files:
        raise unreadable(path, "is a folder without CSV or Parquet files")
    history: list[Bars] = []
    refused: list[InvalidRequestError] = []
    for file in files:
        try:
            history += readers[file.suffix.lower()](file, problems)
        except InvalidRequestError as error:
            refused.append(error)
            problems += [
                Problem(
                    str(file), f"{violation.description.removeprefix(f'{file} ')}; left out", kind="a file left out"
                )
                for violation in error.violations
            ]
    if not history:
        raise refused[0]
    return _joined(history)


def is_lake(location: str) -> bool:
    """Whether the location is a lake, or a tape of it: its root, its `quotes` folder, or either on an object store."""
    place, _ = lake.split_tape(location)
    return "://" in place or (Path(place).is_dir() and lake.is_lake(place))


def _with_lengths(
    location: str, history: list[Bars], growing: Mapping[str, int] | None, problems: list[Problem]
) -> list[Bars]:
    """The bars, each series joined, with the lengths that no column states."""
    lengths = {} if growing is None else dict(growing)
    for part in history:
        if not part.interval_seconds and part.symbol not in lengths and (growing is None or len(part) > 1):
            lengths[part.symbol] = bars.usual_interval(part.event_time)
    usual = set(lengths.values())
    complete = []
    for part in history:
        if part.interval_seconds:
            complete.append(part)
        elif part.symbol in lengths or len(usual) == 1:
            length = lengths.get(part.symbol) or max(usual)
            complete.append(replace(part, interval_seconds=length))
        else:
            problems.append(
                Problem(
                    location,
                    "waits for its second bar, which tells the bars' length; "
                    "a column interval_seconds says it from the first",
                    part.symbol,
                )
            )
    return _joined(complete)


def _joined(history: list[Bars]) -> list[Bars]:
    series: dict[tuple[str, int], list[Bars]] = defaultdict(list)
    for part in history:
        series[part.symbol, part.interval_seconds].append(part)
    return [_join(parts) for _, parts in sorted(series.items())]


def _join(parts: list[Bars]) -> Bars:
    if len(parts) == 1:
        return parts[0]
    times = np.concatenate([part.event_time for part in parts])
    order = np.argsort(times, kind="stable")
    order = order[np.append(times[order][1:] != times[order][:-1], True)]
    names = ("open", "high", "low", "close", "volume", "split_ratio")
    columns = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in names}
    return replace(parts[-1], event_time=times[order], **columns)


def quotes(
    location: str,
    *,
    tape: str,
    symbols: Collection[str] = (),
    start: datetime | None = None,
    end: datetime | None = None,
    first_row: int = 0,
    problems: list[Problem] | None = None,
    sectors: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, Iterator[Quote]]:
    """How many quotes a location holds from `start` to before `end`, and these on `tape`, from `first_row` on.

    They are in order of event_time, then of symbol. A lake's are read as they are taken, which blocks and may raise
    InvalidRequestError then, too; they keep their source and all their fields. Others have the source `archive`, and
    the bundled tape its own, and carry what the market, and the symbol's peers, did where the archive knows it (see
    `benchmark`; `sectors` are by symbol).

    Raises: InvalidRequestError as `read`, and when a symbol is not there, or no quote in that time.
    """
    wanted = set(symbols)
    check(location)
    if is_lake(location):
        stream = LakeStream(location, symbols=wanted, start=start, end=end)
        _check_symbols(location, wanted, set(stream.symbols))
        _check_any(location, stream.total, start, end)
        kept = (
            replace(quote, tape=tape, ingest_time=None, batch_id="", traceparent="")
            for quote in stream.quotes(first_row)
        )
        return stream.total, kept
    everything = read(location, problems)
    # Of all symbols and times: a replay of some of them sees the same market.
    market = benchmarks(everything, sectors)
    history = [part for part in everything if not wanted or part.symbol in wanted]
    _check_symbols(location, wanted, {part.symbol for part in history})
    source = bokeh.SOURCE if location == bokeh.LOCATION else SOURCE
    stamped = bars.quotes(
        history, tape=tape, source=source, benchmark=lambda part: market[part.interval_seconds].beside(part)
    )
    all_times = np.concatenate([part.event_time for part in history])
    before = 0 if start is None else int((all_times < _datetime64(start)).sum())
    until = len(all_times) if end is None else int((all_times < _datetime64(end)).sum())
    total = max(0, until - before)
    _check_any(location, total, start, end)
    return total, islice(stamped, before + first_row, until)


def _datetime64(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def _check_any(location: str, total: int, start: datetime | None, end: datetime | None) -> None:
    if not total and (start or end):
        since = f" from {format_time(start)}" if start else ""
        until = f" before {format_time(end)}" if end else ""
        raise unreadable(location, f"holds no quotes{since}{until}")


def _check_symbols(location: str, wanted: set[str], found: set[str]) -> None:
    if missing := sorted(wanted - found):
        raise unreadable(location, f"does not hold {', '.join(missing)}")
