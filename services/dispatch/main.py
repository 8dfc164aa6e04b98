"""The dispatcher's composition root."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import grpc

from services.dispatch.canary_watch import HEALTH_SERVICE as HEALTH_SERVICE_CANARY
from services.dispatch.canary_watch import CanaryReport, CanaryState, CanaryWatch
from services.dispatch.metrics import CanaryMetrics
from services.dispatch.open import TaskMode, carrier_of, open_task_mode
from services.dispatch.service import DispatchMode, DispatchService
from services.dispatch.servicer import DispatchServicer
from services.dispatch.settings import DispatchSettings
from services.dispatch.task_dispatch import TaskDispatch
from services.pipeline.gateway_client import HEALTH_SERVICE, GatewayClient
from services.pipeline.live_path_client import LivePathClient
from services.pipeline.score_then_record import ScoreThenRecord
from services.pipeline.sqs_handler import SqsBatchHandler
from services.pipeline.warm_pool import WarmPool
from services.queue.event_source import consume
from services.queue.open import open_queue
from services.queue.ports import Queue
from services.runtime.channels import open_channel
from services.runtime.server import Lifetime, Mount, run_server
from tapewatch.dispatch.v1 import dispatch_service_pb2
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import add_DispatchServiceServicer_to_server

_log = logging.getLogger(__name__)


async def build(lifetime: Lifetime, settings: DispatchSettings) -> Sequence[Mount]:
    """Wire the warm pool, the gateway and the queue, and start the embedded event source."""
    pool = WarmPool(settings.pool, settings)
    lifetime.on_close(pool.close)
    channel = open_channel(settings.gateway_address, settings, health_service=HEALTH_SERVICE)
    lifetime.on_close(channel.close)
    gateway = GatewayClient(channel)
    queue = await asyncio.to_thread(open_queue, settings)
    lifetime.on_close(queue.close)
    lifetime.need_blocking("the queue", queue.check)
    wake = asyncio.Event()
    mode, tasks = await asyncio.to_thread(_open_tasks, settings, gateway, queue, _waking(wake))
    if mode == "warm":
        lifetime.need("a scorer", pool.check)
    if tasks is not None:
        lifetime.on_close(tasks.close)
        lifetime.need_blocking("the ledger", tasks.ledger.check)
        lifetime.spawn(tasks.reconciler.run(lifetime.draining, wake), "reconciler")
    warm = ScoreThenRecord(pool, gateway)
    if settings.event_source == "embedded":
        handler = SqsBatchHandler(carrier_of(mode, warm, pool, tasks), queue, settings.queue_name)
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
    others = (
        {}
        if tasks is None
        else {
            DispatchMode[name.upper()]: TaskDispatch(carrier_of(name, warm, pool, tasks), tasks.ledger, gateway)
            for name in ("task", "auto")
        }
    )
    dispatch = DispatchService(pool, gateway, DispatchMode[mode.upper()], others)
    ledger = None if tasks is None else tasks.ledger
    servicer = DispatchServicer(dispatch, pool, queue, settings, lifetime.draining, canaries, ledger)
    service = dispatch_service_pb2.DESCRIPTOR.services_by_name["DispatchService"]
    return [Mount(add_DispatchServiceServicer_to_server, servicer, service)]


def _waking(wake: asyncio.Event) -> Callable[[], None]:
    """What sets the event, from any thread."""
    loop = asyncio.get_running_loop()

    def entered() -> None:
        loop.call_soon_threadsafe(wake.set)

    return entered


def _open_tasks(
    settings: DispatchSettings, gateway: GatewayClient, queue: Queue, entered: Callable[[], None]
) -> tuple[str, TaskMode | None]:
    """The mode, and task mode where it is on, or where a dispatcher in another mode left batches open on this machine.

    These must not be overtaken, so what is warm by its settings is auto until it starts with an empty ledger.
    """
    if settings.dispatch_mode != "warm":
        return settings.dispatch_mode, open_task_mode(settings, gateway, queue, entered)
    if settings.ledger_backend == "sqlite" and settings.ledger_path.exists():
        tasks = open_task_mode(settings, gateway, queue, entered)
        if left := len(tasks.ledger.open()):
            _log.warning("%d batches of task mode are open: their series go on by tasks", left)
            return "auto", tasks
        tasks.close()
    return "warm", None


async def _watch_canaries(lifetime: Lifetime, settings: DispatchSettings, gateway: grpc.aio.Channel) -> CanaryWatch:
    """Play canaries on a schedule; health and metrics follow."""
    ingest = open_channel(settings.ingest_address, settings)
    lifetime.on_close(ingest.close)

    async def tell(report: CanaryReport) -> None:
        metrics.count(report)
        missed = "; ".join(f"{each.name}: {each.problem}" for each in report.outcomes if not each.alerted)
        await lifetime.health.tell(HEALTH_SERVICE_CANARY, report.state is CanaryState.GREEN, missed)

    path = LivePathClient(ingest, gateway)
    interval, deadline = settings.canary_interval_seconds, settings.canary_deadline
    watch = CanaryWatch(path, interval, lambda: datetime.now(UTC), tell, deadline)
    metrics = CanaryMetrics(lambda: watch.report)
    await lifetime.health.tell(HEALTH_SERVICE_CANARY, None)
    lifetime.spawn(watch.run(lifetime.draining), "canaries")
    return watch


def main() -> int:
    """Serve until told to stop; the exit code of the process."""
    settings = DispatchSettings()
    return run_server("dispatch", settings, lambda lifetime: build(lifetime, settings))
