"""A CSV file or folder as a live source: what is appended to it is published."""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from services.archive import bars
from services.archive import location as archive
from services.domain.errors import InvalidRequestError, NotConfiguredError
from services.domain.quote import LIVE_TAPE, Quote, Series
from services.ingest.ports import SourceBatch

_log = logging.getLogger(__name__)
SOURCE: Final = "csv"
MAX_BATCH: Final = 500

Stamp = tuple[tuple[str, int, int], ...]


class CsvSource:
    """A `QuoteSource` that reads `path` again whenever it changed and gives the bars after the newest one it gave.

    A last line counts once its newline is there: what was given is published for good. So is the length of a symbol's
    bars, which is part of their identity: where no column states it, it is told by the first two bars.

    `seen` is the newest event_time of each series that was published before. Raises: NotConfiguredError when the path
    does not exist, or holds rows and none that can be used.
    """

    def __init__(
        self, path: Path, interval_seconds: float, seen: Mapping[Series, datetime], symbols: Collection[str] = ()
    ) -> None:
        if not path.exists():
            raise NotConfiguredError(f"{path} does not exist", "set CSV_PATH to a CSV file or folder")
        self._path = path
        self._interval = interval_seconds
        self._seen = dict(seen)
        self._symbols = frozenset(symbols)
        self._series: list[Series] = []
        ordered = sorted(self._seen.items(), key=lambda item: item[1])
        self._lengths = {s.symbol: s.interval_seconds for s, _ in ordered if (s.tape, s.source) == (LIVE_TAPE, SOURCE)}
        try:
            self._read()
        except InvalidRequestError as error:
            if any(file.read_bytes().count(b"\n") > 1 for file in self._files()):
                raise NotConfiguredError(
                    f"the CSV source cannot use its file ({error.message})", "set CSV_PATH to another file"
                ) from error
            _log.warning("the CSV source waits for its first rows: %s", error.message)

    @property
    def expected(self) -> Sequence[Series]:
        """The series that the file was found to hold."""
        return tuple(self._series)

    async def batches(self) -> AsyncIterator[SourceBatch]:
        """New bars after each change of the file, for ever; a broken file is a failure of all its series."""
        stamp: Stamp | None = None
        while True:
            try:
                current = await asyncio.to_thread(self._stamp)
                quotes = await asyncio.to_thread(self._read) if current != stamp else []
                stamp = current
                for start in range(0, max(len(quotes), 1), MAX_BATCH):
                    batch = quotes[start : start + MAX_BATCH]
                    yield SourceBatch(batch)
                    self._seen |= {quote.series: quote.event_time for quote in batch}
            except (InvalidRequestError, OSError) as error:
                _log.warning("the CSV source: %s", error)
                yield SourceBatch((), dict.fromkeys(self._series, str(error)))
            await asyncio.sleep(self._interval)

    def _stamp(self) -> Stamp:
        found = []
        for file in self._files():
            with suppress(FileNotFoundError):  # it is just being replaced
                stat = file.stat()
                found.append((file.name, stat.st_mtime_ns, stat.st_size))
        return tuple(found)

    def _files(self) -> list[Path]:
        files = sorted(self._path.glob("*.csv")) if self._path.is_dir() else [self._path]
        return [file for file in files if file.is_file()]  # a link may lead nowhere

    def _read(self) -> list[Quote]:
        history = [
            b
            for b in archive.read(str(self._path), growing=self._lengths)
            if not self._symbols or b.symbol in self._symbols
        ]
        self._lengths |= {b.symbol: b.interval_seconds for b in history}
        self._series = [Series(LIVE_TAPE, SOURCE, b.symbol, b.interval_seconds) for b in history]
        return [
            quote
            for quote in bars.quotes(history, tape=LIVE_TAPE, source=SOURCE)
            if (seen := self._seen.get(quote.series)) is None or quote.event_time > seen
        ]
