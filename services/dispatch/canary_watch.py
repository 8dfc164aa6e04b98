"""Canaries on a schedule: silence is checked."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from services.domain.canary import CANARIES, CanaryOutcome
from services.pipeline.canary_play import DEADLINE_SECONDS, LivePath, play
from services.runtime.stopping import stopped_within

HEALTH_SERVICE = "tapewatch.canary"
SHARE_OF_INTERVAL = 0.9
"""The longest play: a break just after one began is red before the next but one would begin."""
_log = logging.getLogger(__name__)


class CanaryState(IntEnum):
    """Whether the canaries sing; the numbers are the proto's."""

    OFF = 1
    NOT_PLAYED = 2
    GREEN = 3
    RED = 4


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """How the canaries did: the newest play's outcomes and when it ended, and counts since the start."""

    state: CanaryState
    interval_seconds: float = 0.0
    play_time: datetime | None = None
    outcomes: Sequence[CanaryOutcome] = ()
    plays: int = 0
    missed: int = 0


class CanaryWatch:
    """Plays all canaries every `interval_seconds`, and says whether they alerted within `deadline_seconds`.

    A play ends before the next one is due, so that what breaks is red within two intervals. `tell` is awaited with the
    report after every play.
    """

    def __init__(
        self,
        path: LivePath,
        interval_seconds: float,
        clock: Callable[[], datetime],
        tell: Callable[[CanaryReport], Awaitable[None]],
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._path = path
        self._interval = interval_seconds
        self._deadline = min(deadline_seconds, SHARE_OF_INTERVAL * interval_seconds)
        self._clock = clock
        self._tell = tell
        self.report = CanaryReport(CanaryState.NOT_PLAYED, interval_seconds)

    async def run(self, draining: asyncio.Event) -> None:
        """Play until `draining` is set."""
        loop = asyncio.get_running_loop()
        stopping = asyncio.create_task(draining.wait())
        try:
            while not draining.is_set():
                begun = loop.time()
                playing = asyncio.create_task(play(self._path, CANARIES, self._clock, self._deadline))
                await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not playing.done():  # a play that the drain cut short says nothing
                    playing.cancel()
                    await asyncio.gather(playing, return_exceptions=True)
                    return
                await self._note(playing.result())
                await stopped_within(max(0.0, begun + self._interval - loop.time()), draining)
        finally:
            stopping.cancel()

    async def _note(self, outcomes: Sequence[CanaryOutcome]) -> None:
        missed = [outcome for outcome in outcomes if not outcome.alerted]
        for outcome in missed:
            _log.error("canary %s was missed: %s", outcome.name, outcome.problem)
        self.report = CanaryReport(
            CanaryState.RED if missed else CanaryState.GREEN,
            self._interval,
            self._clock(),
            tuple(outcomes),
            self.report.plays + 1,
            self.report.missed + len(missed),
        )
        await self._tell(self.report)
