"""One trace from a quote's publication to its stored score, across the queue, received over OTLP from the processes."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.e2e.processes import Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@dataclass(frozen=True)
class Span:
    service: str
    pid: int
    span: trace_pb2.Span

    @property
    def attributes(self) -> dict[str, str]:
        return values(self.span.attributes)


def values(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {a.key: a.value.string_value or str(a.value.int_value) for a in attributes}


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP endpoint that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: dict[bytes, Span] = {}
        self.metrics: set[str] = set()
        self._lock = threading.Lock()

    def Export(self, request, context):  # type: ignore[no-untyped-def]
        with self._lock:
            if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
                for resource in request.resource_metrics:
                    for scope in resource.scope_metrics:
                        self.metrics.update(metric.name for metric in scope.metrics)
                return metrics_service_pb2.ExportMetricsServiceResponse()
            for resource in request.resource_spans:
                known = values(resource.resource.attributes)
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self.spans[span.span_id] = Span(known["service.name"], int(known["process.pid"]), span)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    kept = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(kept, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    server.stop(1).wait()


def test_a_quote_is_followed_from_publication_to_stored_score(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector
    mesh = Mesh(tmp_path / "mesh", environment={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    try:
        process = mesh.start("run", "--symbols", "FB")
        output, _ = process.communicate(timeout=120)  # the processes export what is left when they drain
        assert process.returncode == 0, output
    finally:
        mesh.stop()

    spans = kept.spans
    published = {s.span.span_id: s for s in spans.values() if s.attributes.get("tapewatch.quote_id")}
    assert len(published) == 196, "one publication per quote"
    children = defaultdict(list)
    for span in spans.values():
        children[span.span.parent_span_id].append(span)
    linked = {
        link.span_id: span
        for span in spans.values()
        if span.span.name.startswith("process ")
        for link in span.span.links
    }
    assert published.keys() <= linked.keys(), "every publication is linked from the batch that processed it"

    for span_id, publication in published.items():
        batch = linked[span_id]
        assert any(link.trace_id == publication.span.trace_id for link in batch.span.links)
        reached = [publication, batch]
        waiting = [batch]
        while waiting:
            for child in children[waiting.pop().span.span_id]:
                assert child.span.trace_id == batch.span.trace_id
                reached.append(child)
                waiting.append(child)
        names = {span.span.name for span in reached if span.span.kind == trace_pb2.Span.SPAN_KIND_SERVER}
        assert any(name.endswith("ScorerService/ScoreStream") for name in names), names
        assert any(name.endswith("DetectionService/RecordScores") for name in names), names
        assert {span.service for span in reached} >= {
            "tapewatch-ingest",
            "tapewatch-dispatch",
            "tapewatch-scorer",
            "tapewatch-gateway",
        }
        assert len({span.pid for span in reached}) >= 4
    assert {"rpc.server.duration", "tapewatch.gateway.scores", "tapewatch.dispatch.messages"} <= kept.metrics
