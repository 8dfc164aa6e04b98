"""A server run by the bootstrap, with a servicer whose answers show what the bootstrap does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from services.domain.errors import DependencyUnavailableError, FieldViolation, InvalidRequestError
from services.runtime.server import Lifetime, Mount
from services.runtime.settings import ServerSettings
from tapewatch.gateway.v1 import alert_pb2
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceServicer, add_AlertServiceServicer_to_server
from tests.servers.in_process import served


class Servicer(AlertServiceServicer):
    """Answers by the alert_id it is asked for."""

    def __init__(self) -> None:
        self.calls = 0
        self.remaining: list[float] = []
        self.callers: list[str] = []
        """What the callers' certificates are made out to."""
        self.draining = asyncio.Event()

    async def GetAlert(self, request: pb.GetAlertRequest, context: Any) -> pb.GetAlertResponse:
        self.calls += 1
        self.remaining.append(context.time_remaining())
        self.callers += [name.decode() for name in context.auth_context().get("x509_common_name", ())]
        if request.alert_id == "fault":
            raise ZeroDivisionError("secret detail")
        if request.alert_id == "wrong":
            raise InvalidRequestError([FieldViolation("alert_id", "is wrong")])
        if request.alert_id == "once" and self.calls == 1:
            raise DependencyUnavailableError("store", "locked")
        return pb.GetAlertResponse(alert=alert_pb2.Alert(alert_id=request.alert_id))

    async def WatchAlerts(self, request: pb.WatchAlertsRequest, context: Any) -> AsyncIterator[pb.WatchAlertsResponse]:
        yield pb.WatchAlertsResponse(resume_token="first")
        while request.from_start:
            yield pb.WatchAlertsResponse(resume_token="more than anybody reads " * 10_000)
        await self.draining.wait()
        yield pb.WatchAlertsResponse(resume_token="last")


class Running:
    def __init__(self, lifetime: Lifetime, servicer: Servicer, port: int, done: "asyncio.Task[int]") -> None:
        self.lifetime = lifetime
        self.servicer = servicer
        self.address = f"localhost:{port}"
        self.done = done


@asynccontextmanager
async def running(
    settings: ServerSettings, wire: Callable[[Lifetime], None] = lambda _: None
) -> AsyncIterator[Running]:
    servicer = Servicer()  # type: ignore[abstract]

    async def build(lifetime: Lifetime) -> Sequence[Mount]:
        servicer.draining = lifetime.draining
        wire(lifetime)
        service = pb.DESCRIPTOR.services_by_name["AlertService"]
        return [Mount(add_AlertServiceServicer_to_server, servicer, service)]

    async with served("test", settings, build) as server:
        yield Running(server.lifetime, servicer, server.port, server.done)
