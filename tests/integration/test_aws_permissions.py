"""What AWS refuses, from a server that evaluates policies: each answer names the resource and the permission."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import boto3
import pytest

from services.archive.location import quotes as quotes_of
from services.domain.errors import DependencyUnavailableError, InvalidRequestError, NotConfiguredError
from services.domain.score import RecordedQuote
from services.gateway.dynamodb import DynamoDbStore
from services.gateway.lake import FileSystemLake
from services.queue.market_message import encode
from services.queue.sqs import SqsQueue
from services.runtime.dynamodb_table import DynamoDbTable, key
from tests.gateway_quotes import NOW, scored
from tests.servers.process import CREDENTIALS, REGION, Server


class Account:
    """Resources of the account, and users of it that may do nothing but what they are given."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self._server = server
        self._monkeypatch = monkeypatch
        self.name = f"tapewatch-{uuid.uuid4().hex[:8]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        self.use(CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
        fifo = {"FifoQueue": "true"}
        made = self._client("sqs").create_queue(QueueName=f"{self.name}.fifo", Attributes=fifo)
        self.queue: str = made["QueueUrl"]
        DynamoDbTable.connect(self.name, REGION).create()
        where = {"LocationConstraint": REGION}
        self._client("s3").create_bucket(Bucket=self.name, CreateBucketConfiguration=where)

    def use(self, key: str, secret: str) -> None:
        for name, value in (CREDENTIALS | {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}).items():
            self._monkeypatch.setenv(name, value)

    def _client(self, service: str) -> Any:
        return boto3.Session(region_name=REGION).client(service)  # type: ignore[call-overload]

    def become(self, *actions: str) -> str:
        """From now on be a user that may do these; its key."""
        iam = self._client("iam")
        user = f"user-{uuid.uuid4().hex[:8]}"
        iam.create_user(UserName=user)
        made = iam.create_access_key(UserName=user)["AccessKey"]
        if actions:
            allowed = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
            document = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
            iam.put_user_policy(UserName=user, PolicyName="some", PolicyDocument=document)
        self.use(made["AccessKeyId"], made["SecretAccessKey"])
        return str(made["AccessKeyId"])


@pytest.fixture
def account(strict_ministack: Server, monkeypatch: pytest.MonkeyPatch) -> Account:
    return Account(strict_ministack, monkeypatch)


def refused(call: Callable[[], object], kind: type[Exception] = NotConfiguredError) -> str:
    with pytest.raises(kind) as raised:
        call()
    return str(raised.value)


def test_a_queue_that_may_be_seen_and_not_used(account: Account) -> None:
    account.become("sqs:GetQueueAttributes")
    queue = SqsQueue.connect(account.queue, region=REGION)
    sent = refused(lambda: queue.send([encode(scored(0).quote)]))
    received = refused(lambda: queue.receive(1, 1))
    assert account.queue in sent
    assert account.queue in received
    assert "allow sqs:SendMessage" in sent
    assert "allow sqs:ReceiveMessage" in received
    queue.close()


def test_a_queue_that_may_not_even_be_seen_is_refused_at_the_start(account: Account) -> None:
    account.become()
    text = refused(lambda: SqsQueue.connect(account.queue, region=REGION))
    assert account.queue in text
    assert "allow sqs:GetQueueAttributes (all that it needs: sqs:SendMessage" in text


def test_a_table_that_may_be_read_and_not_written(account: Account) -> None:
    account.become("dynamodb:GetItem", "dynamodb:Query", "dynamodb:BatchGetItem")
    table = DynamoDbTable.connect(account.name, REGION)
    assert table.get(key("head#changes", "last")) is None
    text = refused(lambda: table.put({**key("a", "b"), "n": {"N": "1"}}))
    assert f"the table {account.name} in {REGION}" in text
    assert "allow dynamodb:PutItem (all that it needs: dynamodb:GetItem" in text
    at_the_start = refused(lambda: DynamoDbStore(table))
    assert f"the table {account.name} in {REGION}" in at_the_start
    table.close()


def test_a_lake_that_may_not_be_read(account: Account) -> None:
    account.become("sqs:*")
    text = refused(lambda: list(quotes_of(f"s3://{account.name}/lake", tape="t")), InvalidRequestError)
    assert f"s3://{account.name}/lake" in text
    assert "needs credentials with s3:GetObject and s3:ListBucket (all that a lake needs: s3:GetObject, s3:Put" in text


def test_a_lake_that_may_be_read_and_not_written(account: Account) -> None:
    account.become("s3:ListBucket", "s3:GetObject")
    lake = FileSystemLake(f"s3://{account.name}/lake")
    written = refused(
        lambda: lake.write_quotes([RecordedQuote(scored(0), NOW, sequence=1)]), DependencyUnavailableError
    )
    assert "needs credentials with s3:PutObject (all that a lake needs" in written


def test_another_region_has_no_such_queue_and_no_such_table(account: Account) -> None:
    assert "AWS_REGION to its own" in refused(lambda: SqsQueue.connect(account.queue, region="us-east-1"))
    elsewhere = DynamoDbTable.connect(account.name, "us-east-1")
    text = refused(lambda: DynamoDbStore(elsewhere))
    assert f"there is no table at {account.name} in us-east-1" in text
    assert "STORE_TABLE" in text
    elsewhere.close()


def test_credentials_that_aws_does_not_know(account: Account) -> None:
    known = account.become("sqs:*")
    account.use("AKIANOBODY0000000000", "nonsense")
    unknown = refused(lambda: SqsQueue.connect(account.queue, region=REGION))
    assert "AWS does not accept these credentials" in unknown
    table = DynamoDbTable.connect(account.name, REGION)
    assert "AWS does not accept these credentials" in refused(lambda: table.get(key("a", "b")))
    table.close()
    account.use(known, "nonsense")
    wrong = refused(lambda: SqsQueue.connect(account.queue, region=REGION))
    assert "AWS does not accept these credentials (SignatureDoesNotMatch" in wrong
