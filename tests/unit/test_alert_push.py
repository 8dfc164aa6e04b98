"""Pushing the change log: in order, at least once, by one gateway at a time, never in the way of recording."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.domain.alert import AlertChange, AlertChangeKind, open_alert
from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.domain.quote import CANARY_TAPE
from services.domain.score import ScoredQuote
from services.gateway.alert_push import TAKE_OVER_SECONDS, AlertPush
from services.gateway.appsync import EVENT_BYTES_LIMIT, AppSyncPublisher, channel_of, event_of
from services.gateway.change_feed import ChangeFeed
from services.gateway.requests import resume_sequence
from services.gateway.service import GatewayService
from services.gateway.sqlite import SqliteStore
from services.runtime import telemetry_names as names
from tests.gateway_quotes import NOW, REASON, spike


class Receiver:
    """A publisher that keeps what it is given, and fails as often as it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[AlertChange]] = []
        self.failures: list[Exception] = []
        self.refuses = 0

    def publish(self, changes: Sequence[AlertChange]) -> int:
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(list(changes))
        return self.refuses

    def close(self) -> None: ...

    @property
    def sequences(self) -> list[int]:
        return [change.sequence for batch in self.batches for change in batch]


class Gateway:
    """One replica on the shared store."""

    def __init__(self, path: Path, receiver: Receiver) -> None:
        self.store = SqliteStore(path)
        self.feed = ChangeFeed(self.store)
        self.service = GatewayService(self.store, self.feed)
        self.problems: list[str] = []
        self.push = AlertPush(self.store, self.feed, receiver, self.problems.append)

    async def record(self, *items: ScoredQuote) -> None:
        await self.service.record(list(items))


async def test_changes_go_in_order_by_series_and_canaries_nowhere(tmp_path: Path) -> None:
    receiver = Receiver()
    gateway = Gateway(tmp_path / "store.db", receiver)
    assert not gateway.push.push(0.0)
    await gateway.record(spike(0), spike(1), spike(0, symbol="IBM"), spike(2), spike(0, tape=CANARY_TAPE))
    assert not gateway.push.push(1.0)
    assert [[c.alert.symbol for c in batch] for batch in receiver.batches] == [["AAPL"] * 3, ["IBM"]]
    assert [c.sequence for c in receiver.batches[0]] == sorted(c.sequence for c in receiver.batches[0])
    assert len(receiver.sequences) == gateway.store.last_change() - 1
    gateway.push.push(2.0)
    assert len(receiver.batches) == 2, "nothing is pushed twice"


async def test_another_process_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    receiver = Receiver()
    first = Gateway(tmp_path / "store.db", receiver)
    first.push.push(0.0)
    await first.record(spike(0))
    first.push.push(1.0)
    await first.record(spike(1))
    first.store.close()
    second = Gateway(tmp_path / "store.db", receiver)
    second.push.push(0.0)
    assert receiver.sequences == [1, 2]


async def test_what_was_recorded_before_pushing_was_turned_on_is_no_news(tmp_path: Path) -> None:
    receiver = Receiver()
    gateway = Gateway(tmp_path / "store.db", receiver)
    await gateway.record(spike(0), spike(1))
    gateway.push.push(0.0)
    assert receiver.sequences == []
    await gateway.record(spike(2))
    gateway.push.push(1.0)
    assert receiver.sequences == [3]


async def test_a_failed_push_goes_on_with_what_is_left(tmp_path: Path) -> None:
    receiver = Receiver()
    gateway = Gateway(tmp_path / "store.db", receiver)
    gateway.push.push(0.0)
    await gateway.record(spike(0), spike(0, symbol="IBM"))
    publish = receiver.publish

    def fail_at_ibm(changes: Sequence[AlertChange]) -> int:
        if changes[0].alert.symbol == "IBM" and not receiver.failures:
            receiver.failures.append(DependencyUnavailableError("push", "throttled"))
        return publish(changes)

    receiver.publish = fail_at_ibm  # type: ignore[method-assign]
    with pytest.raises(DependencyUnavailableError):
        gateway.push.push(1.0)
    receiver.publish = publish  # type: ignore[method-assign]
    gateway.push.push(2.0)
    assert sorted(receiver.sequences) == [1, 2], "AAPL's is not pushed again"


async def test_how_far_pushing_is_behind_is_said_while_nothing_can_be_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)

    def behind() -> list[object]:
        data = reader.get_metrics_data()
        scopes = data.resource_metrics[0].scope_metrics if data is not None else []
        found = [metric for scope in scopes for metric in scope.metrics if metric.name == names.PUSH_BEHIND]
        return [getattr(point, "value", None) for metric in found for point in metric.data.data_points]

    receiver = Receiver()
    pushing, other = (Gateway(tmp_path / "store.db", receiver) for _ in range(2))
    for gateway in (pushing, other):
        gateway.push.push(0.0)
    assert behind() == [0]
    receiver.failures = [DependencyUnavailableError("push", "away") for _ in range(3)]
    for moment in range(3):
        await pushing.record(spike(moment))
        with pytest.raises(DependencyUnavailableError):
            pushing.push.push(float(moment))
        assert behind() == [moment + 1]
        other.push.push(float(moment))
        assert behind() == [moment + 1], "the gateway whose part it is not says so too"
    while pushing.push.push(4.0):
        pass
    assert behind() == [0]
    provider.shutdown()


async def test_two_gateways_push_each_change_once(tmp_path: Path) -> None:
    receiver = Receiver()
    gateways = [Gateway(tmp_path / "store.db", receiver) for _ in range(2)]
    for gateway in gateways:
        gateway.push.push(0.0)
    for minute in range(30):
        await gateways[minute % 2].record(spike(minute))
        for gateway in gateways:
            gateway.push.push(float(minute))
    assert receiver.sequences == list(range(1, 31))


async def test_a_part_that_a_dead_gateway_began_is_taken_over(tmp_path: Path) -> None:
    dead, receiver = Receiver(), Receiver()
    killed, other = Gateway(tmp_path / "store.db", dead), Gateway(tmp_path / "store.db", receiver)
    killed.push.push(0.0)
    await killed.record(spike(0), spike(1))
    dead.failures.append(DependencyUnavailableError("push", "killed in the middle"))
    with pytest.raises(DependencyUnavailableError):
        killed.push.push(0.0)
    assert not other.push.push(10.0)
    assert not other.push.push(10.0 + TAKE_OVER_SECONDS - 1)
    assert receiver.sequences == []
    other.push.push(10.0 + TAKE_OVER_SECONDS)
    assert receiver.sequences == [1, 2]
    await other.record(spike(2))
    other.push.push(40.0)
    assert receiver.sequences == [1, 2, 3]
    killed.push.push(41.0)
    assert dead.sequences == [], "it was only slow: what it had begun is done"


async def test_recording_goes_on_while_pushing_fails_and_health_says_so(tmp_path: Path) -> None:
    receiver = Receiver()
    gateway = Gateway(tmp_path / "store.db", receiver)
    draining = asyncio.Event()
    gateway.push.push(0.0)
    receiver.failures = [NotConfiguredError("the alerts' push", "APPSYNC_API_KEY")] * 2
    await gateway.record(spike(0))
    running = asyncio.create_task(gateway.push.run(draining))

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - what it waits for sets no event
                await asyncio.sleep(0.02)

    await until(lambda: any(gateway.problems))
    await gateway.record(spike(1), spike(2))
    assert gateway.store.last_change() == 3
    await until(lambda: receiver.sequences == [1, 2, 3])
    await until(lambda: not gateway.problems[-1])
    draining.set()
    gateway.feed.wake()
    await running


def test_channels_hold_only_what_appsync_takes() -> None:
    assert channel_of("live", "AAPL") == "/alerts/live/AAPL"
    assert channel_of("run-20261124", "BRK.B") == "/alerts/run-20261124/BRK-B"
    assert channel_of("live", "^GSPC") == "/alerts/live/GSPC"
    assert channel_of("t" * 80, "…") == f"/alerts/{'t' * 50}/0"


def test_an_event_is_never_beyond_the_limit() -> None:
    alert = open_alert(spike(0), NOW)
    change = AlertChange(7, AlertChangeKind.OPENED, alert, NOW, alert.peak_quote_id)
    small = json.loads(event_of(change, "store"))
    assert small["change"]["sequence"] == "7"
    assert small["change"]["alert"]["reasons"]
    assert resume_sequence(small["resumeToken"], "store", 7) == 7
    long = replace(alert, reasons=(replace(REASON, text="é" * 200_000),), summary="s" * 100_000)
    event = event_of(replace(change, alert=long), "store")
    assert len(event.encode()) <= EVENT_BYTES_LIMIT
    cut = json.loads(event)
    assert cut["change"]["alert"]["alertId"] == alert.alert_id
    assert resume_sequence(cut["resumeToken"], "store", 7) == 7


def test_wrong_settings_are_told_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(NotConfiguredError, match="APPSYNC_ENDPOINT"):
        AppSyncPublisher("abc.appsync-api.eu-central-1.amazonaws.com", "store", api_key="da2")
    with pytest.raises(NotConfiguredError, match="AWS_REGION"):
        AppSyncPublisher("https://alerts.example/event", "store")
    with pytest.raises(NotConfiguredError, match=r"credentials are missing.*APPSYNC_API_KEY"):
        AppSyncPublisher("https://abc.appsync-api.eu-central-1.amazonaws.com/event", "store")
    AppSyncPublisher("https://alerts.example/event", "store", api_key="da2").close()
