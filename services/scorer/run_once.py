"""A one-shot scorer: one batch from the environment, scored and recorded, then the process ends."""

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace

from services.domain.errors import (
    FieldViolation,
    InvalidQuoteError,
    InvalidRequestError,
    NotConfiguredError,
    TapewatchError,
)
from services.domain.quote import Quote
from services.domain.score import Score
from services.pipeline.gateway_client import HEALTH_SERVICE, GatewayClient
from services.pipeline.score_then_record import score_then_record
from services.queue import market_message
from services.runtime.channels import open_channel
from services.runtime.exit_codes import EXIT_FAILED, EXIT_MISCONFIGURED
from services.runtime.telemetry import Telemetry, context_of
from services.scorer.main import make_loader, make_service
from services.scorer.settings import RunOnceSettings

_log = logging.getLogger(__name__)


def decode_batch(settings: RunOnceSettings) -> list[Quote | InvalidQuoteError]:
    """The messages of BATCH_MARKET_DATA, each a quote or why it is none.

    Raises: NotConfiguredError when there is no batch; InvalidRequestError when it is no array, or not BATCH_SIZE long.
    """
    if not settings.batch_market_data:
        raise NotConfiguredError("a one-shot scorer without a batch", "BATCH_MARKET_DATA to a JSON array of messages")
    try:
        messages = json.loads(settings.batch_market_data)
    except json.JSONDecodeError as error:
        raise InvalidRequestError([FieldViolation("BATCH_MARKET_DATA", f"is not JSON: {error}")]) from error
    if not isinstance(messages, list):
        raise InvalidRequestError([FieldViolation("BATCH_MARKET_DATA", "is not a JSON array")])
    if settings.batch_size and len(messages) != settings.batch_size:
        violation = FieldViolation(
            "BATCH_SIZE", f"is {settings.batch_size}, but the batch has {len(messages)} messages"
        )
        raise InvalidRequestError([violation])
    decoded: list[Quote | InvalidQuoteError] = []
    for message in messages:
        try:
            decoded.append(market_message.decode(json.dumps(message), {}))
        except InvalidQuoteError as error:
            decoded.append(error)
    return decoded


async def run(settings: RunOnceSettings) -> Mapping[str, Any]:
    """Score and record the batch. Returns its summary."""
    decoded = decode_batch(settings)
    quotes = [each for each in decoded if isinstance(each, Quote)]
    async with open_channel(settings.gateway_address, settings, health_service=HEALTH_SERVICE) as channel:
        gateway = GatewayClient(channel)
        service = await asyncio.to_thread(make_service, settings, make_loader(settings), gateway)
        try:
            results = await score_then_record(quotes, service, gateway)
        finally:
            service.close()
    errors: list[TapewatchError] = [each for each in decoded if isinstance(each, TapewatchError)]
    errors += [result for result in results if isinstance(result, TapewatchError)]
    return {
        "correlation_id": settings.correlation_id,
        "processing_mode": settings.processing_mode,
        "received": len(decoded),
        "recorded": sum(isinstance(result, Score) for result in results),
        "detections": sum(isinstance(result, Score) and result.detection for result in results),
        "invalid": [error.message for error in errors if isinstance(error, InvalidRequestError)],
        "retry": [error.message for error in errors if not isinstance(error, InvalidRequestError)],
    }


def main() -> int:
    """Exit code: 0 when every message is recorded, 1 when some are not (see the summary), 2 when misconfigured."""
    settings = RunOnceSettings()
    telemetry = Telemetry("tapewatch-scorer", settings)
    parent = context_of({"traceparent": settings.traceparent, "tracestate": settings.tracestate})
    try:
        with trace.get_tracer("tapewatch.scorer").start_as_current_span("run once", context=parent):
            summary = asyncio.run(run(settings))
    except TapewatchError as error:
        print(f"tapewatch scorer run-once: {error.message}", file=sys.stderr)
        return EXIT_FAILED if error.retryable else EXIT_MISCONFIGURED
    finally:
        telemetry.shutdown()
    print(json.dumps(summary))
    return 0 if summary["recorded"] == summary["received"] else EXIT_FAILED
