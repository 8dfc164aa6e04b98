"""Asking a server whether it is serving."""

from dataclasses import dataclass
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.domain.errors import FieldViolation, InvalidRequestError
from services.runtime.channels import open_channel
from services.runtime.settings import ClientSettings

REASON_KEY: Final = "tapewatch-not-serving-bin"
"""Trailing metadata of Check's answer: why the name is not serving, UTF-8. The protocol itself has no place for it."""

_Status = health_pb2.HealthCheckResponse


@dataclass(frozen=True, slots=True)
class Health:
    """Whether something is serving, and in words why not; `answered` unless the server said nothing at all."""

    serving: bool
    words: str = "serving"
    answered: bool = True


async def channel_health(channel: grpc.aio.Channel, service: str = "", timeout_seconds: float = 2.0) -> Health:
    """What the server behind the channel says of `service` (empty: of the server as a whole).

    Raises: InvalidRequestError when the server has no such health name; the message lists those that it has.
    """
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    call = stub.Check(request, timeout=timeout_seconds, wait_for_ready=True)  # type: ignore[attr-defined]
    try:
        response = await call
        trailers = dict(await call.trailing_metadata() or ())
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            raise InvalidRequestError([FieldViolation("service", error.details() or "no such health name")]) from error
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Health(False, f"no answer within {timeout_seconds:g} s", answered=False)
        return Health(False, f"no answer: {error.code().name}: {error.details() or 'no details'}", answered=False)
    if response.status == _Status.SERVING:
        return Health(True)
    if response.status == _Status.UNKNOWN:
        return Health(False, "not known yet")
    reason = trailers.get(REASON_KEY, b"").decode(errors="replace")
    return Health(False, f"not serving: {reason}" if reason else "not serving")


async def channel_serving(channel: grpc.aio.Channel, service: str = "", timeout_seconds: float = 2.0) -> bool:
    """Whether the server behind the channel says that `service` is serving; an unknown name is not."""
    try:
        return (await channel_health(channel, service, timeout_seconds)).serving
    except InvalidRequestError:
        return False


async def address_health(
    address: str, settings: ClientSettings, timeout_seconds: float = 2.0, service: str = ""
) -> Health:
    """What the server at `address` (host:port) says. Raises: as `channel_health`."""
    async with open_channel(address, settings) as channel:
        return await channel_health(channel, service, timeout_seconds)


async def address_serving(
    address: str, settings: ClientSettings, timeout_seconds: float = 2.0, service: str = ""
) -> bool:
    """Whether the server at `address` says that it, or the named service, is serving."""
    async with open_channel(address, settings) as channel:
        return await channel_serving(channel, service, timeout_seconds)
