"""The mesh on the AWS adapters: SQS FIFO, DynamoDB and S3 behind AWS's own interfaces, with the gateway killed."""

import json
import os
import random
import re
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import boto3
import pytest

from services.domain.score import SCORE_TOLERANCE, RecordedQuote
from services.gateway.dynamodb import DynamoDbStore
from services.gateway.ports import QuoteQuery
from services.runtime.dynamodb_table import DynamoDbTable
from tests.e2e.processes import Mesh, alive
from tests.servers import stand_ins
from tests.servers.process import CREDENTIALS, REGION, Server

BARS, FB_BARS = 12_154, 196
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


@contextmanager
def deployed(
    sqs: Server, dynamodb: Server, s3: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cloud]:
    """A queue, a table and a bucket on those servers, and a mesh that is told of them."""
    name = f"tapewatch-{uuid.uuid4().hex[:12]}"
    environment = CREDENTIALS | {
        "AWS_ENDPOINT_URL_SQS": sqs.url,
        "AWS_ENDPOINT_URL_DYNAMODB": dynamodb.url,
        "AWS_ENDPOINT_URL_S3": s3.url,
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    queues = boto3.client("sqs", region_name=REGION)
    dead = queues.create_queue(QueueName=f"{name}-dead.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
    arn = queues.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1_000})
    attributes = {"FifoQueue": "true", "RedrivePolicy": redrive, "VisibilityTimeout": VISIBILITY_SECONDS}
    url = queues.create_queue(QueueName=f"{name}.fifo", Attributes=attributes)["QueueUrl"]  # type: ignore[arg-type]
    buckets = boto3.client("s3", region_name=REGION)
    buckets.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    environment |= {
        "QUEUE_BACKEND": "sqs",
        "SQS_QUEUE_URL": url,
        "STORE_BACKEND": "dynamodb",
        "STORE_TABLE": name,
        "LAKE_URI": f"s3://{name}/lake",
    }
    mesh = Mesh(folder / "mesh", environment=environment)
    made = mesh.command("gateway", "create-table")
    assert made.returncode == 0, made.stderr
    try:
        yield Cloud(mesh, name, url, name)
    finally:
        mesh.stop()


@pytest.fixture(params=["ministack", "elasticmq"])
def cloud(
    request: pytest.FixtureRequest,
    dynamodb_local: Server,
    versitygw: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cloud]:
    with deployed(request.getfixturevalue(request.param), dynamodb_local, versitygw, tmp_path, monkeypatch) as made:
        yield made


def seen_in_flight(cloud: Cloud) -> int:
    """How much is in flight, once something is: what is killed next was at work."""
    counts: list[int] = []

    def any_in_flight() -> bool:
        counts.append(cloud.in_flight())
        return counts[-1] > 0

    cloud.mesh.wait_for(any_in_flight, 30, "work in flight")
    return counts[-1]


def test_a_killed_gateway_loses_and_doubles_nothing(cloud: Cloud) -> None:
    mesh = cloud.mesh
    process = mesh.start("run", "--symbols", "FB")
    mesh.wait_for(lambda: "gateway" in mesh.pids(), 60, "the mesh")
    store = cloud.store()
    mesh.wait_for(lambda: store.last_quote() >= 20, 90, "the first recorded quotes")
    pid = mesh.pids()["gateway"]
    in_flight = mesh.kill_at_work("gateway", cloud.in_flight)
    recorded = store.last_quote()
    mesh.wait_for(lambda: mesh.pids()["gateway"] != pid, 30, "the gateway started again")
    output, _ = process.communicate(timeout=200)

    assert process.returncode == 0, output
    match = LAST_LINE.fullmatch(output.strip().splitlines()[-1])
    assert match is not None, output
    published, scored, stored, lost, duplicated = (int(number) for number in match.groups()[:5])
    assert (published, scored, stored, lost, duplicated) == (FB_BARS, FB_BARS, FB_BARS, 0, 0), output
    assert 20 <= recorded < FB_BARS, "the gateway was killed too late"
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
    examined = mesh.command("doctor")
    assert examined.returncode == 0, examined.stdout
    for found in ("sqs: 0 ready", f"dynamodb: {cloud.table}, {FB_BARS} quotes", cloud.lake):
        assert found in examined.stdout
    wrong = mesh.command("doctor", STORE_TABLE="tapewatch-nothing", AWS_ENDPOINT_URL_S3="http://127.0.0.1:9")
    assert wrong.returncode == 1
    assert "there is no table at tapewatch-nothing in eu-central-1" in " ".join(wrong.stdout.split())
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


@pytest.mark.timeout(580)
def test_the_whole_tape_while_processes_are_killed_and_servers_restart(
    elasticmq: Server, tmp_path: Path, fast_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom and when is drawn anew in each run; KILL_SEED repeats one.

    Stores restart in between; not ElasticMQ, whose storage is no FIFO queue after a restart (`stand_ins.elasticmq`).
    """
    seed = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(10**6))
    rng = random.Random(seed)
    kills = rng.sample(["gateway", "dispatch", "scorer", rng.choice(["gateway", "scorer"])], 4)
    between = rng.randrange(1, len(kills))
    plan = [*kills[:between], "servers", *kills[between:]]
    marks = sorted(rng.sample(range(300, 10_000), len(plan)))
    dynamodb = stand_ins.dynamodb_local(fast_folder / "dynamodb", durable=True).start()
    s3 = stand_ins.versitygw(tmp_path / "s3").start()
    try:
        with deployed(elasticmq, dynamodb, s3, tmp_path, monkeypatch) as cloud:
            mesh, store = cloud.mesh, cloud.store()
            process = mesh.start("run")
            in_flight = []
            for victim, mark in zip(plan, marks, strict=True):
                mesh.wait_for(lambda n=mark: store.last_quote() >= n, 150, f"{mark} recorded quotes (KILL_SEED={seed})")  # type: ignore[misc]
                pid = mesh.pids().get(victim)
                if pid is None:
                    in_flight.append(f"{victim} at {mark}: {seen_in_flight(cloud)}")
                    for server in (dynamodb, s3):
                        server.stop()
                        server.start()
                    continue
                in_flight.append(f"{victim} at {mark}: {mesh.kill_at_work(victim, cloud.in_flight)}")
                mesh.wait_for(lambda v=victim, p=pid: mesh.pids()[v] != p, 30, f"{victim} again (KILL_SEED={seed})")  # type: ignore[misc]
            output, _ = process.communicate(timeout=400)

            output = f"KILL_SEED={seed}, in flight {in_flight}\n{output}"
            assert process.returncode == 0, output
            assert re.search(rf"published={BARS} scored={BARS} stored={BARS} lost=0 duplicated=0", output), output
            order: dict[str, list[datetime]] = defaultdict(list)
            again = 0
            for start in range(0, BARS, 1_000):
                for recorded in store.quotes_after(start, 1_000):
                    order[recorded.scored.quote.symbol].append(recorded.scored.quote.event_time)
                    again += recorded.record_count > 1
            assert sum(len(times) for times in order.values()) == BARS
            assert all(times == sorted(set(times)) for times in order.values()), "order per symbol"
            waited = re.findall(r"(\d+) messages wait", (mesh.folder / "logs" / "dispatch.log").read_text())
            assert waited or again, "no message was delivered twice: the kills hit nothing"
            (counted,) = cloud.lake_rows("SELECT count(*) AS n, count(DISTINCT quote_id) AS d FROM quotes")
            assert counted == {"n": BARS, "d": BARS}
            store.close()
            returned = sum(int(count) for count in waited)
            print(f"{output.splitlines()[0]}; returned {returned}, recorded again {again}; {output.splitlines()[-1]}")
    finally:
        dynamodb.stop()
        s3.stop()
