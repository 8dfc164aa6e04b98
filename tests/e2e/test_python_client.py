"""The Python client against the running mesh: unary, bidirectional and server streaming."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from tapewatch_client import AlertFilter, AlertState, Block, Client, Disposition, Quote, Series
from tests.e2e.processes import REPOSITORY, Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def client(running_mesh: Mesh) -> Iterator[Client]:
    with Client(running_mesh.gateway, running_mesh.ingest, running_mesh.scorer) as opened:
        yield opened


def bars(symbol: str, count: int, tape: str = "client") -> list[Quote]:
    start = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
    return [
        Quote(
            tape=tape,
            source="client",
            symbol=symbol,
            event_time=start + timedelta(minutes=i),
            open=10.0,
            high=10.2,
            low=9.9,
            close=10.0 + 0.01 * (i % 7),
            volume=1_000.0 + i,
            split_ratio=1.0,
        )
        for i in range(count)
    ]


def test_unary(client: Client) -> None:
    model = client.model()
    assert model.serving
    *history, quote = bars("UNA", 41)
    score = client.score(quote, history)
    assert 0 <= score.ensemble <= 1
    assert score.model_version == model.version
    assert score.history_quotes == 40


def test_bidirectional_streaming_with_a_bad_quote_in_the_middle(client: Client) -> None:
    quotes = bars("BIDI", 600)
    quotes[300].high = 1.0
    results = list(client.score_stream(quotes))
    assert len(results) == 600
    assert [i for i, result in enumerate(results) if result.error is not None] == [300]
    published = list(client.publish(bars("PUB", 700)))
    assert len(published) == 700
    assert all(result.acknowledgement is not None for result in published)
    again = list(client.publish(bars("PUB", 10)))
    assert all(result.acknowledgement is not None and result.acknowledgement.deduplicated for result in again)


def test_blocks_are_judged_as_the_same_quotes(client: Client) -> None:
    quotes = bars("BULK", 300)
    block = Block(
        series=Series(symbol="BULK"),
        event_time_micros=[round(q.event_time.timestamp() * 1e6) for q in quotes if q.event_time],
        split_ratio=[1.0] * len(quotes),
        **{name: [getattr(q, name) for q in quotes] for name in ("open", "high", "low", "close", "volume")},
    )
    (result,) = client.score_blocks([block])
    assert result.scored is not None
    scores = [each.score.ensemble for each in client.score_stream(quotes) if each.score]
    assert result.scored.ensemble == pytest.approx(scores, abs=1e-6)


def test_server_streaming_and_triage(client: Client) -> None:
    changes = client.watch_alerts(AlertFilter(symbols=["AAPL"]), from_start=True)
    first = next(changes)
    assert first.alert is not None
    assert first.alert.reasons
    alert = next(a for a in client.list_alerts(AlertFilter(symbols=["AAPL"])) if a.state == AlertState.NEW)
    seen = client.triage(alert, "ann", AlertState.ACKNOWLEDGED)
    with pytest.raises(grpc.RpcError) as stale:
        client.triage(alert, "bob", AlertState.INVESTIGATING)
    assert stale.value.code() == grpc.StatusCode.ABORTED
    closed = client.triage(seen, "ann", AlertState.CLOSED, comment="earnings", disposition=Disposition.DISMISSED)
    assert closed.disposition == Disposition.DISMISSED
    evidence = client.evidence(closed.alert_id)
    assert [event.actor for event in evidence.events][-2:] == ["ann", "ann"]
    assert len(evidence.trace_ids) == len(evidence.detections) > 0
    assert all(len(trace_id) == 32 for trace_id in evidence.trace_ids)
    for change in changes:
        assert change.alert is not None
        if change.alert.alert_id == closed.alert_id and change.alert.state == AlertState.CLOSED:
            break


def test_the_example_runs(running_mesh: Mesh) -> None:
    addresses = ("--gateway", running_mesh.gateway, "--ingest", running_mesh.ingest, "--scorer", running_mesh.scorer)
    example = REPOSITORY / "clients" / "python" / "examples" / "watch_and_triage.py"
    done = subprocess.run([sys.executable, str(example), *addresses], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ACKNOWLEDGED; evidence:" in done.stdout
