"""Alert changes over AppSync Events: pushed by the gateway, heard by a WebSocket client that knows nothing of it."""

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from services.domain.alert import AlertChange, AlertChangeKind, open_alert
from services.domain.errors import NotConfiguredError
from services.domain.quote import CANARY_TAPE
from services.domain.score import ScoredQuote
from services.gateway.alert_push import HEALTH_SERVICE_PUSH
from services.gateway.appsync import AppSyncPublisher
from services.runtime.health import address_serving
from services.runtime.settings import ClientSettings
from tapewatch.gateway.v1 import alert_service_pb2 as pb
from tapewatch.gateway.v1 import detection_service_pb2
from tests.gateway_quotes import NOW, spike
from tests.integration.gateway_server import Gateway, message, running_gateway
from tests.servers.process import CREDENTIALS, REGION, Server

API_KEY, IAM = ({"authType": kind} for kind in ("API_KEY", "AWS_IAM"))


@dataclass
class Api:
    """An Event API with the namespace `alerts`, as the stack makes it."""

    server: Server
    http: str
    realtime: str
    key: str

    def settings(self, **changed: Any) -> dict[str, Any]:
        return {
            "appsync_endpoint": f"{self.server.url}/event",
            "appsync_host": self.http,
            "appsync_api_key": self.key,
        } | changed


def made(server: Server, modes: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Api:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("services.gateway.appsync._ANSWER_SECONDS", 60)  # what is late is published twice
    appsync: Any = boto3.Session(region_name=REGION).client("appsync", endpoint_url=server.url)
    config = {
        "authProviders": modes,
        "connectionAuthModes": modes,
        "defaultPublishAuthModes": modes,
        "defaultSubscribeAuthModes": modes,
    }
    api = appsync.create_api(name=f"alerts-{uuid.uuid4().hex[:8]}", eventConfig=config)["api"]
    appsync.create_channel_namespace(
        apiId=api["apiId"], name="alerts", publishAuthModes=modes, subscribeAuthModes=modes
    )
    key = appsync.create_api_key(apiId=api["apiId"])["apiKey"]["id"] if API_KEY in modes else ""
    return Api(server, api["dns"]["HTTP"], api["dns"]["REALTIME"], key)


@pytest.fixture
def api(strict_ministack: Server, monkeypatch: pytest.MonkeyPatch) -> Api:
    return made(strict_ministack, [API_KEY], monkeypatch)


@dataclass
class Subscriber:
    """What came over each subscription, in order."""

    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def symbols(self, channel: str) -> list[str]:
        return [event["change"]["alert"]["symbol"] for event in self.events[channel]]

    def sequences(self, channel: str) -> list[int]:
        return [int(event["change"]["sequence"]) for event in self.events[channel]]

    async def has(self, channel: str, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.events[channel]) < count:  # noqa: ASYNC110 - events come over a socket
                await asyncio.sleep(0.02)


@asynccontextmanager
async def subscribed(api: Api, *channels: str) -> AsyncIterator[Subscriber]:
    """A WebSocket connection that follows AppSync's own protocol."""
    authorization = {"host": api.http, "x-api-key": api.key}
    header = base64.urlsafe_b64encode(json.dumps(authorization).encode()).decode().rstrip("=")
    subscriber = Subscriber({channel: [] for channel in channels})
    async with connect(
        f"ws://{api.realtime}/event/realtime",
        host="127.0.0.1",
        port=api.server.port,
        open_timeout=60,
        subprotocols=[Subprotocol("aws-appsync-event-ws"), Subprotocol(f"header-{header}")],
    ) as socket:
        await socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(await socket.recv())["type"] == "connection_ack"
        for channel in channels:
            request = {"type": "subscribe", "id": channel, "channel": channel, "authorization": authorization}
            await socket.send(json.dumps(request))
            assert json.loads(await socket.recv()) == {"type": "subscribe_success", "id": channel}

        async def hear() -> None:
            async for frame in socket:
                told = json.loads(frame)
                if told["type"] == "data":
                    subscriber.events[told["id"]].append(json.loads(told["event"]))

        hearing = asyncio.create_task(hear())
        try:
            yield subscriber
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)


async def record(gateway: Gateway, *items: ScoredQuote) -> None:
    request = detection_service_pb2.RecordScoresRequest(items=[message(item) for item in items])
    response = await gateway.detections.RecordScores(request)
    assert all(result.WhichOneof("outcome") == "recorded" for result in response.results)


async def push_serving(gateway: Gateway) -> bool:
    return await address_serving(gateway.address, ClientSettings(), service=HEALTH_SERVICE_PUSH)


async def becomes(gateway: Gateway, serving: bool) -> None:
    async with asyncio.timeout(60):
        while await push_serving(gateway) is not serving:  # noqa: ASYNC110 - health is another server's
            await asyncio.sleep(0.05)


async def test_subscribers_hear_what_they_asked_for_and_can_go_on_from_it(api: Api, tmp_path: Path) -> None:
    every, one, replays = "/alerts/live/*", "/alerts/live/AAPL", "/alerts/run-1/*"
    async with running_gateway(tmp_path, **api.settings()) as gateway, subscribed(api, every, one, replays) as heard:
        await becomes(gateway, True)
        await record(gateway, *(spike(minute) for minute in range(7)), spike(0, symbol="IBM"), spike(0, tape="run-1"))
        await record(gateway, spike(0, tape=CANARY_TAPE), spike(7))
        await heard.has(every, 9)
        await heard.has(one, 8)
        await heard.has(replays, 1)
        assert sorted(heard.symbols(every)) == ["AAPL"] * 8 + ["IBM"]
        assert heard.symbols(one) == ["AAPL"] * 8
        assert heard.sequences(one) == sorted(heard.sequences(one)), "order per symbol"
        assert heard.symbols(replays) == ["AAPL"]
        assert {event["change"]["alert"]["tape"] for event in heard.events[every]} == {"live"}

        # The push is a hint: a subscriber that missed the rest reads it from the token it has.
        wanted = pb.AlertFilter(tape="live", symbols=["AAPL"])
        request = pb.WatchAlertsRequest(resume_token=heard.events[one][2]["resumeToken"], filter=wanted)
        missed: list[int] = []
        async for response in gateway.alerts.WatchAlerts(request):
            if response.WhichOneof("event") == "change":
                missed.append(response.change.sequence)
            if len(missed) == 5:
                break
        assert missed == heard.sequences(one)[3:]


async def test_a_refused_key_is_told_by_health_while_recording_goes_on(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(tmp_path, **api.settings(appsync_api_key="da2-wrong")) as gateway:
        await record(gateway, spike(0))
        await becomes(gateway, False)
        assert await address_serving(gateway.address, ClientSettings(), timeout_seconds=30), "the gateway itself serves"
        await record(gateway, spike(1), spike(2))
    assert "refuses the key" in caplog.text
    assert "APPSYNC_API_KEY" in caplog.text
    async with subscribed(api, "/alerts/live/*") as heard, running_gateway(tmp_path, **api.settings()) as gateway:
        await heard.has("/alerts/live/*", 3)
        assert heard.sequences("/alerts/live/*") == [1, 2, 3], "what waited comes with the right key"
        await becomes(gateway, True)


async def test_a_signature_serves_where_iam_is_asked_for(
    strict_ministack: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = made(strict_ministack, [IAM], monkeypatch)
    alert = open_alert(spike(0), NOW)
    change = AlertChange(1, AlertChangeKind.OPENED, alert, NOW, alert.peak_quote_id)
    endpoint = f"{api.server.url}/event"
    signed = AppSyncPublisher(endpoint, "store", region=REGION, host=api.http)
    assert await asyncio.to_thread(signed.publish, [change] * 7) == 0
    keyed = AppSyncPublisher(endpoint, "store", api_key="da2-none", host=api.http)
    with pytest.raises(NotConfiguredError, match="APPSYNC_API_KEY"):
        await asyncio.to_thread(keyed.publish, [change])
    elsewhere = AppSyncPublisher(endpoint, "store", region=REGION, host="none.appsync-api.eu-central-1.localhost")
    with pytest.raises(NotConfiguredError, match=r"no AppSync Events API at none.*APPSYNC_ENDPOINT"):
        await asyncio.to_thread(elsewhere.publish, [change])
    for publisher in (signed, keyed, elsewhere):
        publisher.close()
