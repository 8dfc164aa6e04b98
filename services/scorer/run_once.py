"""A one-shot scorer: one batch from the environment, scored and recorded, then the process ends.

Launched by a dispatcher it also leaves a report beside the batch's manifest, by which the dispatcher tells what can
never be scored from what failed for the moment, and both from a task that died.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace

from services.domain.errors import (
    DependencyUnavailableError,
    FieldViolation,
    InvalidQuoteError,
    InvalidRequestError,
    NotConfiguredError,
    TapewatchError,
)
from services.domain.quote import Quote
from services.domain.score import Score
from services.pipeline.batch_files import open_batch_files, read_manifest
from services.pipeline.gateway_client import HEALTH_SERVICE, GatewayClient
from services.pipeline.ports import Cursors, Scorer
from services.pipeline.score_then_record import score_then_record
from services.pipeline.task_report import TaskReport, write_report
from services.queue import market_message
from services.runtime import telemetry_names as names
from services.runtime.channels import open_channel
from services.runtime.errors import exit_code_of
from services.runtime.exit_codes import EXIT_FAILED, EXIT_FAULT
from services.runtime.telemetry import Telemetry, context_of
from services.scorer.main import NO_GATEWAY, make_loader, make_service
from services.scorer.settings import RunOnceSettings

LAUNCHED = "LAMBDA_TRIGGERED"
"""PROCESSING_MODE of a task that a dispatcher launched."""

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("tapewatch.scorer")


class _Traced:
    """A scorer in this process, with the span that a call to one elsewhere has."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    async def score(self, quotes: Sequence[Quote], cursors: Cursors) -> list[Score | TapewatchError]:
        """The scorer's scores."""
        with _tracer.start_as_current_span(names.SPAN_SCORE, attributes={names.ATTRIBUTE_BATCH_MESSAGES: len(quotes)}):
            return await self._scorer.score(quotes, cursors)


def _told(settings: RunOnceSettings) -> Mapping[str, str | int]:
    """What the environment says of the task, for its span."""
    return {names.ATTRIBUTE_BATCH_MESSAGES: settings.batch_size, names.ATTRIBUTE_CORRELATION: settings.correlation_id}


def decode_batch(settings: RunOnceSettings) -> list[Quote | InvalidQuoteError]:
    """The messages of BATCH_MARKET_DATA, or of BATCH_MANIFEST_URI, each a quote or why it is none.

    Raises: NotConfiguredError when there is no batch; InvalidRequestError when it is no array, or not BATCH_SIZE long;
    DependencyUnavailableError when the manifest cannot be read now.
    """
    name, text = "BATCH_MARKET_DATA", settings.batch_market_data
    if not text and settings.batch_manifest_uri:
        name = "BATCH_MANIFEST_URI"
        text = read_manifest(settings.batch_manifest_uri, settings.aws_region).decode(errors="replace")
    if not text:
        raise NotConfiguredError(
            "a one-shot scorer needs a batch",
            "set BATCH_MARKET_DATA to a JSON array of messages, or BATCH_MANIFEST_URI to a file that holds one",
        )
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise InvalidRequestError([FieldViolation(name, f"is not JSON: {error}")]) from error
    if not isinstance(messages, list):
        raise InvalidRequestError([FieldViolation(name, "is not a JSON array")])
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


async def run(settings: RunOnceSettings) -> tuple[Mapping[str, Any], TaskReport]:
    """Score and record the batch. Returns its summary, and the report for the dispatcher."""
    if settings.gateway_address == NO_GATEWAY:
        raise NotConfiguredError("a one-shot scorer needs a gateway to record to", "set GATEWAY_ADDRESS")
    decoded = await asyncio.to_thread(decode_batch, settings)
    quotes = [each for each in decoded if isinstance(each, Quote)]
    async with open_channel(settings.gateway_address, settings, health_service=HEALTH_SERVICE) as channel:
        gateway = GatewayClient(channel)
        with _tracer.start_as_current_span(names.SPAN_LOAD_MODEL):
            service = await asyncio.to_thread(make_service, settings, make_loader(settings), gateway)
        try:
            async with asyncio.timeout(settings.max_timeout_seconds):
                done = iter(await score_then_record(quotes, _Traced(service), gateway))
        except TimeoutError as error:
            raise DependencyUnavailableError("task", f"not done in {settings.max_timeout_seconds:.0f} s") from error
        finally:
            service.close()
    results = [next(done) if isinstance(each, Quote) else each for each in decoded]
    recorded = sum(isinstance(result, Score) for result in results)
    invalid = {i: result.message for i, result in enumerate(results) if isinstance(result, InvalidRequestError)}
    retry = [
        result.message
        for result in results
        if isinstance(result, TapewatchError) and not isinstance(result, InvalidRequestError)
    ]
    summary = {
        "correlation_id": settings.correlation_id,
        "processing_mode": settings.processing_mode,
        "received": len(decoded),
        "recorded": recorded,
        "detections": sum(isinstance(result, Score) and result.detection for result in results),
        "invalid": list(invalid.values()),
        "retry": retry,
    }
    return summary, TaskReport(len(decoded), recorded, invalid, tuple(dict.fromkeys(retry)))


def _report(settings: RunOnceSettings, report: TaskReport) -> None:
    """Leave the report for the dispatcher, when one launched this; what is recorded, it also sees without."""
    if settings.processing_mode != LAUNCHED or not settings.correlation_id:
        return
    try:
        files = open_batch_files(settings.batches_uri, settings.aws_region)
        write_report(files, settings.correlation_id, report)
    except TapewatchError as error:
        _log.error("the report cannot be written: %s", error.message)


def main() -> int:
    """Exit code: 0 when every message is recorded, 1 when some are not (see the summary), 2 when misconfigured.

    70 is a fault of ours: it counts against the batch, as any other death of the process does.
    """
    settings = RunOnceSettings()
    telemetry = Telemetry("tapewatch-scorer", settings)
    parent = context_of({"traceparent": settings.traceparent, "tracestate": settings.tracestate})
    try:
        with _tracer.start_as_current_span(names.SPAN_RUN_ONCE, parent, trace.SpanKind.CONSUMER, _told(settings)):
            summary, report = asyncio.run(run(settings))
    except TapewatchError as error:
        print(f"tapewatch scorer run-once: {error.message}", file=sys.stderr)
        _report(settings, TaskReport(settings.batch_size, 0, {}, (error.message,)))
        return exit_code_of(error)
    except Exception:
        _log.exception("the batch %s ended in a fault", settings.correlation_id)
        return EXIT_FAULT
    finally:
        telemetry.shutdown()
    _report(settings, report)
    print(json.dumps(summary))
    return 0 if summary["recorded"] == summary["received"] else EXIT_FAILED
