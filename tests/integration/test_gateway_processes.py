"""Gateways as processes on one store, killed without warning: nothing lost, nothing twice, no gap in the watch."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest

from services.domain.score import ScoredQuote
from services.domain.typology import Typology
from services.gateway.dynamodb import DynamoDbStore
from services.gateway.ports import AlertQuery, Archived, DetectionQuery, Store
from services.gateway.sqlite import SqliteStore
from services.runtime.dynamodb_table import DynamoDbTable
from services.wire.quote import quote_to_proto
from services.wire.score import score_to_proto
from tapewatch.gateway.v1 import alert_service_pb2, detection_service_pb2
from tapewatch.gateway.v1.alert_service_pb2_grpc import AlertServiceStub
from tapewatch.gateway.v1.detection_service_pb2_grpc import DetectionServiceStub
from tests.gateway_quotes import scored
from tests.servers.process import CREDENTIALS, REGION

REPOSITORY = Path(__file__).resolve().parents[2]
SYMBOLS = ("AAPL", "IBM", "MSFT")
QUOTES_PER_SYMBOL = 1_500
BATCH = 100
DETECTION_EVERY = 25
KILLS = 4
OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


def item(symbol: str, minute: int) -> ScoredQuote:
    if minute % DETECTION_EVERY:
        return scored(minute, symbol=symbol)
    return scored(minute, 0.8 + minute % 7 / 100, symbol=symbol, typology=Typology.PRICE_SPIKE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One gateway as a user's supervisor runs it, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._environment = {
            **os.environ,
            "GRPC_PORT": str(self.port),
            "STORE_PATH": str(folder / "store.db"),
            "LAKE_URI": str(folder / "lake"),
            "LAKE_FLUSH_ROWS": "400",
            "LAKE_FLUSH_SECONDS": "1",
        }
        self._log = folder / f"{self.port}.log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.cli.main", "gateway", "serve"],
                env=self._environment,
                cwd=REPOSITORY,
                stderr=log,
            )

    def kill(self) -> None:
        self._process.kill()
        assert self._process.wait(60) == -signal.SIGKILL

    def terminate(self) -> int:
        self._process.terminate()
        return self._process.wait(60)

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


@contextmanager
def processes(folder: Path, count: int) -> Iterator[list[Process]]:
    started = [Process(folder) for _ in range(count)]
    try:
        yield started
    finally:
        for process in started:
            process.stop()


class Play:
    """Dispatchers that record every series in order, at least once, and a watcher; on gateways that come and go."""

    def __init__(self, gateways: list[Process]) -> None:
        self.channels = [grpc.aio.insecure_channel(f"127.0.0.1:{g.port}", options=OPTIONS) for g in gateways]
        self.failed_calls = 0
        self.repeated = 0
        self.recorded = 0
        self.seen: list[int] = []
        self.connections = 0

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()

    async def ready(self) -> None:
        for channel in self.channels:
            request = alert_service_pb2.ListAlertsRequest()
            await AlertServiceStub(channel).ListAlerts(request, wait_for_ready=True, timeout=60)

    async def dispatch(self, symbol: str) -> None:
        position = 0
        turn = SYMBOLS.index(symbol)
        while position < QUOTES_PER_SYMBOL:
            batch = [item(symbol, minute) for minute in range(position, min(position + BATCH, QUOTES_PER_SYMBOL))]
            request = detection_service_pb2.RecordScoresRequest(
                items=[
                    detection_service_pb2.ScoredQuote(quote=quote_to_proto(i.quote), score=score_to_proto(i.score))
                    for i in batch
                ]
            )
            turn += 1
            stub = DetectionServiceStub(self.channels[turn % len(self.channels)])
            try:
                answer = await stub.RecordScores(request, timeout=90, wait_for_ready=len(self.channels) == 1)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                self.failed_calls += 1
                await asyncio.sleep(0.02)
                continue
            for result in answer.results:
                if result.WhichOneof("outcome") == "error":
                    break
                assert result.recorded.outcome != detection_service_pb2.RECORD_OUTCOME_DIFFERENT
                self.repeated += result.recorded.outcome == detection_service_pb2.RECORD_OUTCOME_UNCHANGED
                position += 1
                self.recorded += 1

    async def watch(self, changes: int) -> None:
        token = ""
        while len(self.seen) < changes:
            stub = AlertServiceStub(self.channels[self.connections % len(self.channels)])
            self.connections += 1
            stream: Any = stub.WatchAlerts(
                alert_service_pb2.WatchAlertsRequest(resume_token=token, from_start=True),
                timeout=random.uniform(0.5, 2.0),  # the client's own disconnects, beside the kills
                wait_for_ready=True,
            )
            try:
                async for response in stream:
                    token = response.resume_token
                    if response.WhichOneof("event") == "change":
                        self.seen.append(response.change.sequence)
                    if len(self.seen) == changes:
                        stream.cancel()
                        return
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                await asyncio.sleep(0.02)

    async def kill(self, gateways: list[Process], total: int) -> None:
        """Kill one gateway after another at moments when it works."""
        for number in range(KILLS):
            threshold = total * (number + 1) // (KILLS + 2)
            async with asyncio.timeout(120):
                while self.recorded < threshold:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            await asyncio.sleep(random.uniform(0, 0.03))
            victim = gateways[number % len(gateways)]
            await asyncio.to_thread(victim.kill)
            victim.start()


@pytest.fixture(params=["sqlite", "dynamodb_local"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Store]:
    """Opens the store that the gateways are told to use."""
    if request.param == "sqlite":
        return lambda: SqliteStore(tmp_path / "store.db")
    name = f"tapewatch-{uuid.uuid4().hex[:12]}"
    endpoint = request.getfixturevalue(request.param).url
    settings = {"STORE_BACKEND": "dynamodb", "STORE_TABLE": name, "AWS_ENDPOINT_URL_DYNAMODB": endpoint}
    for variable, value in (CREDENTIALS | settings).items():
        monkeypatch.setenv(variable, value)
    table = DynamoDbTable.connect(name, REGION)
    table.create()
    return lambda: DynamoDbStore(table)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
async def test_killed_gateways_lose_and_double_nothing(
    tmp_path: Path, replicas: int, open_store: Callable[[], Store]
) -> None:
    total = QUOTES_PER_SYMBOL * len(SYMBOLS)
    detections = total // DETECTION_EVERY
    with processes(tmp_path, replicas) as gateways:
        play = Play(gateways)
        await play.ready()
        async with asyncio.timeout(240):
            await asyncio.gather(
                *(play.dispatch(symbol) for symbol in SYMBOLS),
                play.watch(detections),
                play.kill(gateways, total),
            )
        await play.ready()
        await play.close()
        for gateway in gateways:
            assert await asyncio.to_thread(gateway.terminate) == 0, gateway.log()

    assert play.failed_calls > 0, "work was in flight at the kills"
    assert play.seen == list(range(1, detections + 1)), "the watch has neither gaps nor repeats"
    assert play.connections > KILLS

    store = open_store()
    kept = store.quotes_after(0, total + 1)
    assert [r.sequence for r in kept] == list(range(1, total + 1))
    expected = {s.quote.quote_id: s for s in (item(sym, m) for sym in SYMBOLS for m in range(QUOTES_PER_SYMBOL))}
    assert {r.scored.quote.quote_id: r.scored for r in kept} == expected
    assert sum(r.mismatch_count for r in kept) == 0
    for symbol in SYMBOLS:
        times = [r.scored.quote.event_time for r in kept if r.scored.quote.symbol == symbol]
        assert times == sorted(times), "order per series"

    counted = Counter(r.alert_id for r in kept if r.scored.score.detection)
    alerts = store.list_alerts(AlertQuery(), 10_000, None).items
    assert {a.alert_id: a.detection_count for a in alerts} == counted
    assert len(alerts) == len(SYMBOLS), "detections 25 minutes apart are one alert"
    assert len(store.list_detections(DetectionQuery(), 10_000, None).items) == detections
    assert store.last_change() == detections
    assert store.archived("quotes") == Archived(total, None)
    assert store.archived("changes") == Archived(detections, None)
    store.close()

    for stream, count in (("quotes", total), ("changes", detections)):
        archived: list[Any] = []
        for path in (tmp_path / "lake" / stream).rglob("*.parquet"):
            archived += pq.ParquetFile(path).read()["sequence"].to_pylist()
        assert sorted(archived) == list(range(1, count + 1)), f"the lake has all {stream} once"
    assert not list((tmp_path / "lake").rglob("*.writing"))


async def test_unusable_store_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("not a database, but quite some text instead of one" * 10)
    with processes(tmp_path, 1) as (gateway,):
        code = await asyncio.to_thread(gateway._process.wait, 120)
        assert code == 2
        lines = gateway.log().strip().splitlines()
        assert len(lines) == 1, gateway.log()
        assert "STORE_PATH" in lines[0]
