"""The lake's only writer: what the store recorded, in order, in few large parts."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from services.domain.errors import DependencyUnavailableError
from services.gateway.ports import Lake, Store

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0


class Archiver:
    """Writes quotes and alert changes to the lake.

    The end of a part is noted in the store before the part is written, and again after: a writer killed in between
    writes the same part again, under the same name, with the same rows. Nothing is lost and nothing counted twice.

    Args:
        store: Where the streams come from, and where their progress is kept.
        lake: Where the parts go.
        flush_rows: Most rows in one part.
        flush_seconds: Longest time that a row waits.
    """

    def __init__(self, store: Store, lake: Lake, flush_rows: int, flush_seconds: float) -> None:
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._store = store
        self._streams: dict[
            str, tuple[Callable[[int, int], Sequence[Any]], Callable[[Any], int], Callable[[Sequence[Any]], None]]
        ] = {
            "quotes": (store.quotes_after, lambda recorded: recorded.sequence, lake.write_quotes),
            "changes": (store.changes_after, lambda change: change.sequence, lake.write_changes),
        }

    async def run(self, draining: asyncio.Event) -> None:
        """Write full parts as they fill, and what waits after `flush_seconds` and at the drain."""
        loop = asyncio.get_running_loop()
        flushed = loop.time()
        while not draining.is_set():
            due = loop.time() - flushed >= self._flush_seconds
            if due:
                flushed = loop.time()
            try:
                await asyncio.to_thread(self.write, due)
            except DependencyUnavailableError as error:
                _log.warning("the lake waits: %s", error.message)
            with suppress(TimeoutError):
                await asyncio.wait_for(draining.wait(), _LOOK_SECONDS)

    def write(self, partial: bool) -> int:
        """Write every full part, and with `partial` what is left. Returns the rows written.

        Raises: DependencyUnavailableError; what was written stays written.
        """
        return sum(self._write_stream(name, partial) for name in self._streams)

    def _write_stream(self, name: str, partial: bool) -> int:
        read, sequence, write = self._streams[name]
        total = 0
        while True:
            done, writing = self._store.archived(name)
            rows = read(done, self._flush_rows)
            if writing is not None:
                rows = [row for row in rows if sequence(row) <= writing]
            elif not rows or (len(rows) < self._flush_rows and not partial):
                return total
            else:
                self._store.begin_part(name, sequence(rows[-1]))
            if rows:
                write(rows)
                total += len(rows)
            self._store.end_part(name, sequence(rows[-1]) if rows else done)
