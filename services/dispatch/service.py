"""Dispatching by hand: checks what a caller asks for, then scores and records."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Protocol

from services.domain.errors import InvalidQuoteError, NotConfiguredError, TapewatchError
from services.domain.quote import Quote, violations
from services.domain.score import Score
from services.pipeline.ports import Recorder, Scorer
from services.pipeline.score_then_record import score_then_record


class DispatchMode(IntEnum):
    """Where a batch is scored; the numbers are the proto's."""

    WARM = 1
    TASK = 2
    AUTO = 3


class Dispatch(Protocol):
    """Another way to a score than the warm pool."""

    async def dispatch(self, quotes: Sequence[Quote], seconds: float) -> list[Score | TapewatchError]:
        """One result per quote, in order, after `seconds` at the latest. Raises: DependencyUnavailableError."""
        ...


class DispatchService:
    """Scores and records a batch that a caller sends. `others` are the modes besides WARM that this server has."""

    def __init__(
        self,
        scorer: Scorer,
        recorder: Recorder,
        mode: DispatchMode = DispatchMode.WARM,
        others: Mapping[DispatchMode, Dispatch] | None = None,
    ) -> None:
        self._scorer = scorer
        self._recorder = recorder
        self.mode = mode
        self._others = others or {}

    async def dispatch(
        self, quotes: Sequence[Quote], mode: DispatchMode | None, seconds: float
    ) -> list[Score | TapewatchError]:
        """One result per quote, in order; a score is durable in the gateway.

        Args:
            quotes: The quotes; those of one series in order of event_time.
            mode: Where to score them; None takes the server's own mode.
            seconds: How long a task may be waited for.

        Raises: NotConfiguredError for a mode that needs a task launcher; DependencyUnavailableError.
        """
        mode = mode or self.mode
        if mode is not DispatchMode.WARM and mode not in self._others:
            raise NotConfiguredError(
                f"mode {mode.name} needs a task launcher, which this server has not",
                "set its DISPATCH_MODE to task or auto, or the request's mode to WARM",
            )
        now = datetime.now(UTC)
        results: dict[int, Score | TapewatchError] = {}
        good = []
        for i, quote in enumerate(quotes):
            if found := violations(quote, now):
                results[i] = InvalidQuoteError(found, quote_id=quote.quote_id)
            else:
                good.append(i)
        chosen = [quotes[i] for i in good]
        if mode is DispatchMode.WARM or not chosen:
            scored = await score_then_record(chosen, self._scorer, self._recorder)
        else:
            scored = await self._others[mode].dispatch(chosen, seconds)
        results |= zip(good, scored, strict=True)
        return [results[i] for i in range(len(quotes))]
