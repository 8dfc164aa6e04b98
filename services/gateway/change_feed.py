"""Following the change log: every watcher of this process, from where it left off, without gap or repeat."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from services.domain.alert import AlertChange
from services.domain.errors import UNUSABLE, DependencyUnavailableError
from services.gateway.ports import AlertQuery, Store
from services.runtime.stopping import stopped_within

POLL_SECONDS = 0.2
"""How often other replicas' commits are looked for; this one's wake the watchers at once."""

_PAGE = 256


class ChangeFeed:
    """Reads the store's change log for any number of watchers, each at its own pace."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._woken = asyncio.Event()
        self._ended = False

    def wake(self) -> None:
        """Let every watcher look again: something was committed."""
        self._woken.set()
        self._woken = asyncio.Event()

    def woken(self) -> asyncio.Event:
        """Set at the next `wake`. Take it before reading, so that no commit in between is missed."""
        return self._woken

    async def follow(self, draining: asyncio.Event) -> None:
        """Wake the watchers when another replica commits, and end them once `draining` is set."""
        known = 0
        while not draining.is_set():
            with suppress(*UNUSABLE):  # health says so; here it is only asked again
                last = await asyncio.to_thread(self._store.last_change)
                if last != known:
                    known = last
                    self.wake()
            await stopped_within(POLL_SECONDS, draining)
        self._ended = True
        self.wake()

    async def watch(
        self, query: AlertQuery, after: int, heartbeat_seconds: float
    ) -> AsyncIterator[tuple[int, AlertChange | None]]:
        """The changes after a sequence, then live.

        Yields (sequence, change) for a change that matches, and (sequence, None) as a heartbeat: first of all, and
        whenever `heartbeat_seconds` passed without anything else. Either way everything that matches up to `sequence`
        has been yielded then, so that watching after it goes on without gap or repeat.

        Raises: DependencyUnavailableError when the server drains or the store is away.
        """
        loop = asyncio.get_running_loop()
        yield after, None
        due = loop.time() + heartbeat_seconds
        while True:
            woken = self._woken  # taken before reading: a commit between reading and waiting is not missed
            changes = await asyncio.to_thread(self._store.changes_after, after, _PAGE)
            for change in changes:
                after = change.sequence
                if query.matches(change.alert):
                    yield after, change
                    due = loop.time() + heartbeat_seconds
            if self._ended:
                raise DependencyUnavailableError("gateway", "this server is going away: go on with the resume_token")
            if loop.time() >= due:
                yield after, None
                due = loop.time() + heartbeat_seconds
            if len(changes) < _PAGE:
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), max(0.0, due - loop.time()))
