"""Ingest's composition root."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from services.archive.sectors import read_sectors
from services.archive.yahoo import yfinance_download
from services.domain.errors import InvalidRequestError, NotConfiguredError, TapewatchError
from services.ingest.coverage import CoverageBook
from services.ingest.csv_file import CsvSource
from services.ingest.market_calendar import open_market
from services.ingest.metrics import measure_silence
from services.ingest.ports import Progress, QuoteSource
from services.ingest.progress_dynamodb import PROGRESS_PERMISSIONS, DynamoDbProgress
from services.ingest.progress_sqlite import SqliteProgress
from services.ingest.replay import Replays
from services.ingest.service import IngestService
from services.ingest.servicer import IngestServicer
from services.ingest.settings import IngestSettings
from services.ingest.subscribers import Subscribers
from services.ingest.tracing import ProducerSpans
from services.ingest.universe import SECTOR_FUNDS
from services.ingest.yahoo import YahooSource
from services.queue.open import open_queue
from services.runtime.dynamodb_table import DynamoDbTable
from services.runtime.exit_codes import EXIT_MISCONFIGURED
from services.runtime.server import Lifetime, Mount, run_server
from tapewatch.ingest.v1 import ingest_service_pb2
from tapewatch.ingest.v1.ingest_service_pb2_grpc import add_IngestServiceServicer_to_server


def _now() -> datetime:
    return datetime.now(UTC)


def _read_sectors(path: Path) -> dict[str, str]:
    """The file that SECTORS names. Raises: NotConfiguredError when it cannot be used."""
    try:
        return read_sectors(path)
    except InvalidRequestError as error:
        wrong = "; ".join(violation.description for violation in error.violations)
        raise NotConfiguredError(wrong, "set SECTORS to a CSV file with the columns symbol and sector") from error


def make_source(
    settings: IngestSettings, progress: Progress, sectors: Mapping[str, str] | None = None
) -> QuoteSource | None:
    """The configured source, or None. Raises: NotConfiguredError when it cannot be used."""
    if settings.source == "yahoo":
        return YahooSource(
            settings.polled_symbols,
            yfinance_download("SOURCE"),
            interval_seconds=settings.poll_interval_seconds,
            requests_per_second=settings.yahoo_requests_per_second,
            seen=progress.advanced(),
            clock=_now,
            benchmark_symbol=settings.benchmark_symbol,
            sectors=SECTOR_FUNDS if sectors is None else sectors,
        )
    if settings.source == "csv":
        if settings.csv_path is None:
            raise NotConfiguredError("the CSV source needs a file", "set CSV_PATH to a CSV file or folder")
        symbols = () if settings.symbols == "default" else settings.polled_symbols
        return CsvSource(settings.csv_path, settings.poll_interval_seconds, progress.advanced(), symbols)
    return None


def _connect_table(settings: IngestSettings) -> DynamoDbTable:
    return DynamoDbTable.connect(
        settings.ingest_table,
        settings.aws_region,
        dependency="ingest's progress",
        setting="INGEST_TABLE",
        instead="set INGEST_BACKEND=sqlite",
        permissions=PROGRESS_PERMISSIONS,
    )


def open_progress(settings: IngestSettings) -> Progress:
    """The configured memory. Raises: NotConfiguredError or DependencyUnavailableError when it cannot be used."""
    if settings.ingest_backend == "sqlite":
        return SqliteProgress(settings.ingest_path)
    return DynamoDbProgress(_connect_table(settings))


def create_table() -> int:
    """Make the configured DynamoDB table, for local use: on AWS the stack makes it. The exit code."""
    settings = IngestSettings()
    try:
        _connect_table(settings).create()
    except TapewatchError as error:
        print(f"tapewatch: {error.message}", file=sys.stderr)
        return EXIT_MISCONFIGURED
    print(f"the table {settings.ingest_table} is there")
    return 0


async def build(lifetime: Lifetime, settings: IngestSettings) -> Sequence[Mount]:
    """Wire queue, progress and source, and go on with replays that were interrupted."""
    queue = await asyncio.to_thread(open_queue, settings)
    lifetime.on_close(queue.close)
    progress = await asyncio.to_thread(open_progress, settings)
    lifetime.on_close(progress.close)
    sectors = None if settings.sectors is None else await asyncio.to_thread(_read_sectors, settings.sectors)
    source = await asyncio.to_thread(make_source, settings, progress, sectors)
    market = await asyncio.to_thread(open_market, settings.market_calendar)
    tracing = ProducerSpans(settings.queue_name, settings.queue_backend)
    coverage = CoverageBook(_now)
    service = IngestService(queue, coverage, Subscribers(settings.stream_max_behind), tracing, _now)
    replays = Replays(
        service,
        queue,
        progress,
        _now,
        lifetime.spawn,
        batch_quotes=settings.replay_batch_quotes,
        max_ready=settings.replay_max_ready,
        sectors=sectors or {},
    )

    async def stop_replays() -> None:
        await lifetime.draining.wait()
        replays.stop_all()

    lifetime.spawn(stop_replays(), "stop replays")
    lifetime.spawn(measure_silence(coverage, market, _now, lifetime.draining), "silence")
    lifetime.need_blocking("the queue", queue.check)
    lifetime.need_blocking("the progress", progress.check)
    if source is not None:
        lifetime.spawn(service.follow(source, progress, lifetime.draining), f"source {settings.source}")
    await replays.resume()
    servicer = IngestServicer(service, replays, lifetime.draining)
    descriptor = ingest_service_pb2.DESCRIPTOR.services_by_name["IngestService"]
    return [Mount(add_IngestServiceServicer_to_server, servicer, descriptor)]


def main() -> int:
    """Serve until told to stop; the exit code of the process."""
    settings = IngestSettings()
    return run_server("ingest", settings, lambda lifetime: build(lifetime, settings))
