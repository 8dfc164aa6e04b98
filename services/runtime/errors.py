"""One error model: domain errors to google.rpc.Status with details, and back on the caller's side."""

from collections.abc import Sequence

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from services.domain import errors as domain
from services.domain.errors import FieldViolation, TapewatchError
from services.runtime.exit_codes import EXIT_FAILED, EXIT_MISCONFIGURED
from tapewatch.errors.v1.error_reason_pb2 import ErrorReason

DOMAIN = "tapewatch"
STATUS_DETAILS_KEY = "grpc-status-details-bin"
_VIOLATIONS_LIMIT = 12

_Code = grpc.StatusCode
CODES: dict[type[TapewatchError], tuple[grpc.StatusCode, "ErrorReason.ValueType"]] = {
    domain.InvalidRequestError: (_Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_INVALID_REQUEST),
    domain.InvalidQuoteError: (_Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_INVALID_QUOTE),
    domain.NotFoundError: (_Code.NOT_FOUND, ErrorReason.ERROR_REASON_NOT_FOUND),
    domain.EtagMismatchError: (_Code.ABORTED, ErrorReason.ERROR_REASON_ETAG_MISMATCH),
    domain.IllegalTransitionError: (_Code.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_ILLEGAL_TRANSITION),
    domain.DependencyUnavailableError: (_Code.UNAVAILABLE, ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE),
    domain.FileLostError: (_Code.UNAVAILABLE, ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE),
    domain.PredecessorFailedError: (_Code.ABORTED, ErrorReason.ERROR_REASON_PREDECESSOR_FAILED),
    domain.ModelUnusableError: (_Code.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_MODEL_UNUSABLE),
    domain.UnauthenticatedError: (_Code.UNAUTHENTICATED, ErrorReason.ERROR_REASON_UNAUTHENTICATED),
    domain.NotConfiguredError: (_Code.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_NOT_CONFIGURED),
    domain.ResumeTokenInvalidError: (_Code.OUT_OF_RANGE, ErrorReason.ERROR_REASON_RESUME_TOKEN_INVALID),
    domain.ConflictError: (_Code.ABORTED, ErrorReason.ERROR_REASON_ETAG_MISMATCH),
}
"""Every concrete domain error, its status code and its reason; a test fails on a subclass that is missing."""

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
_REFUSALS = {
    _Code.INVALID_ARGUMENT,
    _Code.NOT_FOUND,
    _Code.FAILED_PRECONDITION,
    _Code.OUT_OF_RANGE,
    _Code.UNAUTHENTICATED,
}
_TRANSIENT = {_Code.UNAVAILABLE, _Code.ABORTED, _Code.DEADLINE_EXCEEDED, _Code.RESOURCE_EXHAUSTED, _Code.CANCELLED}


def _pack(detail: "error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo") -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _violations(violations: Sequence[FieldViolation]) -> list[error_details_pb2.BadRequest.FieldViolation]:
    """The first violations, cut short: an answer travels in trailers, of which a few KB get through."""
    told = [(_cut(v.field, 100), _cut(v.description, 200)) for v in violations[:_VIOLATIONS_LIMIT]]
    if len(violations) > _VIOLATIONS_LIMIT:
        told.append(("", f"and {len(violations) - _VIOLATIONS_LIMIT:,} more"))
    return [error_details_pb2.BadRequest.FieldViolation(field=field, description=text) for field, text in told]


def status_of(error: TapewatchError) -> status_pb2.Status:
    """The error as a google.rpc.Status: ErrorInfo always, BadRequest for wrong fields, RetryInfo when it may pass.

    What a caller sent is cut short in it, so that a Status stays below 6 KB.
    """
    code, reason = CODES[type(error)]
    metadata = {name: _cut(value, 200) for name, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=ErrorReason.Name(reason), domain=DOMAIN, metadata=metadata)
    status = status_pb2.Status(code=code.value[0], message=_cut(error.message, 600), details=[_pack(info)])
    if isinstance(error, domain.InvalidRequestError):
        status.details.append(_pack(error_details_pb2.BadRequest(field_violations=_violations(error.violations))))
    if isinstance(error, domain.DependencyUnavailableError):
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_delay_seconds * 1_000))
        status.details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


def internal_status() -> status_pb2.Status:
    """What a caller learns of a fault of ours: nothing but that it is in our log."""
    info = error_details_pb2.ErrorInfo(reason="ERROR_REASON_INTERNAL", domain=DOMAIN)
    message = "internal error; the server's log has it under this call's trace id"
    return status_pb2.Status(code=_Code.INTERNAL.value[0], message=message, details=[_pack(info)])


def error_from_status(status: status_pb2.Status, peer: str) -> TapewatchError:
    """A per-item Status as the domain error that the caller acts on: invalid, or transient at `peer`."""
    violations = []
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            violations += [FieldViolation(v.field, v.description) for v in bad.field_violations]
        else:
            detail.Unpack(info)
    code = _BY_NUMBER.get(status.code, _Code.UNKNOWN)
    if code is _Code.INVALID_ARGUMENT:
        violations = violations or [FieldViolation("", status.message)]
        kind = domain.InvalidQuoteError if info.reason == "ERROR_REASON_INVALID_QUOTE" else domain.InvalidRequestError
        return kind(violations, **dict(info.metadata))
    if info.reason == "ERROR_REASON_PREDECESSOR_FAILED":
        return domain.PredecessorFailedError(info.metadata.get("quote_id", ""))
    return domain.DependencyUnavailableError(peer, f"{code.name}: {status.message}")


def error_from_rpc(error: grpc.aio.AioRpcError, peer: str) -> TapewatchError:
    """A failed call as the domain error that the caller acts on."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            return error_from_status(status_pb2.Status.FromString(value), peer)
    details = error.details() or "no details"
    if error.code() is _Code.INVALID_ARGUMENT:
        return domain.InvalidRequestError([FieldViolation("", details)])
    return domain.DependencyUnavailableError(peer, f"{error.code().name}: {details}")


def unavailable_from_rpc(error: grpc.aio.AioRpcError, peer: str) -> domain.DependencyUnavailableError:
    """A failed call between our services. Whatever its code: a whole call that fails says nothing of a single item.

    A refused batch (two versions that disagree, say) must wait for repair, not drain into the dead-letter queue.
    """
    return domain.DependencyUnavailableError(peer, f"{error.code().name}: {error.details() or 'no details'}")


def is_transient(code: grpc.StatusCode) -> bool:
    """Whether the same call may succeed later."""
    return code in _TRANSIENT


def exit_code_of(error: TapewatchError | grpc.aio.AioRpcError) -> int:
    """How a command ends: EXIT_MISCONFIGURED where the same call never succeeds, EXIT_FAILED where it may later.

    An error that came of a failed call goes by that call's own code.
    """
    if isinstance(error, TapewatchError):
        if not isinstance(error.__cause__, grpc.aio.AioRpcError):
            return EXIT_FAILED if error.retryable else EXIT_MISCONFIGURED
        error = error.__cause__
    return EXIT_MISCONFIGURED if error.code() in _REFUSALS else EXIT_FAILED
