"""A gateway in this process: the real bootstrap, server, store and lake."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2

from services.domain.score import ScoredQuote
from services.gateway.main import build
from services.gateway.settings import GatewaySettings
from services.runtime.errors import STATUS_DETAILS_KEY
from services.runtime.server import Lifetime
from services.wire.quote import quote_to_proto
from services.wire.score import score_to_proto
from tapewatch.gateway.v1 import alert_pb2, alert_service_pb2, detection_service_pb2
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tapewatch.gateway.v1.detection_service_pb2_grpc import DetectionServiceStub
from tests.servers.in_process import served


class Gateway:
    """A running gateway and stubs of its services."""

    def __init__(self, address: str, channel: grpc.aio.Channel, lifetime: Lifetime) -> None:
        self.address = address
        self.channel = channel
        self.lifetime = lifetime
        self.detections = DetectionServiceStub(channel)
        self.alerts = AlertServiceStub(channel)


@asynccontextmanager
async def running_gateway(folder: Path, **changed: Any) -> AsyncIterator[Gateway]:
    """A gateway on the store and the lake in `folder`, with changed settings; drained at the end."""
    chosen = {"lake_uri": str(folder / "lake"), **changed}
    settings = GatewaySettings(grpc_port=0, store_path=folder / "store.db", shutdown_grace_seconds=5, **chosen)
    async with (
        served("gateway", settings, lambda lifetime: build(lifetime, settings)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Gateway(server.address, channel, server.lifetime)


def message(item: ScoredQuote) -> detection_service_pb2.ScoredQuote:
    return detection_service_pb2.ScoredQuote(quote=quote_to_proto(item.quote), score=score_to_proto(item.score))


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str, set[str]]:
    """Status code, ErrorInfo.reason and the violated fields of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    for key, value in caught.value.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            assert isinstance(value, bytes)
            reason, fields = details(status_pb2.Status.FromString(value))
            return caught.value.code(), reason, fields
    raise AssertionError(f"no rich error: {caught.value!r}")


def details(status: status_pb2.Status) -> tuple[str, set[str]]:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(bad)
    return info.reason.removeprefix("ERROR_REASON_"), {violation.field for violation in bad.field_violations}


def updating(
    alert: alert_pb2.Alert, *paths: str, actor: str = "ann", comment: str = ""
) -> alert_service_pb2.UpdateAlertRequest:
    return alert_service_pb2.UpdateAlertRequest(
        alert=alert, update_mask=FieldMask(paths=paths), actor=actor, comment=comment
    )


KNOWN = alert_pb2.Alert(alert_id="al_x", etag='"1"', state=alert_pb2.ALERT_STATE_ACKNOWLEDGED)
