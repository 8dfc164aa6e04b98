"""One quote's trace, read back from Jaeger with every hop: by the warm pool, and by a one-shot scorer's task."""

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.wire.quote import quote_to_proto
from tapewatch.ingest.v1 import ingest_service_pb2
from tapewatch.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tests.e2e.mapped_function import mapped_function
from tests.e2e.processes import REPOSITORY, Mesh
from tests.e2e.task_functions import task_functions
from tests.gateway_quotes import scored
from tests.servers.process import Server
from tests.servers.stand_ins import Jaeger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
QUOTES = 3
EXPORT_SECONDS = 60


@dataclass(frozen=True)
class Hop:
    """A span as Jaeger tells of it."""

    name: str
    parent: str
    kind: str
    tags: Mapping[str, Any]
    resource: Mapping[str, Any]
    links: tuple[str, ...]

    @property
    def service(self) -> str:
        return str(self.resource["service.name"])


@dataclass
class Trace:
    """The trace of quotes that a caller published within a span of its own; `hops` by span id, as they come."""

    jaeger: Jaeger
    id: str = field(default_factory=lambda: f"a{secrets.token_hex(16)[1:]}")
    caller: str = field(default_factory=lambda: secrets.token_hex(8))
    hops: dict[str, Hop] = field(default_factory=dict)

    def publish(self, mesh: Mesh, quotes: int) -> None:
        """Publish that many quotes; a batch that has others, too, would be in a trace of its own."""
        chosen = [replace(scored(minute, symbol="TRACED").quote, traceparent="") for minute in range(quotes)]
        request = ingest_service_pb2.PublishQuotesRequest(quotes=[quote_to_proto(quote) for quote in chosen])
        metadata = (("traceparent", f"00-{self.id}-{self.caller}-01"),)
        with grpc.insecure_channel(mesh.ingest) as channel:
            answers = IngestServiceStub(channel).PublishQuotes(iter([request]), metadata=metadata, timeout=30)
            assert sum(len(answer.results) for answer in answers) == quotes

    def read(self) -> None:
        """Ask Jaeger's API for the trace."""
        try:
            with urllib.request.urlopen(f"{self.jaeger.url}/api/traces/{self.id}", timeout=60) as response:
                (found,) = json.load(response)["data"]
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return  # it has none of its spans yet
        resources = {
            key: {"service.name": process["serviceName"], **{tag["key"]: tag["value"] for tag in process["tags"]}}
            for key, process in found["processes"].items()
        }
        for span in found["spans"]:
            assert span["traceID"] == self.id
            tags = {tag["key"]: tag["value"] for tag in span["tags"]}
            # A parent that is linked, too, is told as a link only; it comes first.
            known = sorted(span["references"], key=lambda reference: reference["refType"] != "CHILD_OF")
            parent, *links = [reference["spanID"] for reference in known]
            kind, resource = str(tags.get("span.kind", "internal")), resources[span["processID"]]
            self.hops[span["spanID"]] = Hop(span["operationName"], parent, kind, tags, resource, tuple(links))

    def named(self, end: str, kind: str) -> dict[str, Hop]:
        return {key: hop for key, hop in self.hops.items() if hop.name.endswith(end) and hop.kind == kind}

    def the(self, end: str, kind: str) -> tuple[str, Hop]:
        """The only one of its name and kind, with its id."""
        ((key, hop),) = self.named(end, kind).items()
        return key, hop

    def way_to(self, key: str) -> list[str]:
        """The spans above this one, from the caller's on, and itself; none while one of them is still to come."""
        found: list[str] = []
        while key in self.hops:
            found.insert(0, self.hops[key].name.rpartition("/")[2])
            key = self.hops[key].parent
        return found if key == self.caller else []

    def ways_to(self, end: str) -> list[list[str]]:
        """The ways to the calls of that method, as their server saw them."""
        return [self.way_to(key) for key in self.named(end, "server")]


def check_queue(trace: Trace, queue: str, function: str, quotes: int) -> None:
    """Both ends of the queue, and the function between it and what follows."""
    _, served = trace.the("IngestService/PublishQuotes", "server")
    assert served.service == "tapewatch-ingest"
    assert served.parent == trace.caller
    published = trace.named(f"publish {queue}", "producer")
    assert len(published) == quotes
    processed = trace.named(f"process {queue}", "consumer")
    linked = {span_id for hop in processed.values() for span_id in (hop.parent, *hop.links)}
    assert linked >= published.keys(), "the queue's two ends meet for each quote"
    for hop in (*published.values(), *processed.values()):
        assert hop.tags["messaging.system"] == "aws_sqs"
        assert hop.tags["messaging.destination.name"] == queue
    for hop in processed.values():
        assert hop.parent in published
        assert hop.service == "tapewatch-dispatch"
        assert hop.resource["cloud.platform"] == "aws_lambda"
        assert hop.resource["faas.name"] == function
        assert hop.tags["faas.trigger"] == "pubsub"
        assert hop.tags["faas.invocation_id"]


def start(mesh: Mesh) -> None:
    """The mesh with a source that says next to nothing; its dispatcher leaves queue and ledger to the functions."""
    mesh.environment["CANARY_INTERVAL_SECONDS"] = "0"  # a batch with canaries in it is only linked to the quotes
    mesh.start("up", "--source", "csv", "--from", str(REPOSITORY / "tests" / "events"), "--mode", "warm")
    mesh.wait_serving()


def told(trace: Trace) -> str:
    return f"{len(trace.hops)} spans of {', '.join(sorted({hop.service for hop in trace.hops.values()}))} in one trace"


def test_a_trace_has_every_hop(
    ministack: Server, jaeger: Jaeger, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace(jaeger)
    with mapped_function(ministack, code, tmp_path, monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=jaeger.otlp) as function:
        start(function.mesh)
        trace.publish(function.mesh, QUOTES)
        queue = function.queue_name
        # A span comes when its process exports next, so one may be here before the one above it.
        way = ["PublishQuotes", f"publish {queue}", f"process {queue}"]
        ways = {end: [*way, end, end] for end in ("ScoreStream", "RecordScores")}

        def complete() -> bool:
            trace.read()
            batches = trace.named(f"process {queue}", "consumer")
            counted = sum(int(hop.tags["messaging.batch.message_count"]) for hop in batches.values())
            published = len(trace.named(f"publish {queue}", "producer"))
            calls = all(trace.ways_to(f"/{end}") == [way] * len(batches) for end, way in ways.items())
            return counted == published == QUOTES and calls

        function.mesh.wait_for(complete, EXPORT_SECONDS, "every span")
    check_queue(trace, queue, function.name, QUOTES)
    for end, service in (("/ScoreStream", "tapewatch-scorer"), ("/RecordScores", "tapewatch-gateway")):
        assert {hop.service for hop in trace.named(end, "server").values()} == {service}
    print(told(trace))


def test_a_trace_by_a_task_has_every_hop(
    ministack: Server, jaeger: Jaeger, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is another process on ECS, told of the trace by its environment only."""
    trace = Trace(jaeger)
    with task_functions(ministack, code, tmp_path, monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=jaeger.otlp) as tasks:
        function = tasks.function
        start(function.mesh)
        trace.publish(function.mesh, 1)
        function.mesh.wait_for(lambda: bool(tasks.ledger.open()), 60, "the batch")
        function.mesh.wait_for(lambda: tasks.reconcile()["open_batches"] == 0, 60, "the end of the task")
        (entry,) = tasks.ledger.list(10)
        queue = function.queue_name
        entrance = ["PublishQuotes", f"publish {queue}", f"process {queue}", "enter ledger"]
        ways = {
            "launch task": entrance,
            "load model": [*entrance, "run once"],
            "score batch": [*entrance, "run once"],
            "settle task": entrance,
        }
        calls = (("/GetCursors", "run once"), ("/RecordScores", "run once"), ("/GetCursors", "settle task"))

        def complete() -> bool:
            trace.read()
            steps = all(
                [trace.way_to(key) for key, hop in trace.hops.items() if hop.name == name] == [[*way, name]]
                for name, way in ways.items()
            )
            return steps and all([*entrance, caller, end[1:], end[1:]] in trace.ways_to(end) for end, caller in calls)

        function.mesh.wait_for(complete, EXPORT_SECONDS, "every span")
    check_queue(trace, queue, function.name, 1)
    _, launched = trace.the("launch task", "producer")
    _, ran = trace.the("run once", "consumer")
    _, settled = trace.the("settle task", "internal")
    assert [hop.service for hop in (launched, ran, settled)] == [
        "tapewatch-dispatch",
        "tapewatch-scorer",
        "tapewatch-reconciler",
    ]
    for hop in (launched, ran, settled):
        assert hop.tags["messaging.message.conversation_id"] == entry.correlation_id
    for hop in (launched, settled):
        assert hop.resource["cloud.platform"] == "aws_lambda"
        assert hop.tags["tapewatch.batch_id"] == entry.id
    assert ran.resource["cloud.platform"] == "aws_ecs"
    assert ran.resource["aws.ecs.task.arn"] == launched.tags["aws.ecs.task.arn"] == entry.task
    assert ran.resource["aws.ecs.task.family"] == entry.task.split("/")[1]
    assert {hop.service for hop in trace.named("/RecordScores", "server").values()} == {"tapewatch-gateway"}
    print(told(trace))
