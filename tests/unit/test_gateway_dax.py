"""When DAX is asked and when it is not, and what of its answers counts. A scripted client, which fails on demand."""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.domain.errors import DependencyUnavailableError
from services.domain.score import ScoredQuote
from services.gateway import dynamodb_items as rows
from services.gateway.dax import DaxDetections
from services.runtime import telemetry_names as names
from services.runtime.aws import AwsResource
from tests.gateway_quotes import NOW, scored, spike

DETECTION = spike(0)
QUOTE_ID = DETECTION.quote.quote_id
CLUSTER = AwsResource("DAX", "DAX cluster", "daxs://c", "DAX_ENDPOINT", ("dax:GetItem",), "eu-central-1")


def item(of: ScoredQuote, alert_id: str = "al_1") -> dict[str, Any]:
    return rows.quote_item(of, 1, alert_id, NOW, None)


class Cluster:
    """A client, and what its cluster does."""

    def __init__(self) -> None:
        self.answer: Callable[[], dict[str, Any]] = lambda: {"Item": item(DETECTION)}
        self.calls = 0
        self.closed = 0
        self.now = 100.0

    def get_item(self, *, TableName: str, Key: dict[str, Any]) -> dict[str, Any]:
        assert (TableName, Key) == ("t", rows.quote_key(DETECTION))
        self.calls += 1
        return self.answer()

    def close(self) -> None:
        self.closed += 1

    def fail(self) -> dict[str, Any]:
        raise TimeoutError("timed out")

    def detections(self) -> DaxDetections:
        made = DaxDetections(CLUSTER, "t", lambda: self, lambda: self.now)
        made.check()
        return made


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"Item": item(scored(0), alert_id="")},
        {"Item": item(spike(0, symbol="MSFT"))},
        {"Item": rows.quote_key(DETECTION)},
        {"Item": item(DETECTION) | {"quote": {"B": b"\xff"}}},
    ],
    ids=["none", "no detection", "another's", "half an item", "no proto"],
)
def test_only_the_detection_itself_counts(cluster: Cluster, answer: dict[str, Any]) -> None:
    cluster.answer = lambda: answer
    assert cluster.detections().get(QUOTE_ID) is None
    assert cluster.calls == 1


def test_what_is_no_id_is_not_asked_for(cluster: Cluster) -> None:
    assert cluster.detections().get("x") is None
    assert cluster.calls == 0


def test_after_a_failure_it_is_asked_once_a_pause(cluster: Cluster) -> None:
    detections = cluster.detections()
    cluster.answer = cluster.fail
    waits = []
    for _ in range(8):
        calls, began = cluster.calls, cluster.now
        while cluster.calls == calls:
            assert detections.get(QUOTE_ID) is None
            cluster.now += 0.25
        assert detections.get(QUOTE_ID) is None
        assert cluster.calls == calls + 1
        waits.append(cluster.now - began)
    assert waits[1] <= 2.25 + 0.25
    assert waits[-1] >= 15.0 - 0.25
    assert max(waits) <= 30.25
    cluster.answer = lambda: {"Item": item(DETECTION)}
    cluster.now += 30
    assert detections.get(QUOTE_ID) is not None
    assert detections.get(QUOTE_ID) is not None, "at once again"


def test_failures_at_the_same_time_are_one(cluster: Cluster) -> None:
    detections = cluster.detections()
    together = threading.Barrier(8)

    def fail() -> dict[str, Any]:
        together.wait(60)
        raise TimeoutError

    cluster.answer = fail
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: detections.get(QUOTE_ID), range(8))) == [None] * 8
    cluster.answer = lambda: {"Item": item(DETECTION)}
    cluster.now += 2.0  # the first pause, not the eighth
    assert detections.get(QUOTE_ID) is not None


def test_while_one_tries_the_others_do_not_wait(cluster: Cluster) -> None:
    detections = cluster.detections()
    cluster.answer = cluster.fail
    detections.get(QUOTE_ID)
    cluster.now += 2.0
    trying, release = threading.Event(), threading.Event()

    def hang() -> dict[str, Any]:
        trying.set()
        assert release.wait(60)
        return {"Item": item(DETECTION)}

    cluster.answer = hang
    with ThreadPoolExecutor(1) as pool:
        tried = pool.submit(detections.get, QUOTE_ID)
        assert trying.wait(60)
        assert detections.get(QUOTE_ID) is None
        assert cluster.calls == 2
        release.set()
        assert tried.result(60) is not None


def test_a_cluster_is_looked_for_with_pauses_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.dax._FIRST_PAUSE_SECONDS", 0.05)
    attempts = []

    def open_client() -> Any:
        attempts.append(time.monotonic())
        raise ConnectionRefusedError(111, "Connection refused")

    detections = DaxDetections(CLUSTER, "t", open_client)
    with pytest.raises(DependencyUnavailableError, match="DAX: daxs://c in eu-central-1: ConnectionRefusedError"):
        detections.check()
    while len(attempts) < 4:
        time.sleep(0.01)
    gaps = [after - before for before, after in itertools.pairwise(attempts)]
    assert all(gap >= 0.025 * 2**i for i, gap in enumerate(gaps[:3]))
    assert detections.get(QUOTE_ID) is None
    detections.close()
    ended = len(attempts)
    time.sleep(0.5)
    assert len(attempts) <= ended + 1


def test_a_client_that_connects_after_the_end_is_closed() -> None:
    cluster, connecting, found = Cluster(), threading.Event(), threading.Event()

    def open_client() -> Any:
        connecting.set()
        assert found.wait(60)
        return cluster

    detections = DaxDetections(CLUSTER, "t", open_client)
    assert connecting.wait(60)
    detections.close()
    found.set()
    deadline = time.monotonic() + 60
    while not cluster.closed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert detections.get(QUOTE_ID) is None
    detections.close()
    assert cluster.closed == 1


def test_reads_are_counted_by_outcome(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    detections = cluster.detections()
    for answer in (cluster.answer, cluster.answer, dict, cluster.fail, cluster.fail):
        cluster.answer = answer
        detections.get(QUOTE_ID)
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert metric.name == names.CACHE_READS
    counts = {str((p.attributes or {})["outcome"]): p.value for p in metric.data.data_points}  # type: ignore[union-attr]
    assert counts == {"hit": 2, "miss": 1, "failed": 1, "away": 1}
    provider.shutdown()
