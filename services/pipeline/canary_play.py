"""Playing canaries: publish known manipulations on the live path, and wait for their alerts."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.domain.alert import Alert
from services.domain.canary import Canary, CanaryOutcome, PlayedCanary, at
from services.domain.errors import DependencyUnavailableError, TapewatchError
from services.domain.quote import Quote, Series
from services.domain.score import Score
from services.pipeline.ports import Cursors, Record

DEADLINE_SECONDS = 120.0
"""A canary alerts within two minutes, or it is missed."""
TASKS_DEADLINE_SECONDS = 1800.0
"""The same where one-shot tasks score: the bars of a symbol take two or three, one after the other, each of which takes
up to a minute to start on Fargate; and where one dies, or there is no room for it, more.
"""
_LOOK_SECONDS = 0.2
_RETRY_SECONDS = 0.5
_log = logging.getLogger(__name__)


class LivePath(Record, Protocol):
    """The two ends of the mesh. Every method raises DependencyUnavailableError when that end is away."""

    async def publish(self, quotes: Sequence[Quote]) -> None:
        """Give quotes to ingest; returns when they are durable in the queue. Publishing them again is harmless."""
        ...

    async def cursors(self, series: Sequence[Series]) -> Cursors:
        """How far the gateway has recorded each series."""
        ...

    async def alerts(self, symbol: str) -> Sequence[Alert]:
        """The newest alerts of a symbol on the canary tape."""
        ...


@dataclass(slots=True)
class _Waiting:
    played: PlayedCanary
    outcome: CanaryOutcome | None = None


async def play(
    path: LivePath,
    canaries: Sequence[Canary],
    clock: Callable[[], datetime],
    deadline_seconds: float = DEADLINE_SECONDS,
) -> list[CanaryOutcome]:
    """Play the canaries at once; one outcome each, in order, within `deadline_seconds`.

    A canary whose bars are all recorded without an alert is missed for good: detections are recorded with their alert.
    Never raises for a mesh that fails: that is what canaries are there to find.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_seconds
    now = clock()
    waiting = [_Waiting(at(canary, now)) for canary in canaries]
    problem = await _publish(path, [q for w in waiting for q in w.played.history], deadline)
    started = loop.time()
    if not problem:
        problem = await _publish(path, [q for w in waiting for q in w.played.manipulated], deadline)
    while not problem and any(w.outcome is None for w in waiting) and loop.time() < deadline:
        for each in waiting:
            if each.outcome is None:
                with suppress(DependencyUnavailableError, TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        each.outcome = await _look(path, each.played, lambda: loop.time() - started)
        if any(w.outcome is None for w in waiting):
            await asyncio.sleep(_LOOK_SECONDS)
    late = problem or f"no alert within {deadline_seconds:.0f} s, and its bars are not all recorded"
    return [w.outcome or CanaryOutcome(w.played.canary.name, None, problem=late) for w in waiting]


async def _publish(path: LivePath, quotes: Sequence[Quote], deadline: float) -> str:
    """Publish, trying again until the deadline. Returns the problem, empty when the quotes are durable."""
    loop = asyncio.get_running_loop()
    problem = "not published in time"
    while loop.time() < deadline:
        try:
            async with asyncio.timeout_at(deadline):
                await path.publish(quotes)
            return ""
        except DependencyUnavailableError as error:
            problem = f"cannot be published: {error.message}"
            _log.debug("canaries wait: %s", error.message)
            await asyncio.sleep(min(_RETRY_SECONDS, max(0.0, deadline - loop.time())))
        except TapewatchError as error:
            return f"is refused by ingest: {error.message}"
        except TimeoutError:
            break
    return problem


async def _look(path: LivePath, played: PlayedCanary, elapsed: Callable[[], float]) -> CanaryOutcome | None:
    """The outcome when there is one by now."""
    series = played.series
    recorded = (await path.cursors([series]))[series]  # before the alerts: then they are complete up to it
    for alert in await path.alerts(series.symbol):
        if alert.source == series.source and alert.last_event_time >= played.manipulated[0].event_time:
            return CanaryOutcome(played.canary.name, elapsed(), alert.alert_id, alert.typology, alert.peak_score)
    if recorded is not None and recorded >= played.manipulated[-1].event_time:
        scores = await path.scores(played.manipulated)
        return CanaryOutcome(played.canary.name, None, problem=f"its bars were scored and recorded, {_none(scores)}")
    return None


def _none(scores: Mapping[str, Score]) -> str:
    """That none is a detection, and whose score came nearest to its threshold."""
    if not scores:
        return "and none is a detection"
    best = max(scores.values(), key=lambda score: score.ensemble)
    return (
        f"and none is a detection: the highest score is {best.ensemble:.3f}, by model {best.model_version} "
        f"at threshold {best.threshold:.6g}"
    )
