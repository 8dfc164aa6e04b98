"""The dispatcher's composition root."""

from collections.abc import Sequence

from services.dispatch.service import DispatchService
from services.dispatch.servicer import DispatchServicer
from services.dispatch.settings import DispatchSettings
from services.pipeline.gateway_client import HEALTH_SERVICE, GatewayClient
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
    queue = open_queue(settings)
    lifetime.on_close(queue.close)
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
    servicer = DispatchServicer(DispatchService(pool, gateway), pool, queue, settings)
    service = dispatch_service_pb2.DESCRIPTOR.services_by_name["DispatchService"]
    return [Mount(add_DispatchServiceServicer_to_server, servicer, service)]


def main() -> int:
    """Serve until told to stop; the exit code of the process."""
    settings = DispatchSettings()
    return run_server("dispatch", settings, lambda lifetime: build(lifetime, settings))
