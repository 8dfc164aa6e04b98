"""Ingest over the wire: the real server, wiring, queue and client."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.domain.quote import Quote
from services.ingest.main import build
from services.ingest.settings import IngestSettings
from services.queue import market_message
from services.queue.sqlite import SqliteQueue
from services.runtime.channels import open_channel
from services.runtime.server import Lifetime
from services.wire.quote import quote_to_proto
from services.wire.time import timestamp_to_proto
from tapewatch.ingest.v1 import coverage_pb2, replay_pb2
from tapewatch.ingest.v1 import ingest_service_pb2 as pb
from tapewatch.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tests.servers.in_process import served
from tests.servers.process import CREDENTIALS

SERVICE = "tapewatch.ingest.v1.IngestService"
START = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=3)


@dataclass
class Server:
    stub: Any  # the generated types are those of the blocking API
    channel: grpc.aio.Channel
    lifetime: Lifetime
    queue: SqliteQueue


@asynccontextmanager
async def serving(folder: Path, **options: object) -> AsyncIterator[Server]:
    settings = IngestSettings(
        grpc_port=0,
        queue_path=folder / "queue.db",
        ingest_path=folder / "ingest.db",
        shutdown_grace_seconds=5,
        **options,  # type: ignore[arg-type]
    )
    async with served("ingest", settings, lambda lifetime: build(lifetime, settings)) as server:
        queue = SqliteQueue(folder / "queue.db")
        async with open_channel(server.address, settings) as channel:
            yield Server(IngestServiceStub(channel), channel, server.lifetime, queue)
        # The server drains when this block has ended: the queue's other user stays until then.
    queue.close()


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """What the process's tracer provider exports from now on."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as running:
        yield running


def quote(minute: int, symbol: str = "AAPL", close: float = 11.0) -> pb.PublishQuotesRequest:
    message = quote_to_proto(
        Quote(symbol, START + timedelta(minutes=minute), 10.0, 12.0, 9.0, close, 100.0, source="test")
    )
    return pb.PublishQuotesRequest(quotes=[message])


def merged(*requests: pb.PublishQuotesRequest) -> pb.PublishQuotesRequest:
    return pb.PublishQuotesRequest(quotes=[q for request in requests for q in request.quotes])


def details(error: grpc.aio.AioRpcError) -> error_details_pb2.BadRequest:
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    return bad_request(status)


def bad_request(status: status_pb2.Status) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    return bad


async def ending(call: Any) -> grpc.StatusCode:
    """How a stream ends. Iterating is the only reading that raises also where an interceptor wraps the call."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in call:
            pass
    return raised.value.code()


async def test_published_quotes_are_durable_when_acknowledged(server: Server) -> None:
    requests = [merged(quote(2 * i), quote(2 * i + 1)) for i in range(20)]
    responses = [r async for r in server.stub.PublishQuotes(iter(requests))]
    assert len(responses) == 20
    for request, response in zip(requests, responses, strict=True):
        assert [r.quote_id for r in response.results] == [q.quote_id for q in request.quotes]
        assert all(r.acknowledgement.HasField("ingest_time") for r in response.results)
    received = server.queue.receive(100, 30)
    assert [m.receive_count for m in received] == [1] * 40
    decoded = [market_message.decode(m.body, m.attributes) for m in received]
    assert [q.event_time for q in decoded] == [START + timedelta(minutes=i) for i in range(40)]
    assert all(q.ingest_time and q.batch_id for q in decoded)


async def test_each_published_quote_has_a_producer_span_whose_context_travels(
    spans: InMemorySpanExporter, server: Server
) -> None:
    _ = [r async for r in server.stub.PublishQuotes(iter([merged(quote(0), quote(1))]))]
    messages = server.queue.receive(10, 30)
    published = [span for span in spans.get_finished_spans() if span.kind is trace.SpanKind.PRODUCER]
    assert len(published) == 2
    for message, span in zip(messages, published, strict=True):
        context = span.get_span_context()
        assert context is not None
        expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        assert message.attributes["traceparent"] == expected
        assert span.name == "publish market_queue.fifo"
        assert span.attributes is not None
        assert span.attributes["messaging.destination.name"] == "market_queue.fifo"
        assert span.attributes["messaging.system"] == "sqlite"
        quote_id = market_message.decode(message.body, message.attributes).quote_id
        assert span.attributes["tapewatch.quote_id"] == quote_id


async def test_a_bad_quote_does_not_end_the_stream(server: Server) -> None:
    bad = quote(1, close=-1.0)
    bad.quotes[0].ClearField("quote_id")
    unformed = quote(2)
    unformed.quotes[0].ClearField("event_time")
    first, second = [r async for r in server.stub.PublishQuotes(iter([merged(quote(0), bad, unformed), quote(3)]))]
    assert [r.WhichOneof("outcome") for r in first.results] == ["acknowledgement", "error", "error"]
    assert [v.field for v in bad_request(first.results[1].error).field_violations] == ["close"]
    assert [v.field for v in bad_request(first.results[2].error).field_violations] == ["event_time"]
    assert first.results[1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert second.results[0].HasField("acknowledgement")
    assert server.queue.depth().ready == 2


async def test_equal_quotes_sent_again_are_deduplicated(server: Server) -> None:
    first, second = [r async for r in server.stub.PublishQuotes(iter([quote(0), quote(0)]))]
    assert not first.results[0].acknowledgement.deduplicated
    assert second.results[0].acknowledgement.deduplicated


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_request_of_too_few_or_too_many_quotes_is_refused(server: Server, count: int) -> None:
    request = pb.PublishQuotesRequest(quotes=list(quote(0).quotes) * count)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        _ = [r async for r in server.stub.PublishQuotes(iter([request]))]
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(raised.value).field_violations[0].field == "quotes"


async def test_undecodable_bytes_end_the_stream(server: Server) -> None:
    publish = server.channel.stream_stream(
        f"/{SERVICE}/PublishQuotes", request_serializer=bytes, response_deserializer=pb.PublishQuotesResponse.FromString
    )
    never = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        yield quote(0).SerializeToString()
        yield b"\xff\xff\xff"
        await never.wait()

    call = publish(requests())
    responses = aiter(call)
    first = await asyncio.wait_for(anext(responses), 30)
    assert first.results[0].HasField("acknowledgement")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asyncio.wait_for(anext(responses), 30)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in details(raised.value).field_violations] == ["request"]


async def test_subscribers_hear_what_is_accepted(server: Server) -> None:
    call = server.stub.StreamQuotes(pb.StreamQuotesRequest(symbols=["MSFT"]))
    await call.initial_metadata()
    _ = [r async for r in server.stub.PublishQuotes(iter([merged(quote(0), quote(0, "MSFT"), quote(1, "MSFT"))]))]
    heard = [await call.read() for _ in range(2)]
    assert [response.quote.symbol for response in heard] == ["MSFT", "MSFT"]
    assert heard[0].quote.HasField("ingest_time")
    call.cancel()


async def test_streams_end_with_unavailable_on_the_drain(server: Server) -> None:
    listening = server.stub.StreamQuotes(pb.StreamQuotesRequest())
    await listening.initial_metadata()
    never = asyncio.Event()

    async def requests() -> AsyncIterator[pb.PublishQuotesRequest]:
        yield quote(0)
        await never.wait()

    call = server.stub.PublishQuotes(requests())
    responses = aiter(call)
    first = await asyncio.wait_for(anext(responses), 30)
    assert first.results[0].HasField("acknowledgement")
    server.lifetime.draining.set()
    assert await asyncio.wait_for(ending(listening), 30) == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asyncio.wait_for(anext(responses), 30)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_replay_of_a_tape_that_is_not_installed_says_what_installs_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bokeh_sampledata", None)
    with pytest.raises(
        grpc.aio.AioRpcError, match=r"needs bokeh-sampledata: install it with pip install -e \."
    ) as raised:
        await server.stub.StartReplay(pb.StartReplayRequest(location="bokeh", tape="run-1"))
    assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    monkeypatch.undo()
    assert (await server.stub.StartReplay(pb.StartReplayRequest(location="bokeh", tape="run-1"))).replay.tape == "run-1"


async def test_a_listener_that_falls_behind_is_ended(tmp_path: Path) -> None:
    # One request beyond the limit: how much the transport takes in between does not matter.
    async with serving(tmp_path, stream_max_behind=50) as server:
        listening = server.stub.StreamQuotes(pb.StreamQuotesRequest())
        await listening.initial_metadata()
        _ = [r async for r in server.stub.PublishQuotes(iter([merged(*(quote(i) for i in range(51)))]))]
        with pytest.raises(grpc.aio.AioRpcError, match="more than 50 quotes behind") as raised:
            async for _ in listening:
                pass
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def ended_replay(server: Server, tape: str) -> replay_pb2.Replay:
    async with asyncio.timeout(60):
        while True:
            replay: replay_pb2.Replay = (await server.stub.GetReplay(pb.GetReplayRequest(tape=tape))).replay
            if replay.state != replay_pb2.REPLAY_STATE_RUNNING:
                return replay
            await asyncio.sleep(0.05)


async def test_a_replay_over_the_wire(server: Server) -> None:
    request = pb.StartReplayRequest(location="bokeh", tape="run-1", symbols=["FB"])
    started = (await server.stub.StartReplay(request)).replay
    assert (started.tape, started.state) == ("run-1", replay_pb2.REPLAY_STATE_RUNNING)
    replay = await ended_replay(server, "run-1")
    assert replay.state == replay_pb2.REPLAY_STATE_SUCCEEDED
    assert replay.published_quotes == replay.total_quotes == server.queue.depth().ready > 100
    assert (await server.stub.CancelReplay(pb.CancelReplayRequest(tape="run-1"))).replay == replay
    (coverage,) = (await server.stub.GetCoverage(pb.GetCoverageRequest(tape="run-1"))).coverages
    assert coverage.accepted_quotes == replay.published_quotes
    assert coverage.freshness == coverage_pb2.FRESHNESS_FRESH
    assert coverage.last_event_time == replay.position


async def test_a_replay_of_a_time_range_over_the_wire(server: Server) -> None:
    start, end = datetime(2005, 1, 1, tzinfo=UTC), datetime(2006, 1, 1, tzinfo=UTC)
    bounds = {"start_time": timestamp_to_proto(start), "end_time": timestamp_to_proto(end)}
    request = pb.StartReplayRequest(location="bokeh", tape="year", symbols=["IBM"], **bounds)  # type: ignore[arg-type]
    await server.stub.StartReplay(request)
    replay = await ended_replay(server, "year")
    assert (replay.state, replay.published_quotes) == (replay_pb2.REPLAY_STATE_SUCCEEDED, 252)  # trading days
    assert {name: getattr(replay, name) for name in bounds} == bounds
    with pytest.raises(grpc.aio.AioRpcError, match=r"start_time.* outside years 1 to 9999"):
        await server.stub.StartReplay(pb.StartReplayRequest(location="bokeh", start_time=Timestamp(seconds=10**12)))


@pytest.mark.parametrize(
    ("method", "request_", "code", "field"),
    [
        ("StartReplay", pb.StartReplayRequest(), grpc.StatusCode.INVALID_ARGUMENT, "location"),
        ("StartReplay", pb.StartReplayRequest(location="/nowhere"), grpc.StatusCode.INVALID_ARGUMENT, "location"),
        ("StartReplay", pb.StartReplayRequest(location="bokeh", tape="live"), grpc.StatusCode.INVALID_ARGUMENT, "tape"),
        ("StartReplay", pb.StartReplayRequest(location="bokeh", speed=-1), grpc.StatusCode.INVALID_ARGUMENT, "speed"),
        ("GetReplay", pb.GetReplayRequest(), grpc.StatusCode.INVALID_ARGUMENT, "tape"),
        ("CancelReplay", pb.CancelReplayRequest(), grpc.StatusCode.INVALID_ARGUMENT, "tape"),
        ("GetReplay", pb.GetReplayRequest(tape="none"), grpc.StatusCode.NOT_FOUND, None),
    ],
)
async def test_bad_requests(
    server: Server, method: str, request_: object, code: grpc.StatusCode, field: str | None
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await getattr(server.stub, method)(request_)
    assert raised.value.code() == code
    if field is not None:
        assert [v.field for v in details(raised.value).field_violations] == [field]


async def test_a_csv_source_is_followed_and_remembered(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    path.write_text(
        "symbol,timestamp,open,high,low,close,volume\n"
        + "".join(f"A,{(START + timedelta(minutes=i)).isoformat()},1,1,1,1,1\n" for i in range(5))
    )
    options = {"source": "csv", "csv_path": path, "poll_interval_seconds": 0.05}
    async with serving(tmp_path, **options) as server, asyncio.timeout(30):
        coverages: list[coverage_pb2.Coverage] = []
        while sum(each.accepted_quotes for each in coverages) < 5:
            await asyncio.sleep(0.02)
            coverages = list((await server.stub.GetCoverage(pb.GetCoverageRequest())).coverages)
        await asyncio.sleep(0.2)
        (coverage,) = (await server.stub.GetCoverage(pb.GetCoverageRequest())).coverages
        assert (coverage.series.symbol, coverage.accepted_quotes) == ("A", 5)
        assert server.queue.depth().ready == 5
    async with serving(tmp_path, **options) as server:
        await asyncio.sleep(0.3)
        assert server.queue.statistics().deduplicated == 0
        assert server.queue.depth().ready == 5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=["sqlite", "dynamodb"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of processes that share one memory of their progress."""
    if request.param == "sqlite":
        return {"INGEST_PATH": str(tmp_path / "ingest.db")}
    name = f"ingest-{uuid.uuid4().hex[:12]}"
    endpoint = request.getfixturevalue("ministack").url
    environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "INGEST_BACKEND": "dynamodb", "INGEST_TABLE": name}
    command = [sys.executable, "-m", "services.cli.main", "ingest", "create-table"]
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=120)
    return environment


def start_process(folder: Path, port: int, memory: Mapping[str, str], ready: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "GRPC_PORT": str(port),
        "QUEUE_PATH": str(folder / "queue.db"),
        **memory,
        "REPLAY_MAX_READY": str(ready),
    }
    code = "from services.ingest.main import main; raise SystemExit(main())"
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


async def test_a_killed_replay_goes_on_by_itself(tmp_path: Path, memory: dict[str, str]) -> None:
    queue = SqliteQueue(tmp_path / "queue.db")
    port = free_port()
    process = start_process(tmp_path, port, memory, ready=5_000)  # so it waits there, as nobody takes any
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = pb.StartReplayRequest(location="bokeh", tape="run-1")
            stub: Any = IngestServiceStub(channel)
            await stub.StartReplay(request, wait_for_ready=True, timeout=90)
            async with asyncio.timeout(120):
                while queue.statistics().sent < 3_000:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        sent = queue.statistics().sent
        assert 3_000 <= sent < 12_154
        process = start_process(tmp_path, port, memory, ready=100_000)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(120):
            stub = IngestServiceStub(channel)
            await stub.GetReplay(pb.GetReplayRequest(tape="run-1"), wait_for_ready=True)
            while True:
                replay = (await stub.GetReplay(pb.GetReplayRequest(tape="run-1"))).replay
                if replay.state != replay_pb2.REPLAY_STATE_RUNNING:
                    break
                await asyncio.sleep(0.02)
        assert replay.state == replay_pb2.REPLAY_STATE_SUCCEEDED
        assert replay.published_quotes == 12_154
        assert queue.statistics().sent == queue.depth().ready == 12_154
    finally:
        process.terminate()
        assert process.wait(60) == 0
