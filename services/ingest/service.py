"""What ingest does with quotes: validate, stamp, make durable in the queue, note coverage, tell subscribers."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from services.domain.errors import UNUSABLE, DependencyUnavailableError, InvalidQuoteError, TapewatchError
from services.domain.quote import Quote, violations
from services.ingest.coverage import CoverageBook
from services.ingest.ports import Progress, QuoteSource, Tracing
from services.ingest.subscribers import Subscribers
from services.queue import market_message
from services.queue.ports import Queue
from services.runtime.backoff import pause_seconds
from services.runtime.stopping import stopped_within

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """A quote, stamped, that is durable in the queue; or an equal one already was."""

    quote: Quote
    deduplicated: bool


Outcome = Published | TapewatchError


class IngestService:
    """Belongs to one event loop; blocking calls run in threads."""

    def __init__(
        self,
        queue: Queue,
        coverage: CoverageBook,
        subscribers: Subscribers,
        tracing: Tracing,
        clock: Callable[[], datetime],
    ) -> None:
        self._queue = queue
        self._tracing = tracing
        self._clock = clock
        self.coverage = coverage
        self.subscribers = subscribers

    async def publish(self, quotes: Sequence[Quote]) -> list[Outcome]:
        """One outcome per quote, in order; quotes of one series come in order of event_time.

        An invalid quote is answered with InvalidQuoteError and its neighbours are published. When the queue is away all
        valid ones are answered with DependencyUnavailableError, though some may be in: sending them again is harmless.
        """
        now = self._clock()
        batch_id = str(uuid.uuid4())
        outcomes: dict[int, Outcome] = {}
        valid: list[tuple[int, Quote]] = []
        for i, quote in enumerate(quotes):
            if wrong := violations(quote, now):
                outcomes[i] = InvalidQuoteError(wrong, quote_id=quote.quote_id)
            else:
                valid.append((i, replace(quote, ingest_time=now, batch_id=quote.batch_id or batch_id)))
        if valid:
            try:
                outcomes |= zip((i for i, _ in valid), await self._send([quote for _, quote in valid]), strict=True)
            except DependencyUnavailableError as error:
                outcomes |= dict.fromkeys((i for i, _ in valid), error)
        for i, quote in enumerate(quotes):
            # After the good ones: they make a series known.
            if isinstance(outcome := outcomes[i], InvalidQuoteError):
                self.coverage.rejected(quote, outcome.message)
        return [outcomes[i] for i in range(len(quotes))]

    async def _send(self, quotes: Sequence[Quote]) -> list[Published]:
        with self._tracing.publishing(quotes) as contexts:
            stamped = [replace(q, traceparent=c.traceparent) for q, c in zip(quotes, contexts, strict=True)]
            messages = [
                market_message.encode(quote, tracestate=context.tracestate)
                for quote, context in zip(stamped, contexts, strict=True)
            ]
            sent = await asyncio.to_thread(self._queue.send, messages)
        for quote in stamped:
            self.coverage.accepted(quote)
        self.subscribers.publish(stamped)
        return [Published(q, s.deduplicated is True) for q, s in zip(stamped, sent, strict=True)]

    async def publish_all(self, quotes: Sequence[Quote], stop: asyncio.Event) -> tuple[int, int] | None:
        """Publish a source's quotes however long it takes; what can never be scored becomes a dead letter.

        Returns how many were published and how many rejected, or None when `stop` was set before all were durable:
        sending the same quotes again is harmless then.
        """
        attempt = 0
        while True:
            try:
                return await self._publish_once(quotes)
            except UNUSABLE as error:
                attempt += 1
                _log.warning("%d quotes wait: %s", len(quotes), error.message)
                if await stopped_within(pause_seconds(error, attempt), stop):
                    return None

    async def _publish_once(self, quotes: Sequence[Quote]) -> tuple[int, int]:
        rejected = 0
        for quote, outcome in zip(quotes, await self.publish(quotes), strict=True):
            if isinstance(outcome, InvalidQuoteError):
                rejected += 1
                letter = market_message.rejected(quote, outcome.message)
                await asyncio.to_thread(self._queue.send_dead_letter, letter)
            elif isinstance(outcome, TapewatchError):
                raise outcome
        return len(quotes) - rejected, rejected

    async def follow(self, source: QuoteSource, progress: Progress, stop: asyncio.Event) -> None:
        """Publish what a polled source gives until `stop` is set."""
        for series in source.expected:
            self.coverage.expect(series)
        batches = source.batches()
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                following = asyncio.ensure_future(anext(batches, None))
                await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
                    return
                batch = following.result()
                if batch is None:
                    return
                for series in source.expected:
                    if series not in batch.failures:
                        self.coverage.succeeded(series)
                for series, error_text in batch.failures.items():
                    _log.warning("%s: %s", series.key, error_text)
                    self.coverage.failed(series, error_text)
                if batch.quotes and await self.publish_all(batch.quotes, stop) is not None:
                    newest = {quote.series: quote.event_time for quote in batch.quotes}
                    await asyncio.to_thread(progress.advance, newest)
        finally:
            stopping.cancel()
