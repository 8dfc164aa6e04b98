"""Into the ledger: acknowledged only once manifest and entry are durable; and which way in mode auto."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.dispatch.batch import MAX_LANES, NewBatch
from services.dispatch.ledger_sqlite import SqliteLedger
from services.dispatch.manifests import ManifestReader
from services.dispatch.task_carrier import MAX_OPEN_BATCHES, AutoCarrier, TaskCarrier
from services.domain.errors import DependencyUnavailableError
from services.pipeline.batch_files import FolderFiles
from services.pipeline.ports import Carried, Entered, QueuedQuote
from services.pipeline.score_then_record import ScoreThenRecord
from services.queue import market_message
from tests.pipeline_fakes import FakeRecorder, FakeScorer, quote

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def queued(i: int, symbol: str = "AAPL") -> QueuedQuote:
    made = quote(i, symbol, traceparent=TRACEPARENT)
    return QueuedQuote(made, market_message.encode(made).body, {"traceparent": TRACEPARENT})


class AwayFiles(FolderFiles):
    def put(self, name: str, content: bytes) -> str:
        raise DependencyUnavailableError("batches", "are away")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    made = SqliteLedger(tmp_path / "ledger.db", timedelta(days=1))
    yield made
    made.close()


@pytest.fixture
def files(tmp_path: Path) -> FolderFiles:
    return FolderFiles(tmp_path / "batches")


def batches(results: Sequence[Carried]) -> set[str]:
    return {result.batch_id for result in results if isinstance(result, Entered)}


async def test_a_batch_is_durable_before_it_is_answered(ledger: SqliteLedger, files: FolderFiles) -> None:
    told: list[int] = []
    messages = [queued(0), queued(0, "MSFT"), queued(1)]
    results = await TaskCarrier(ledger, files, lambda: told.append(1)).carry(messages)
    (entry,) = ledger.open()
    assert results == [Entered(entry.id)] * 3
    assert entry.lanes == ("market-data-AAPL", "market-data-MSFT")
    assert told == [1]
    members = ManifestReader(files).read(entry.digest)
    assert [member.quote for member in members] == [message.quote for message in messages]
    assert {member.quote.traceparent for member in members} == {TRACEPARENT}
    assert json.loads(ManifestReader(files).content(entry.digest))[0]["message_type"] == "MARKET_DATA"


async def test_the_same_event_again_adds_nothing(ledger: SqliteLedger, files: FolderFiles) -> None:
    carrier = TaskCarrier(ledger, files)
    first = await carrier.carry([queued(0), queued(1)])
    assert await carrier.carry([queued(0), queued(1)]) == first
    assert len(ledger.open()) == 1


async def test_nothing_enters_without_its_manifest(ledger: SqliteLedger, tmp_path: Path) -> None:
    (result,) = await TaskCarrier(ledger, AwayFiles(tmp_path)).carry([queued(0)])
    assert isinstance(result, DependencyUnavailableError)
    assert ledger.open() == []


async def test_more_lanes_than_a_batch_may_have(ledger: SqliteLedger, files: FolderFiles) -> None:
    messages = [queued(i // 200, f"S{i % 200}") for i in range(400)]
    results = await TaskCarrier(ledger, files).carry(messages)
    assert len(batches(results)) == 3
    entries = ledger.open()
    assert max(len(entry.lanes) for entry in entries) == MAX_LANES
    assert sum(entry.messages for entry in entries) == 400
    for i in range(200):
        assert results[i] == results[i + 200], "a lane stays in one batch"


async def test_a_full_ledger_leaves_messages_in_the_queue(ledger: SqliteLedger, files: FolderFiles) -> None:
    for i in range(MAX_OPEN_BATCHES):
        ledger.enter(NewBatch(f"d{i}", (f"lane{i}",), 1), datetime.now(UTC))
    with pytest.raises(DependencyUnavailableError, match="500 open batches"):
        await TaskCarrier(ledger, files).carry([queued(0)])


async def test_auto_is_warm_but_overtakes_no_batch(ledger: SqliteLedger, files: FolderFiles) -> None:
    serving = [False]

    async def is_serving() -> bool:
        return serving[0]

    recorder = FakeRecorder()

    def auto() -> AutoCarrier:
        return AutoCarrier(ScoreThenRecord(FakeScorer(), recorder), TaskCarrier(ledger, files), ledger, is_serving)

    assert len(batches(await auto().carry([queued(0)]))) == 1
    serving[0] = True
    results = await auto().carry([queued(1), queued(0, "MSFT"), queued(2)])
    assert [isinstance(result, Entered) for result in results] == [True, False, True]
    assert [item.quote.symbol for item in recorder.recorded] == ["MSFT"]
    first, second = ledger.open()
    assert second.after == (first.id,)


async def test_auto_answers_each_way_for_itself(ledger: SqliteLedger, tmp_path: Path, files: FolderFiles) -> None:
    async def is_serving() -> bool:
        return True

    await TaskCarrier(ledger, files).carry([queued(0)])
    scorer = FakeScorer()
    scorer.away = True
    warm = ScoreThenRecord(scorer, FakeRecorder())
    carrier = AutoCarrier(warm, TaskCarrier(ledger, files), ledger, is_serving)
    by_task, by_pool = await carrier.carry([queued(1), queued(0, "MSFT")])
    assert isinstance(by_task, Entered)
    assert isinstance(by_pool, DependencyUnavailableError)
