"""The server bootstrap and the channel factory, over real sockets: health, reflection, errors, token, TLS, drain."""

import asyncio
import importlib
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.domain.errors import (
    DependencyUnavailableError,
    FieldViolation,
    FileLostError,
    InvalidRequestError,
    NotConfiguredError,
    UnauthenticatedError,
)
from services.runtime import channels
from services.runtime import server as bootstrap
from services.runtime.channels import is_loopback, open_channel
from services.runtime.errors import error_from_rpc
from services.runtime.health import address_serving
from services.runtime.server import Lifetime, make_server
from services.runtime.settings import ClientSettings, ServerSettings
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tests.certificates import Authority, replace
from tests.integration.runtime_server import running


async def caught(call: Any) -> tuple[grpc.StatusCode, Exception]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), error_from_rpc(raised.value, "server")


async def test_health_and_reflection() -> None:
    async with running(ServerSettings()) as server:
        assert await address_serving(server.address, ClientSettings(), timeout_seconds=30)
        async with open_channel(server.address, ClientSettings()) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            async for response in stub.ServerReflectionInfo(iter([request])):  # type: ignore[operator]
                names = {service.name for service in response.list_services_response.service}
                break
        assert {"tapewatch.gateway.v1.AlertService", "grpc.health.v1.Health"} <= names


def test_grpc_knows_every_channel_argument() -> None:
    """It ignores an unknown one: a server whose ping interval was misspelt cut every idle channel after 150 s."""
    library = Path(str(importlib.import_module("grpc._cython.cygrpc").__file__)).read_bytes()
    arguments = {name for name, _ in (*bootstrap._OPTIONS, *channels._options("service", "name"))}
    assert len(arguments) > 10
    assert [name for name in sorted(arguments) if name.encode() not in library] == []


async def test_bytes_that_are_no_message_are_an_invalid_argument() -> None:
    async with running(ServerSettings()) as server, open_channel(server.address, ClientSettings()) as channel:
        for method, call in (("GetAlert", channel.unary_unary), ("WatchAlerts", channel.unary_stream)):
            invoke: Any = call(f"/tapewatch.gateway.v1.AlertService/{method}")
            answer = invoke(b"\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await (answer if method == "GetAlert" else anext(aiter(answer)))
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            error = error_from_rpc(raised.value, "server")
            assert isinstance(error, InvalidRequestError)
            assert [violation.field for violation in error.violations] == ["request"]
        assert server.servicer.calls == 0


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
    settings = ClientSettings(rpc_timeout_seconds=45)
    async with running(ServerSettings()) as server, open_channel(server.address, settings) as channel:
        stub = AlertServiceStub(channel)
        await stub.GetAlert(pb.GetAlertRequest(alert_id="once"))
        assert server.servicer.calls == 2
        remaining = server.servicer.remaining
        assert all(0 < seconds <= 45.1 for seconds in remaining), "gRPC rounds timeouts up on the wire"


async def test_a_token_is_asked_for_but_not_by_health() -> None:
    async with running(ServerSettings(auth_token="sesame")) as server:
        assert await address_serving(server.address, ClientSettings(), timeout_seconds=30)
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


async def test_tls(tmp_path: Path) -> None:
    authority = Authority("authority")
    certificate_file, key_file = authority.issue("server").write(tmp_path, "server")
    authority_file = replace(tmp_path / "ca.pem", authority.pem)
    async with running(ServerSettings(tls_cert_file=certificate_file, tls_key_file=key_file)) as server:
        async with open_channel(server.address, ClientSettings(tls_ca_file=authority_file)) as channel:
            answer = await AlertServiceStub(channel).GetAlert(pb.GetAlertRequest(alert_id="fine"))
            assert answer.alert.alert_id == "fine"
        assert not await address_serving(server.address, ClientSettings(), timeout_seconds=0.5)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "gateway.example"])
def test_other_machines_need_tls_and_a_token(host: str, tmp_path: Path) -> None:
    certificate_file, key_file = Authority("authority").issue("server").write(tmp_path, "server")
    assert not is_loopback(host)
    for settings in (
        ServerSettings(grpc_host=host),
        ServerSettings(grpc_host=host, auth_token="sesame"),
        ServerSettings(grpc_host=host, tls_client_ca_file=certificate_file),
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


async def test_a_blocking_check_waits_for_no_thread_that_calls_hold() -> None:
    loop, checked, released = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def check() -> None:
        loop.call_soon_threadsafe(checked.set)

    calls = [asyncio.create_task(asyncio.to_thread(released.wait, 60)) for _ in range(64)]
    await asyncio.sleep(0)  # they hold every thread of the loop's own
    try:
        async with running(ServerSettings(), lambda lifetime: lifetime.need_blocking("the store", check)):
            await asyncio.wait_for(checked.wait(), 30)
        assert not any(call.done() for call in calls)
    finally:
        released.set()
        await asyncio.gather(*calls)


async def test_a_lost_file_ends_the_server_and_a_missing_peer_does_not(caplog: pytest.LogCaptureFixture) -> None:
    async def lost() -> None:
        raise FileLostError("the store", "store.db")

    async def away() -> None:
        raise DependencyUnavailableError("the queue", "is away")

    async with running(ServerSettings(), lambda lifetime: lifetime.need("the queue", away)) as server:
        await asyncio.sleep(0.1)
        assert not server.done.done()
    async with running(ServerSettings(), lambda lifetime: lifetime.need("the store", lost)) as server:
        assert await asyncio.wait_for(server.done, 60) == 1
    assert "ends: the store: store.db was deleted or replaced while in use" in caplog.text
    assert not any(record.exc_info for record in caplog.records), "somebody's deleting is no fault of ours"
