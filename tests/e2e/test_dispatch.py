"""Ways from the queue to the gateway besides the embedded event source: Lambda, the scorer itself, and by hand."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from services.pipeline.ports import RecordOutcome
from services.queue import market_message
from services.queue.sqlite import SqliteQueue
from services.wire.quote import quote_to_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb
from tapewatch.dispatch.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from tapewatch.gateway.v1 import detection_service_pb2
from tapewatch.gateway.v1.detection_service_pb2_grpc import DetectionServiceStub
from tests.e2e.processes import REPOSITORY, Mesh
from tests.pipeline_fakes import quote
from tests.servers.process import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
EVENTS = REPOSITORY / "tests" / "events"


@pytest.fixture
def gateway(running_mesh: Mesh) -> Iterator[DetectionServiceStub]:
    with grpc.insecure_channel(running_mesh.gateway) as channel:
        yield DetectionServiceStub(channel)


def stored(gateway: DetectionServiceStub, tape: str, symbol: str) -> list[detection_service_pb2.RecordedQuote]:
    return list(gateway.ListQuotes(detection_service_pb2.ListQuotesRequest(tape=tape, symbol=symbol)).quotes)


def test_the_lambda_handler_scores_and_records(
    running_mesh: Mesh, gateway: DetectionServiceStub, tmp_path: Path
) -> None:
    """The handler as AWS would call it, in a process of its own, twice with the same event."""
    event = {
        "Records": [
            {
                "messageId": f"m{i}",
                "body": market_message.encode(quote(i, "LAMB", tape="by-lambda")).body if i != 1 else "poison",
                "attributes": {"MessageGroupId": "g"},
                "messageAttributes": {},
            }
            for i in range(4)
        ]
    }
    code = (
        "import json, sys; from types import SimpleNamespace;"
        "from services.dispatch.handler import lambda_handler; event = json.load(sys.stdin);"
        "time = {'get_remaining_time_in_millis': lambda: 30_000};"
        "context = SimpleNamespace(**time, aws_request_id='request', invoked_function_arn='arn');"
        "print(json.dumps([lambda_handler(event, context), lambda_handler(event, context)]))"
    )
    environment = {**running_mesh.environment, "QUEUE_PATH": str(tmp_path / "queue.db")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(event),
        capture_output=True,
        text=True,
        env=environment,
        cwd=REPOSITORY,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [{"batchItemFailures": []}] * 2
    kept = stored(gateway, "by-lambda", "LAMB")
    assert [recorded.record_count for recorded in kept] == [2, 2, 2]
    assert all(recorded.mismatch_count == 0 for recorded in kept)
    queue = SqliteQueue(tmp_path / "queue.db")
    assert [letter.body for letter in queue.list_dead_letters()] == ["poison"], "the same letter is kept once"
    queue.close()


def test_a_scorer_that_reads_the_queue_itself(
    running_mesh: Mesh, gateway: DetectionServiceStub, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    running_mesh.environment = {
        **running_mesh.environment,
        "QUEUE_PATH": str(tmp_path / "queue.db"),
        "GRPC_PORT": str(port),
        "USE_SQS_DATA_SOURCE": "true",
    }
    try:
        running_mesh.start("scorer", "serve")
    finally:
        for name in ("QUEUE_PATH", "GRPC_PORT", "USE_SQS_DATA_SOURCE"):
            del running_mesh.environment[name]
    queue = SqliteQueue(tmp_path / "queue.db")
    queue.send([market_message.encode(quote(i, symbol, tape="own")) for i in range(80) for symbol in ("OWNA", "OWNB")])
    running_mesh.wait_for(lambda: (depth := queue.depth()).ready + depth.in_flight == 0, 60, "an empty queue")
    queue.close()
    for symbol in ("OWNA", "OWNB"):
        assert len(stored(gateway, "own", symbol)) == 80


def test_dispatching_by_hand(running_mesh: Mesh, gateway: DetectionServiceStub) -> None:
    with grpc.insecure_channel(running_mesh.dispatch) as channel:
        stub = DispatchServiceStub(channel)
        batch = [quote_to_proto(quote(i, "HAND", tape="by-hand", high=1.0 if i == 2 else 10.2)) for i in range(5)]
        results = stub.Dispatch(pb.DispatchRequest(quotes=batch)).results
        assert [result.WhichOneof("outcome") for result in results] == ["score", "score", "error", "score", "score"]
        assert len(stored(gateway, "by-hand", "HAND")) == 4
        with pytest.raises(grpc.RpcError) as refused:
            stub.Dispatch(pb.DispatchRequest(quotes=batch, mode=pb.DISPATCH_MODE_TASK))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        capacity = stub.GetCapacity(pb.GetCapacityRequest())
        assert [scorer.serving for scorer in capacity.scorers] == [True]
        assert capacity.HasField("backlog")


def test_recording_again_says_unchanged_or_different(running_mesh: Mesh, gateway: DetectionServiceStub) -> None:
    with grpc.insecure_channel(running_mesh.dispatch) as channel:
        request = pb.DispatchRequest(quotes=[quote_to_proto(quote(0, "TWICE", tape="twice"))])
        (result,) = DispatchServiceStub(channel).Dispatch(request).results
    item = detection_service_pb2.ScoredQuote(quote=request.quotes[0], score=result.score)
    outcomes = []
    for change in (0.0, 1e-9, 1e-3):
        item.score.ensemble = result.score.ensemble + change
        answer = gateway.RecordScores(detection_service_pb2.RecordScoresRequest(items=[item]))
        outcomes.append(answer.results[0].recorded.outcome)
    assert [RecordOutcome(outcome) for outcome in outcomes] == [
        RecordOutcome.UNCHANGED,
        RecordOutcome.UNCHANGED,
        RecordOutcome.DIFFERENT,
    ]
    (kept,) = stored(gateway, "twice", "TWICE")
    assert kept.record_count == 4
    assert kept.mismatch_count == 1
    assert kept.score.ensemble == result.score.ensemble
