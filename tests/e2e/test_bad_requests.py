"""Every RPC answers a malformed request with INVALID_ARGUMENT and field violations, and the process lives on."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tapewatch.dispatch.v1 import dispatch_service_pb2, dispatch_service_pb2_grpc
from tapewatch.gateway.v1 import (
    alert_pb2,
    alert_service_pb2,
    alert_service_pb2_grpc,
    detection_service_pb2,
    detection_service_pb2_grpc,
)
from tapewatch.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from tapewatch.market.v1 import quote_pb2
from tapewatch.scorer.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    scorer_service_pb2,
    scorer_service_pb2_grpc,
)
from tests.e2e.processes import Mesh, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

Case = tuple[str, Callable[[grpc.Channel], Any], str, Message, str]
FILTER = alert_service_pb2.AlertFilter(min_peak_score=2)
ALERT = alert_pb2.Alert(alert_id="al_x", etag='"1"')

CASES: list[Case] = [
    (service, stub, method, request, field)
    for service, stub, method, request, field in (
        ("scorer", scorer_service_pb2_grpc.ScorerServiceStub, "Score", scorer_service_pb2.ScoreRequest(), "quote"),
        (
            "scorer",
            scorer_service_pb2_grpc.ScorerServiceStub,
            "Score",
            scorer_service_pb2.ScoreRequest(quote=quote_pb2.Quote(symbol="A")),
            "quote.event_time",
        ),
        (
            "scorer",
            scorer_service_pb2_grpc.ScorerServiceStub,
            "ScoreStream",
            scorer_service_pb2.ScoreStreamRequest(),
            "quotes",
        ),
        (
            "scorer",
            scorer_service_pb2_grpc.ScorerServiceStub,
            "ScoreBlocks",
            scorer_service_pb2.ScoreBlocksRequest(),
            "blocks",
        ),
        (
            "scorer",
            model_service_pb2_grpc.ModelServiceStub,
            "SetShadowModel",
            model_service_pb2.SetShadowModelRequest(),
            "version",
        ),
        (
            "scorer",
            model_service_pb2_grpc.ModelServiceStub,
            "SetCanaryModel",
            model_service_pb2.SetCanaryModelRequest(version="m", weight=2),
            "weight",
        ),
        (
            "scorer",
            model_service_pb2_grpc.ModelServiceStub,
            "ClearCandidateModel",
            model_service_pb2.ClearCandidateModelRequest(role=model_service_pb2.MODEL_ROLE_SERVING),
            "role",
        ),
        (
            "dispatch",
            dispatch_service_pb2_grpc.DispatchServiceStub,
            "Dispatch",
            dispatch_service_pb2.DispatchRequest(),
            "quotes",
        ),
        (
            "dispatch",
            dispatch_service_pb2_grpc.DispatchServiceStub,
            "Dispatch",
            dispatch_service_pb2.DispatchRequest(quotes=[quote_pb2.Quote()], mode=9),  # type: ignore[arg-type]
            "mode",
        ),
        (
            "dispatch",
            dispatch_service_pb2_grpc.DispatchServiceStub,
            "ListTasks",
            dispatch_service_pb2.ListTasksRequest(page_size=-1),
            "page_size",
        ),
        (
            "dispatch",
            dispatch_service_pb2_grpc.DispatchServiceStub,
            "ListTasks",
            dispatch_service_pb2.ListTasksRequest(page_token="x"),
            "page_token",
        ),
        (
            "dispatch",
            dispatch_service_pb2_grpc.DispatchServiceStub,
            "ListTasks",
            dispatch_service_pb2.ListTasksRequest(state=9),  # type: ignore[arg-type]
            "state",
        ),
        (
            "dispatch",
            dispatch_service_pb2_grpc.DispatchServiceStub,
            "GetTask",
            dispatch_service_pb2.GetTaskRequest(),
            "task_id",
        ),
        (
            "dispatch",
            dispatch_service_pb2_grpc.DispatchServiceStub,
            "WatchTasks",
            dispatch_service_pb2.WatchTasksRequest(heartbeat_interval=Duration(seconds=301)),
            "heartbeat_interval",
        ),
        (
            "ingest",
            ingest_service_pb2_grpc.IngestServiceStub,
            "PublishQuotes",
            ingest_service_pb2.PublishQuotesRequest(),
            "quotes",
        ),
        (
            "ingest",
            ingest_service_pb2_grpc.IngestServiceStub,
            "StartReplay",
            ingest_service_pb2.StartReplayRequest(),
            "location",
        ),
        (
            "ingest",
            ingest_service_pb2_grpc.IngestServiceStub,
            "StartReplay",
            ingest_service_pb2.StartReplayRequest(location="bokeh", tape="live"),
            "tape",
        ),
        (
            "ingest",
            ingest_service_pb2_grpc.IngestServiceStub,
            "StartReplay",
            ingest_service_pb2.StartReplayRequest(location="bokeh", speed=-1),
            "speed",
        ),
        (
            "ingest",
            ingest_service_pb2_grpc.IngestServiceStub,
            "StreamQuotes",
            ingest_service_pb2.StreamQuotesRequest(symbols=["bad symbol!"]),
            "symbols[0]",
        ),
        (
            "ingest",
            ingest_service_pb2_grpc.IngestServiceStub,
            "StreamQuotes",
            ingest_service_pb2.StreamQuotesRequest(symbols=["A"] * 20_000),
            "symbols",
        ),
        (
            "ingest",
            ingest_service_pb2_grpc.IngestServiceStub,
            "GetCoverage",
            ingest_service_pb2.GetCoverageRequest(tape="B D"),
            "tape",
        ),
        (
            "ingest",
            ingest_service_pb2_grpc.IngestServiceStub,
            "GetReplay",
            ingest_service_pb2.GetReplayRequest(tape="NO!!"),
            "tape",
        ),
        (
            "scorer",
            model_service_pb2_grpc.ModelServiceStub,
            "GetModel",
            model_service_pb2.GetModelRequest(version="m" * 201),
            "version",
        ),
        (
            "scorer",
            model_service_pb2_grpc.ModelServiceStub,
            "ReloadModel",
            model_service_pb2.ReloadModelRequest(version="m" * 201),
            "version",
        ),
        (
            "ingest",
            ingest_service_pb2_grpc.IngestServiceStub,
            "GetReplay",
            ingest_service_pb2.GetReplayRequest(),
            "tape",
        ),
        (
            "ingest",
            ingest_service_pb2_grpc.IngestServiceStub,
            "CancelReplay",
            ingest_service_pb2.CancelReplayRequest(),
            "tape",
        ),
        (
            "gateway",
            detection_service_pb2_grpc.DetectionServiceStub,
            "RecordScores",
            detection_service_pb2.RecordScoresRequest(),
            "items",
        ),
        (
            "gateway",
            detection_service_pb2_grpc.DetectionServiceStub,
            "GetCursors",
            detection_service_pb2.GetCursorsRequest(series=[quote_pb2.Series()]),
            "series[0].symbol",
        ),
        (
            "gateway",
            detection_service_pb2_grpc.DetectionServiceStub,
            "GetDetection",
            detection_service_pb2.GetDetectionRequest(),
            "quote_id",
        ),
        (
            "gateway",
            detection_service_pb2_grpc.DetectionServiceStub,
            "ListDetections",
            detection_service_pb2.ListDetectionsRequest(page_size=-1),
            "page_size",
        ),
        (
            "gateway",
            detection_service_pb2_grpc.DetectionServiceStub,
            "ListQuotes",
            detection_service_pb2.ListQuotesRequest(page_token="?"),
            "page_token",
        ),
        (
            "gateway",
            alert_service_pb2_grpc.AlertServiceStub,
            "WatchAlerts",
            alert_service_pb2.WatchAlertsRequest(filter=FILTER),
            "filter.min_peak_score",
        ),
        (
            "gateway",
            alert_service_pb2_grpc.AlertServiceStub,
            "WatchAlerts",
            alert_service_pb2.WatchAlertsRequest(resume_token="?"),
            "resume_token",
        ),
        (
            "gateway",
            alert_service_pb2_grpc.AlertServiceStub,
            "GetAlert",
            alert_service_pb2.GetAlertRequest(),
            "alert_id",
        ),
        (
            "gateway",
            alert_service_pb2_grpc.AlertServiceStub,
            "ListAlerts",
            alert_service_pb2.ListAlertsRequest(filter=FILTER),
            "filter.min_peak_score",
        ),
        (
            "gateway",
            alert_service_pb2_grpc.AlertServiceStub,
            "UpdateAlert",
            alert_service_pb2.UpdateAlertRequest(alert=ALERT, update_mask=FieldMask(paths=["peak_score"]), actor="a"),
            "update_mask",
        ),
        (
            "gateway",
            alert_service_pb2_grpc.AlertServiceStub,
            "ListAlertEvents",
            alert_service_pb2.ListAlertEventsRequest(),
            "alert_id",
        ),
        (
            "gateway",
            alert_service_pb2_grpc.AlertServiceStub,
            "GetEvidence",
            alert_service_pb2.GetEvidenceRequest(),
            "alert_id",
        ),
    )
]
WITHOUT_CONDITIONS = {
    "GetCapacity",
    "GetCanaries",
    "ListModels",
}


def violations(error: grpc.RpcError) -> list[str]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            return [violation.field for violation in bad.field_violations]
    return []


def send(call: Any, request: Message) -> None:
    """Call a method of any kind with one request, and read its answers to their end."""
    if isinstance(call, grpc.UnaryUnaryMultiCallable):
        call(request, timeout=60)
    elif isinstance(call, grpc.StreamStreamMultiCallable):
        list(call(iter([request]), timeout=60))
    else:
        list(call(request, timeout=60))


@pytest.mark.parametrize(
    ("service", "stub", "method", "request_", "field"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_malformed_requests(
    service: str,
    stub: Callable[[grpc.Channel], Any],
    method: str,
    request_: Message,
    field: str,
    running_mesh: Mesh,
) -> None:
    with grpc.insecure_channel(getattr(running_mesh, service)) as channel:
        call = getattr(stub(channel), method)
        with pytest.raises(grpc.RpcError) as refused:
            send(call, request_)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, refused.value.details()
        assert field in violations(refused.value)
    assert serving(getattr(running_mesh, service), 60)


LONG = "A" * 30_000
TOO_LARGE: list[tuple[str, str, Callable[[grpc.Channel], Any], str, Message]] = [
    (
        "a symbol of 20 KB",
        "scorer",
        scorer_service_pb2_grpc.ScorerServiceStub,
        "Score",
        scorer_service_pb2.ScoreRequest(
            quote=quote_pb2.Quote(
                symbol="A" * 20_000,
                event_time=Timestamp(seconds=1_700_000_000),
                open=10,
                high=11,
                low=9,
                close=10,
                volume=100,
            )
        ),
    ),
    (
        "a model version of 30 KB",
        "scorer",
        model_service_pb2_grpc.ModelServiceStub,
        "GetModel",
        model_service_pb2.GetModelRequest(version=LONG),
    ),
    (
        "a quote_id of 30 KB",
        "gateway",
        detection_service_pb2_grpc.DetectionServiceStub,
        "GetDetection",
        detection_service_pb2.GetDetectionRequest(quote_id=LONG),
    ),
    (
        "an alert_id of 30 KB",
        "gateway",
        alert_service_pb2_grpc.AlertServiceStub,
        "GetAlert",
        alert_service_pb2.GetAlertRequest(alert_id=LONG),
    ),
    (
        "a task_id of 30 KB",
        "dispatch",
        dispatch_service_pb2_grpc.DispatchServiceStub,
        "GetTask",
        dispatch_service_pb2.GetTaskRequest(task_id=LONG),
    ),
    (
        "a tape of 30 KB",
        "ingest",
        ingest_service_pb2_grpc.IngestServiceStub,
        "GetReplay",
        ingest_service_pb2.GetReplayRequest(tape=LONG),
    ),
]
OUT_OF_RANGE: list[tuple[str, str, Callable[[grpc.Channel], Any], str, Message]] = [
    (
        "a cursor after the year 9999",
        "scorer",
        scorer_service_pb2_grpc.ScorerServiceStub,
        "ScoreStream",
        scorer_service_pb2.ScoreStreamRequest(
            quotes=[
                quote_pb2.Quote(
                    symbol="A",
                    event_time=Timestamp(seconds=1_700_000_000),
                    open=10,
                    high=11,
                    low=9,
                    close=10,
                    volume=100,
                )
            ],
            cursors=[
                quote_pb2.Cursor(
                    series=quote_pb2.Series(symbol="A"),
                    last_event_time=Timestamp(seconds=10**18),
                )
            ],
        ),
    ),
    (
        "a replay of 5,000 symbols",
        "ingest",
        ingest_service_pb2_grpc.IngestServiceStub,
        "StartReplay",
        ingest_service_pb2.StartReplayRequest(location="bokeh", symbols=[f"S{i}" for i in range(5_000)]),
    ),
]


@pytest.mark.parametrize(
    ("service", "stub", "method", "request_", "codes"),
    [
        pytest.param(*case[1:], {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}, id=case[0])
        for case in TOO_LARGE
    ]
    + [pytest.param(*case[1:], {grpc.StatusCode.INVALID_ARGUMENT}, id=case[0]) for case in OUT_OF_RANGE],
)
def test_absurdly_large_requests(
    service: str,
    stub: Callable[[grpc.Channel], Any],
    method: str,
    request_: Message,
    codes: set[grpc.StatusCode],
    running_mesh: Mesh,
) -> None:
    """The answer blames the request, in trailers that fit what gRPC allows for them."""
    with grpc.insecure_channel(getattr(running_mesh, service)) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            send(getattr(stub(channel), method), request_)
        assert refused.value.code() in codes, refused.value.details()
    assert serving(getattr(running_mesh, service), 60)


def test_every_rpc_is_tried() -> None:
    methods = set()
    for module in (
        dispatch_service_pb2,
        alert_service_pb2,
        detection_service_pb2,
        ingest_service_pb2,
        model_service_pb2,
        scorer_service_pb2,
    ):
        for service in module.DESCRIPTOR.services_by_name.values():
            methods |= {method.name for method in service.methods}
    assert methods == {case[2] for case in CASES} | WITHOUT_CONDITIONS
