"""What every call to every server goes through: its span, authentication, deadlines, errors, and its duration."""

import asyncio
import hmac
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from opentelemetry import metrics, trace
from opentelemetry.context import attach

from services.domain.errors import FieldViolation, InvalidRequestError, TapewatchError, UnauthenticatedError
from services.runtime import telemetry_names
from services.runtime.errors import STATUS_DETAILS_KEY, internal_status, status_of
from services.runtime.telemetry import context_of

_log = logging.getLogger(__name__)
_HEALTH_PREFIX = "/grpc.health.v1.Health/"
_UNTRACED = (_HEALTH_PREFIX, "/grpc.reflection.")
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_SERVER_FAULTS = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)
"""What OpenTelemetry's conventions count as an error of the server's span."""

call_deadline: ContextVar[float | None] = ContextVar("call_deadline", default=None)
"""time.monotonic() at which the call being served expires; channels give outgoing calls no longer than that."""

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


async def _abort(context: Any, status: status_pb2.Status) -> None:
    details = ((STATUS_DETAILS_KEY, status.SerializeToString()),)
    await context.abort(_CODES[status.code], status.message, details)


class _Undecodable:
    """Stands for a request whose bytes are no message: gRPC itself would answer UNKNOWN, without a word."""


def _decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode_or_mark(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _Undecodable()

    return decode_or_mark


def _decoded(request: Any) -> Any:
    if isinstance(request, _Undecodable):
        raise InvalidRequestError(
            [FieldViolation("request", "its bytes are not a message of the method's request type")]
        )
    return request


async def _each_decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _decoded(request)


def carries_token(metadata: Iterable[tuple[str, Any]] | None, token: str) -> bool:
    """Whether a call with that metadata carries the bearer token."""
    given = next((value for key, value in metadata or () if key == "authorization"), "")
    return hmac.compare_digest(str(given).encode(), f"Bearer {token}".encode())


class AuthenticationInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without the server's bearer token; health checks need none."""

    def __init__(self, token: str) -> None:
        self._token = token

        async def refuse(_request: object, context: Any) -> AsyncIterator[None]:
            await _abort(context, status_of(UnauthenticatedError()))
            yield  # a generator, which serves calls of every cardinality

        self._refusal: Any = grpc.stream_stream_rpc_method_handler(refuse)

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Let the call through when it carries the token."""
        if details.method.startswith(_HEALTH_PREFIX):
            return await continuation(details)
        if carries_token(details.invocation_metadata, self._token):
            return await continuation(details)
        return self._refusal


def _around(handler: Any, guard: Callable[[Any], AbstractAsyncContextManager[None]], *, decoded: bool = False) -> Any:
    """The handler within what `guard` makes of a call's context, whatever its cardinality.

    With `decoded`, a request whose bytes are no message raises InvalidRequestError within the guard.
    """
    streams = handler.request_streaming
    make, behaviour = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }[streams, handler.response_streaming]

    def checked(request: Any) -> Any:
        if not decoded:
            return request
        return _each_decoded(request) if streams else _decoded(request)

    async def single(request: Any, context: Any) -> Any:
        async with guard(context):
            return await behaviour(checked(request), context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async with guard(context), aclosing(behaviour(checked(request), context)) as responses:
            async for response in responses:
                yield response

    return make(
        stream if inspect.isasyncgenfunction(behaviour) else single,
        request_deserializer=_decoder(handler.request_deserializer) if decoded else handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _number(code: Any) -> int:
    number: int = code.value[0] if isinstance(code, grpc.StatusCode) else code or 0
    return number


def _names(details: grpc.HandlerCallDetails) -> dict[str, str]:
    service, _, method = details.method.lstrip("/").partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


class TracingInterceptor(grpc.aio.ServerInterceptor):
    """One span per call, in the caller's trace; none for health checks and reflection.

    gRPC serves each call in a task of its own, so that the span may stay current until that task ends. OpenTelemetry's
    interceptor takes it back instead, for which a stream that is cancelled while it sends is in the wrong context: its
    log would have a traceback each time, and the span no status.
    """

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("tapewatch.runtime")

    @asynccontextmanager
    async def _span(self, name: str, attributes: dict[str, str], context: Any) -> AsyncIterator[None]:
        carrier = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        parent = context_of(carrier)
        span = self._tracer.start_span(
            name, parent, trace.SpanKind.SERVER, {**attributes, "client.address": context.peer()}
        )
        attach(trace.set_span_in_context(span, parent))
        code = 0
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED.value[0]
            raise
        finally:
            code = code or _number(context.code())
            span.set_attribute("rpc.grpc.status_code", code)
            if code in _SERVER_FAULTS:
                span.set_status(trace.StatusCode.ERROR, context.details() or None)
            span.end()

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wrap the method's handler, whatever its cardinality."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(_UNTRACED):
            return handler
        name, attributes = details.method.lstrip("/"), _names(details)
        return _around(handler, lambda context: self._span(name, attributes, context))


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers domain errors with their rich status and faults of ours with INTERNAL, and measures the call."""

    def __init__(self) -> None:
        self._duration = metrics.get_meter("tapewatch").create_histogram(
            telemetry_names.RPC_SERVER_DURATION, unit="ms", description="Duration of calls on the server"
        )

    @asynccontextmanager
    async def _guard(self, method: str, attributes: dict[str, str], context: Any) -> AsyncIterator[None]:
        started = time.monotonic()
        remaining = context.time_remaining()
        call_deadline.set(None if remaining is None else started + remaining)
        try:
            yield
        except TapewatchError as error:
            if error.retryable:
                _log.warning("%s: %s", method, error.message)
            await _abort(context, status_of(error))
        except grpc.aio.AbortError:
            raise
        except Exception:
            _log.exception("%s failed", method)
            await _abort(context, internal_status())
        finally:
            milliseconds = (time.monotonic() - started) * 1_000
            self._duration.record(milliseconds, {**attributes, "rpc.grpc.status_code": _number(context.code())})

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wrap the method's handler, whatever its cardinality."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(_HEALTH_PREFIX):
            return handler
        attributes = _names(details)
        method = attributes["rpc.method"]
        return _around(handler, lambda context: self._guard(method, attributes, context), decoded=True)
