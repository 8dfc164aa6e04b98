"""Waiting that a drain cuts short."""

import asyncio


async def stopped_within(seconds: float, stop: asyncio.Event) -> bool:
    """Sleep, but no longer than until `stop` is set. Whether it is set."""
    if seconds > 0 and not stop.is_set():
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            pass
    return stop.is_set()
