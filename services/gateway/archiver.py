"""The lake's writer: what the store recorded, in order, in few large parts."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.domain.errors import UNUSABLE, ConflictError, DependencyUnavailableError
from services.gateway.ports import Lake, Store
from services.runtime.backoff import pause_seconds
from services.runtime.stopping import stopped_within

QUOTES = "quotes"
CHANGES = "changes"
_LOOK_SECONDS = 1.0
_READ_ROWS = 1_000
HEALTH_SERVICE_LAKE = "tapewatch.gateway.lake"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Stream:
    """One of the store's streams: its last sequence, its next rows after a sequence, and its way into the lake."""

    name: str
    last: Callable[[], int]
    read: Callable[[int, int], Sequence[Any]]
    write: Callable[[Sequence[Any]], None]


class Archiver:
    """Writes quotes and alert changes to the lake.

    The end of a part is noted in the store before the part is written, and again after: a writer killed in between, or
    another gateway's archiver at the same time, writes the same part under the same name with the same rows. Nothing is
    lost and nothing is there twice.

    Args:
        store: Where the streams come from, and where their progress is kept.
        lake: Where the parts go.
        flush_rows: Rows in a full part.
        flush_seconds: Longest time that a row waits for its part to fill.
        on_health: Told after each attempt why the lake cannot be written; nothing when it can.
    """

    def __init__(
        self,
        store: Store,
        lake: Lake,
        flush_rows: int,
        flush_seconds: float,
        on_health: Callable[[str], None] = lambda problem: None,
    ) -> None:
        self._store = store
        self._lake = lake
        self._on_health = on_health
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._streams = (
            _Stream(QUOTES, store.last_quote, store.quotes_after, lake.write_quotes),
            _Stream(CHANGES, store.last_change, store.changes_after, lake.write_changes),
        )

    async def run(self, draining: asyncio.Event) -> None:
        """Write parts as they fill, and every `flush_seconds` what waits, until `draining` is set.

        The lake is checked first, and while it fails: what waits for a part to fill must not hide that.
        """
        loop = asyncio.get_running_loop()
        flushed = loop.time()
        failures = 0
        checked = False
        while not draining.is_set():
            partial = loop.time() - flushed >= self._flush_seconds
            try:
                if not checked:
                    await asyncio.to_thread(self._lake.check)
                    checked = True
                await asyncio.to_thread(self.write, partial)
                if partial:
                    flushed = loop.time()
                failures = 0
                self._on_health("")
            except UNUSABLE as error:
                failures += 1
                checked = False
                self._on_health(error.message)
                _log.warning("the lake waits: %s", error.message)
                await stopped_within(pause_seconds(error, failures), draining)
            await stopped_within(_LOOK_SECONDS, draining)

    def write(self, partial: bool) -> int:
        """Write every full part, and with `partial` what is left. Returns the rows written.

        Raises: DependencyUnavailableError; what was written stays written.
        """
        return sum(self._write_stream(stream, partial) for stream in self._streams)

    def _write_stream(self, stream: _Stream, partial: bool) -> int:
        written = 0
        while True:
            progress = self._store.archived(stream.name)
            end = progress.pending
            if end is None:
                waiting = stream.last() - progress.last
                if waiting == 0 or (waiting < self._flush_rows and not partial):
                    return written
                end = progress.last + min(waiting, self._flush_rows)
                try:
                    self._store.begin_part(stream.name, progress.last, end)
                except ConflictError:
                    continue  # another gateway began one: write that one
            rows = self._read(stream, progress.last, end)
            stream.write(rows)
            self._store.end_part(stream.name, end)
            written += len(rows)

    def _read(self, stream: _Stream, after: int, last: int) -> list[Any]:
        """All the rows after one sequence up to another.

        Raises: DependencyUnavailableError when one is not there: the part waits, whole, until it is. A read from
        several replicas may miss it for a moment; a store that has lost it needs repair.
        """
        rows: list[Any] = []
        while (place := after + len(rows)) < last:
            found = stream.read(place, min(_READ_ROWS, last - place))
            if not found or found[-1].sequence != place + len(found):
                raise DependencyUnavailableError(
                    "store", f"the {stream.name} after sequence {place:,}, up to {last:,}, are not all there"
                )
            rows += found
        return rows
