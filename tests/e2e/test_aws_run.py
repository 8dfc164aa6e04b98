"""The mesh on the AWS adapters: SQS FIFO, DynamoDB and S3 behind AWS's own interfaces, with the gateway killed."""

import json
import os
import re
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from services.domain.score import SCORE_TOLERANCE, RecordedQuote
from services.gateway.dynamodb import DynamoDbStore
from services.gateway.dynamodb_table import DynamoDbTable
from services.gateway.ports import QuoteQuery
from tests.e2e.processes import Mesh, alive
from tests.servers.process import CREDENTIALS, REGION, Server

FB_BARS = 196
LAST_LINE = re.compile(
    r"tapewatch: published=(\d+) scored=(\d+) stored=(\d+) lost=(\d+) duplicated=(\d+) alerts=\d+ seconds=([\d.]+)"
)
VISIBILITY_SECONDS = "30"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Cloud:
    """What a deployment would have made, and how to look at it."""

    mesh: Mesh
    table: str
    queue_url: str
    bucket: str

    @property
    def lake(self) -> str:
        return f"s3://{self.bucket}/lake"

    def store(self) -> DynamoDbStore:
        return DynamoDbStore(DynamoDbTable.connect(self.table, REGION))

    def in_flight(self) -> int:
        sqs = boto3.client("sqs", region_name=REGION)
        names = ["ApproximateNumberOfMessagesNotVisible"]
        answer = sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=names)  # type: ignore[arg-type]
        return int(answer["Attributes"]["ApproximateNumberOfMessagesNotVisible"])

    def lake_rows(self, sql: str) -> list[dict[str, object]]:
        found = self.mesh.command("lake", "query", sql, "--format", "json")
        assert found.returncode == 0, found.stderr
        return [json.loads(line) for line in found.stdout.splitlines()]


@pytest.fixture(params=["ministack", "elasticmq"])
def cloud(
    request: pytest.FixtureRequest,
    dynamodb_local: Server,
    versitygw: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cloud]:
    name = f"tapewatch-{uuid.uuid4().hex[:12]}"
    environment = CREDENTIALS | {
        "AWS_ENDPOINT_URL_SQS": request.getfixturevalue(request.param).url,
        "AWS_ENDPOINT_URL_DYNAMODB": dynamodb_local.url,
        "AWS_ENDPOINT_URL_S3": versitygw.url,
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    sqs = boto3.client("sqs", region_name=REGION)
    dead = sqs.create_queue(QueueName=f"{name}-dead.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1_000})
    attributes = {"FifoQueue": "true", "RedrivePolicy": redrive, "VisibilityTimeout": VISIBILITY_SECONDS}
    url = sqs.create_queue(QueueName=f"{name}.fifo", Attributes=attributes)["QueueUrl"]  # type: ignore[arg-type]
    s3 = boto3.client("s3", region_name=REGION)
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    environment |= {
        "QUEUE_BACKEND": "sqs",
        "SQS_QUEUE_URL": url,
        "STORE_BACKEND": "dynamodb",
        "STORE_TABLE": name,
        "LAKE_URI": f"s3://{name}/lake",
    }
    mesh = Mesh(tmp_path / "mesh", environment=environment)
    made = mesh.command("gateway", "create-table")
    assert made.returncode == 0, made.stderr
    try:
        yield Cloud(mesh, name, url, name)
    finally:
        mesh.stop()


def test_a_killed_gateway_loses_and_doubles_nothing(cloud: Cloud) -> None:
    mesh = cloud.mesh
    process = mesh.start("run", "--symbols", "FB")
    mesh.wait_for(lambda: "gateway" in mesh.pids(), 60, "the mesh")
    store = cloud.store()
    mesh.wait_for(lambda: store.last_quote() >= 20, 90, "the first recorded quotes")
    mesh.wait_for(lambda: cloud.in_flight() > 0, 30, "work in flight")
    pid = mesh.pids()["gateway"]
    os.kill(pid, signal.SIGKILL)
    in_flight, recorded = cloud.in_flight(), store.last_quote()
    mesh.wait_for(lambda: mesh.pids()["gateway"] != pid, 30, "the gateway started again")
    output, _ = process.communicate(timeout=200)

    assert process.returncode == 0, output
    match = LAST_LINE.fullmatch(output.strip().splitlines()[-1])
    assert match is not None, output
    published, scored, stored, lost, duplicated = (int(number) for number in match.groups()[:5])
    assert (published, scored, stored, lost, duplicated) == (FB_BARS, FB_BARS, FB_BARS, 0, 0), output
    assert 20 <= recorded < FB_BARS, "the gateway was killed too late"
    assert in_flight > 0, "the kill hit nothing"
    assert not any(alive(number) for number in mesh.pids().values())

    kept = store.quotes_after(0, 1_000)
    assert [r.sequence for r in kept] == list(range(1, FB_BARS + 1))
    times = [r.scored.quote.event_time for r in kept]
    assert times == sorted(set(times)), "order within the series"
    assert len(store.list_quotes(QuoteQuery(kept[0].scored.quote.tape), 1_000, None).items) == FB_BARS
    dispatched = (mesh.folder / "logs" / "dispatch.log").read_text()
    assert re.search(r"\d+ messages wait: gateway", dispatched), "no message had to be delivered twice"
    store.close()
    (counted,) = cloud.lake_rows("SELECT count(*) AS n, count(DISTINCT quote_id) AS d FROM quotes")
    assert counted == {"n": FB_BARS, "d": FB_BARS}
    print(f"killed at {recorded} recorded with {in_flight} in flight; {match.group()}")


def test_the_lake_on_s3_is_replayed_through_the_mesh(cloud: Cloud) -> None:
    mesh = cloud.mesh
    output, _ = mesh.start("run", "--symbols", "FB").communicate(timeout=200)
    assert f"stored={FB_BARS} lost=0" in output
    (mesh.folder / "bars.csv").write_text("symbol,timestamp,open,high,low,close,volume\nXYZ,2024-01-02,1,1,1,1,5\n")
    mesh.start("up", "--source", "csv", "--from", str(mesh.folder / "bars.csv"))
    mesh.wait_serving()
    played = mesh.command("replay", "--from", cloud.lake, "--tape", "again")
    assert played.returncode == 0, played.stdout + played.stderr
    assert f"{FB_BARS} quotes published" in played.stdout
    store = cloud.store()

    def replayed() -> list[RecordedQuote]:
        return store.list_quotes(QuoteQuery("again", "FB"), 1_000, None).items

    mesh.wait_for(lambda: len(replayed()) == FB_BARS, 90, "the replayed quotes")
    first = store.quotes_after(0, FB_BARS)
    assert [r.scored.quote.close for r in replayed()] == [r.scored.quote.close for r in first]
    for before, after in zip(first, replayed(), strict=True):
        assert before.scored.score.ensemble == pytest.approx(after.scored.score.ensemble, abs=SCORE_TOLERANCE)
    store.close()
