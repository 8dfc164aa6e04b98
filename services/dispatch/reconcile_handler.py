"""AWS Lambda's entry point for what keeps task mode going: `services.dispatch.reconcile_handler.lambda_handler`.

EventBridge calls it on ECS's task-state events (a task stopped) and on a schedule (what no event told: launches that
failed, tasks that never started, batches whose turn has come). The event itself is only a hint; what is, is read from
the ledger, ECS and the gateway, so events may be lost, late or doubled.
"""

import asyncio
import logging
from functools import cache
from typing import Any

from services.dispatch.handler import SPARE_SECONDS, LambdaContext, OpenedWhenNeeded
from services.dispatch.open import TaskMode, open_task_mode
from services.dispatch.settings import DispatchSettings
from services.domain.errors import TapewatchError
from services.pipeline.gateway_client import HEALTH_SERVICE, GatewayClient
from services.runtime.channels import open_channel
from services.runtime.secret_files import LambdaSecrets
from services.runtime.telemetry import Telemetry

_log = logging.getLogger(__name__)


class _Environment:
    """One Lambda execution environment."""

    def __init__(self) -> None:
        self.secrets = LambdaSecrets()
        settings = DispatchSettings()
        self.telemetry = Telemetry("tapewatch-reconciler", settings)
        self.loop = asyncio.new_event_loop()
        self.mode = self.loop.run_until_complete(self._wire(settings))

    async def _wire(self, settings: DispatchSettings) -> TaskMode:
        channel = open_channel(settings.gateway_address, settings, health_service=HEALTH_SERVICE)
        return open_task_mode(settings, GatewayClient(channel), OpenedWhenNeeded(settings))

    async def step(self, seconds: float) -> dict[str, Any]:
        """One step, or as much of it as there is time for. What is cut off is done by the next call."""
        try:
            async with asyncio.timeout(seconds):
                return {"open_batches": await self.mode.reconciler.step()}
        except TimeoutError:
            return {"problem": "out of time"}
        except TapewatchError as error:
            _log.warning("task mode waits: %s", error.message)
            return {"problem": error.message}


@cache
def _environment() -> _Environment:
    return _Environment()


def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Settle what ended and launch what may start; answers how many batches are open, or what is in the way."""
    environment = _environment()
    environment.loop.run_until_complete(environment.secrets.refresh())
    seconds = context.get_remaining_time_in_millis() / 1_000 - SPARE_SECONDS
    answer = environment.loop.run_until_complete(environment.step(seconds))
    environment.telemetry.flush()
    return answer
