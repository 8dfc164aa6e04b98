"""An archive as a source: its quotes once, from a row on, at a multiple of the speed at which they were printed."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from types import MappingProxyType

from services.archive import location as archive
from services.domain.quote import Quote, Series
from services.ingest.ports import SourceBatch
from services.runtime.stopping import stopped_within


class ArchiveSource:
    """A `QuoteSource` over a location of `services.archive`. `speed` 0 means as fast as the reader takes it.

    `start` and `end` bound the event times: from the one, to before the other; `sectors` are by symbol.

    Raises: InvalidRequestError when there is nothing usable at the location. Reading it blocks: make it in a thread.
    """

    def __init__(
        self,
        location: str,
        *,
        tape: str,
        stop: asyncio.Event,
        symbols: Sequence[str] = (),
        start: datetime | None = None,
        end: datetime | None = None,
        first_row: int = 0,
        speed: float = 0.0,
        batch_quotes: int = 250,
        sectors: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.total, self._rest = archive.quotes(
            location, tape=tape, symbols=symbols, start=start, end=end, first_row=first_row, sectors=sectors
        )
        self._stop = stop
        self._speed = speed
        self._batch_quotes = batch_quotes

    @property
    def expected(self) -> Sequence[Series]:
        """None: a replay ends, and is not missed."""
        return ()

    async def batches(self) -> AsyncIterator[SourceBatch]:
        """Quotes in batches, each when its quotes are due, until the end or until `stop` is set.

        Raises: InvalidRequestError when a lake cannot be read on.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        first = None
        batch: list[Quote] = []
        async for quote in self._read():
            first = quote.event_time if first is None else first
            elapsed = (quote.event_time - first).total_seconds()
            due = started + elapsed / self._speed if self._speed > 0 else 0.0
            if batch and (len(batch) >= self._batch_quotes or due > clock()):
                yield SourceBatch(batch)
                batch = []
            if await stopped_within(due - clock(), self._stop):
                return
            batch.append(quote)
        if batch:
            yield SourceBatch(batch)

    async def _read(self) -> AsyncIterator[Quote]:
        """The quotes, read in threads: a lake's are not in memory."""
        while quotes := await asyncio.to_thread(list, islice(self._rest, self._batch_quotes)):
            for quote in quotes:
                yield quote
