"""What a user of `tapewatch up` is told of the canaries."""

import io

from rich.console import Console

from services.cli.canary import state_line
from services.cli.live_view import LiveView, Reading
from services.domain.canary import CANARIES
from services.wire.time import timestamp_to_proto
from tapewatch.dispatch.v1 import dispatch_service_pb2 as pb
from tests.pipeline_fakes import START


def response(state: pb.CanaryState.ValueType, problem: str = "") -> pb.GetCanariesResponse:
    results = [pb.CanaryResult(name=canary.name, alerted=not problem, problem=problem) for canary in CANARIES[:2]]
    return pb.GetCanariesResponse(state=state, play_time=timestamp_to_proto(START), results=results)


def words(state: pb.CanaryState.ValueType, problem: str = "") -> str:
    text = state_line(response(state, problem))
    return "" if text is None else text.plain


def test_states_in_words() -> None:
    assert words(pb.CANARY_STATE_OFF) == ""
    assert state_line(None) is None
    assert "not ended yet" in words(pb.CANARY_STATE_NOT_PLAYED)
    assert words(pb.CANARY_STATE_GREEN) == "canaries: all 2 alerted at 14:30:00 UTC"
    red = words(pb.CANARY_STATE_RED, "ingest: is away")
    assert red.startswith("CANARY MISSED at 14:30:00 UTC: pump-and-dump ingest: is away; trash-and-cash")


def test_plain_output_tells_each_change_of_state_once() -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, width=200), "title")
    for state in (pb.CANARY_STATE_GREEN, pb.CANARY_STATE_GREEN, pb.CANARY_STATE_RED, pb.CANARY_STATE_GREEN):
        view.show(Reading(canaries=response(state, "x" if state == pb.CANARY_STATE_RED else "")))
    lines = [line for line in out.getvalue().splitlines() if "anar" in line.lower()]
    assert [line.split(":")[0] for line in lines] == ["canaries", "CANARY MISSED at 14", "canaries"]
