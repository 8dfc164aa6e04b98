"""Mutual TLS whose certificates are replaced while calls and a stream are under way."""

import asyncio
import contextlib
import datetime
import logging
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509

from services.domain.errors import NotConfiguredError
from services.runtime.channels import open_channel
from services.runtime.health import address_serving
from services.runtime.server import _ServedCertificates, make_server
from services.runtime.settings import ClientSettings, ServerSettings
from services.runtime.tls import LOOK_SECONDS, TlsFiles, TlsWatch
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tapewatch_client import Client
from tapewatch_client.generated.tapewatch.gateway.v1 import GetAlertRequest
from tests.certificates import DAY, Authority, replace
from tests.integration.runtime_server import running

if TYPE_CHECKING:
    from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceAsyncStub

CALLERS = 4
STORM_CLIENTS = 12
STORM_SECONDS = 6.0


@dataclass
class Party:
    """A server's or a client's folder of certificates."""

    folder: Path
    name: str

    def trust(self, *authorities: Authority) -> Path:
        return replace(self.folder / f"{self.name}-ca.pem", b"".join(authority.pem for authority in authorities))

    def client(self) -> ClientSettings:
        return ClientSettings(
            tls_ca_file=self.folder / f"{self.name}-ca.pem",
            tls_cert_file=self.folder / f"{self.name}.pem",
            tls_key_file=self.folder / f"{self.name}.key",
        )

    def server(self) -> ServerSettings:
        return ServerSettings(
            tls_client_ca_file=self.folder / f"{self.name}-ca.pem",
            tls_cert_file=self.folder / f"{self.name}.pem",
            tls_key_file=self.folder / f"{self.name}.key",
        )


def party(folder: Path, name: str, issuer: Authority, trusted: Authority) -> Party:
    made = Party(folder, name)
    issuer.issue(name).write(folder, name)
    made.trust(trusted)
    return made


async def shown_serial(address: str, client: Party) -> int:
    """The serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(client.folder / f"{client.name}-ca.pem"))
    context.load_cert_chain(client.folder / f"{client.name}.pem", client.folder / f"{client.name}.key")
    context.set_alpn_protocols(["h2"])
    _, port = address.split(":")
    _, writer = await asyncio.open_connection("127.0.0.1", int(port), ssl=context, server_hostname="localhost")
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


async def rotated() -> None:
    await asyncio.sleep(LOOK_SECONDS * 1.3)


SERVE = """
import asyncio, sys
from pathlib import Path
from services.runtime.server import make_server
from services.runtime.settings import ServerSettings

async def serve():
    certificate, key, authority = map(Path, sys.argv[1:])
    settings = ServerSettings(grpc_port=0, tls_cert_file=certificate, tls_key_file=key, tls_client_ca_file=authority)
    server, port = make_server(settings)
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()

asyncio.run(serve())
"""


@pytest.mark.slow
def test_clients_that_connect_at_once_do_not_crash_a_server(tmp_path: Path) -> None:
    """In a process of its own: what they crashed was gRPC itself."""
    authority = Authority("authority")
    shown = party(tmp_path, "server", authority, authority).server()
    files = [shown.tls_cert_file, shown.tls_key_file, shown.tls_client_ca_file]
    process = subprocess.Popen([sys.executable, "-c", SERVE, *map(str, files)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    context = ssl.create_default_context(cafile=str(shown.tls_client_ca_file))
    context.check_hostname = False
    context.load_cert_chain(str(shown.tls_cert_file), str(shown.tls_key_file))
    context.set_alpn_protocols(["h2"])
    until = time.monotonic() + STORM_SECONDS

    def connect_again_and_again() -> int:
        connected = 0
        while (time.monotonic() < until or connected < 2) and process.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
                context.wrap_socket(plain, server_hostname="localhost"),
            ):
                connected += 1
        return connected

    try:
        with ThreadPoolExecutor(STORM_CLIENTS) as threads:
            connected = sum(
                each.result() for each in [threads.submit(connect_again_and_again) for _ in range(STORM_CLIENTS)]
            )
        assert process.poll() is None, f"ended with {process.poll()} after {connected} connections"
        assert connected > STORM_CLIENTS
    finally:
        process.kill()
        process.wait()


def test_grpc_is_given_new_certificates_only_when_the_files_have_new_ones(tmp_path: Path) -> None:
    """At each handshake it asks, and a configuration that it is given anew breaks the handshakes beside."""
    old, new = Authority("old authority"), Authority("new authority")
    shown = party(tmp_path, "server", old, old).server()
    watch = TlsWatch(TlsFiles(shown.tls_cert_file, shown.tls_key_file, shown.tls_client_ca_file, "TLS_CLIENT_CA_FILE"))
    certificates = _ServedCertificates(watch)
    assert certificates.first() is not None
    assert [certificates.newer() for _ in range(100)] == [None] * 100
    party(tmp_path, "server", new, new)
    time.sleep(LOOK_SECONDS * 1.1)
    assert certificates.newer() is not None
    assert certificates.newer() is None


async def test_everything_is_replaced_under_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = Authority("old authority"), Authority("new authority")
    server_party = party(tmp_path, "server", old, old)
    client_party = party(tmp_path, "client", old, old)
    stranger = party(tmp_path, "left-behind", old, old)
    done = asyncio.Event()
    answered = 0

    async def call_on(stub: "AlertServiceAsyncStub") -> None:
        nonlocal answered
        while not done.is_set():
            response = await stub.GetAlert(pb.GetAlertRequest(alert_id="fine"), timeout=30)
            assert response.alert.alert_id == "fine"
            answered += 1

    async def more(calls: int, callers: "list[asyncio.Task[None]]") -> None:
        """Wait for so many more answers; raises what a caller met."""
        wanted = answered + calls
        async with asyncio.timeout(60):
            while answered < wanted:
                for each in callers:
                    if each.done():
                        each.result()
                await asyncio.sleep(0.02)

    async with (
        running(server_party.server()) as server,
        open_channel(server.address, client_party.client()) as channel,
    ):
        stub = AlertServiceStub(channel)
        stream = stub.WatchAlerts(pb.WatchAlertsRequest())
        first = await stream.read()
        assert isinstance(first, pb.WatchAlertsResponse)
        assert first.resume_token == "first"
        load = [asyncio.create_task(call_on(stub)) for _ in range(CALLERS)]
        await more(CALLERS, load)
        assert set(server.servicer.callers) == {"client"}

        # Both sides trust the new authority beside the old one, then show its certificates, then forget the old one.
        server_party.trust(old, new)
        client_party.trust(old, new)
        await rotated()
        server_certificate, client_certificate = new.issue("server"), new.issue("client-2")
        replace(tmp_path / "server.key", server_certificate.key)
        with caplog.at_level(logging.WARNING, logger="services.runtime.tls"):
            await rotated()
            assert await shown_serial(server.address, client_party) != server_certificate.serial
        assert "is not the key of" in caplog.text, "half a rotation is noticed, and the former pair stays in use"
        server_certificate.write(tmp_path, "server")
        client_certificate.write(tmp_path, "client")
        await rotated()
        assert await shown_serial(server.address, client_party) == server_certificate.serial
        server_party.trust(new)
        client_party.trust(new)
        await rotated()
        server.servicer.callers.clear()
        await more(100, load)
        done.set()
        await asyncio.gather(*load)

        assert set(server.servicer.callers) == {"client-2"}, "calls show the new certificate"
        stranger.trust(new)
        assert not await address_serving(server.address, stranger.client(), timeout_seconds=1.0), "old authority"
        assert not await address_serving(server.address, ClientSettings(tls_ca_file=tmp_path / "client-ca.pem"), 1.0)
        assert await address_serving(server.address, client_party.client(), timeout_seconds=30)
        server.lifetime.draining.set()
        last = await stream.read()
        assert isinstance(last, pb.WatchAlertsResponse)
        assert last.resume_token == "last", "the stream outlived every rotation"
        assert await stream.read() is grpc.aio.EOF


async def test_a_channel_is_closed_with_those_before_it(tmp_path: Path) -> None:
    authority = Authority("authority")
    server_party = party(tmp_path, "server", authority, authority)
    client_party = party(tmp_path, "client", authority, authority)
    async with running(server_party.server()) as server:
        channel = open_channel(server.address, client_party.client())
        stream = AlertServiceStub(channel).WatchAlerts(pb.WatchAlertsRequest())
        await stream.read()
        authority.issue("client").write(tmp_path, "client")
        await rotated()
        await AlertServiceStub(channel).GetAlert(pb.GetAlertRequest(alert_id="fine"))
        await channel.close()
        assert stream.cancelled()


async def test_the_python_client_shows_its_certificate(tmp_path: Path) -> None:
    authority = Authority("authority")
    server_party = party(tmp_path, "server", authority, authority)
    own = party(tmp_path, "analyst", authority, authority).client()
    async with running(server_party.server()) as server:
        with Client(
            server.address, ca_file=own.tls_ca_file, cert_file=own.tls_cert_file, key_file=own.tls_key_file
        ) as client:
            await asyncio.to_thread(lambda: client.alerts.get_alert(GetAlertRequest(alert_id="fine")))
        assert server.servicer.callers == ["analyst"]


def wrong(name: str, folder: Path) -> str:
    """Make the files wrong in one way; the sentence that must say so."""
    authority = Authority("authority")
    if name == "missing":
        (folder / "server.pem").unlink()
        return r"cannot read .*server\.pem \(No such file or directory\).*TLS_CERT_FILE"
    if name == "no PEM":
        replace(folder / "server.pem", b"certificate")
        return r"no certificate in .*server\.pem.*TLS_CERT_FILE and TLS_KEY_FILE"
    if name == "mismatched":
        replace(folder / "server.key", authority.issue("server").key)
        return r"server\.key is not the key of .*server\.pem"
    if name == "passphrase":
        authority.issue("server", passphrase=b"sesame").write(folder, "server")
        return "passphrase.*TLS_KEY_FILE"
    if name == "expired":
        authority.issue("server", ends=-DAY).write(folder, "server")
        return r"server\.pem \(certificate has expired\)"
    if name == "empty authority":
        replace(folder / "server-ca.pem", b"")
        return r"no certificate in .*server-ca\.pem.*TLS_CLIENT_CA_FILE"
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["missing", "no PEM", "mismatched", "passphrase", "expired", "empty authority"])
def test_files_that_cannot_be_used_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    authority = Authority("authority")
    settings = party(tmp_path, "server", authority, authority).server()
    message = wrong(name, tmp_path)
    with pytest.raises(NotConfiguredError, match=message):
        make_server(settings)


def test_half_of_the_settings_is_refused(tmp_path: Path) -> None:
    authority = Authority("authority")
    certificate_file, key_file = authority.issue("server", ends=datetime.timedelta(hours=1)).write(tmp_path, "server")
    authority_file = replace(tmp_path / "ca.pem", authority.pem)
    with pytest.raises(NotConfiguredError, match="both TLS_CERT_FILE and TLS_KEY_FILE"):
        make_server(ServerSettings(tls_cert_file=certificate_file))
    with pytest.raises(NotConfiguredError, match="TLS_CERT_FILE and TLS_KEY_FILE, too"):
        make_server(ServerSettings(tls_client_ca_file=authority_file))
    with pytest.raises(NotConfiguredError, match="both TLS_CERT_FILE and TLS_KEY_FILE"):
        open_channel("localhost:1", ClientSettings(tls_ca_file=authority_file, tls_key_file=key_file))


async def test_other_machines_may_be_known_by_their_certificate(tmp_path: Path) -> None:
    authority = Authority("authority")
    settings = party(tmp_path, "server", authority, authority).server()
    with pytest.raises(
        NotConfiguredError, match=r"cannot listen on 192\.0\.2\.1"
    ):  # nobody's address: it came that far
        make_server(settings.model_copy(update={"grpc_host": "192.0.2.1"}))
