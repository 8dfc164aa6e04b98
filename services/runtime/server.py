"""The one way to run a gRPC server: telemetry, wiring, health and reflection, start, drain.

A service's `main` calls `run_server` with a `build` coroutine that wires its adapters and returns what to mount.
"""

import asyncio
import inspect
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.domain.errors import FileLostError, NotConfiguredError, TapewatchError
from services.runtime.channels import MESSAGE_BYTES_LIMIT, is_loopback
from services.runtime.exit_codes import EXIT_FAILED, EXIT_MISCONFIGURED
from services.runtime.health_service import HealthService
from services.runtime.interceptors import AuthenticationInterceptor, ErrorInterceptor, TracingInterceptor
from services.runtime.secret_files import follow_secret
from services.runtime.settings import ServerSettings
from services.runtime.stopping import stopped_within
from services.runtime.telemetry import Telemetry
from services.runtime.tls import TlsFiles, TlsMaterial, TlsWatch

_log = logging.getLogger(__name__)

_MISSING_CHECK_SECONDS = 1.0
"""How often health looks, at least, at what is missing, so that a mesh's start does not wait for the next look."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on a busy port must fail, not share it
    ("grpc.max_receive_message_length", MESSAGE_BYTES_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_BYTES_LIMIT),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # below the channels' keepalive
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True)
class Mount:
    """A servicer with the generated function that adds it to a server and its service's descriptor."""

    add: Callable[[Any, Any], None]
    servicer: object
    service: ServiceDescriptor


class Lifetime:
    """What a service may ask of its process: background tasks, clean-up, health, and when to drain."""

    def __init__(self, name: str, settings: ServerSettings) -> None:
        self.name = name
        self._check_seconds = settings.health_check_seconds
        self.draining = asyncio.Event()
        """Set when shutdown begins: streams end with UNAVAILABLE, loops finish what they hold."""
        self.health = HealthService(settings.auth_token.get_secret_value())
        self.failure: BaseException | None = None
        self.service_names: list[str] = []
        self._started = False
        self._missing: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closers: list[Callable[[], Any]] = []

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a background task until the drain. A failing one takes the server down, for a restart."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            told = isinstance(error, TapewatchError)
            words = f": {error}" if told else ""
            exc_info = None if told else error
            _log.error("%s: background task %s failed%s", self.name, task.get_name(), words, exc_info=exc_info)
            self.failure = error
            self.draining.set()

    def on_close(self, close: Callable[[], Awaitable[None] | None]) -> None:
        """Call `close` after the last call and task ended; last registered, first called."""
        self._closers.append(close)

    def need(self, name: str, check: Callable[[], Awaitable[None]]) -> None:
        """Answer NOT_SERVING while `check` raises a TapewatchError: the service cannot work without `name`.

        A FileLostError takes the server down: the next start makes a new file.
        """
        self.spawn(self._watch_need(name, check), f"health: {name}")

    def need_blocking(self, name: str, check: Callable[[], None]) -> None:
        """`need` with a check that blocks: it never waits for a thread behind calls that wait for the same thing."""
        thread = ThreadPoolExecutor(1, thread_name_prefix=f"health: {name}")

        async def checked() -> None:
            await asyncio.get_running_loop().run_in_executor(thread, check)

        self.on_close(lambda: thread.shutdown(wait=False))
        self.need(name, checked)

    async def _watch_need(self, name: str, check: Callable[[], Awaitable[None]]) -> None:
        while not self.draining.is_set():
            try:
                await check()
            except FileLostError:
                raise
            except TapewatchError as error:
                if name not in self._missing:
                    _log.warning("%s is not serving: %s", self.name, error.message)
                self._missing[name] = error.message
            else:
                if name in self._missing:
                    _log.info("%s is there again: %s", self.name, name)
                    self._missing.pop(name)
            await self._tell_health()
            longest = _MISSING_CHECK_SECONDS if name in self._missing else self._check_seconds
            await stopped_within(min(longest, self._check_seconds), self.draining)

    async def started(self) -> None:
        """Let health answer for the server and each of its services: SERVING unless something needed is missing."""
        self._started = True
        await self._tell_health()

    async def _tell_health(self) -> None:
        if not self._started or self.draining.is_set():
            return
        for service in ("", *self.service_names):
            await self.health.tell(service, not self._missing, "; ".join(self._missing.values()))

    async def close(self, grace_seconds: float) -> None:
        """Wait for the background tasks, cancel those that overstay, then call the closers."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for close in reversed(self._closers):
            result = close()
            if inspect.isawaitable(result):
                await result


async def _outlive_no_parent(parent: int, draining: asyncio.Event) -> None:
    """Drain once the parent process is gone: a killed supervisor leaves no services behind."""
    while not draining.is_set():
        if os.getppid() != parent:
            draining.set()
            return
        await stopped_within(1.0, draining)


def _certificate_refresh(settings: ServerSettings, draining: asyncio.Event) -> Coroutine[Any, Any, None]:
    """What keeps the certificate files as the secret is. Raises: NotConfiguredError when a file is not named."""
    files = {
        "TLS_CERT_FILE": settings.tls_cert_file,
        "TLS_KEY_FILE": settings.tls_key_file,
        "TLS_CA_FILE": settings.tls_ca_file,
    }
    if missing := [name for name, path in files.items() if path is None]:
        raise NotConfiguredError("TLS_SECRET_ARN names certificates but no files", f"set {', '.join(missing)}")
    paths = {name: str(path) for name, path in files.items()}
    return follow_secret(settings.tls_secret_arn, paths, settings.tls_refresh_seconds, draining)


Build = Callable[[Lifetime], Awaitable[Sequence[Mount]]]


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """TLS when certificate and key are set, mutual when the clients' authority is.

    Raises: NotConfiguredError for certificates that cannot be used, and where listening without would be unsafe.
    """
    files = TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file, "TLS_CLIENT_CA_FILE")
    mutual = files.authority is not None
    known = mutual or bool(settings.auth_token.get_secret_value())
    if not is_loopback(settings.grpc_host) and not (files.certificate and files.key and known):
        raise NotConfiguredError(
            f"other machines can reach {settings.grpc_host}, where only TLS with a token, or mutual TLS, may listen",
            "set TLS_CERT_FILE, TLS_KEY_FILE, and AUTH_TOKEN or TLS_CLIENT_CA_FILE",
        )
    if files.certificate is None and files.key is None:
        if mutual:
            raise NotConfiguredError(
                "mutual TLS needs the server's own certificate and key", "set TLS_CERT_FILE and TLS_KEY_FILE, too"
            )
        return None
    certificates = _ServedCertificates(TlsWatch(files))
    return grpc.dynamic_ssl_server_credentials(certificates.first(), certificates.newer, mutual)


class _ServedCertificates:
    """What gRPC serves with, and asks for anew at each handshake.

    A new configuration makes it drop what other handshakes, at that moment, begin with, and it crashes when they come
    too close (seen with grpcio 1.85: a segmentation fault within seconds of twelve clients that connect at once). So it
    is given one only when the files have changed.
    """

    def __init__(self, watch: TlsWatch) -> None:
        self._watch = watch
        self._served = watch.current()
        self._lock = threading.Lock()

    def first(self) -> Any:
        """What to begin with."""
        return _configuration(self._served)

    def newer(self) -> Any:
        """What to go on with; None while nothing has changed. Called from gRPC's threads."""
        with self._lock:
            material = self._watch.current()
            if material is self._served:
                return None
            self._served = material
            return _configuration(material)


def _configuration(material: TlsMaterial) -> Any:
    assert material.certificate is not None
    assert material.key is not None
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.authority)


def make_server(settings: ServerSettings) -> tuple[grpc.aio.Server, int]:
    """A server bound to the configured address, not started, and its port.

    Raises: NotConfiguredError when the address is unsafe or busy.
    """
    credentials = _credentials(settings)
    interceptors: list[Any] = [TracingInterceptor()]
    if token := settings.auth_token.get_secret_value():
        interceptors.append(AuthenticationInterceptor(token))
    interceptors.append(ErrorInterceptor())
    server = grpc.aio.server(interceptors=interceptors, options=_OPTIONS)
    address = f"{settings.grpc_host}:{settings.grpc_port}"
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise NotConfiguredError(
            f"this server cannot listen on {address} (is another program using the port?)",
            "set GRPC_PORT to a free port",
        ) from error
    return server, port


async def serve(name: str, settings: ServerSettings, build: Build, started: Callable[[int], None] | None = None) -> int:
    """Run a server until SIGTERM or SIGINT, or until a background task fails.

    `started` is told the port once the server answers. Returns the process's exit code: 0 after a clean drain.
    """
    lifetime = Lifetime(name, settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lifetime.draining.set)
    server, port = make_server(settings)
    if settings.exit_with_parent:
        lifetime.spawn(_outlive_no_parent(settings.exit_with_parent, lifetime.draining), "parent watch")
    if settings.tls_secret_arn:
        lifetime.spawn(_certificate_refresh(settings, lifetime.draining), "certificates")
    try:
        mounts = await build(lifetime)
        for mount in mounts:
            mount.add(mount.servicer, server)
            lifetime.service_names.append(mount.service.full_name)
        health_pb2_grpc.add_HealthServicer_to_server(lifetime.health, server)
        names = (*lifetime.service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        await server.start()
        await lifetime.started()
        _log.info("%s listens on %s:%d", name, settings.grpc_host, port)
        if started is not None:
            started(port)
        await lifetime.draining.wait()
        _log.info("%s drains", name)
        await lifetime.health.enter_graceful_shutdown()
        await server.stop(settings.shutdown_grace_seconds)
    finally:
        lifetime.draining.set()
        await lifetime.close(settings.shutdown_grace_seconds)
    if lifetime.failure is None:
        return 0
    _log.error("%s ends: %s", name, lifetime.failure)
    return EXIT_FAILED


def run_server(name: str, settings: ServerSettings, build: Build) -> int:
    """The body of a service's `main`: telemetry, `serve`, exit code. Misconfiguration ends in one clear sentence."""
    telemetry = Telemetry(f"tapewatch-{name}", settings)
    try:
        return asyncio.run(serve(name, settings, build))
    except TapewatchError as error:
        print(f"tapewatch {name}: {error.message}", file=sys.stderr)
        return EXIT_MISCONFIGURED
    finally:
        telemetry.shutdown()
