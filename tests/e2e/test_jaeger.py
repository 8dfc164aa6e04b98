"""One quote's trace, read back from Jaeger: ingest, the queue, the dispatch Lambda, scorer and gateway."""

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.wire.quote import quote_to_proto
from tapewatch.ingest.v1 import ingest_service_pb2
from tapewatch.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tests.e2e.mapped_function import mapped_function
from tests.e2e.processes import REPOSITORY
from tests.gateway_quotes import scored
from tests.servers.process import Server
from tests.servers.stand_ins import Jaeger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
QUOTES = 3


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


def trace_of(jaeger: Jaeger, trace_id: str) -> dict[str, Hop]:
    """The trace's spans by their ids; none before Jaeger has any."""
    try:
        with urllib.request.urlopen(f"{jaeger.url}/api/traces/{trace_id}", timeout=10) as response:
            (found,) = json.load(response)["data"]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return {}
    processes = {
        key: {"service.name": process["serviceName"], **{tag["key"]: tag["value"] for tag in process["tags"]}}
        for key, process in found["processes"].items()
    }
    hops = {}
    for span in found["spans"]:
        assert span["traceID"] == trace_id
        tags = {tag["key"]: tag["value"] for tag in span["tags"]}
        # A parent that is linked, too, is told as a link only; it comes first.
        known = sorted(span["references"], key=lambda reference: reference["refType"] != "CHILD_OF")
        parent, *links = [reference["spanID"] for reference in known]
        kind, resource = str(tags.get("span.kind", "internal")), processes[span["processID"]]
        hops[span["spanID"]] = Hop(span["operationName"], parent, kind, tags, resource, tuple(links))
    return hops


def test_a_trace_has_every_hop(
    ministack: Server, jaeger: Jaeger, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mapped_function(ministack, code, tmp_path, monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=jaeger.otlp) as function:
        mesh = function.mesh
        mesh.environment["CANARY_INTERVAL_SECONDS"] = "0"  # a batch with canaries in it is only linked to the quotes
        mesh.start("up", "--source", "csv", "--from", str(REPOSITORY / "tests" / "events"))
        mesh.wait_serving()
        trace_id, caller = f"a{secrets.token_hex(16)[1:]}", secrets.token_hex(8)
        quotes = [replace(scored(minute, symbol="TRACED").quote, traceparent="") for minute in range(QUOTES)]
        request = ingest_service_pb2.PublishQuotesRequest(quotes=[quote_to_proto(quote) for quote in quotes])
        with grpc.insecure_channel(mesh.ingest) as channel:
            answers = IngestServiceStub(channel).PublishQuotes(
                iter([request]), metadata=(("traceparent", f"00-{trace_id}-{caller}-01"),), timeout=30
            )
            assert sum(len(answer.results) for answer in answers) == QUOTES
        hops: dict[str, Hop] = {}

        def complete() -> bool:
            hops.update(trace_of(jaeger, trace_id))
            served = [hop.name for hop in hops.values() if hop.kind == "server"]
            calls = [sum(name.endswith(end) for name in served) for end in ("/ScoreStream", "/RecordScores")]
            batches = [hop for hop in hops.values() if hop.kind == "consumer"]
            counted = sum(int(hop.tags["messaging.batch.message_count"]) for hop in batches)
            return counted == QUOTES and calls == [len(batches)] * 2

        mesh.wait_for(complete, 60, "every span")

    def named(end: str, kind: str) -> dict[str, Hop]:
        return {key: hop for key, hop in hops.items() if hop.name.endswith(end) and hop.kind == kind}

    def ancestors(key: str) -> list[Hop]:
        found = []
        while key in hops:
            found.append(hops[key])
            key = hops[key].parent
        assert key == caller, "the root is the caller's own span"
        return found

    queue = function.queue_name
    (served,) = named("IngestService/PublishQuotes", "server").values()
    assert served.service == "tapewatch-ingest"
    assert served.parent == caller
    published = named(f"publish {queue}", "producer")
    assert len(published) == QUOTES
    processed = named(f"process {queue}", "consumer")
    linked = {span_id for hop in processed.values() for span_id in (hop.parent, *hop.links)}
    assert linked >= published.keys(), "the queue's two ends meet for each quote"
    for hop in (*published.values(), *processed.values()):
        assert hop.tags["messaging.system"] == "aws_sqs"
        assert hop.tags["messaging.destination.name"] == queue
    for hop in processed.values():
        assert hop.parent in published
        assert hop.service == "tapewatch-dispatch"
        assert hop.resource["cloud.platform"] == "aws_lambda"
        assert hop.resource["faas.name"] == function.name
        assert hop.tags["faas.trigger"] == "pubsub"
        assert hop.tags["faas.invocation_id"]
    for end, service in (("ScorerService/ScoreStream", "tapewatch-scorer"), ("/RecordScores", "tapewatch-gateway")):
        calls = named(end, "server")
        assert len(calls) == len(processed)
        for key, hop in calls.items():
            assert hop.service == service
            chain = [each.service for each in ancestors(key)]
            assert chain == [
                service,
                "tapewatch-dispatch",
                "tapewatch-dispatch",
                "tapewatch-ingest",
                "tapewatch-ingest",
            ]
    services = sorted({hop.service for hop in hops.values()})
    assert services == ["tapewatch-dispatch", "tapewatch-gateway", "tapewatch-ingest", "tapewatch-scorer"]
    print(f"{len(hops)} spans of {', '.join(services)} in one trace, {len(processed)} batches")
