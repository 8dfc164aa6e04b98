"""How calls of DynamoDB are repeated, and what their errors say. A scripted client: no server throttles on demand."""

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from services.dispatch.ledger_dynamodb import LEDGER_PERMISSIONS
from services.domain.errors import DependencyUnavailableError, NotConfiguredError, TapewatchError
from services.ingest.progress_dynamodb import PROGRESS_PERMISSIONS
from services.runtime.dynamodb_table import STORE_PERMISSIONS, ConditionFailedError, DynamoDbTable, key, put_write

KEY = key("p", "s")


class Scripted:
    """Answers each call with the next of `answers`; raises those that are errors."""

    def __init__(self, *answers: Any) -> None:
        self.meta = SimpleNamespace(region_name="eu-central-1")
        self.answers = list(answers)
        self.requests: list[dict[str, Any]] = []

    def __getattr__(self, operation: str) -> Any:
        def call(**request: Any) -> Any:
            self.requests.append(request)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def failure(code: str, message: str = "", reasons: tuple[str, ...] = ()) -> ClientError:
    response: dict[str, Any] = {"Error": {"Code": code, "Message": message}}
    if reasons:
        response["CancellationReasons"] = [{"Code": reason} for reason in reasons]
    return ClientError(response, "TransactWriteItems")  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr("services.runtime.dynamodb_table.time.sleep", pauses.append)
    return pauses


def test_throttling_is_waited_out(slept: list[float]) -> None:
    throttled = failure("ProvisionedThroughputExceededException")
    client = Scripted(throttled, throttled, {"Item": KEY})
    assert DynamoDbTable(client, "t").get(KEY) == KEY
    assert len(client.requests) == 3
    assert len(slept) == 2


def test_throttling_without_end_is_an_error_and_no_tight_loop(slept: list[float]) -> None:
    client = Scripted(failure("ThrottlingException"))
    with pytest.raises(DependencyUnavailableError, match="t in eu-central-1 is too busy") as raised:
        DynamoDbTable(client, "t").get(KEY)
    assert len(client.requests) == 8
    assert len(slept) == 7
    assert all(0 <= pause <= 2 for pause in slept)
    assert raised.value.retry_delay_seconds == 2


@pytest.mark.parametrize("reason", ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"])
def test_transactions_that_meet_are_tried_again(reason: str) -> None:
    client = Scripted(failure("TransactionCanceledException", reasons=("None", reason)), {})
    DynamoDbTable(client, "t").transact([put_write(KEY), put_write(KEY)])
    assert len(client.requests) == 2


def test_a_condition_that_does_not_hold_is_told_by_its_place() -> None:
    reasons = ("None", "ConditionalCheckFailed", "TransactionConflict")
    client = Scripted(failure("TransactionCanceledException", reasons=reasons))
    with pytest.raises(ConditionFailedError) as raised:
        DynamoDbTable(client, "t").transact([put_write(KEY)] * 3)
    assert raised.value.failed == {1: None}
    assert len(client.requests) == 1


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (failure("ResourceNotFoundException"), NotConfiguredError, "no table at t in eu-central-1.*STORE_TABLE"),
        (
            failure("AccessDeniedException", "is not authorized to perform: dynamodb:PutItem"),
            NotConfiguredError,
            r"AWS refuses the use of the table t in eu-central-1.*credentials that allow dynamodb:PutItem \(all",
        ),
        (failure("ExpiredTokenException"), NotConfiguredError, "credentials have expired"),
        (failure("ValidationException", "bad"), DependencyUnavailableError, "ValidationException bad"),
        (
            failure("TransactionCanceledException", reasons=("ItemCollectionSizeLimitExceeded",)),
            DependencyUnavailableError,
            "ItemCollectionSizeLimitExceeded",
        ),
    ],
)
def test_errors_are_sentences_and_not_tried_again(
    error: ClientError, kind: type[TapewatchError], message: str, slept: list[float]
) -> None:
    with pytest.raises(kind, match=message):
        DynamoDbTable(Scripted(error), "t").get(KEY)
    assert slept == []


def test_keys_that_dynamodb_leaves_out_are_asked_for_again() -> None:
    other = key("p", "t")
    first = {"Responses": {"t": [KEY]}, "UnprocessedKeys": {"t": {"Keys": [other]}}}
    client = Scripted(first, {"Responses": {"t": [other]}})
    assert DynamoDbTable(client, "t").get_many([other, KEY, key("p", "u")]) == [other, KEY, None]


def test_a_refusal_names_all_that_the_tables_own_use_needs() -> None:
    denied = "User: arn:aws:iam::1:user/u is not authorized to perform: dynamodb:DeleteItem on resource: t"
    for permissions in (LEDGER_PERMISSIONS, PROGRESS_PERMISSIONS, STORE_PERMISSIONS):
        client = Scripted(failure("AccessDeniedException", denied))
        table = DynamoDbTable(client, "t", permissions=permissions)
        every = f"{', '.join(permissions[:-1])} and {permissions[-1]}"
        with pytest.raises(NotConfiguredError, match=rf"allow dynamodb:DeleteItem \(all that it needs: {every}\)$"):
            table.get(KEY)
    assert "dynamodb:DeleteItem" in LEDGER_PERMISSIONS
