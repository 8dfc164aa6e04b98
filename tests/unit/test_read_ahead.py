import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from services.runtime.read_ahead import read_ahead


class Source:
    """Numbers from 0 on; keeps how many were taken."""

    def __init__(self, last: int, error: Exception | None = None) -> None:
        self.taken = 0
        self._last = last
        self._error = error

    async def numbers(self) -> AsyncIterator[int]:
        for number in range(self._last):
            self.taken += 1
            yield number
        if self._error is not None:
            raise self._error


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_all_come_in_order_and_only_a_few_are_held() -> None:
    source = Source(20)
    async with aclosing(read_ahead(source.numbers(), 3)) as ahead:
        assert await anext(ahead) == 0
        await settled()
        assert source.taken == 5  # one given, three held, one in the reader's hand
        assert [number async for number in ahead] == list(range(1, 20))


async def test_a_failure_of_the_source_comes_after_what_was_before_it() -> None:
    got = []
    with pytest.raises(ValueError, match="bytes"):
        async with asyncio.timeout(60), aclosing(read_ahead(Source(2, ValueError("bytes")).numbers(), 3)) as ahead:
            async for number in ahead:
                got.append(number)
    assert got == [0, 1]


async def test_a_drain_ends_the_wait() -> None:
    draining = asyncio.Event()
    never = asyncio.Event()

    async def one() -> AsyncIterator[int]:
        yield 7
        await never.wait()

    async with asyncio.timeout(60), aclosing(read_ahead(one(), 3, draining, lambda: RuntimeError("drains"))) as ahead:
        assert await anext(ahead) == 7
        draining.set()
        with pytest.raises(RuntimeError, match="drains"):
            await anext(ahead)


@pytest.mark.parametrize("waiting", [False, True])
async def test_nothing_is_left_behind_by_who_leaves_early(waiting: bool) -> None:
    before = asyncio.all_tasks()
    source = Source(20 if not waiting else 1)
    never = asyncio.Event()

    async def requests() -> AsyncIterator[int]:
        async for number in source.numbers():
            yield number
        await never.wait()

    async def read() -> None:
        async with aclosing(read_ahead(requests(), 3)) as ahead:
            async for _ in ahead:
                if not waiting:
                    return

    task = asyncio.create_task(read())
    await settled()
    task.cancel()
    async with asyncio.timeout(60):
        await asyncio.gather(task, return_exceptions=True)
    assert asyncio.all_tasks() == before
