"""A service of ours in the test's own process, by the real bootstrap, on a free loopback port."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.runtime.server import Build, Lifetime, Mount, serve
from services.runtime.settings import ServerSettings


@dataclass(frozen=True)
class Served:
    """A running service; `done` ends with its exit code."""

    port: int
    lifetime: Lifetime
    done: "asyncio.Task[int]"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def served(name: str, settings: ServerSettings, build: Build) -> AsyncIterator[Served]:
    """Serve what `build` wires until the block ends, then drain; raises what kept the service from starting."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    lifetimes: list[Lifetime] = []

    async def build_here(lifetime: Lifetime) -> Sequence[Mount]:
        lifetimes.append(lifetime)
        return await build(lifetime)

    done = asyncio.create_task(serve(name, settings, build_here, port.set_result))
    await asyncio.wait({done, port}, return_when=asyncio.FIRST_COMPLETED)
    if done.done():
        done.result()
    try:
        yield Served(port.result(), lifetimes[0], done)
    finally:
        ended = done.done()
        lifetimes[0].draining.set()
        code = await asyncio.wait_for(done, 60)
    assert ended or code == 0  # one that ended by itself is the test's own matter
