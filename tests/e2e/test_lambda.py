"""The dispatch Lambda as its zip, behind an event source mapping: nothing of this checkout, nothing heavy in it."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from services.domain.score import RecordedQuote
from services.gateway.ports import QuoteQuery
from services.gateway.sqlite import SqliteStore
from services.queue.market_message import encode
from services.queue.ports import OutgoingMessage
from services.queue.sqs import SqsQueue
from tests.e2e.processes import REPOSITORY, Mesh
from tests.gateway_quotes import scored
from tests.servers.process import CREDENTIALS, INSTALLED, REGION, Server

FB_BARS = 196
FUNCTION_SECONDS = 10
COLD_SECONDS_LIMIT = 5.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Function:
    """The function with its mapping, its queue, and a mesh whose dispatcher leaves the queue alone."""

    mesh: Mesh
    queue: SqsQueue

    def store(self) -> SqliteStore:
        return SqliteStore(self.mesh.folder / "store.db")


@pytest.fixture
def function(ministack: Server, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Function]:
    for variable, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": ministack.url}).items():
        monkeypatch.setenv(variable, value)
    name = f"dispatch-{uuid.uuid4().hex[:12]}"
    sqs = boto3.client("sqs", region_name=REGION)
    dead = sqs.create_queue(QueueName=f"{name}-dead.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]

    def arn(queue: str) -> str:
        answer = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
        return answer["Attributes"]["QueueArn"]

    redrive = json.dumps({"deadLetterTargetArn": arn(dead), "maxReceiveCount": 1_000})
    attributes = {"FifoQueue": "true", "RedrivePolicy": redrive, "VisibilityTimeout": str(FUNCTION_SECONDS)}
    url = sqs.create_queue(QueueName=f"{name}.fifo", Attributes=attributes)["QueueUrl"]  # type: ignore[arg-type]
    environment = {"QUEUE_BACKEND": "sqs", "SQS_QUEUE_URL": url, "EVENT_SOURCE": "none"}
    mesh = Mesh(tmp_path / "mesh", environment=environment)
    lambda_ = boto3.client("lambda", region_name=REGION)
    lambda_.create_function(
        FunctionName=name,
        Runtime=f"python3.{sys.version_info[1]}",
        Role="arn:aws:iam::000000000000:role/dispatch",
        Handler="services.dispatch.handler.lambda_handler",
        Code={"ZipFile": code.read_bytes()},
        Timeout=FUNCTION_SECONDS,
        Environment={
            "Variables": {
                "QUEUE_BACKEND": "sqs",
                "SQS_QUEUE_URL": url,
                "SCORER_ADDRESSES": mesh.scorer,
                "GATEWAY_ADDRESS": mesh.gateway,
                "AWS_ENDPOINT_URL": ministack.url,
            }
        },
    )
    mapping = lambda_.create_event_source_mapping(
        EventSourceArn=arn(url), FunctionName=name, BatchSize=10, FunctionResponseTypes=["ReportBatchItemFailures"]
    )
    queue = SqsQueue.connect(url, region=REGION)
    try:
        yield Function(mesh, queue)
    finally:
        lambda_.delete_event_source_mapping(UUID=mapping["UUID"])
        lambda_.delete_function(FunctionName=name)
        queue.close()
        mesh.stop()


def test_the_zip_holds_nothing_heavy_and_no_boto3(code: Path) -> None:
    with zipfile.ZipFile(code) as archive:
        names = {entry.split("/")[0] for entry in archive.namelist()}
        size = sum(entry.file_size for entry in archive.infolist())
    assert {"services", "tapewatch", "grpc"} <= names
    assert not names & {"numpy", "pandas", "pyarrow", "ai_edge_litert", "tensorflow", "boto3", "botocore"}
    assert size < 60 * 1024 * 1024
    print(f"{code.stat().st_size:,} bytes, {size:,} unzipped")


def test_the_handler_starts_without_boto3(code: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(code) as archive:
        archive.extractall(tmp_path)
    script = (
        "import sys, time; began = time.perf_counter(); import services.dispatch.handler;"
        "print(time.perf_counter() - began, *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    python = str(INSTALLED / "ministack" / "bin" / "python")
    environment = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([python, "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seconds, *modules = done.stdout.split()
    assert not {"boto3", "botocore", "numpy", "pandas", "pyarrow"} & set(modules)
    assert float(seconds) < COLD_SECONDS_LIMIT
    print(f"imported in {float(seconds):.2f} s")


def test_a_run_through_the_function_with_the_gateway_killed(function: Function) -> None:
    mesh = function.mesh
    process = mesh.start("run", "--symbols", "FB")
    mesh.wait_for(lambda: "gateway" in mesh.pids(), 60, "the mesh")
    mesh.wait_serving()
    store = function.store()
    mesh.wait_for(lambda: store.last_quote() >= 20, 60, "the first recorded quotes")
    mesh.wait_for(lambda: function.queue.depth().in_flight > 0, 30, "work in flight")
    pid = mesh.pids()["gateway"]
    os.kill(pid, signal.SIGKILL)
    in_flight, recorded = function.queue.depth().in_flight, store.last_quote()
    mesh.wait_for(lambda: mesh.pids()["gateway"] != pid, 30, "the gateway started again")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert re.search(rf"published={FB_BARS} scored={FB_BARS} stored={FB_BARS} lost=0 duplicated=0", output), output
    assert recorded < FB_BARS, "the gateway was killed too late"
    assert in_flight > 0, "the kill hit nothing"
    times = [r.scored.quote.event_time for r in store.quotes_after(0, 1_000)]
    assert times == sorted(set(times)), "order within the series"
    store.close()
    print(f"killed at {recorded} recorded with {in_flight} in flight; {output.strip().splitlines()[-1]}")


def test_a_poison_message_goes_to_the_dead_letters_and_its_neighbours_are_scored(function: Function) -> None:
    mesh = function.mesh
    quotes = [scored(minute).quote for minute in range(6)]
    messages = [encode(quote) for quote in quotes]
    poison = OutgoingMessage('{"message_type": "MARKET_DATA"', messages[0].group_id, "poison")
    mesh.start("up", "--source", "csv", "--from", str(REPOSITORY / "tests" / "events"))
    mesh.wait_serving()
    function.queue.send([*messages[:3], poison, *messages[3:]])
    store = function.store()

    def kept() -> list[RecordedQuote]:
        return store.list_quotes(QuoteQuery("live", "AAPL"), 10, None).items

    mesh.wait_for(lambda: len(kept()) == 6, 60, "the neighbours' scores")
    mesh.wait_for(lambda: function.queue.depth().dead_letters == 1, 30, "the dead letter")
    (letter,) = function.queue.list_dead_letters()
    assert letter.body == poison.body
    assert "JSON" in letter.reason
    assert [r.scored.quote for r in kept()] == quotes
    store.close()
