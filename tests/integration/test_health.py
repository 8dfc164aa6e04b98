"""Health tells what a service cannot work without: files that another process keeps locked, scorers that are away."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from services.dispatch import main as dispatch
from services.dispatch.settings import DispatchSettings
from services.domain.errors import DependencyUnavailableError, InvalidRequestError
from services.gateway import main as gateway
from services.gateway.settings import GatewaySettings
from services.ingest import main as ingest
from services.ingest.settings import IngestSettings
from services.runtime.errors import exit_code_of
from services.runtime.exit_codes import EXIT_MISCONFIGURED
from services.runtime.health import address_health
from services.runtime.settings import ClientSettings, ServerSettings
from services.scorer import main as scorer
from services.scorer.settings import ScorerSettings
from tests.integration.runtime_server import running
from tests.servers.in_process import served

OFTEN: dict[str, Any] = {"grpc_port": 0, "shutdown_grace_seconds": 8, "health_check_seconds": 0.2}
"""A free port, and a health that soon sees what changes."""

STATUSES = health_pb2.HealthCheckResponse


async def becomes(address: str, service: str, status: int) -> None:
    """Wait until health says so of the server and of its service."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(90):
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", service):
            request = health_pb2.HealthCheckRequest(service=name)
            while (await stub.Check(request)).status != status:  # type: ignore[attr-defined]  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def becomes_in_words(address: str, wanted: str, service: str = "", token: str = "") -> None:
    """Wait until `tapewatch health` would say so."""
    settings = ClientSettings(auth_token=SecretStr(token))
    async with asyncio.timeout(90):
        while (await address_health(address, settings, service=service)).words != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another connection keeps the file's write lock, as a stuck process does; reads pass."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


@pytest.mark.parametrize("file", ["queue.db", "ingest.db"])
async def test_ingest_needs_to_write_its_queue_and_its_progress(tmp_path: Path, file: str) -> None:
    settings = IngestSettings(queue_path=tmp_path / "queue.db", ingest_path=tmp_path / "ingest.db", **OFTEN)
    service = "tapewatch.ingest.v1.IngestService"
    async with served("ingest", settings, lambda lifetime: ingest.build(lifetime, settings)) as server:
        await becomes(server.address, service, STATUSES.SERVING)
        with locked(tmp_path / file):
            await becomes(server.address, service, STATUSES.NOT_SERVING)
        await becomes(server.address, service, STATUSES.SERVING)


async def test_the_gateway_needs_to_write_its_store(tmp_path: Path) -> None:
    settings = GatewaySettings(store_path=tmp_path / "store.db", lake_uri="", **OFTEN)
    service = "tapewatch.gateway.v1.DetectionService"
    async with served("gateway", settings, lambda lifetime: gateway.build(lifetime, settings)) as server:
        await becomes(server.address, service, STATUSES.SERVING)
        with locked(tmp_path / "store.db"):
            await becomes(server.address, service, STATUSES.NOT_SERVING)
            reason = f"the store: {tmp_path / 'store.db'} is locked by another process; end it, or set STORE_PATH"
            await becomes_in_words(server.address, f"not serving: {reason}", service)
        await becomes(server.address, service, STATUSES.SERVING)
        await becomes_in_words(server.address, "serving", service)


async def test_a_name_that_health_does_not_know_is_told_with_those_that_it_knows(tmp_path: Path) -> None:
    settings = GatewaySettings(store_path=tmp_path / "store.db", lake_uri="", **OFTEN)
    async with served("gateway", settings, lambda lifetime: gateway.build(lifetime, settings)) as server:
        with pytest.raises(InvalidRequestError) as raised:
            await address_health(server.address, ClientSettings(), 30.0, "NOSUCH")
        names = "tapewatch.gateway.v1.AlertService, tapewatch.gateway.v1.DetectionService"
        assert raised.value.message == f"service: health knows no 'NOSUCH' here; it knows {names}"
        assert exit_code_of(raised.value) == EXIT_MISCONFIGURED


async def test_a_reason_is_told_to_callers_with_the_token_only() -> None:
    async def away() -> None:
        raise DependencyUnavailableError("store", "/secret/path is locked")

    async with running(ServerSettings(auth_token=SecretStr("s3cret")), lambda it: it.need("the store", away)) as server:
        await becomes_in_words(server.address, "not serving: store: /secret/path is locked", token="s3cret")
        await becomes_in_words(server.address, "not serving")
        await becomes_in_words(server.address, "not serving", token="wrong")


async def test_the_dispatcher_needs_its_queue_and_a_scorer(tmp_path: Path) -> None:
    scorer_settings = ScorerSettings(grpc_port=0, gateway_address="none")

    async with served("scorer", scorer_settings, lambda it: scorer.build(it, scorer_settings)) as pool:
        settings = DispatchSettings(
            queue_path=tmp_path / "queue.db", scorer_addresses=pool.address, event_source="none", **OFTEN
        )
        service = "tapewatch.dispatch.v1.DispatchService"
        async with served("dispatch", settings, lambda it: dispatch.build(it, settings)) as server:
            await becomes(server.address, service, STATUSES.SERVING)
            with locked(tmp_path / "queue.db"):
                await becomes(server.address, service, STATUSES.NOT_SERVING)
            await becomes(server.address, service, STATUSES.SERVING)


async def test_a_dispatcher_without_a_scorer_is_not_serving_until_one_comes(tmp_path: Path) -> None:
    probe = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = probe.sockets[0].getsockname()[1]
    probe.close()
    await probe.wait_closed()
    settings = DispatchSettings(
        queue_path=tmp_path / "queue.db", scorer_addresses=f"127.0.0.1:{port}", event_source="none", **OFTEN
    )
    service = "tapewatch.dispatch.v1.DispatchService"
    async with served("dispatch", settings, lambda it: dispatch.build(it, settings)) as server:
        await becomes(server.address, service, STATUSES.NOT_SERVING)
        scorer_settings = ScorerSettings(grpc_port=port, gateway_address="none")
        async with served("scorer", scorer_settings, lambda it: scorer.build(it, scorer_settings)):
            await becomes(server.address, service, STATUSES.SERVING)
        await becomes(server.address, service, STATUSES.NOT_SERVING)
