"""What happens to one SQS FIFO event: decode, carry to a scorer, and answer which messages must come again.

AWS Lambda, the embedded event source and a scorer that reads the queue itself all call this handler.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import metrics, trace

from services.domain.errors import (
    UNUSABLE,
    DependencyUnavailableError,
    InvalidQuoteError,
    InvalidRequestError,
    TapewatchError,
)
from services.domain.quote import Quote
from services.domain.score import Score
from services.pipeline.ports import Carried, Carrier, Entered, QueuedQuote
from services.queue import market_message
from services.queue.ports import DeadLetter, DeadLetters
from services.runtime import telemetry_names as names
from services.runtime.telemetry import context_of

_log = logging.getLogger(__name__)

Event = Mapping[str, Any]
"""An SQS event as Lambda gives it: {"Records": [{"messageId", "body", "attributes", "messageAttributes", …}]}."""


def _attributes(record: Mapping[str, Any]) -> dict[str, str]:
    given = record.get("messageAttributes") or {}
    return {name: value["stringValue"] for name, value in given.items() if value.get("stringValue") is not None}


class SqsBatchHandler:
    """Answers SQS FIFO events with `batchItemFailures` (the function's event source must ReportBatchItemFailures).

    A message that can never be scored goes to the dead-letter queue with its reason and counts as done; its neighbours
    are scored. A message that may succeed later is returned, and with it every later one of its group.
    """

    def __init__(self, carrier: Carrier, dead_letters: DeadLetters, destination: str) -> None:
        self._carrier = carrier
        self._dead_letters = dead_letters
        self._destination = destination
        self._tracer = trace.get_tracer("tapewatch.pipeline")
        meter = metrics.get_meter("tapewatch")
        self._processed = meter.create_counter(names.MESSAGES_PROCESSED, unit="{message}")

    async def __call__(
        self, event: Event, seconds: float | None = None, attributes: Mapping[str, str | bool] | None = None
    ) -> dict[str, list[dict[str, str]]]:
        """Process one event. Never raises for what a message holds; returns the messages that must come again.

        Args:
            event: The event.
            seconds: How long scoring and recording may take; what is not recorded by then is returned.
            attributes: What the caller adds to the batch's span.
        """
        records = event["Records"]
        with self._span(records, attributes or {}):
            failed = await self._process(records, seconds)
        self._processed.add(len(records) - len(failed), {"outcome": "done"})
        self._processed.add(len(failed), {"outcome": "returned"})
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}

    def _span(
        self, records: Sequence[Mapping[str, Any]], attributes: Mapping[str, str | bool]
    ) -> AbstractContextManager[trace.Span]:
        """The batch's span, linked to its messages; within their trace, where they share one."""
        carriers = [_attributes(record) for record in records]
        contexts = [trace.get_current_span(context_of(carrier)).get_span_context() for carrier in carriers]
        shared = len({context.trace_id for context in contexts}) == 1 and contexts[0].is_valid
        known: dict[str, str | int] = {
            names.ATTRIBUTE_MESSAGING_SYSTEM: "aws_sqs",
            names.ATTRIBUTE_DESTINATION: self._destination,
            names.ATTRIBUTE_OPERATION: "process",
            names.ATTRIBUTE_BATCH_MESSAGES: len(records),
        }
        if len(records) == 1:
            known[names.ATTRIBUTE_MESSAGE_ID] = records[0]["messageId"]
        return self._tracer.start_as_current_span(
            names.SPAN_PROCESS.format(destination=self._destination),
            context=context_of(carriers[0]) if shared else None,
            kind=trace.SpanKind.CONSUMER,
            links=[trace.Link(context) for context in contexts if context.is_valid],
            attributes={**known, **attributes},
        )

    async def _process(self, records: Sequence[Mapping[str, Any]], seconds: float | None) -> list[str]:
        decoded: dict[str, Quote | InvalidQuoteError] = {}
        for record in records:
            try:
                decoded[record["messageId"]] = market_message.decode(record["body"], _attributes(record))
            except InvalidQuoteError as error:
                decoded[record["messageId"]] = error
        good = {
            record["messageId"]: QueuedQuote(quote, record["body"], _attributes(record))
            for record in records
            if isinstance(quote := decoded[record["messageId"]], Quote)
        }
        results: dict[str, Carried] = {
            message_id: error for message_id, error in decoded.items() if isinstance(error, InvalidQuoteError)
        }
        try:
            async with asyncio.timeout(seconds):
                results |= zip(good, await self._carrier.carry(list(good.values())) if good else (), strict=True)
        except TimeoutError:
            _log.warning("%d messages come again: not done in %.1f s", len(good), seconds)
            results |= dict.fromkeys(good, DependencyUnavailableError("dispatch", "out of time"))
        except UNUSABLE as error:
            _log.warning("%d messages wait: %s", len(good), error.message)
            results |= dict.fromkeys(good, error)

        failed: list[str] = []
        failed_groups: set[str] = set()
        for record in records:
            message_id, group = record["messageId"], record["attributes"].get("MessageGroupId", "")
            if group in failed_groups or not await self._settle(record, results[message_id]):
                failed_groups.add(group)
                failed.append(message_id)
        return failed

    async def _settle(self, record: Mapping[str, Any], result: Carried) -> bool:
        """Whether the message is done: recorded, in the ledger, or kept as a dead letter."""
        if isinstance(result, Score | Entered):
            return True
        if not isinstance(result, InvalidRequestError):
            return False
        group = record["attributes"].get("MessageGroupId", "")
        letter = DeadLetter(record["body"], group, result.message, _attributes(record))
        try:
            await asyncio.to_thread(self._dead_letters.send_dead_letter, letter)
        except TapewatchError as error:
            _log.warning("a dead letter waits: %s", error.message)
            return False
        _log.warning("dead letter from %s: %s", group, result.message)
        return True
