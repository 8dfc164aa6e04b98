"""The dispatch Lambda's zip in ministack, behind an event source mapping of a queue of its own."""

import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from services.gateway.sqlite import SqliteStore
from services.queue.sqs import SqsQueue
from tests.e2e.processes import Mesh
from tests.servers.process import CREDENTIALS, REGION, Server

FUNCTION_SECONDS = 30


@dataclass
class Function:
    """The function with its mapping, its queue, and a mesh whose dispatcher leaves the queue alone."""

    name: str
    mesh: Mesh
    queue: SqsQueue

    @property
    def queue_name(self) -> str:
        return f"{self.name}.fifo"

    def store(self) -> SqliteStore:
        return SqliteStore(self.mesh.folder / "store.db")


@contextmanager
def mapped_function(
    ministack: Server, code: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str
) -> Iterator[Function]:
    """The zip behind an event source mapping; `environment` is the function's and the mesh's."""
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
    shared = {"QUEUE_BACKEND": "sqs", "SQS_QUEUE_URL": url, **environment}
    mesh = Mesh(folder / "mesh", environment={**shared, "EVENT_SOURCE": "none"})
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
                **shared,
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
        yield Function(name, mesh, queue)
    finally:
        lambda_.delete_event_source_mapping(UUID=mapping["UUID"])
        lambda_.delete_function(FunctionName=name)
        queue.close()
        mesh.stop()
