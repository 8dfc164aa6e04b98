"""Where an archive lies decides how it is read: the one door to every reader of this package."""

import logging
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np

from services.archive import bars, bokeh, csv_bars, lake, parquet_bars
from services.archive.bars import Bars
from services.archive.benchmark import benchmarks
from services.archive.errors import unreadable
from services.archive.filesystem import SCHEMES
from services.archive.lake_stream import LakeStream
from services.archive.problems import Problem, by_kind, joined, listed, several_currencies
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
    with one time the last file's counts; a history with several currencies is left out. Folders in a folder are not
    read. What was left out is added to `problems`, or logged when that is None. Bars whose length no column states have
    the usual distance of their symbol's bars.

    `growing`, for files that are still being written, has the symbols' lengths in seconds as far as they were found
    before: a length once found stays. It is not guessed from a single bar, unless all other symbols have one length. A
    CSV file's last line counts then once its newline is there.

    Raises: InvalidRequestError when there is nothing to use, naming the file; NotConfiguredError as `check`.
    """
    found = [] if problems is None else problems
    parts = _with_lengths(location, _read(location, found, growing is not None), growing, found)
    history = [part.bars for part in parts]
    if not history and growing is None:
        raise unreadable(location, f"holds nothing usable: {joined(found)}")
    if problems is None:
        for words, _ in by_kind(found):
            _log.warning("%s", words)
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


class _Part(NamedTuple):
    """Bars with the names of the files that they are of."""

    bars: Bars
    files: tuple[str, ...]


def _read(location: str, problems: list[Problem], growing: bool) -> list[_Part]:
    if location == bokeh.LOCATION:
        return [_Part(part, (location,)) for part in bokeh.read()]
    check(location)
    if is_lake(location):
        return [_Part(part, (location,)) for part in lake.read(location, problems=problems)]
    path = Path(location)
    readers = _GROWING_READERS if growing else _READERS
    if path.is_file():
        return [_Part(part, (path.name,)) for part in readers[path.suffix.lower()](path, problems)]
    folders = "" if growing else _unread_folders(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in readers and file.is_file())
    if not files:
        raise unreadable(path, f"is a folder without CSV or Parquet files{folders and f'; {folders}'}")
    parts: list[_Part] = []
    refused: list[tuple[Path, str]] = []
    for file in files:
        try:
            parts += [_Part(part, (file.name,)) for part in readers[file.suffix.lower()](file, problems)]
        except InvalidRequestError as error:
            why = "; ".join(violation.description.removeprefix(f"{file} ") for violation in error.violations)
            refused.append((file, why))
    if not parts:
        clauses = joined(f"{file.name} {why}" for file, why in refused)
        raise unreadable(path, f"holds nothing usable: {clauses}{folders and f'; {folders}'}")
    if folders:
        problems.append(Problem(f"{path}:", folders))
    problems += [Problem(str(file), f"{why}; left out", kind="a file left out") for file, why in refused]
    return _joined(location, parts, problems)


def _unread_folders(path: Path) -> str:
    """Says which folders in a folder hold bars; empty when none does."""
    found = []
    for folder in sorted(path.iterdir()):
        with suppress(OSError):  # one that may not be looked at
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            if lake.is_lake(str(folder)) or any(file.suffix.lower() in _READERS for file in folder.iterdir()):
                found.append(folder)
    if len(found) == 1:
        return f"its folder {found[0].name} is not read: name it, as {found[0]}"
    names = listed([folder.name for folder in found])
    return f"its folders {names} are not read: name one of them, such as {found[0]}" if found else ""


def is_lake(location: str) -> bool:
    """Whether the location is a lake, or a tape of it: its root, its `quotes` folder, or either on an object store."""
    place, _ = lake.split_tape(location)
    return "://" in place or (Path(place).is_dir() and lake.is_lake(place))


def _with_lengths(
    location: str, parts: list[_Part], growing: Mapping[str, int] | None, problems: list[Problem]
) -> list[_Part]:
    """The bars, each series joined, with the lengths that no column states."""
    lengths = {} if growing is None else dict(growing)
    for part, _ in parts:
        if not part.interval_seconds and part.symbol not in lengths and (growing is None or len(part) > 1):
            lengths[part.symbol] = bars.usual_interval(part.event_time)
    usual = set(lengths.values())
    complete = []
    for part, files in parts:
        if part.interval_seconds:
            complete.append(_Part(part, files))
        elif part.symbol in lengths or len(usual) == 1:
            length = lengths.get(part.symbol) or max(usual)
            complete.append(_Part(replace(part, interval_seconds=length), files))
        else:
            problems.append(
                Problem(
                    location,
                    "waits for its second bar, which tells the bars' length; "
                    "a column interval_seconds says it from the first",
                    part.symbol,
                )
            )
    return _joined(location, complete, problems)


def _joined(location: str, parts: list[_Part], problems: list[Problem]) -> list[_Part]:
    """One part a series; a series with several currencies is left out."""
    series: dict[tuple[str, int], list[_Part]] = defaultdict(list)
    for part in parts:
        series[part.bars.symbol, part.bars.interval_seconds].append(part)
    joined = []
    for (symbol, _), own in sorted(series.items()):
        first = {part.bars.currency: part.files[0] for part in reversed(own)}
        if len(first) > 1:
            named = [f"{currency or 'none'} ({file})" for currency, file in sorted(first.items())]
            problems.append(several_currencies(location, symbol, named))
        else:
            joined.append(own[0] if len(own) == 1 else _join(location, own, problems))
    return joined


def _join(location: str, parts: list[_Part], problems: list[Problem]) -> _Part:
    times = np.concatenate([part.bars.event_time for part in parts])
    order = np.argsort(times, kind="stable")
    again = times[order][1:] == times[order][:-1]
    if again.any():
        owner = np.repeat(np.arange(len(parts)), [len(part.bars) for part in parts])[order]
        owners = np.unique(np.concatenate([owner[:-1][again], owner[1:][again]]))
        files = listed(list(dict.fromkeys(file for i in owners for file in parts[i].files)))
        what = f"has {int(again.sum()):,} of its times in several files ({files}); the last file's bars count"
        kind = "has bars of one time in several files; the last file's count"
        problems.append(Problem(location, what, parts[0].bars.symbol, kind))
    order = order[np.append(~again, True)]
    names = ("open", "high", "low", "close", "volume", "split_ratio")
    columns = {name: np.concatenate([getattr(part.bars, name) for part in parts])[order] for name in names}
    files_of_all = tuple(dict.fromkeys(file for part in parts for file in part.files))
    return _Part(replace(parts[-1].bars, event_time=times[order], **columns), files_of_all)


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
    the bundled tape its own, and carry what the market, and the symbol's peers beside it, did where the archive knows
    it (see `benchmark`; `sectors` are by symbol).

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
