"""Every domain error has its status, its reason and its details, and survives the way to the caller."""

import ast

import grpc
import pytest
from google.rpc import error_details_pb2

from services.domain import errors as domain
from services.domain.errors import FieldViolation, TapewatchError
from services.runtime.errors import CODES, error_from_rpc, error_from_status, exit_code_of, internal_status, status_of
from services.runtime.exit_codes import EXIT_FAILED, EXIT_MISCONFIGURED
from tests.servers.process import REPOSITORY


def subclasses(root: type[TapewatchError]) -> set[type[TapewatchError]]:
    found = set(root.__subclasses__())
    return found.union(*(subclasses(each) for each in found)) if found else found


def test_every_domain_error_is_mapped() -> None:
    ours = {each for each in subclasses(TapewatchError) if each.__module__ == domain.__name__}
    assert ours == set(CODES)


EXAMPLES: list[TapewatchError] = [
    domain.InvalidRequestError([FieldViolation("page_size", "is 7,000; 1 to 5,000 are allowed")]),
    domain.InvalidQuoteError([FieldViolation("high", "is below low")], quote_id="live/x"),
    domain.NotFoundError("alert", "al_1"),
    domain.EtagMismatchError("al_1"),
    domain.IllegalTransitionError("CLOSED", "NEW"),
    domain.DependencyUnavailableError("queue", "is away"),
    domain.FileLostError("the store", "store.db"),
    domain.PredecessorFailedError("live/x"),
    domain.ModelUnusableError("models/1", "is damaged"),
    domain.UnauthenticatedError(),
    domain.NotConfiguredError("the queue needs a URL", "set SQS_QUEUE_URL"),
    domain.ResumeTokenInvalidError("of another store"),
    domain.ConflictError("lost"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_status_carries_code_reason_and_details(error: TapewatchError) -> None:
    status = status_of(error)
    code, _ = CODES[type(error)]
    assert status.code == code.value[0]
    assert status.message == error.message
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "tapewatch"
    assert info.reason.startswith("ERROR_REASON_")
    assert dict(info.metadata) == error.metadata
    if isinstance(error, domain.InvalidRequestError):
        bad = error_details_pb2.BadRequest()
        assert status.details[1].Unpack(bad)
        assert [(v.field, v.description) for v in bad.field_violations] == [
            (v.field, v.description) for v in error.violations
        ]
    if isinstance(error, domain.DependencyUnavailableError):
        retry = error_details_pb2.RetryInfo()
        assert status.details[1].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == 500


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_the_caller_tells_invalid_from_transient(error: TapewatchError) -> None:
    """What can never succeed comes back as invalid; everything else must never reach a dead-letter queue."""
    back = error_from_status(status_of(error), "peer")
    if isinstance(error, domain.InvalidRequestError):
        assert type(back) is type(error)
        assert isinstance(back, domain.InvalidRequestError)
        assert back.violations == error.violations
    else:
        assert not isinstance(back, domain.InvalidRequestError)
        assert back.retryable


def test_what_is_not_configured_is_a_sentence_and_names_the_variables_to_set() -> None:
    error = domain.NotConfiguredError("the queue needs a URL", "set SQS_QUEUE_URL to it, or QUEUE_BACKEND to sqlite")
    assert error.message == "the queue needs a URL: set SQS_QUEUE_URL to it, or QUEUE_BACKEND to sqlite"
    assert error.metadata == {"setting": "SQS_QUEUE_URL, QUEUE_BACKEND"}
    assert domain.NotConfiguredError("training needs TensorFlow", "install it").metadata == {}


def test_every_such_sentence_ends_in_what_to_do() -> None:
    """The second clause is a command; a name alone would leave "…: QUEUE_URL"."""
    commands = ("set ", "install ", "use ", "sign in ", "name ", "leave ", "fill ", "{asks} ")
    wrong = []
    for path in sorted((REPOSITORY / "services").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "NotConfiguredError":
                remedy = ast.unparse(node.args[1]).removeprefix("f").strip("'\"")
                if not remedy.startswith(commands):
                    wrong.append(f"{path}:{node.lineno}: {remedy}")
    assert not wrong


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_a_command_ends_by_what_may_succeed_later(error: TapewatchError) -> None:
    assert exit_code_of(error) == (EXIT_FAILED if error.retryable else EXIT_MISCONFIGURED)


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        (grpc.StatusCode.NOT_FOUND, EXIT_MISCONFIGURED),
        (grpc.StatusCode.FAILED_PRECONDITION, EXIT_MISCONFIGURED),
        (grpc.StatusCode.OUT_OF_RANGE, EXIT_MISCONFIGURED),
        (grpc.StatusCode.UNAUTHENTICATED, EXIT_MISCONFIGURED),
        (grpc.StatusCode.UNAVAILABLE, EXIT_FAILED),
        (grpc.StatusCode.INTERNAL, EXIT_FAILED),
        (grpc.StatusCode.DEADLINE_EXCEEDED, EXIT_FAILED),
    ],
)
def test_a_command_ends_by_the_code_of_the_call_that_failed(code: grpc.StatusCode, ends: int) -> None:
    call = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "why")
    assert exit_code_of(call) == ends
    with pytest.raises(TapewatchError) as caught:
        try:
            raise call
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, "peer") from error
    assert exit_code_of(caught.value) == ends


def test_a_fault_of_ours_tells_nothing_of_our_insides() -> None:
    status = internal_status()
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "Traceback" not in status.message
    assert "/" not in status.message
