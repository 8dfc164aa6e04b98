"""The dispatcher's composition root."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import grpc

from services.dispatch.canary_watch import HEALTH_SERVICE as HEALTH_SERVICE_CANARY
from services.dispatch.canary_watch import CanaryReport, CanaryState, CanaryWatch
from services.dispatch.metrics import CanaryMetrics
from services.dispatch.service import DispatchService
from services.dispatch.servicer import DispatchServicer
from services.dispatch.settings import DispatchSettings
from services.pipeline.gateway_client import HEALTH_SERVICE, GatewayClient
from services.pipeline.live_path_client import LivePathClient
from services.pipeline.sqs_handler import SqsBatchHandler
from services.pipeline.warm_pool import WarmPool
from services.queue.event_source import consume
from services.queue.open import open_queue
from services.runtime.channels import open_channel
from services.runtime.server import Lifetime, Mount, run_server
from tapewatch.dispatch.v1 import dispatch_service_pb2
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import add_DispatchServiceServicer_to_server


async def build(lifetime: Lifetime, settings: DispatchSettings) -> Sequence[Mount]:
    """Wire the warm pool, the gateway and the queue, and start the embedded event source."""
    pool = WarmPool(settings.pool, settings)
    lifetime.on_close(pool.close)
    channel = open_channel(settings.gateway_address, settings, health_service=HEALTH_SERVICE)
    lifetime.on_close(channel.close)
    gateway = GatewayClient(channel)
    queue = await asyncio.to_thread(open_queue, settings)
    lifetime.on_close(queue.close)
    lifetime.need("the queue", lambda: asyncio.to_thread(queue.check))
    lifetime.need("a scorer", pool.check)
    if settings.event_source == "embedded":
        handler = SqsBatchHandler(pool, gateway, queue, settings.queue_name)
        lifetime.spawn(
            consume(
                queue,
                handler,
                batch_size=settings.dispatch_batch_size,
                concurrency=settings.dispatch_concurrency,
                draining=lifetime.draining,
            ),
            "event source",
        )
    canaries = await _watch_canaries(lifetime, settings, channel) if settings.canary_interval_seconds else None
    servicer = DispatchServicer(DispatchService(pool, gateway), pool, queue, settings, canaries)
    service = dispatch_service_pb2.DESCRIPTOR.services_by_name["DispatchService"]
    return [Mount(add_DispatchServiceServicer_to_server, servicer, service)]


async def _watch_canaries(lifetime: Lifetime, settings: DispatchSettings, gateway: grpc.aio.Channel) -> CanaryWatch:
    """Play canaries on a schedule; health and metrics follow."""
    ingest = open_channel(settings.ingest_address, settings)
    lifetime.on_close(ingest.close)

    async def tell(report: CanaryReport) -> None:
        metrics.count(report)
        await lifetime.set_named(HEALTH_SERVICE_CANARY, report.state is CanaryState.GREEN)

    path = LivePathClient(ingest, gateway)
    watch = CanaryWatch(path, settings.canary_interval_seconds, lambda: datetime.now(UTC), tell)
    metrics = CanaryMetrics(lambda: watch.report)
    await lifetime.set_named(HEALTH_SERVICE_CANARY, None)
    lifetime.spawn(watch.run(lifetime.draining), "canaries")
    return watch


def main() -> int:
    """Serve until told to stop; the exit code of the process."""
    settings = DispatchSettings()
    return run_server("dispatch", settings, lambda lifetime: build(lifetime, settings))
