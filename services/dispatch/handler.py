"""AWS Lambda's entry point: `services.dispatch.handler.lambda_handler`, with an SQS FIFO queue as its event source.

Wired on the first call of a warm environment and kept: channels, clients and the event loop live across invocations.
"""

import asyncio
from functools import cache
from typing import Any

from services.dispatch.settings import DispatchSettings
from services.pipeline.gateway_client import HEALTH_SERVICE, GatewayClient
from services.pipeline.sqs_handler import SqsBatchHandler
from services.pipeline.warm_pool import WarmPool
from services.queue.open import open_queue
from services.runtime.channels import open_channel
from services.runtime.telemetry import Telemetry


class _Environment:
    """One Lambda execution environment."""

    def __init__(self) -> None:
        settings = DispatchSettings()
        self.telemetry = Telemetry("tapewatch-dispatch", settings)
        self.loop = asyncio.new_event_loop()
        self.handler = self.loop.run_until_complete(self._wire(settings))

    async def _wire(self, settings: DispatchSettings) -> SqsBatchHandler:
        channel = open_channel(settings.gateway_address, settings, health_service=HEALTH_SERVICE)
        pool = WarmPool(settings.pool, settings)
        return SqsBatchHandler(pool, GatewayClient(channel), open_queue(settings), settings.queue_name)


@cache
def _environment() -> _Environment:
    return _Environment()


def lambda_handler(event: dict[str, Any], context: object) -> dict[str, list[dict[str, str]]]:
    """Process one SQS event; answers `batchItemFailures`."""
    environment = _environment()
    response = environment.loop.run_until_complete(environment.handler(event))
    environment.telemetry.flush()
    return response
