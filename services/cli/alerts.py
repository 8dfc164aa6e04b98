"""`tapewatch alerts`: what waits for an analyst, and the steps of triage."""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.text import Text

from services.cli.tally import pages
from services.cli.watch import described, state_words
from services.runtime.channels import open_channel
from services.runtime.errors import error_from_rpc, exit_code_of
from services.runtime.settings import ClientSettings
from tapewatch.gateway.v1 import alert_pb2
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub

if TYPE_CHECKING:
    from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceAsyncStub

_PAGE = 1_000


def alert_lines(alert: alert_pb2.Alert) -> Text:
    """One alert: its id, what it is and where it stands, and below them the reasons and the practice in EU law."""
    moment, what, reasons = described(alert)
    state = state_words(alert.state)
    if alert.state == alert_pb2.ALERT_STATE_CLOSED:
        state += f", {alert_pb2.Disposition.Name(alert.disposition).removeprefix('DISPOSITION_').lower()}"
    if alert.assignee:
        state += f", {alert.assignee}"
    practice = f"\n    {alert.regulatory_reference}" if alert.regulatory_reference else ""
    return Text.assemble(
        (alert.alert_id, "bold"),
        f"  {alert.symbol:<6} {moment:<20} {what}  {alert.peak_score:.3f}  [{state}]",
        (f"\n    {reasons}{practice}", "dim"),
    )


async def listed(
    address: str,
    settings: ClientSettings,
    wanted: pb.AlertFilter,
    limit: int,
    as_json: bool,
    console: Console,
) -> int:
    """Print the newest alerts that match. The exit code."""
    shown = 0
    try:
        async with open_channel(address, settings) as channel:
            async for alert in _newest(AlertServiceStub(channel), wanted, limit):
                shown += 1
                if as_json:
                    print(MessageToJson(alert, indent=None), flush=True)
                else:
                    console.print(alert_lines(alert), soft_wrap=True, highlight=False)
    except grpc.aio.AioRpcError as error:
        message = error_from_rpc(error, f"gateway {address}").message
        console.print(f"tapewatch alerts list: {message}", style="bold red", soft_wrap=True, highlight=False)
        return exit_code_of(error)
    if not shown and not as_json:
        console.print("no such alerts")
    return 0


async def _newest(stub: "AlertServiceAsyncStub", wanted: pb.AlertFilter, limit: int) -> AsyncIterator[alert_pb2.Alert]:
    request = pb.ListAlertsRequest(filter=wanted, page_size=min(limit, _PAGE))
    left = limit
    async for alert in pages(stub.ListAlerts, request, "alerts"):
        yield alert
        left -= 1
        if not left:
            return


async def update(
    address: str,
    settings: ClientSettings,
    alert_ids: Sequence[str],
    values: alert_pb2.Alert,
    fields: Sequence[str],
    actor: str,
    note: str,
    console: Console,
) -> int:
    """Take each alert one step of triage further, with the given fields of `values`. The exit code: the worst of all.

    An alert that changes while it is updated is refused, and the others go on.
    """
    worst = 0
    async with open_channel(address, settings) as channel:
        stub = AlertServiceStub(channel)
        for alert_id in alert_ids:
            try:
                known = (await stub.GetAlert(pb.GetAlertRequest(alert_id=alert_id))).alert
                request = pb.UpdateAlertRequest(
                    alert=values, update_mask=FieldMask(paths=fields), actor=actor, comment=note
                )
                request.alert.alert_id, request.alert.etag = known.alert_id, known.etag
                console.print(alert_lines((await stub.UpdateAlert(request)).alert), soft_wrap=True, highlight=False)
            except grpc.aio.AioRpcError as error:
                message = error_from_rpc(error, f"gateway {address}").message
                console.print(f"{alert_id}: {message}", style="bold red", soft_wrap=True, highlight=False)
                worst = max(worst, exit_code_of(error))
    return worst
