"""AWS Lambda's entry point: `services.dispatch.handler.lambda_handler`, with an SQS FIFO queue as its event source.

Wired on the first call of a warm environment and kept: channels, clients and the event loop live across invocations.
boto3 takes as long to import as everything else together, so it waits until AWS is needed: for the certificates and the
token, where TLS_SECRET_ARN or TOKEN_SECRET_ARN is set, as `deploy/` does; else for the first message that is a dead
letter or must come again.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from services.dispatch.open import TaskMode, carrier_of, open_task_mode
from services.dispatch.settings import DispatchSettings
from services.domain.errors import TapewatchError
from services.pipeline.gateway_client import HEALTH_SERVICE, GatewayClient
from services.pipeline.score_then_record import ScoreThenRecord
from services.pipeline.sqs_handler import SqsBatchHandler
from services.pipeline.warm_pool import WarmPool
from services.queue.open import open_queue
from services.queue.ports import DeadLetter, Queue
from services.queue.redelivery import Returned, deliver_again
from services.queue.settings import QueueSettings
from services.runtime import telemetry_names as names
from services.runtime.backoff import backoff_seconds
from services.runtime.channels import open_channel
from services.runtime.secret_files import LambdaSecrets
from services.runtime.telemetry import Telemetry

SPARE_SECONDS = 1.5
"""What is left of the function's time when it stops waiting, to answer before Lambda ends it."""

DEAD_LETTER_SECONDS = 1.0
"""What of the rest is kept for messages that can never be scored."""

ANSWER_SECONDS = 1.0
"""What is left at least when everything is done but the telemetry, which takes up to half of it, and the answer."""

SOON_RECEIVES = 8
"""So often a group comes again before the queue's visibility timeout, which is long so that no batch comes twice at
once. Later it waits that long: it is no moment's trouble, and each delivery counts towards the dead-letter queue."""

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 30.0
"""No queue that `deploy/` makes has a shorter visibility timeout."""

_REDELIVERY_SECONDS = 5.0
"""Longest that the function is kept for what only saves time, while others of its events wait."""

_log = logging.getLogger(__name__)


class LambdaContext(Protocol):
    """What Lambda tells of an invocation."""

    aws_request_id: str
    invoked_function_arn: str

    def get_remaining_time_in_millis(self) -> int:
        """Until Lambda ends it, milliseconds."""
        ...


class OpenedWhenNeeded:
    """The configured queue, opened by the first use."""

    def __init__(self, settings: QueueSettings) -> None:
        self._settings = settings
        self._opened: Queue | None = None

    def _queue(self) -> Queue:
        if self._opened is None:
            self._opened = open_queue(self._settings)
        return self._opened

    def send_dead_letter(self, letter: DeadLetter) -> None:
        """Keep the letter."""
        self._queue().send_dead_letter(letter)

    def change_visibility(self, receipt_handles: Sequence[str], visibility_seconds: float) -> None:
        """Keep delivered messages invisible for that much longer from now."""
        self._queue().change_visibility(receipt_handles, visibility_seconds)


def _returned(record: Mapping[str, Any]) -> Returned:
    attributes = record["attributes"]
    return Returned(
        record["receiptHandle"], attributes.get("MessageGroupId", ""), int(attributes["ApproximateReceiveCount"])
    )


def redelivery_seconds(receives: int) -> float | None:
    """How long messages wait that were delivered so often; None: as long as the queue's visibility timeout."""
    if receives > SOON_RECEIVES:
        return None
    return backoff_seconds(receives, _FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)


class _Environment:
    """One Lambda execution environment."""

    def __init__(self) -> None:
        self.secrets = LambdaSecrets()
        settings = DispatchSettings()
        self.telemetry = Telemetry("tapewatch-dispatch", settings)
        self._cold = True
        self.loop = asyncio.new_event_loop()
        self.tasks: TaskMode | None = None
        self._queue = OpenedWhenNeeded(settings)
        self.handler = self.loop.run_until_complete(self._wire(settings))

    async def _wire(self, settings: DispatchSettings) -> SqsBatchHandler:
        channel = open_channel(settings.gateway_address, settings, health_service=HEALTH_SERVICE)
        gateway = GatewayClient(channel)
        pool = WarmPool(settings.pool, settings)
        if settings.dispatch_mode != "warm":
            self.tasks = open_task_mode(settings, gateway, self._queue)
        carrier = carrier_of(settings.dispatch_mode, ScoreThenRecord(pool, gateway), pool, self.tasks)
        return SqsBatchHandler(carrier, self._queue, settings.queue_name)

    async def launch(self, seconds: float) -> None:
        """Launch what entered the ledger, while there is time; the reconciler's Lambda does the rest."""
        if self.tasks is None or seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.tasks.reconciler.step()
        except TimeoutError:
            _log.warning("out of time: the reconciler launches the rest")
        except TapewatchError as error:
            _log.warning("task mode waits: %s", error.message)

    async def process(self, event: dict[str, Any], context: LambdaContext) -> dict[str, list[dict[str, str]]]:
        """Process one event within the function's time; what is not done by then comes again, and harms nobody.

        Scoring and recording stop first, so that there is time left for the dead letters among the messages.
        """
        seconds = context.get_remaining_time_in_millis() / 1_000
        attributes: dict[str, str | bool] = {
            names.ATTRIBUTE_FUNCTION_INVOCATION: context.aws_request_id,
            names.ATTRIBUTE_CLOUD_RESOURCE: context.invoked_function_arn,
            names.ATTRIBUTE_FUNCTION_TRIGGER: "pubsub",
            names.ATTRIBUTE_FUNCTION_COLD_START: self._cold,
        }
        self._cold = False
        try:
            async with asyncio.timeout(seconds - SPARE_SECONDS):
                return await self.handler(event, seconds - SPARE_SECONDS - DEAD_LETTER_SECONDS, attributes)
        except TimeoutError:
            _log.warning("%d messages come again: out of time", len(event["Records"]))
            return {"batchItemFailures": [{"itemIdentifier": record["messageId"]} for record in event["Records"]]}

    async def deliver_again_soon(
        self, event: dict[str, Any], response: dict[str, list[dict[str, str]]], seconds: float
    ) -> None:
        """Let what is returned come again before the queue's visibility timeout, if that is done in so many seconds."""
        failed = {item["itemIdentifier"] for item in response["batchItemFailures"]}
        returned = [_returned(record) for record in event["Records"] if record["messageId"] in failed]
        if not returned or seconds <= 0:
            return
        change_visibility = self._queue.change_visibility
        try:
            async with asyncio.timeout(min(seconds, _REDELIVERY_SECONDS)):
                await asyncio.to_thread(deliver_again, returned, redelivery_seconds, change_visibility)
        except (TimeoutError, TapewatchError) as error:
            why = str(error) or "out of time"
            _log.warning("some of %d messages may wait for the queue's visibility timeout: %s", len(returned), why)


@cache
def _environment() -> _Environment:
    return _Environment()


def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, list[dict[str, str]]]:
    """Process one SQS event; answers `batchItemFailures`."""
    environment = _environment()
    environment.loop.run_until_complete(environment.secrets.refresh())
    response = environment.loop.run_until_complete(environment.process(event, context))
    environment.loop.run_until_complete(
        environment.launch(context.get_remaining_time_in_millis() / 1_000 - SPARE_SECONDS)
    )
    environment.loop.run_until_complete(
        environment.deliver_again_soon(event, response, context.get_remaining_time_in_millis() / 1_000 - ANSWER_SECONDS)
    )
    environment.telemetry.flush()
    return response
