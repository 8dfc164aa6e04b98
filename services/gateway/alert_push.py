"""Pushing the change log to subscribers elsewhere: in order, each change at least once, by one gateway at a time.

The push is a hint that saves polling. It runs beside recording, never in its way: when the receiving end is away, the
position waits in the store, recording goes on, and health and metrics say so.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Protocol

from opentelemetry import metrics

from services.domain.alert import AlertChange
from services.domain.errors import UNUSABLE, ConflictError, DependencyUnavailableError
from services.gateway.change_feed import POLL_SECONDS, ChangeFeed
from services.gateway.ports import AlertQuery, Store
from services.runtime import telemetry_names as names
from services.runtime.backoff import backoff_seconds
from services.runtime.stopping import stopped_within

STREAM = "push"
HEALTH_SERVICE_PUSH = "tapewatch.gateway.push"
TAKE_OVER_SECONDS = 15.0
"""A part that another gateway began and has not ended for so long is pushed by this one."""

_BEGUN = "push begun"
_PART_CHANGES = 100
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_log = logging.getLogger(__name__)


class AlertPublisher(Protocol):
    """Where changes are pushed to."""

    def publish(self, changes: Sequence[AlertChange]) -> int:
        """Push changes of one tape and symbol, in order. Returns how many were refused for good.

        Raises: DependencyUnavailableError when the same push may succeed later, NotConfiguredError when somebody has
        to do something first. Some of the changes may have been pushed by then.
        """
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class AlertPush:
    """Pushes what the change log gains, from where the last gateway left off; at first from the log's end.

    Args:
        store: The change log, and where the position is kept.
        feed: Tells when to look.
        publisher: Where changes go. Canaries go nowhere: they page nobody.
        on_health: Told after each part why pushing does not work; nothing when it does.
    """

    def __init__(
        self, store: Store, feed: ChangeFeed, publisher: AlertPublisher, on_health: Callable[[str], None]
    ) -> None:
        self._store = store
        self._feed = feed
        self._publisher = publisher
        self._on_health = on_health
        self._wanted = AlertQuery()
        self._taken = 0
        """End of the part that is this gateway's to push."""
        self._batches: deque[list[AlertChange]] | None = None
        """What of it has not been pushed; None before it was read."""
        self._foreign: tuple[int, float] | None = None
        """End of another gateway's part, and when it was first seen."""
        meter = metrics.get_meter("tapewatch")
        self._pushed = meter.create_counter(names.ALERTS_PUSHED, unit="{change}")
        self._failures = meter.create_counter(names.PUSH_FAILURES, unit="{failure}")
        self._behind = meter.create_gauge(names.PUSH_BEHIND, unit="{change}")

    async def run(self, draining: asyncio.Event) -> None:
        """Push until `draining` is set."""
        loop = asyncio.get_running_loop()
        failures = 0
        # A thread of its own: a receiver that answers slowly must not hold up the store's reads.
        with ThreadPoolExecutor(1, thread_name_prefix="alert-push") as thread:
            while not draining.is_set():
                woken = self._feed.woken()
                try:
                    more = await loop.run_in_executor(thread, self.push, loop.time())
                except UNUSABLE as error:
                    failures += 1
                    self._failures.add(1)
                    self._on_health(error.message)
                    pause = backoff_seconds(failures, _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
                    _log.warning("alerts are recorded and not pushed, next attempt in %.1f s: %s", pause, error.message)
                    await stopped_within(pause, draining)
                    continue
                if failures:
                    _log.info("alerts are pushed again")
                failures = 0
                self._on_health("")
                if not more:
                    await stopped_within(POLL_SECONDS if self._foreign else 5 * POLL_SECONDS, woken)

    def push(self, now: float) -> bool:
        """Push the next part. Whether there may be more.

        Raises: DependencyUnavailableError, NotConfiguredError; what was pushed of the part is not pushed again by this
        gateway.
        """
        end = self._take(now)
        if end is None:
            return False
        if self._batches is None:
            after = self._store.archived(STREAM).last
            changes = self._store.changes_after(after, end - after)
            if not changes or changes[-1].sequence != end:
                raise DependencyUnavailableError("store", f"the changes up to {end:,} are not all there")
            wanted = [change for change in changes if self._wanted.matches(change.alert)]
            self._batches = deque(by_series(wanted))
        while self._batches:
            batch = self._batches[0]
            refused = self._publisher.publish(batch)
            if refused:
                _log.error("%d changes of %s were refused, and are not pushed", refused, batch[0].alert.symbol)
                self._pushed.add(refused, {"outcome": "refused"})
            self._pushed.add(len(batch) - refused, {"outcome": "delivered"})
            self._batches.popleft()
        self._store.end_part(STREAM, end)
        self._taken, self._batches = 0, None
        behind = max(0, self._store.last_change() - end)
        self._behind.set(behind)
        return behind > 0

    def _take(self, now: float) -> int | None:
        """The end of the part that this gateway is to push; None when there is none."""
        progress = self._store.archived(STREAM)
        if progress.pending is None:
            self._taken, self._batches, self._foreign = 0, None, None
            if self._store.archived(_BEGUN).last == 0:
                self._begin_at_the_end(progress.last)
                progress = self._store.archived(STREAM)
            last = self._store.last_change()
            self._behind.set(max(0, last - progress.last))
            if last <= progress.last:
                return None
            end = min(last, progress.last + _PART_CHANGES)
            try:
                self._store.begin_part(STREAM, progress.last, end)
            except ConflictError:
                return None  # another gateway's: look again
            self._taken = end
            return end
        self._behind.set(max(0, self._store.last_change() - progress.last))  # a push that fails must not look like none
        if progress.pending != self._taken:
            self._batches = None
            if self._foreign is None or self._foreign[0] != progress.pending:
                self._foreign = progress.pending, now
            if now - self._foreign[1] < TAKE_OVER_SECONDS:
                return None
            self._taken = progress.pending
        self._foreign = None
        return self._taken

    def _begin_at_the_end(self, after: int) -> None:
        """Skip what was recorded before pushing was ever turned on: nobody waits for a hint of it."""
        last = self._store.last_change()
        try:
            if last > after:
                self._store.begin_part(STREAM, after, last)
                self._store.end_part(STREAM, last)
            self._store.begin_part(_BEGUN, 0, 1)
            self._store.end_part(_BEGUN, 1)
        except ConflictError:
            return


def by_series(changes: Sequence[AlertChange]) -> list[list[AlertChange]]:
    """The changes by tape and symbol, each in order of sequence."""

    def series(change: AlertChange) -> tuple[str, str]:
        return change.alert.tape, change.alert.symbol

    return [list(group) for _, group in groupby(sorted(changes, key=series), key=series)]
