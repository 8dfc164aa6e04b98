"""Dispatching by hand in task mode: into the ledger, then wait for what the tasks record."""

import asyncio
from collections.abc import Sequence

from services.dispatch.ports import Ledger
from services.domain.errors import DependencyUnavailableError, FieldViolation, InvalidQuoteError, TapewatchError
from services.domain.quote import Quote
from services.domain.score import Score
from services.pipeline.ports import Carrier, Entered, QueuedQuote, Record
from services.queue import market_message

_POLL_SECONDS = 0.2


class TaskDispatch:
    """Carries quotes that a caller sends as those of the queue, and answers what became of them."""

    def __init__(self, carrier: Carrier, ledger: Ledger, record: Record) -> None:
        self._carrier = carrier
        self._ledger = ledger
        self._record = record

    async def dispatch(self, quotes: Sequence[Quote], seconds: float) -> list[Score | TapewatchError]:
        """One result per quote, in order, after `seconds` at the latest.

        Raises: DependencyUnavailableError when ledger or gateway is away.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        messages = [market_message.encode(quote) for quote in quotes]
        carried = await self._carrier.carry(
            [QueuedQuote(q, message.body, message.attributes) for q, message in zip(quotes, messages, strict=True)]
        )
        entered = {result.batch_id for result in carried if isinstance(result, Entered)}
        still_open = await self._wait(entered, deadline)
        by_task = [quote for quote, result in zip(quotes, carried, strict=True) if isinstance(result, Entered)]
        scores = await self._record.scores(by_task)
        results: list[Score | TapewatchError] = []
        for quote, result in zip(quotes, carried, strict=True):
            if not isinstance(result, Entered):
                results.append(result)
            elif (score := scores.get(quote.quote_id)) is not None:
                results.append(score)
            elif result.batch_id in still_open:
                words = f"{result.batch_id} is still open, and will be recorded: ask GetTask"
                results.append(DependencyUnavailableError("task", words))
            else:
                violation = FieldViolation("quote", "can never be scored; it is in the dead letters, with the reason")
                results.append(InvalidQuoteError([violation], quote_id=quote.quote_id))
        return results

    async def _wait(self, batch_ids: set[str], deadline: float) -> set[str]:
        """Those that are still open at the deadline."""
        left = set(batch_ids)
        while left:
            for batch_id in list(left):
                entry = await asyncio.to_thread(self._ledger.get, batch_id)
                if entry is None or not entry.open:
                    left.discard(batch_id)
            if not left or asyncio.get_running_loop().time() + _POLL_SECONDS > deadline:
                break
            await asyncio.sleep(_POLL_SECONDS)
        return left
