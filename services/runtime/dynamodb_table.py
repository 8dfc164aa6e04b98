"""One DynamoDB table: reads, conditional writes, transactions; throttling waited out, errors as sentences."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from services.domain.errors import DependencyUnavailableError
from services.runtime.aws import THROTTLED, AwsResource, open_client
from services.runtime.backoff import backoff_seconds

Item = dict[str, Any]
"""An item in DynamoDB's own notation: {"pk": {"S": "…"}, "count": {"N": "1"}}."""

PARTITION, SORT, EXPIRES = "pk", "sk", "expires_at"
_MAX_BATCH_GET: Final = 100
_ATTEMPTS = 8
_THREADS = 16
_ANSWER_SECONDS = 10.0
STORE_PERMISSIONS: Final = (
    "dynamodb:GetItem",
    "dynamodb:BatchGetItem",
    "dynamodb:Query",
    "dynamodb:PutItem",
    "dynamodb:UpdateItem",
    "dynamodb:ConditionCheckItem",
)
"""What the gateway's store needs."""

_CONFLICT = "TransactionConflict"
_CONDITION_FAILED = "ConditionalCheckFailed"
_log = logging.getLogger(__name__)


def key(partition: str, sort: str) -> Item:
    """An item's primary key."""
    return {PARTITION: {"S": partition}, SORT: {"S": sort}}


class ConditionFailedError(Exception):
    """A transaction wrote nothing. `failed` maps positions in it to what is stored there (None when nothing is)."""

    def __init__(self, failed: Mapping[int, Item | None]) -> None:
        super().__init__(f"conditions {sorted(failed)} do not hold")
        self.failed = failed


class DynamoDbTable:
    """The table `name`. `client` is a boto3 DynamoDB client, which is safe to share between threads.

    Every method raises NotConfiguredError when the table, credentials or a permission is missing, and
    DependencyUnavailableError when DynamoDB is away or throttles for longer than retries last.
    """

    def __init__(
        self,
        client: Any,
        name: str,
        *,
        dependency: str = "store",
        setting: str = "STORE_TABLE",
        permissions: Sequence[str] = STORE_PERMISSIONS,
    ) -> None:
        self._client = client
        self.name = name
        self.resource = AwsResource(dependency, "table", name, setting, tuple(permissions), client.meta.region_name)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="dynamodb")

    @classmethod
    def connect(
        cls,
        name: str,
        region: str = "",
        *,
        dependency: str = "store",
        setting: str = "STORE_TABLE",
        instead: str = "set STORE_BACKEND=sqlite",
        permissions: Sequence[str] = STORE_PERMISSIONS,
    ) -> "DynamoDbTable":
        """The table in `region`; empty takes the AWS configuration's. Nothing is asked of AWS yet.

        Args:
            name: The table.
            region: Where.
            dependency: What the table is to us, for messages.
            setting: Environment variable that names the table.
            instead: What to do to go without AWS.
            permissions: All that its use needs, for messages.
        """
        resource = AwsResource(dependency, "table", name, setting, tuple(permissions), region)
        client = open_client("dynamodb", region, resource, instead, read_seconds=_ANSWER_SECONDS)
        return cls(client, name, dependency=dependency, setting=setting, permissions=permissions)

    def create(self) -> None:
        """Make the table, and wait until it is there. For tests and local use: on AWS the stack makes it.

        Harmless when it is there already.
        """
        with self.resource.translated():
            try:
                self._client.create_table(
                    TableName=self.name,
                    KeySchema=[
                        {"AttributeName": PARTITION, "KeyType": "HASH"},
                        {"AttributeName": SORT, "KeyType": "RANGE"},
                    ],
                    AttributeDefinitions=[
                        {"AttributeName": PARTITION, "AttributeType": "S"},
                        {"AttributeName": SORT, "AttributeType": "S"},
                    ],
                    BillingMode="PAY_PER_REQUEST",
                )
            except self._client.exceptions.ResourceInUseException:
                return
            self._client.get_waiter("table_exists").wait(
                TableName=self.name, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
            )
            self._client.update_time_to_live(
                TableName=self.name, TimeToLiveSpecification={"Enabled": True, "AttributeName": EXPIRES}
            )

    def get(self, item_key: Item) -> Item | None:
        """An item, strongly consistent; None when there is none."""
        answer = self._call("get_item", Key=item_key, ConsistentRead=True)
        found: Item | None = answer.get("Item")
        return found

    def get_many(self, keys: Sequence[Item]) -> list[Item | None]:
        """Items, strongly consistent, in the order of their keys, which are distinct."""
        found: dict[tuple[str, str], Item] = {}
        for start in range(0, len(keys), _MAX_BATCH_GET):
            pending = list(keys[start : start + _MAX_BATCH_GET])
            for attempt in range(_ATTEMPTS):
                if attempt:
                    time.sleep(backoff_seconds(attempt))
                request = {self.name: {"Keys": pending, "ConsistentRead": True}}
                answer = self._call("batch_get_item", table_name=False, RequestItems=request)
                for item in answer["Responses"].get(self.name, []):
                    found[_identity(item)] = item
                pending = answer.get("UnprocessedKeys", {}).get(self.name, {}).get("Keys", [])
                if not pending:
                    break
            else:
                raise DependencyUnavailableError(self.resource.dependency, f"{self.resource} throttles reads", 2.0)
        return [found.get(_identity(each)) for each in keys]

    def query(
        self,
        partition: str,
        *,
        after: str = "",
        first: str = "",
        last: str = "",
        descending: bool = False,
        page: int = 0,
    ) -> Iterator[list[Item]]:
        """Pages of a partition's items in order of their sort key, strongly consistent, read as they are asked for.

        Args:
            partition: Which.
            after: Sort key to go on after, in the direction of the order.
            first: Lowest sort key.
            last: Highest sort key.
            descending: The order.
            page: Most items in a page; 0 leaves it to DynamoDB (1 MB).
        """
        condition, values = "pk = :pk", {":pk": {"S": partition}}
        if first or last:
            condition += " AND sk BETWEEN :first AND :last"
            values |= {":first": {"S": first or "\0"}, ":last": {"S": last or "\U0010ffff"}}
        request: dict[str, Any] = {
            "KeyConditionExpression": condition,
            "ExpressionAttributeValues": values,
            "ConsistentRead": True,
            "ScanIndexForward": not descending,
        }
        if page:
            request["Limit"] = page
        if after:
            request["ExclusiveStartKey"] = key(partition, after)
        while True:
            answer = self._call("query", **request)
            yield answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def newest(self, partitions: Sequence[str]) -> list[Item | None]:
        """The item with the highest sort key of each partition, strongly consistent; None when it has none."""

        def one(partition: str) -> Item | None:
            return next((item for page in self.query(partition, descending=True, page=1) for item in page), None)

        return list(self._threads.map(one, partitions)) if len(partitions) > 1 else [one(each) for each in partitions]

    def put(self, item: Item) -> None:
        """Write an item, whatever is there."""
        self._call("put_item", Item=item)

    def put_many(self, items: Sequence[Item]) -> None:
        """Write items, whatever is there; several at once, and not as one."""
        list(self._threads.map(self.put, items))

    def update(self, item_key: Item, expression: str, values: Item, condition: str = "") -> Item | None:
        """Change an item; as it is now, or None when the condition does not hold."""
        request: dict[str, Any] = {
            "UpdateExpression": expression,
            "ExpressionAttributeValues": values,
            "ReturnValues": "ALL_NEW",
        }
        if condition:
            request["ConditionExpression"] = condition
        try:
            answer = self._call("update_item", Key=item_key, **request)
        except ConditionFailedError:
            return None
        attributes: Item = answer["Attributes"]
        return attributes

    def update_many(self, updates: Sequence[tuple[Item, str, Item]]) -> list[Item | None]:
        """Several updates without conditions, at once."""
        return list(self._threads.map(lambda update: self.update(*update), updates))

    def transact(self, writes: Sequence[Mapping[str, Any]]) -> None:
        """All writes or none; built by `put_write`, `update_write` and `check_write`.

        A transaction that met another one is tried again, with jitter.

        Raises: ConditionFailedError.
        """
        items = [{kind: {"TableName": self.name, **request} for kind, request in write.items()} for write in writes]
        self._call("transact_write_items", table_name=False, TransactItems=items)

    def close(self) -> None:
        """Release connections and threads."""
        self._threads.shutdown(wait=False)
        self._client.close()

    def _call(self, operation: str, *, table_name: bool = True, **request: Any) -> Any:
        """Call DynamoDB, again with jitter while it throttles or transactions meet."""
        from botocore.exceptions import ClientError

        if table_name:
            request["TableName"] = self.name
        with self.resource.translated():
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    return getattr(self._client, operation)(**request)
                except ClientError as error:
                    self._judge(error.response, last=attempt == _ATTEMPTS)
                    if attempt == 2:
                        _log.warning("%s %s waits: %s", operation, self.resource, error)
                time.sleep(backoff_seconds(attempt, first=0.01, longest=2.0))
        raise AssertionError(operation)  # the last attempt returned or raised

    def _judge(self, response: Mapping[str, Any], *, last: bool) -> None:
        """Return when the call may succeed if repeated; raise otherwise."""
        failure = response.get("Error", {})
        code = failure.get("Code", "")
        if code == "ConditionalCheckFailedException":
            raise ConditionFailedError({0: response.get("Item")})
        if code == "TransactionCanceledException":
            reasons = response.get("CancellationReasons", [])
            failed = {i: reason.get("Item") for i, reason in enumerate(reasons) if reason["Code"] == _CONDITION_FAILED}
            if failed:
                raise ConditionFailedError(failed)
            worst = next((r for r in reasons if r["Code"] not in ("None", _CONFLICT, "ThrottlingError")), None)
            if worst is not None and worst["Code"] not in THROTTLED | {"ProvisionedThroughputExceeded"}:
                raise self.resource.error_of(worst)
        elif code not in THROTTLED | {"TransactionConflictException", "TransactionInProgressException"}:
            raise self.resource.error_of(failure)
        if last:
            raise DependencyUnavailableError(
                self.resource.dependency,
                f"{self.resource} is too busy after {_ATTEMPTS} attempts: {code}",
                retry_delay_seconds=2.0,
            )


def put_write(item: Item, condition: str = "", values: Item | None = None, *, return_old: bool = False) -> Item:
    """A transaction's write of an item."""
    return {"Put": {"Item": item} | _conditions(condition, values, return_old)}


def update_write(item_key: Item, expression: str, condition: str = "", values: Item | None = None) -> Item:
    """A transaction's change of an item."""
    return {"Update": {"Key": item_key, "UpdateExpression": expression} | _conditions(condition, values, False)}


def delete_write(item_key: Item, condition: str = "", values: Item | None = None) -> Item:
    """A transaction's removal of an item."""
    return {"Delete": {"Key": item_key} | _conditions(condition, values, False)}


def check_write(item_key: Item, condition: str, values: Item | None = None) -> Item:
    """A transaction's demand that writes nothing."""
    return {"ConditionCheck": {"Key": item_key} | _conditions(condition, values, False)}


def _conditions(condition: str, values: Item | None, return_old: bool) -> Item:
    request: Item = {}
    if condition:
        request["ConditionExpression"] = condition
    if values:
        request["ExpressionAttributeValues"] = values
    if return_old:
        request["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
    return request


def _identity(item: Item) -> tuple[str, str]:
    return item[PARTITION]["S"], item[SORT]["S"]
