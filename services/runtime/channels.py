"""The one way to call a gRPC server: deadlines, retries, keepalive, health checking, TLS, token, traces."""

import ipaddress
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from opentelemetry.instrumentation.grpc import aio_client_interceptors, filters

from services.domain.errors import NotConfiguredError
from services.runtime.interceptors import call_deadline
from services.runtime.rotating_channel import RotatingChannel
from services.runtime.settings import ClientSettings
from services.runtime.tls import TlsFiles, TlsMaterial, TlsWatch

MESSAGE_BYTES_LIMIT = 16 * 1024 * 1024

_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_IDEMPOTENT = (
    ("tapewatch.ingest.v1.IngestService", ("GetReplay", "GetCoverage", "StartReplay", "CancelReplay")),
    ("tapewatch.dispatch.v1.DispatchService", ("Dispatch", "GetCapacity", "GetCanaries")),
    ("tapewatch.scorer.v1.ScorerService", ("Score",)),
    ("tapewatch.scorer.v1.ModelService", ("GetModel", "ListModels")),
    (
        "tapewatch.gateway.v1.DetectionService",
        ("RecordScores", "GetCursors", "GetDetection", "ListDetections", "ListQuotes"),
    ),
    ("tapewatch.gateway.v1.AlertService", ("GetAlert", "ListAlerts", "ListAlertEvents", "GetEvidence")),
)
"""Methods that C-core may call again by itself. UpdateAlert is not among them: its caller decides."""


def _options(health_service: str | None, server_name: str) -> list[tuple[str, Any]]:
    config: dict[str, Any] = {
        "methodConfig": [
            {"name": [{"service": service, "method": method} for method in methods], "retryPolicy": _RETRY_POLICY}
            for service, methods in _IDEMPOTENT
        ],
        "loadBalancingConfig": [{"round_robin": {}}],  # client-side health checking needs it; one address is fine
    }
    if health_service is not None:
        config["healthCheckConfig"] = {"serviceName": health_service}
    named: list[tuple[str, Any]] = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return [
        *named,
        ("grpc.service_config", json.dumps(config)),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_LIMIT),
        ("grpc.max_send_message_length", MESSAGE_BYTES_LIMIT),
    ]


class _Prepare:
    """Adds the token, and gives each call the default deadline or what is left of the call being served."""

    def __init__(self, token: str, timeout_seconds: float | None) -> None:
        self._token = token
        self._timeout = timeout_seconds

    def details(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        """The call's details, completed."""
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if self._token:
            metadata.add("authorization", f"Bearer {self._token}")
        timeouts = [t for t in (details.timeout, None if details.timeout else self._timeout) if t is not None]
        if (deadline := call_deadline.get()) is not None:
            timeouts.append(max(0.001, deadline - time.monotonic()))
        return grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=min(timeouts) if timeouts else None,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


class _UnaryUnary(_Prepare, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return await continuation(self.details(details), request)


class _UnaryStream(_Prepare, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return await continuation(self.details(details), request)


class _StreamUnary(_Prepare, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return await continuation(self.details(details), requests)


class _StreamStream(_Prepare, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return await continuation(self.details(details), requests)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def open_channel(
    address: str, settings: ClientSettings, *, health_service: str | None = None, server_name: str = ""
) -> grpc.aio.Channel:
    """A channel to `address` (host:port, or any gRPC target). Must be called on a running event loop; cheap, lazy.

    With `health_service` (a full service name) the channel leaves out servers that say they are not serving it. With
    `server_name` the server's certificate must be of that name, instead of the address's host.
    Unary calls get the default deadline unless they bring one; streams live until closed, within the deadline of the
    call being served.

    With TLS the channel goes on with new certificates when their files are replaced. Opened in the midst of that it
    waits for the end, seldom more than some milliseconds and 3 s at most, in which the loop stands still.

    Raises: NotConfiguredError when certificates cannot be used, or a token would leave this machine in the clear.
    """
    token = settings.auth_token.get_secret_value()
    interceptors: Sequence[Any] = [
        *aio_client_interceptors(filter_=filters.negate(filters.health_check())),  # type: ignore[no-untyped-call]
        _UnaryUnary(token, settings.rpc_timeout_seconds),
        _UnaryStream(token, None),
        _StreamUnary(token, None),
        _StreamStream(token, None),
    ]
    options = _options(health_service, server_name)
    if settings.tls_ca_file is None:
        host = address.rpartition("/")[2].rpartition(":")[0]
        if token and not is_loopback(host):
            raise NotConfiguredError(f"a token is sent to {address} only over TLS", "set TLS_CA_FILE")
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)

    def connect(material: TlsMaterial) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(material.authority, material.key, material.certificate)
        return grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors)

    files = TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file, "TLS_CA_FILE")
    return RotatingChannel(TlsWatch(files), connect)
