"""Watching alerts from any gateway, across disconnects."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
from rich.text import Text

from services.cli.console import make_console
from services.domain.errors import TapewatchError
from services.domain.quote import format_time
from services.runtime.channels import open_channel
from services.runtime.errors import error_from_rpc, exit_code_of, is_transient
from services.runtime.settings import ClientSettings
from services.wire.time import timestamp_from_proto
from tapewatch.gateway.v1 import alert_pb2
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tapewatch.scorer.v1 import score_pb2

_LONGEST_PAUSE_SECONDS = 5.0
_PROMPT_SECONDS = 1.0
_STYLES = {
    alert_pb2.ALERT_CHANGE_KIND_OPENED: "bold red",
    alert_pb2.ALERT_CHANGE_KIND_DETECTION_ADDED: "yellow",
    alert_pb2.ALERT_CHANGE_KIND_TRIAGED: "cyan",
}


async def changes(
    address: str,
    settings: ClientSettings,
    alert_filter: pb.AlertFilter,
    *,
    from_start: bool = False,
    resume_token: str = "",
    on_link: Callable[[bool], None] | None = None,
) -> AsyncIterator[pb.WatchAlertsResponse]:
    """Every change and heartbeat, resuming with the last token whenever the gateway goes away and comes back.

    `on_link` is told False when the gateway is waited for, and True when it answers after that.

    Raises: TapewatchError when the gateway refuses the request.
    """
    pause = 0.1
    link = _Link(on_link)
    async with open_channel(address, settings) as channel:
        stub = AlertServiceStub(channel)
        while True:
            request = pb.WatchAlertsRequest(
                filter=alert_filter, resume_token=resume_token, from_start=from_start and not resume_token
            )
            link.expect(_PROMPT_SECONDS)
            try:
                async for response in stub.WatchAlerts(request, wait_for_ready=True):
                    link.set(up=True)
                    resume_token = response.resume_token
                    pause = 0.1
                    yield response
            except grpc.aio.AioRpcError as error:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError from error  # the call ended by our own end: do not begin another
                if not is_transient(error.code()):
                    raise error_from_rpc(error, f"gateway {address}") from error
                link.set(up=False)
            finally:
                link.close()
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)


class _Link:
    """Tells each loss and each return of the gateway once; not that it is there from the beginning."""

    def __init__(self, tell: Callable[[bool], None] | None) -> None:
        self._tell = tell
        self._up = True
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, seconds: float) -> None:
        """Count the gateway as lost unless it answers by then: the first heartbeat comes at once."""
        self._timer = asyncio.get_running_loop().call_later(seconds, lambda: self.set(up=False))

    def set(self, *, up: bool) -> None:
        """What is known now."""
        self.close()
        if up != self._up:
            self._up = up
            if self._tell is not None:
                self._tell(up)

    def close(self) -> None:
        """Expect nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def typology_words(typology: "score_pb2.Typology.ValueType") -> str:
    """The typology as an analyst writes it."""
    return score_pb2.Typology.Name(typology).removeprefix("TYPOLOGY_").lower().replace("_", " ")


def state_words(state: "alert_pb2.AlertState.ValueType") -> str:
    """Where an alert stands, as an analyst writes it."""
    return alert_pb2.AlertState.Name(state).removeprefix("ALERT_STATE_").lower()


def described(alert: alert_pb2.Alert) -> tuple[str, str, str]:
    """When an alert's newest detection was, what the alert is and how often it was detected, and why."""
    moment = format_time(timestamp_from_proto(alert.last_event_time)).removesuffix("T00:00:00Z")
    count = f" x{alert.detection_count}" if alert.detection_count > 1 else ""
    return moment, f"{typology_words(alert.typology)}{count}", "; ".join(reason.text for reason in alert.reasons)


def line(change: alert_pb2.AlertChange) -> Text:
    """One change as one line: symbol, time, typology, score, and the reason in words."""
    alert = change.alert
    moment, what, reasons = described(alert)
    kind = alert_pb2.AlertChangeKind.Name(change.kind).removeprefix("ALERT_CHANGE_KIND_").lower().replace("_", " ")
    if change.kind == alert_pb2.ALERT_CHANGE_KIND_TRIAGED:
        kind = state_words(alert.state)
    return Text.assemble(
        (f"{alert.symbol:<6}", "bold"),
        f" {moment:<20} ",
        (what, _STYLES.get(change.kind, "")),
        f"  {alert.peak_score:.3f}  ",
        (reasons, "dim"),
        (f"  [{kind}]", "dim"),
    )


async def watch(
    address: str,
    settings: ClientSettings,
    symbols: Sequence[str],
    tape: str,
    min_score: float,
    from_start: bool,
    resume_token: str,
    as_json: bool,
) -> None:
    """Print changes as they come, until interrupted."""
    console, messages = make_console(), make_console(stderr=True)

    def on_link(up: bool) -> None:
        words = f"gateway at {address} answers" if up else f"waiting for gateway at {address}"
        messages.print(words, style="dim" if up else "yellow", soft_wrap=True, highlight=False)

    wanted = pb.AlertFilter(tape=tape, symbols=[s.upper() for s in symbols], min_peak_score=min_score)
    if not as_json:
        console.print(f"watching {address} (Ctrl-C ends)", style="dim")
    watched = changes(address, settings, wanted, from_start=from_start, resume_token=resume_token, on_link=on_link)
    try:
        async for response in watched:
            if response.WhichOneof("event") != "change":
                continue
            if as_json:
                from google.protobuf.json_format import MessageToJson

                print(MessageToJson(response, indent=None), flush=True)
            else:
                console.print(line(response.change), soft_wrap=True)
    except TapewatchError as error:
        print(f"tapewatch watch: {error.message}", file=sys.stderr)
        raise SystemExit(exit_code_of(error)) from error
