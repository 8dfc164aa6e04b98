"""The Python client when there is no mesh: calls that feed or judge fail soon, and a watch waits."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import grpc
import pytest

from tapewatch.ingest.v1 import coverage_pb2, ingest_service_pb2
from tapewatch_client import Client, Quote

pytestmark = pytest.mark.timeout(60)

TIMEOUT_SECONDS = 1.0
SOON_SECONDS = 18.0  # gRPC itself gives up connecting after 20 s
QUOTE = Quote(
    symbol="A",
    event_time=datetime(2026, 1, 5, 14, 30, tzinfo=UTC),
    open=10.0,
    high=10.2,
    low=9.9,
    close=10.1,
    volume=1_000.0,
)
STREAMS: list[Callable[[Client], Iterator[object]]] = [
    lambda client: client.publish([QUOTE]),
    lambda client: client.score_stream([QUOTE]),
]


@pytest.fixture(params=["refuses", "is silent"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of an address that refuses connections, or one that takes them and never says a word."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if request.param == "is silent":
            bound.listen()
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with Client(address, address, address, timeout_seconds=TIMEOUT_SECONDS) as opened:
            yield opened


@pytest.mark.parametrize("stream", STREAMS, ids=["publish", "score_stream"])
def test_a_stream_of_quotes_fails_when_the_mesh_is_away(
    client: Client, stream: Callable[[Client], Iterator[object]]
) -> None:
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as failed:
        next(stream(client))
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < SOON_SECONDS


def test_a_unary_call_fails_at_its_deadline(client: Client) -> None:
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as failed:
        client.coverage()
    assert failed.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    assert time.monotonic() - started < SOON_SECONDS


def test_a_watch_waits_for_the_mesh(client: Client) -> None:
    ended = threading.Event()

    def watch() -> None:
        try:
            next(client.watch_alerts())
        except grpc.RpcError:  # closing the client ends it
            pass
        finally:
            ended.set()

    threading.Thread(target=watch, daemon=True).start()
    assert not ended.wait(2 * TIMEOUT_SECONDS)


@pytest.mark.parametrize(("megabytes", "fits"), [(6, True), (17, False)])
def test_answers_of_up_to_16_mb_are_received(megabytes: int, fits: bool) -> None:
    coverage = coverage_pb2.Coverage(last_error="x" * (megabytes << 20))
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, context: ingest_service_pb2.GetCoverageResponse(coverages=[coverage]),
        request_deserializer=ingest_service_pb2.GetCoverageRequest.FromString,
        response_serializer=ingest_service_pb2.GetCoverageResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_send_message_length", -1)])
    service = grpc.method_handlers_generic_handler("tapewatch.ingest.v1.IngestService", {"GetCoverage": handler})
    server.add_generic_rpc_handlers((service,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with Client(address, address, address, timeout_seconds=60) as client:
            if fits:
                assert len(client.coverage()[0].last_error) == megabytes << 20
            else:
                with pytest.raises(grpc.RpcError) as refused:
                    client.coverage()
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        server.stop(None).wait()
