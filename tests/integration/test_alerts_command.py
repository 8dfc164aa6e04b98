"""tapewatch alerts on a real gateway: what waits, and triage up to the decision that calibration counts."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli.commands import app
from tapewatch.gateway.v1 import alert_pb2, alert_service_pb2, detection_service_pb2
from tests.gateway_quotes import spike
from tests.integration.gateway_server import Gateway, message, running_gateway

LOUD = [spike(100 * i, 0.9 + 0.01 * i, symbol=symbol) for i in range(2) for symbol in ("AAPL", "MSFT")]
"""Four alerts of one detection each."""


async def tapewatch(monkeypatch: pytest.MonkeyPatch, gateway: Gateway, *arguments: str) -> tuple[Result, str]:
    """The command's result, and what it printed."""
    monkeypatch.setenv("GATEWAY_ADDRESS", gateway.address)
    result = await asyncio.to_thread(CliRunner().invoke, app, ["alerts", *arguments])
    return result, result.output


async def record(gateway: Gateway) -> Sequence[alert_pb2.Alert]:
    request = detection_service_pb2.RecordScoresRequest(items=[message(item) for item in LOUD])
    await gateway.detections.RecordScores(request)
    return (await gateway.alerts.ListAlerts(alert_service_pb2.ListAlertsRequest())).alerts


async def test_alerts_are_listed_triaged_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_gateway(tmp_path) as gateway:
        alerts = await record(gateway)
        first, second, *_ = [alert.alert_id for alert in alerts if alert.symbol == "MSFT"]
        result, shown = await tapewatch(monkeypatch, gateway, "list")
        assert result.exit_code == 0
        assert all(alert.alert_id in shown and alert.reasons[0].text in shown for alert in alerts)
        assert shown.count("[new]") == 4
        result, shown = await tapewatch(monkeypatch, gateway, "list", "--symbols", "aapl", "--limit", "1", "--json")
        assert json.loads(shown)["symbol"] == "AAPL"

        result, shown = await tapewatch(monkeypatch, gateway, "acknowledge", first, "--note", "on it")
        assert (result.exit_code, "[acknowledged]" in shown) == (0, True)
        result, shown = await tapewatch(monkeypatch, gateway, "assign", first, second, "--to", "ann")
        assert (result.exit_code, "[acknowledged, ann]" in shown, "[new, ann]" in shown) == (0, True, True)
        close = ("close", first, second, "--disposition", "CONFIRMED", "--note", "a pump", "--actor", "ann")
        result, shown = await tapewatch(monkeypatch, gateway, *close)
        assert (result.exit_code, shown.count("[closed, confirmed, ann]")) == (0, 2)

        trail = alert_service_pb2.ListAlertEventsRequest(alert_id=first)
        events = (await gateway.alerts.ListAlertEvents(trail)).events
        assert [(event.comment, event.to_state) for event in events[1:]] == [
            ("on it", alert_pb2.ALERT_STATE_ACKNOWLEDGED),
            ("", alert_pb2.ALERT_STATE_ACKNOWLEDGED),
            ("a pump", alert_pb2.ALERT_STATE_CLOSED),
        ]
        assert (events[-1].actor, events[-1].disposition) == ("ann", alert_pb2.DISPOSITION_CONFIRMED)
        result, shown = await tapewatch(monkeypatch, gateway, "list")
        assert (first in shown, second in shown, shown.count("[new]")) == (False, False, 2)
        result, shown = await tapewatch(monkeypatch, gateway, "list", "--state", "closed")
        assert shown.count("[closed, confirmed, ann]") == 2
        result = await asyncio.to_thread(
            CliRunner().invoke, app, ["calibrate", "--from", "gateway", "--unit", "day", "--budget", "2", "--dry-run"]
        )
        assert result.exit_code == 0, result.output
        assert "decisions by score" in result.output


async def test_what_is_refused_is_said_for_each_alert_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(tmp_path) as gateway:
        alert = (await record(gateway))[0].alert_id
        close = ("close", "--disposition", "dismissed")
        result, shown = await tapewatch(monkeypatch, gateway, *close, "al_nobody", alert, "--note", "news")
        assert result.exit_code == 2
        assert "no alert named 'al_nobody'" in shown
        assert "[closed, dismissed]" in shown
        result, shown = await tapewatch(monkeypatch, gateway, "acknowledge", alert)
        assert (result.exit_code, f"{alert}: " in shown, "CLOSED" in shown) == (2, True, True)
        result, shown = await tapewatch(monkeypatch, gateway, *close, alert)
        assert (result.exit_code, "--note" in result.output + result.stderr) == (2, True)
        result, shown = await tapewatch(monkeypatch, gateway, "close", alert, "--disposition", "maybe", "--note", "x")
        assert (result.exit_code, "maybe" in result.output + result.stderr) == (2, True)
        result, shown = await tapewatch(monkeypatch, gateway, "list", "--tape", "run-none")
        assert (result.exit_code, shown.strip()) == (0, "no such alerts")
    for arguments in (("list",), ("acknowledge", alert)):
        result, shown = await tapewatch(monkeypatch, gateway, *arguments)
        assert (result.exit_code, "gateway 127.0.0.1:" in shown) == (1, True)
