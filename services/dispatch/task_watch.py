"""Watching the ledger: which batches are open, and what becomes of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.dispatch.batch import Entry, id_before
from services.dispatch.ports import Ledger
from services.runtime.stopping import stopped_within

POLL_SECONDS = 0.5
_OVERLAP = timedelta(seconds=30)
"""How far back a poll looks for batches that came and went: further than dispatchers' clocks are apart."""

_PAGE = 200


@dataclass(frozen=True, slots=True)
class Synchronized:
    """All batches that were open at the beginning have been told."""

    open_batches: int


WatchEvent = Entry | Synchronized | None


async def watch(
    ledger: Ledger,
    heartbeat_seconds: float,
    draining: asyncio.Event,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncIterator[WatchEvent]:
    """The open batches, `Synchronized`, then every change that a poll finds; None when nothing changed for long.

    Ends once `draining` is set. Raises: DependencyUnavailableError when the ledger is away.
    """
    began = clock()
    told: dict[str, Entry] = {}
    for entry in await asyncio.to_thread(ledger.open):
        told[entry.id] = entry
        yield entry
    yield Synchronized(len(told))
    silent_since = asyncio.get_running_loop().time()
    floor = id_before(began)
    while not await stopped_within(POLL_SECONDS, draining):
        polled = clock()
        changed = await asyncio.to_thread(_changed, ledger, told, floor)
        for entry in changed:
            told[entry.id] = entry
            yield entry
        floor = max(id_before(began), id_before(polled - _OVERLAP))
        told = {entry_id: entry for entry_id, entry in told.items() if entry.open or entry_id >= floor}
        now = asyncio.get_running_loop().time()
        if changed:
            silent_since = now
        elif now - silent_since >= heartbeat_seconds:
            silent_since = now
            yield None


def _changed(ledger: Ledger, told: dict[str, Entry], floor: str) -> list[Entry]:
    """The entries that are not as they were told, in order of their ids."""
    found = {entry.id: entry for entry in ledger.open()}
    for entry_id, entry in told.items():
        if entry.open and entry_id not in found and (ended := ledger.get(entry_id)) is not None:
            found[entry_id] = ended
    before = ""
    while page := ledger.list(_PAGE, before):
        found |= {entry.id: entry for entry in page if entry.id >= floor and entry.id not in found}
        before = page[-1].id
        if before < floor:
            break
    return [found[i] for i in sorted(found) if i not in told or found[i].version != told[i].version]
