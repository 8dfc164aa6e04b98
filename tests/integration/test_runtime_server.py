"""The server bootstrap and the channel factory, over real sockets: health, reflection, errors, token, TLS, drain."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.domain.errors import (
    DependencyUnavailableError,
    FieldViolation,
    InvalidRequestError,
    NotConfiguredError,
    UnauthenticatedError,
)
from services.runtime.channels import is_loopback, open_channel
from services.runtime.errors import error_from_rpc
from services.runtime.health import address_serving
from services.runtime.server import Lifetime, Mount, make_server, serve
from services.runtime.settings import ClientSettings, ServerSettings
from tapewatch.gateway.v1 import alert_pb2
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1.alert_service_pb2_grpc import (
    AlertServiceServicer,
    AlertServiceStub,
    add_AlertServiceServicer_to_server,
)


class Servicer(AlertServiceServicer):
    """Answers by the alert_id it is asked for."""

    def __init__(self) -> None:
        self.calls = 0
        self.remaining: list[float] = []
        self.draining = asyncio.Event()

    async def GetAlert(self, request: pb.GetAlertRequest, context: Any) -> pb.GetAlertResponse:
        self.calls += 1
        self.remaining.append(context.time_remaining())
        if request.alert_id == "fault":
            raise ZeroDivisionError("secret detail")
        if request.alert_id == "wrong":
            raise InvalidRequestError([FieldViolation("alert_id", "is wrong")])
        if request.alert_id == "once" and self.calls == 1:
            raise DependencyUnavailableError("store", "locked")
        return pb.GetAlertResponse(alert=alert_pb2.Alert(alert_id=request.alert_id))

    async def WatchAlerts(self, request: pb.WatchAlertsRequest, context: Any) -> AsyncIterator[pb.WatchAlertsResponse]:
        yield pb.WatchAlertsResponse(resume_token="first")
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
    loop = asyncio.get_running_loop()
    started: asyncio.Future[int] = loop.create_future()
    lifetimes: list[Lifetime] = []
    servicer = Servicer()  # type: ignore[abstract]

    async def build(lifetime: Lifetime) -> Sequence[Mount]:
        lifetimes.append(lifetime)
        servicer.draining = lifetime.draining
        wire(lifetime)
        service = pb.DESCRIPTOR.services_by_name["AlertService"]
        return [Mount(add_AlertServiceServicer_to_server, servicer, service)]

    done = asyncio.create_task(serve("test", settings, build, started.set_result))
    await asyncio.wait({done, started}, return_when=asyncio.FIRST_COMPLETED)
    if done.done():
        done.result()
    try:
        yield Running(lifetimes[0], servicer, started.result(), done)
    finally:
        lifetimes[0].draining.set()
        await done


async def caught(call: Any) -> tuple[grpc.StatusCode, Exception]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), error_from_rpc(raised.value, "server")


async def test_health_and_reflection() -> None:
    async with running(ServerSettings()) as server:
        assert await address_serving(server.address, ClientSettings())
        async with open_channel(server.address, ClientSettings()) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            async for response in stub.ServerReflectionInfo(iter([request])):  # type: ignore[operator]
                names = {service.name for service in response.list_services_response.service}
                break
        assert {"tapewatch.gateway.v1.AlertService", "grpc.health.v1.Health"} <= names


async def test_errors_are_rich_and_faults_tell_nothing() -> None:
    async with running(ServerSettings()) as server, open_channel(server.address, ClientSettings()) as channel:
        stub = AlertServiceStub(channel)
        code, error = await caught(stub.GetAlert(pb.GetAlertRequest(alert_id="wrong")))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert isinstance(error, InvalidRequestError)
        assert error.violations == (FieldViolation("alert_id", "is wrong"),)
        code, error = await caught(stub.GetAlert(pb.GetAlertRequest(alert_id="fault")))
        assert code is grpc.StatusCode.INTERNAL
        assert "secret" not in str(error)
        answer = await stub.GetAlert(pb.GetAlertRequest(alert_id="fine"))
        assert answer.alert.alert_id == "fine", "the process lives on"


async def test_idempotent_calls_are_retried_and_have_deadlines() -> None:
    settings = ClientSettings(rpc_timeout_seconds=7)
    async with running(ServerSettings()) as server, open_channel(server.address, settings) as channel:
        stub = AlertServiceStub(channel)
        await stub.GetAlert(pb.GetAlertRequest(alert_id="once"))
        assert server.servicer.calls == 2
        assert all(0 < remaining <= 7 for remaining in server.servicer.remaining)


async def test_a_token_is_asked_for_but_not_by_health() -> None:
    async with running(ServerSettings(auth_token="sesame")) as server:
        assert await address_serving(server.address, ClientSettings())
        for token, expected in (("sesame", None), ("guess", grpc.StatusCode.UNAUTHENTICATED), ("", "same")):
            settings = ClientSettings(auth_token=token)
            async with open_channel(server.address, settings) as channel:
                call = AlertServiceStub(channel).GetAlert(pb.GetAlertRequest(alert_id="fine"))
                if expected is None:
                    assert (await call).alert.alert_id == "fine"
                else:
                    code, _ = await caught(call)
                    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "token" in UnauthenticatedError().message


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "cert.pem", folder / "key.pem"
    certificate_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


async def test_tls(tmp_path: Path) -> None:
    certificate_file, key_file = certificate(tmp_path)
    async with running(ServerSettings(tls_cert_file=certificate_file, tls_key_file=key_file)) as server:
        async with open_channel(server.address, ClientSettings(tls_ca_file=certificate_file)) as channel:
            answer = await AlertServiceStub(channel).GetAlert(pb.GetAlertRequest(alert_id="fine"))
            assert answer.alert.alert_id == "fine"
        assert not await address_serving(server.address, ClientSettings(), timeout_seconds=0.5)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "gateway.example"])
def test_other_machines_need_tls_and_a_token(host: str, tmp_path: Path) -> None:
    certificate_file, key_file = certificate(tmp_path)
    assert not is_loopback(host)
    for settings in (
        ServerSettings(grpc_host=host),
        ServerSettings(grpc_host=host, auth_token="sesame"),
        ServerSettings(grpc_host=host, tls_cert_file=certificate_file, tls_key_file=key_file),
    ):
        with pytest.raises(NotConfiguredError, match="AUTH_TOKEN"):
            make_server(settings)


async def test_a_busy_port_is_named() -> None:
    async with running(ServerSettings()) as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(NotConfiguredError, match=f"{port}.*GRPC_PORT"):
            make_server(ServerSettings(grpc_port=port))


async def test_the_drain_lets_streams_finish_and_closes_in_order() -> None:
    closed: list[str] = []
    served: list[bool] = []

    async def background(lifetime: Lifetime) -> None:
        await lifetime.draining.wait()
        closed.append("task")

    def wire(lifetime: Lifetime) -> None:
        lifetime.on_close(lambda: closed.append("store"))
        lifetime.on_close(lambda: closed.append("channel"))
        lifetime.spawn(background(lifetime), "background")

    async with running(ServerSettings(), wire) as server:
        async with open_channel(server.address, ClientSettings()) as channel:
            tokens = []
            async for response in AlertServiceStub(channel).WatchAlerts(pb.WatchAlertsRequest()):
                tokens.append(response.resume_token)
                server.lifetime.draining.set()
                served.append(True)
        assert tokens == ["first", "last"]
        assert await server.done == 0
    assert closed == ["task", "channel", "store"]


async def test_a_failing_background_task_ends_the_server() -> None:
    async def fail() -> None:
        raise RuntimeError("cannot go on")

    async with running(ServerSettings(), lambda lifetime: lifetime.spawn(fail(), "doomed")) as server:
        assert await server.done == 1
