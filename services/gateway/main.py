"""The gateway's composition root."""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence

from services.domain.errors import UNUSABLE, DependencyUnavailableError, NotConfiguredError, TapewatchError
from services.gateway.alert_push import HEALTH_SERVICE_PUSH, AlertPush
from services.gateway.alert_servicer import AlertServicer
from services.gateway.archiver import HEALTH_SERVICE_LAKE, Archiver
from services.gateway.change_feed import ChangeFeed
from services.gateway.dax import DaxDetections
from services.gateway.detection_servicer import DetectionServicer
from services.gateway.dynamodb import DynamoDbStore
from services.gateway.lake import FileSystemLake
from services.gateway.ports import Store
from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from services.gateway.sqlite import SqliteStore
from services.runtime.dynamodb_table import DynamoDbTable
from services.runtime.exit_codes import EXIT_MISCONFIGURED
from services.runtime.server import Lifetime, Mount, run_server
from tapewatch.gateway.v1 import alert_service_pb2, detection_service_pb2
from tapewatch.gateway.v1.alert_service_pb2_grpc import add_AlertServiceServicer_to_server
from tapewatch.gateway.v1.detection_service_pb2_grpc import add_DetectionServiceServicer_to_server

_LAKE_SECONDS = 10.0
_log = logging.getLogger(__name__)


def open_store(settings: GatewaySettings) -> Store:
    """The configured store. Raises: NotConfiguredError or DependencyUnavailableError when it cannot be used."""
    if settings.store_backend == "sqlite":
        if settings.dax_endpoint:
            raise NotConfiguredError(
                "DAX stands before DynamoDB only", "set STORE_BACKEND=dynamodb, or DAX_ENDPOINT to nothing"
            )
        return SqliteStore(settings.store_path, synchronous=settings.store_synchronous)
    table = DynamoDbTable.connect(settings.store_table, settings.aws_region)
    cache = open_cache(settings)
    try:
        return DynamoDbStore(table, settings.retention, cache=cache)
    except TapewatchError:
        if cache is not None:
            cache.close()
        raise


def open_cache(settings: GatewaySettings) -> DaxDetections | None:
    """The configured DAX cluster, whether it is there or not. Raises: NotConfiguredError."""
    if not settings.dax_endpoint:
        return None
    return DaxDetections.connect(settings.dax_endpoint, settings.store_table, settings.aws_region)


def create_table() -> int:
    """Make the configured DynamoDB table, for local use: on AWS the stack makes it. The exit code."""
    settings = GatewaySettings()
    try:
        DynamoDbTable.connect(settings.store_table, settings.aws_region).create()
    except TapewatchError as error:
        print(f"tapewatch: {error.message}", file=sys.stderr)
        return EXIT_MISCONFIGURED
    print(f"the table {settings.store_table} is there")
    return 0


def _write_the_rest(archiver: Archiver) -> None:
    """Everything recorded goes to the lake before the process ends; what cannot is written by the next one."""
    try:
        archiver.write(partial=True)
    except UNUSABLE as error:
        _log.warning("the lake waits for the next start: %s", error.message)


async def _start_push(lifetime: Lifetime, settings: GatewaySettings, store: Store, feed: ChangeFeed) -> None:
    """Push alert changes to AppSync Events; health has `tapewatch.gateway.push` for it."""
    from services.gateway.appsync import AppSyncPublisher  # boto3 is optional and slow to import

    publisher = await asyncio.to_thread(
        AppSyncPublisher,
        settings.appsync_endpoint,
        store.store_id,
        api_key=settings.appsync_api_key.get_secret_value(),
        region=settings.aws_region,
        host=settings.appsync_host,
    )
    lifetime.on_close(publisher.close)
    on_health = await _on_health(lifetime, HEALTH_SERVICE_PUSH)
    lifetime.spawn(AlertPush(store, feed, publisher, on_health).run(lifetime.draining), "alert push")


async def _on_health(lifetime: Lifetime, service: str) -> Callable[[str], None]:
    """What tells health, under a name of its own, why something that recording does not wait for does not work."""
    told: str | None = None

    def on_health(problem: str) -> None:
        nonlocal told
        if problem != told:
            told = problem
            lifetime.spawn(lifetime.health.tell(service, not problem, problem), f"health of {service}")

    await lifetime.health.tell(service, None)
    return on_health


async def _open_lake(uri: str) -> FileSystemLake:
    """The lake, checked. One that is away, or slow to answer, is left to the archiver, which tries again.

    Raises: NotConfiguredError when it refuses to be written: a start is when somebody looks.
    """
    lake = FileSystemLake(uri)
    try:
        await asyncio.wait_for(asyncio.to_thread(lake.check), _LAKE_SECONDS)
    except TimeoutError:
        _log.warning("the lake %s has not answered for %.0f s; the gateway starts without it", uri, _LAKE_SECONDS)
    except DependencyUnavailableError as error:
        _log.warning("the gateway starts without the lake: %s", error.message)
    return lake


async def _start_archiver(lifetime: Lifetime, settings: GatewaySettings, store: Store) -> None:
    """Write the lake; health has `tapewatch.gateway.lake` for it."""
    lake = await _open_lake(settings.lake)
    on_health = await _on_health(lifetime, HEALTH_SERVICE_LAKE)
    archiver = Archiver(store, lake, settings.lake_flush_rows, settings.lake_flush_seconds, on_health)
    lifetime.on_close(lambda: _write_the_rest(archiver))
    lifetime.spawn(archiver.run(lifetime.draining), "archiver")


async def build(lifetime: Lifetime, settings: GatewaySettings) -> Sequence[Mount]:
    """Wire the store, the lake and the servicers."""
    store = await asyncio.to_thread(open_store, settings)
    lifetime.on_close(store.close)
    if settings.lake:
        await _start_archiver(lifetime, settings, store)
    lifetime.need_blocking("the store", store.check)
    feed = ChangeFeed(store)
    lifetime.spawn(feed.follow(lifetime.draining), "change feed")
    if settings.appsync_endpoint:
        await _start_push(lifetime, settings, store, feed)
    service = GatewayService(store, feed)
    return [
        Mount(
            add_DetectionServiceServicer_to_server,
            DetectionServicer(service),
            detection_service_pb2.DESCRIPTOR.services_by_name["DetectionService"],
        ),
        Mount(
            add_AlertServiceServicer_to_server,
            AlertServicer(service),
            alert_service_pb2.DESCRIPTOR.services_by_name["AlertService"],
        ),
    ]


def main() -> int:
    """Serve until told to stop; the exit code of the process."""
    settings = GatewaySettings()
    return run_server("gateway", settings, lambda lifetime: build(lifetime, settings))
