"""What every call to every server goes through: authentication, deadlines, errors, and its duration."""

import hmac
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from opentelemetry import metrics

from services.domain.errors import FieldViolation, InvalidRequestError, TapewatchError, UnauthenticatedError
from services.runtime import telemetry_names
from services.runtime.errors import STATUS_DETAILS_KEY, internal_status, status_of

_log = logging.getLogger(__name__)
_HEALTH_PREFIX = "/grpc.health.v1.Health/"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

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


class AuthenticationInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without the server's bearer token; health checks need none."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}"

        async def refuse(_request: object, context: Any) -> AsyncIterator[None]:
            await _abort(context, status_of(UnauthenticatedError()))
            yield  # a generator, which serves calls of every cardinality

        self._refusal: Any = grpc.stream_stream_rpc_method_handler(refuse)

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Let the call through when it carries the token."""
        if details.method.startswith(_HEALTH_PREFIX):
            return await continuation(details)
        given = next((value for key, value in details.invocation_metadata if key == "authorization"), "")
        if hmac.compare_digest(str(given).encode(), self._expected.encode()):
            return await continuation(details)
        return self._refusal


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
            code = context.code() or 0
            number = code.value[0] if isinstance(code, grpc.StatusCode) else code
            milliseconds = (time.monotonic() - started) * 1_000
            self._duration.record(milliseconds, {**attributes, "rpc.grpc.status_code": number})

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wrap the method's handler, whatever its cardinality."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(_HEALTH_PREFIX):
            return handler
        service, _, method = details.method.lstrip("/").partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        make, behaviour = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
        }[handler.request_streaming, handler.response_streaming]

        checked = _each_decoded if handler.request_streaming else _decoded

        async def single(request: Any, context: Any) -> Any:
            async with self._guard(method, attributes, context):
                return await behaviour(checked(request), context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with (
                self._guard(method, attributes, context),
                aclosing(behaviour(checked(request), context)) as responses,
            ):
                async for response in responses:
                    yield response

        return make(
            stream if inspect.isasyncgenfunction(behaviour) else single,
            request_deserializer=_decoder(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
