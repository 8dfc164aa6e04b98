"""Reading the requests of a stream while answers to earlier ones are being made."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

_Request = TypeVar("_Request")


async def read_ahead(
    requests: AsyncIterator[_Request],
    limit: int,
    draining: asyncio.Event | None = None,
    drained: Callable[[], Exception] | None = None,
) -> AsyncGenerator[_Request, None]:
    """The requests in order, up to `limit` of them taken before they are asked for. Close it (`aclosing`) after use.

    Args:
        requests: A stream's requests.
        limit: The most that are held.
        draining: Ends the wait for a further request once it is set.
        drained: What is raised then.

    Raises:
        Exception: What `requests` raised, after those before it were given, or what `drained` makes.
    """
    held: asyncio.Queue[_Request | None] = asyncio.Queue()
    room = asyncio.Semaphore(limit)

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                held.put_nowait(request)
        finally:
            held.put_nowait(None)  # however reading ends, nobody waits for more

    reader = asyncio.create_task(read())
    stop = asyncio.create_task((draining or asyncio.Event()).wait())
    following: asyncio.Task[_Request | None] | None = None
    try:
        while True:
            following = asyncio.create_task(held.get())
            await asyncio.wait({following, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                if drained is not None:
                    raise drained()
                return
            request = following.result()
            if request is None:
                await reader  # raises what ended the reading
                return
            room.release()
            yield request
    finally:
        tasks = [task for task in (reader, stop, following) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
