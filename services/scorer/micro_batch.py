"""Batch what is waiting: windows of concurrent streams are judged together, with no delay added."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

About = TypeVar("About")
Result = TypeVar("Result")
MAX_ROWS = 2_048


@dataclass(slots=True)
class _Waiting(Generic[About, Result]):
    windows: NDArray[np.float64]
    about: Sequence[About]
    future: "asyncio.Future[list[Result]]"


class MicroBatcher(Generic[About, Result]):
    """Runs `work` on windows in one thread of its own (an interpreter belongs to one thread).

    `work` takes float64 (n, WINDOW, fields) and what is known about each window, and gives n results; further windows
    gather while it runs.
    """

    def __init__(self, work: Callable[[NDArray[np.float64], Sequence[About]], list[Result]]) -> None:
        self._work = work
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._waiting: list[_Waiting[About, Result]] = []
        self._running: asyncio.Task[None] | None = None

    async def run(self, windows: NDArray[np.float64], about: Sequence[About]) -> list[Result]:
        """One result per window."""
        entry = _Waiting[About, Result](windows, about, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        if self._running is None:
            self._running = asyncio.create_task(self._drain())
        return await entry.future

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch = [self._waiting.pop(0)]
                rows = len(batch[0].windows)
                while self._waiting and rows + len(self._waiting[0].windows) <= MAX_ROWS:
                    batch.append(self._waiting.pop(0))
                    rows += len(batch[-1].windows)
                windows = batch[0].windows if len(batch) == 1 else np.concatenate([entry.windows for entry in batch])
                about = [each for entry in batch for each in entry.about]
                try:
                    results = await loop.run_in_executor(self._thread, self._work, windows, about)
                except Exception as error:
                    for entry in batch:
                        if not entry.future.done():
                            entry.future.set_exception(error)
                    continue
                start = 0
                for entry in batch:
                    if not entry.future.done():  # its stream may have been cancelled
                        entry.future.set_result(results[start : start + len(entry.windows)])
                    start += len(entry.windows)
        finally:
            self._running = None

    def close(self) -> None:
        """End the thread after what it runs."""
        self._thread.shutdown()
