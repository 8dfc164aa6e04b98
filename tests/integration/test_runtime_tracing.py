"""Spans of served calls: what they say, what they continue, and that a cancelled stream leaves nothing in the log."""

import asyncio
import gc
import logging

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from services.runtime.channels import open_channel
from services.runtime.settings import ClientSettings, ServerSettings
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tests.integration.runtime_server import running

PREFIX = "tapewatch.gateway.v1.AlertService"


async def served(spans: InMemorySpanExporter, method: str) -> ReadableSpan:
    async with asyncio.timeout(30):
        while True:
            for span in spans.get_finished_spans():
                if span.kind is SpanKind.SERVER and span.name == f"{PREFIX}/{method}":
                    return span
            await asyncio.sleep(0.02)


async def test_a_served_call_is_a_span_of_its_callers_trace(spans: InMemorySpanExporter) -> None:
    async with running(ServerSettings()) as server, open_channel(server.address, ClientSettings()) as channel:
        with trace.get_tracer("test").start_as_current_span("caller") as caller:
            await AlertServiceStub(channel).GetAlert(pb.GetAlertRequest(alert_id="fine"))
        span = await served(spans, "GetAlert")
    assert span.context is not None
    assert span.context.trace_id == caller.get_span_context().trace_id
    assert span.attributes is not None
    assert span.attributes["rpc.service"] == PREFIX
    assert span.attributes["rpc.method"] == "GetAlert"
    assert span.attributes["rpc.grpc.status_code"] == 0
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("alert_id", "code", "status"), [("wrong", 3, StatusCode.UNSET), ("fault", 13, StatusCode.ERROR)]
)
async def test_a_refusal_is_no_error_of_the_server_and_a_fault_is(
    spans: InMemorySpanExporter, alert_id: str, code: int, status: StatusCode
) -> None:
    async with running(ServerSettings()) as server, open_channel(server.address, ClientSettings()) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await AlertServiceStub(channel).GetAlert(pb.GetAlertRequest(alert_id=alert_id))
        span = await served(spans, "GetAlert")
    assert span.attributes is not None
    assert span.attributes["rpc.grpc.status_code"] == code
    assert span.status.status_code is status


@pytest.mark.parametrize("from_start", [False, True], ids=["waiting for news", "sending"])
async def test_a_cancelled_stream_ends_its_span_and_logs_nothing(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture, from_start: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        async with running(ServerSettings()) as server, open_channel(server.address, ClientSettings()) as channel:
            for _ in range(3):
                call = AlertServiceStub(channel).WatchAlerts(pb.WatchAlertsRequest(from_start=from_start))
                await call.read()
                await asyncio.sleep(0.2)
                call.cancel()
            await asyncio.sleep(0.2)
            span = await served(spans, "WatchAlerts")
            gc.collect()
            await asyncio.sleep(0.1)
    assert span.end_time is not None
    assert span.attributes is not None
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
    assert not [record for record in caplog.records if "detach" in record.getMessage()], caplog.text
