import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.domain.errors import InvalidRequestError, NotConfiguredError, NotFoundError
from services.domain.quote import Quote
from services.ingest.coverage import CoverageBook
from services.ingest.ports import Replay, ReplayState, TraceContext
from services.ingest.progress_sqlite import SqliteProgress
from services.ingest.replay import Replays
from services.ingest.service import IngestService
from services.ingest.subscribers import Subscribers
from services.queue import market_message
from services.queue.ports import QueueDepth
from services.queue.sqlite import SqliteQueue
from services.runtime.stopping import stopped_within

HEADER = "symbol,timestamp,open,high,low,close,volume\n"


class NoTraces:
    @contextmanager
    def publishing(self, quotes: Sequence[Quote]) -> Iterator[list[TraceContext]]:
        yield [TraceContext() for _ in quotes]


def now() -> datetime:
    return datetime.now(UTC)


class World:
    """Replays over a queue and a progress file, as one server's life."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.queue = SqliteQueue(folder / "queue.db")
        self.progress = SqliteProgress(folder / "ingest.db")
        service = IngestService(self.queue, CoverageBook(now), Subscribers(), NoTraces(), now)
        self.tasks: set[asyncio.Task[None]] = set()
        self.threads = ThreadPoolExecutor()
        asyncio.get_running_loop().set_default_executor(self.threads)

        def spawn(work: Coroutine[Any, Any, None], name: str) -> None:
            self.tasks.add(asyncio.create_task(work, name=name))

        self.replays = Replays(service, self.queue, self.progress, now, spawn, **options)

    async def kill(self) -> None:
        """End as a killed process would: nothing is noted any more."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.threads.shutdown()

    async def ended(self, tape: str) -> Replay:
        async with asyncio.timeout(60):
            while (replay := await self.replays.get(tape)).state is ReplayState.RUNNING:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return replay


@asynccontextmanager
async def world(folder: Path, **options: Any) -> AsyncIterator[World]:
    made = World(folder, **options)
    try:
        yield made
    finally:
        await made.kill()


def write_csv(path: Path, rows: int, symbol: str = "AAPL") -> Path:
    lines = [f"{symbol},2024-01-02T{14 + i // 60:02d}:{i % 60:02d}:00Z,10,12,9,11,{100 + i}\n" for i in range(rows)]
    path.write_text(HEADER + "".join(lines))
    return path


def drained(queue: SqliteQueue) -> list[Quote]:
    quotes = []
    while messages := queue.receive(500, 30):
        quotes += [market_message.decode(m.body, m.attributes) for m in messages]
        queue.acknowledge([m.receipt_handle for m in messages])
    return quotes


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not check():  # noqa: ASYNC110 the state lies in a file
            await asyncio.sleep(0.005)


async def test_a_replay_publishes_all_quotes_in_order(tmp_path: Path) -> None:
    location = write_csv(tmp_path / "bars.csv", 300)
    async with world(tmp_path, batch_quotes=40) as w:
        started = await w.replays.start(str(location), "run-1", [], 0)
        assert (started.state, started.tape) == (ReplayState.RUNNING, "run-1")
        replay = await w.ended("run-1")
        assert replay.state is ReplayState.SUCCEEDED
        assert (replay.published_quotes, replay.total_quotes, replay.rejected_quotes) == (300, 300, 0)
        assert replay.position == datetime(2024, 1, 2, 18, 59, tzinfo=UTC)
        quotes = drained(w.queue)
        assert [q.volume for q in quotes] == [100 + i for i in range(300)]
        assert {(q.tape, q.source, q.interval_seconds) for q in quotes} == {("run-1", "archive", 60)}


async def test_a_killed_replay_goes_on_where_it_stopped(tmp_path: Path) -> None:
    location = write_csv(tmp_path / "bars.csv", 400)
    async with world(tmp_path, batch_quotes=5) as first:
        await first.replays.start(str(location), "run-1", [], 0)
        await until(lambda: first.queue.statistics().sent >= 50)
        await first.kill()
        saved = first.progress.find("run-1")
    assert saved is not None
    assert saved.state is ReplayState.RUNNING
    assert 0 < saved.next_row < 400
    # As if the kill had come between the send and the checkpoint: the last batch is sent again.
    back = saved.changed(now(), published_quotes=saved.published_quotes - 5)
    async with world(tmp_path, batch_quotes=5) as second:
        second.progress.save(back)
        await second.replays.resume()
        replay = await second.ended("run-1")
        assert (replay.state, replay.published_quotes) == (ReplayState.SUCCEEDED, 400)
        assert second.queue.statistics().sent == 400
        assert second.queue.statistics().deduplicated >= 5
        assert [q.volume for q in drained(second.queue)] == [100 + i for i in range(400)]


async def test_a_cancelled_replay_goes_on_when_started_again(tmp_path: Path) -> None:
    location = str(write_csv(tmp_path / "bars.csv", 400))
    async with world(tmp_path, batch_quotes=5) as w:
        await w.replays.start(location, "run-1", [], 0)
        await until(lambda: w.queue.statistics().sent >= 20)
        cancelled = await w.replays.cancel("run-1")
        assert cancelled.state is ReplayState.CANCELLED
        assert await w.replays.cancel("run-1") == cancelled
        assert w.queue.statistics().sent == cancelled.published_quotes < 400
        again = await w.replays.start(location, "run-1", [], 0)
        assert (again.state, again.published_quotes) == (ReplayState.RUNNING, cancelled.published_quotes)
        assert (await w.ended("run-1")).published_quotes == 400
        assert w.queue.statistics().sent == 400


async def test_the_servers_shutdown_cancels_and_another_server_goes_on(tmp_path: Path) -> None:
    location = str(write_csv(tmp_path / "bars.csv", 400))
    async with world(tmp_path, batch_quotes=5) as first:
        await first.replays.start(location, "run-1", [], 0)
        await until(lambda: first.queue.statistics().sent >= 20)
        first.replays.stop_all()
        assert (await first.ended("run-1")).state is ReplayState.CANCELLED
    async with world(tmp_path) as second:
        await second.replays.resume()
        assert (await second.replays.get("run-1")).state is ReplayState.CANCELLED
        await second.replays.start(location, "run-1", [], 0)
        assert (await second.ended("run-1")).published_quotes == 400


async def test_starting_what_plays_or_has_played_changes_nothing(tmp_path: Path) -> None:
    location = str(write_csv(tmp_path / "bars.csv", 100))
    async with world(tmp_path, batch_quotes=10) as w:
        await w.replays.start(location, "run-1", ["AAPL"], 0)
        assert (await w.replays.start(location, "run-1", ["AAPL"], 0)).state is ReplayState.RUNNING
        ended = await w.ended("run-1")
        assert await w.replays.start(location, "run-1", ["AAPL"], 0) == ended
        assert len(w.tasks) == 1
        with pytest.raises(InvalidRequestError, match="name another tape"):
            await w.replays.start(location, "run-1", [], 0)


async def test_an_empty_tape_makes_a_new_one(tmp_path: Path) -> None:
    location = str(write_csv(tmp_path / "bars.csv", 3))
    async with world(tmp_path) as w:
        tapes = {(await w.replays.start(location, "", [], 0)).tape for _ in range(3)}
        assert len(tapes) == 3
        for tape in tapes:
            assert (await w.ended(tape)).state is ReplayState.SUCCEEDED


async def test_a_full_queue_holds_the_replay_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = str(write_csv(tmp_path / "bars.csv", 100))
    async with world(tmp_path, batch_quotes=10, max_ready=30) as w:
        await w.replays.start(location, "run-1", [], 0)
        await until(lambda: w.queue.depth().ready >= 30)
        depth, looks = w.queue.depth, 0

        def look() -> QueueDepth:
            nonlocal looks
            looks += 1
            return depth()

        monkeypatch.setattr(w.queue, "depth", look)
        await until(lambda: looks >= 5)
        assert depth().ready == 30
        assert (await w.replays.get("run-1")).published_quotes == 30
        taken = 0
        while taken < 100:
            taken += len(drained(w.queue))
            await asyncio.sleep(0.02)
        assert (await w.ended("run-1")).state is ReplayState.SUCCEEDED


async def test_speed_paces_the_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = str(write_csv(tmp_path / "bars.csv", 7))
    waits: list[float] = []
    sent: list[int] = []

    async def waited(seconds: float, stop: asyncio.Event) -> bool:
        waits.append(seconds)
        sent.append(w.queue.statistics().sent)
        return await stopped_within(seconds, stop)

    monkeypatch.setattr("services.ingest.archive_source.stopped_within", waited)
    async with world(tmp_path) as w:
        began = time.monotonic()
        await w.replays.start(location, "run-1", [], 600)  # a minute of tape in 0.1 s
        await w.ended("run-1")
        assert time.monotonic() - began >= 0.6
        assert len(waits) == 7
        assert max(waits) < 0.1001, "no longer than until the next is due"
        assert all(count <= i for i, count in enumerate(sent))
        assert w.queue.statistics().sent == 7


async def test_a_slow_replay_can_be_cancelled_while_it_waits(tmp_path: Path) -> None:
    location = str(write_csv(tmp_path / "bars.csv", 7))
    async with world(tmp_path) as w:
        await w.replays.start(location, "run-1", [], 1)
        await until(lambda: w.queue.depth().ready == 1)
        cancelled = await asyncio.wait_for(w.replays.cancel("run-1"), 50)
        assert (cancelled.state, cancelled.published_quotes) == (ReplayState.CANCELLED, 1)


async def test_rejected_quotes_are_counted_and_buried(tmp_path: Path) -> None:
    location = write_csv(tmp_path / "bars.csv", 5)
    location.write_text(location.read_text() + "AAPL,2024-01-02T15:00:00Z,10,12,9,11,1e16\nMSFT,2099-01-02,1,1,1,1,1\n")
    async with world(tmp_path) as w:
        await w.replays.start(str(location), "run-1", [], 0)
        replay = await w.ended("run-1")
        assert (replay.state, replay.published_quotes, replay.rejected_quotes) == (ReplayState.SUCCEEDED, 5, 2)
        reasons = sorted(letter.reason for letter in w.queue.list_dead_letters())
        assert "event_time: 2099-01-02T00:00:00Z is more than 5 minutes in the future" in reasons[0]
        assert "volume: 1e+16 is not a finite volume of 0 or more" in reasons[1]


async def test_a_source_that_changed_meanwhile_fails_the_replay(tmp_path: Path) -> None:
    location = write_csv(tmp_path / "bars.csv", 400)
    async with world(tmp_path, batch_quotes=5) as w:
        await w.replays.start(str(location), "run-1", [], 0)
        await until(lambda: w.queue.statistics().sent >= 20)
        await w.replays.cancel("run-1")
        write_csv(location, 399)
        await w.replays.start(str(location), "run-1", [], 0)
        replay = await w.ended("run-1")
        assert replay.state is ReplayState.FAILED
        assert "has 399 quotes and had 400" in replay.error


async def test_an_unusable_file_fails_the_replay_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "bars.csv").write_text("a,b\n1,2\n")
    async with world(tmp_path) as w:
        await w.replays.start(str(tmp_path / "bars.csv"), "run-1", [], 0)
        replay = await w.ended("run-1")
        assert replay.state is ReplayState.FAILED
        assert "bars.csv lacks the column(s)" in replay.error


@pytest.mark.parametrize(
    ("location", "tape", "symbols", "speed", "field"),
    [
        ("", "run-1", [], 0, "location"),
        ("/nowhere/at/all.csv", "run-1", [], 0, "location"),
        ("/" + "a" * 30_000, "run-1", [], 0, "location"),
        ("/dev/zero", "run-1", [], 0, "location"),
        ("mock://lake", "run-1", [], 0, "location"),
        ("bokeh", "live", [], 0, "tape"),
        ("bokeh", "canary", [], 0, "tape"),
        ("bokeh", "Run 1", [], 0, "tape"),
        ("bokeh", "run-1", ["aapl"], 0, "symbols\\[0\\]"),
        ("bokeh", "run-1", ["AAPL", "ZZZZ"], 0, "location: bokeh does not hold ZZZZ"),
        ("bokeh", "run-1", [], -1.0, "speed"),
        ("bokeh", "run-1", [], float("nan"), "speed"),
    ],
)
async def test_bad_requests_name_the_field(
    tmp_path: Path, location: str, tape: str, symbols: list[str], speed: float, field: str
) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(InvalidRequestError, match=f"^{field}"):
            await w.replays.start(location, tape, symbols, speed)
        assert not w.tasks


async def test_an_unknown_tape_is_not_found(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(NotFoundError):
            await w.replays.get("run-9")
        with pytest.raises(NotFoundError):
            await w.replays.cancel("run-9")


def test_an_unusable_progress_file_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "ingest.db").write_bytes(b"not a database" * 1_000)
    with pytest.raises(NotConfiguredError, match="set INGEST_PATH to a writable file"):
        SqliteProgress(tmp_path / "ingest.db")


async def test_a_replay_of_a_time_range_keeps_it_and_nonsense_is_refused(tmp_path: Path) -> None:
    location = str(write_csv(tmp_path / "bars.csv", 400))
    start, end = datetime(2024, 1, 2, 14, 30, tzinfo=UTC), datetime(2024, 1, 2, 18, 0, tzinfo=UTC)
    async with world(tmp_path, batch_quotes=5) as first:
        for bounds, sentence in (
            ((end, start), "end_time.* 2024-01-02T14:30:00Z is not after start_time 2024-01-02T18:00:00Z"),
            ((start, start), "no quote lies between them"),
            ((now().replace(year=2999), None), "start_time.* is in the future: no quote is that new"),
            ((None, datetime(1800, 1, 1, tzinfo=UTC)), "end_time.* lies before 1900: no quote is that old"),
        ):
            with pytest.raises(InvalidRequestError, match=sentence):
                await first.replays.start(location, "run-1", [], 0, *bounds)
        await first.replays.start(location, "run-1", [], 0, start, end)
        await until(lambda: first.queue.statistics().sent >= 20)
        await first.kill()
    async with world(tmp_path, batch_quotes=5) as second:
        await second.replays.resume()
        replay = await second.ended("run-1")
        assert (replay.state, replay.total_quotes, replay.published_quotes) == (ReplayState.SUCCEEDED, 210, 210)
        assert (replay.start, replay.end) == (start, end)
        assert [q.volume for q in drained(second.queue)] == [130 + i for i in range(210)]
        with pytest.raises(
            InvalidRequestError, match=r"plays .*bars\.csv from 2024-01-02T14:30:00Z before .*T18:00:00Z"
        ):
            await second.replays.start(location, "run-1", [], 0)
