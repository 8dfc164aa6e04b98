"""Asking a server whether it is serving."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.channels import open_channel
from services.runtime.settings import ClientSettings


async def channel_serving(channel: grpc.aio.Channel, service: str = "", timeout_seconds: float = 2.0) -> bool:
    """Whether the server behind the channel says that `service` (empty: the server as a whole) is serving."""
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        response = await stub.Check(request, timeout=timeout_seconds, wait_for_ready=True)  # type: ignore[attr-defined]
    except grpc.aio.AioRpcError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def address_serving(
    address: str, settings: ClientSettings, timeout_seconds: float = 2.0, service: str = ""
) -> bool:
    """Whether the server at `address` (host:port) says that it, or the named service, is serving."""
    async with open_channel(address, settings) as channel:
        return await channel_serving(channel, service, timeout_seconds)
