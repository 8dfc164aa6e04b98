"""Dispatching by hand: checks what a caller asks for, then scores and records."""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum

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


class DispatchService:
    """Scores and records a batch that a caller sends."""

    def __init__(self, scorer: Scorer, recorder: Recorder) -> None:
        self._scorer = scorer
        self._recorder = recorder

    async def dispatch(self, quotes: Sequence[Quote], mode: DispatchMode) -> list[Score | TapewatchError]:
        """One result per quote, in order; a score is durable in the gateway.

        Raises: NotConfiguredError for a mode that needs a task launcher; DependencyUnavailableError.
        """
        if mode is not DispatchMode.WARM:
            raise NotConfiguredError(f"dispatch mode {mode.name} needs a task launcher, which", "mode to WARM")
        now = datetime.now(UTC)
        results: dict[int, Score | TapewatchError] = {}
        good = []
        for i, quote in enumerate(quotes):
            if found := violations(quote, now):
                results[i] = InvalidQuoteError(found, quote_id=quote.quote_id)
            else:
                good.append(i)
        scored = await score_then_record([quotes[i] for i in good], self._scorer, self._recorder)
        results |= zip(good, scored, strict=True)
        return [results[i] for i in range(len(quotes))]
