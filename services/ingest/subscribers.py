"""Who listens to quotes as they are accepted: best effort, bounded, never in the way of the queue."""

import asyncio
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from services.domain.quote import Quote

MAX_BEHIND: Final = 10_000
"""Quotes that a subscriber may fall behind before it is given up."""


class Subscription:
    """One listener's quotes. Belongs to one event loop."""

    def __init__(self, symbols: Collection[str], tape: str, max_behind: int) -> None:
        self._symbols = frozenset(symbols)
        self._tape = tape
        self._max_behind = max_behind
        self._waiting: deque[Quote] = deque()
        self._arrived = asyncio.Event()
        self.overrun = False
        """Whether the listener fell too far behind; nothing arrives any more."""

    def offer(self, quotes: Sequence[Quote]) -> None:
        """Take those quotes that the listener asked for."""
        if self.overrun:
            return
        self._waiting.extend(
            quote
            for quote in quotes
            if (not self._symbols or quote.symbol in self._symbols) and (not self._tape or quote.tape == self._tape)
        )
        if len(self._waiting) > self._max_behind:
            self.overrun = True
            self._waiting.clear()
        if self._waiting or self.overrun:
            self._arrived.set()

    async def wait(self) -> None:
        """Wait until quotes are there, or the subscription is overrun."""
        await self._arrived.wait()

    def take(self) -> Quote | None:
        """The next quote, or None when none waits."""
        if self._waiting:
            return self._waiting.popleft()
        if not self.overrun:
            self._arrived.clear()
        return None


class Subscribers:
    """All listeners."""

    def __init__(self, max_behind: int = MAX_BEHIND) -> None:
        self.max_behind = max_behind
        self._subscriptions: set[Subscription] = set()

    def publish(self, quotes: Sequence[Quote]) -> None:
        """Offer the quotes to every listener."""
        for subscription in self._subscriptions:
            subscription.offer(quotes)

    @contextmanager
    def subscribe(self, symbols: Collection[str] = (), tape: str = "") -> Iterator[Subscription]:
        """Listen until the block ends; empty `symbols` and `tape` mean all."""
        subscription = Subscription(symbols, tape, self.max_behind)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
