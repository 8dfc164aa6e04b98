"""A gateway in this process: the real bootstrap, server, store and lake."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from services.gateway.main import build
from services.gateway.settings import GatewaySettings
from services.runtime.server import Lifetime, Mount, serve
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tapewatch.gateway.v1.detection_service_pb2_grpc import DetectionServiceStub


class Gateway:
    """A running gateway and stubs of its services."""

    def __init__(self, address: str, channel: grpc.aio.Channel, lifetime: Lifetime) -> None:
        self.address = address
        self.channel = channel
        self.lifetime = lifetime
        self.detections = DetectionServiceStub(channel)
        self.alerts = AlertServiceStub(channel)


@asynccontextmanager
async def running_gateway(folder: Path) -> AsyncIterator[Gateway]:
    """A gateway on the store and the lake in `folder`; drained at the end."""
    settings = GatewaySettings(
        grpc_port=0, store_path=folder / "store.db", lake_uri=str(folder / "lake"), shutdown_grace_seconds=5
    )
    lifetimes: list[Lifetime] = []
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def build_here(lifetime: Lifetime) -> Sequence[Mount]:
        lifetimes.append(lifetime)
        return await build(lifetime, settings)

    task = asyncio.create_task(serve("gateway", settings, build_here, port.set_result))
    await asyncio.wait([task, port], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    address = f"127.0.0.1:{port.result()}"
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            yield Gateway(address, channel, lifetimes[0])
        finally:
            lifetimes[0].draining.set()
            assert await task == 0
