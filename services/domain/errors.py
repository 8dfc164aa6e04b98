"""Every way in which a Tapewatch operation fails. `services.runtime.errors` maps each to its gRPC status."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: `field` is its path in the request, `description` says what is wrong with it."""

    field: str
    description: str


def shown(value: str, most: int = 100) -> str:
    """A caller's text as a message may quote it: without control characters, and no longer than `most`.

    >>> shown("A" * 200, most=3)
    "'AAA'… (200 characters)"
    """
    return repr(value) if len(value) <= most else f"{value[:most]!r}… ({len(value):,} characters)"


class TapewatchError(Exception):
    """The root of the tree. `metadata` names the things involved; it goes to the caller as it is."""

    retryable = False

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InvalidRequestError(TapewatchError):
    """The request is malformed and never succeeds as it is."""

    def __init__(self, violations: Sequence[FieldViolation], **metadata: str) -> None:
        listed = "; ".join(f"{v.field}: {v.description}" for v in violations)
        super().__init__(listed, **metadata)
        self.violations = tuple(violations)


class InvalidQuoteError(InvalidRequestError):
    """The quote can never be scored as it is."""


class NotFoundError(TapewatchError):
    """The named resource does not exist."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"no {kind} named {name!r}", type=kind, name=name)


class EtagMismatchError(TapewatchError):
    """The resource changed since the caller read it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} changed since it was read: read it again, then retry", name=name)


class IllegalTransitionError(TapewatchError):
    """The alert's state does not allow this step."""

    def __init__(self, from_state: str, to_state: str) -> None:
        super().__init__(f"an alert cannot go from {from_state} to {to_state}", **{"from": from_state, "to": to_state})


class DependencyUnavailableError(TapewatchError):
    """A store, queue or peer is away or busy; the same request may succeed after `retry_delay_seconds`."""

    retryable = True

    def __init__(self, dependency: str, detail: str, retry_delay_seconds: float = 0.5) -> None:
        super().__init__(f"{dependency}: {detail}", dependency=dependency)
        self.retry_delay_seconds = retry_delay_seconds


class FileLostError(DependencyUnavailableError):
    """A file that this process keeps its data in was deleted or replaced meanwhile: only a new start mends it."""

    def __init__(self, dependency: str, path: str) -> None:
        super().__init__(dependency, f"{path} was deleted or replaced while in use; what it held may be lost")


class PredecessorFailedError(TapewatchError):
    """An earlier quote of the same series failed, so this one was not tried."""

    retryable = True

    def __init__(self, quote_id: str, why: str = "failed") -> None:
        super().__init__(f"not tried, because {quote_id} before it {why}", quote_id=quote_id)


class ModelUnusableError(TapewatchError):
    """No model can be served from `path`: missing, damaged, or made for other features."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}", path=path)


class UnauthenticatedError(TapewatchError):
    """The call carries no token, or a wrong one."""

    def __init__(self) -> None:
        super().__init__("this server wants a token: send 'authorization: Bearer <token>'")


class NotConfiguredError(TapewatchError):
    """Somebody has to mend a setting, a permission or an installation. One clause says what is wrong, one what to do.

    >>> error = NotConfiguredError("the queue needs a URL", "set SQS_QUEUE_URL to it, or QUEUE_BACKEND to sqlite")
    >>> error.message
    'the queue needs a URL: set SQS_QUEUE_URL to it, or QUEUE_BACKEND to sqlite'
    >>> error.metadata
    {'setting': 'SQS_QUEUE_URL, QUEUE_BACKEND'}
    """

    def __init__(self, problem: str, remedy: str) -> None:
        settings = ", ".join(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", remedy))
        super().__init__(f"{problem}: {remedy}", **({"setting": settings} if settings else {}))


UNUSABLE: Final = (DependencyUnavailableError, NotConfiguredError)
"""Why a store, queue or peer cannot be used: for the moment, or until somebody mends a setting or a permission."""


class ResumeTokenInvalidError(TapewatchError):
    """The resume token belongs to another store, or lies before what the change log keeps."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"resume token refused: {detail}")


class ConflictError(TapewatchError):
    """A conditional write lost against another one. Stores raise it; services read again and retry."""

    retryable = True
