"""Watching: the change log without gap or repeat, heartbeats, filters, other replicas, the drain."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from services.domain.alert import AlertChange, AlertState
from services.domain.errors import DependencyUnavailableError
from services.gateway.change_feed import ChangeFeed
from services.gateway.ports import AlertQuery
from services.gateway.service import GatewayService, Triage
from services.gateway.sqlite import SqliteStore
from tests.gateway_quotes import NOW, opening, spike

EVERYTHING = AlertQuery()


class Replica:
    """A gateway on the shared file."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(path)
        self.feed = ChangeFeed(self.store)
        self.service = GatewayService(self.store, self.feed)
        self.draining = asyncio.Event()

    @asynccontextmanager
    async def following(self) -> AsyncIterator["Replica"]:
        task = asyncio.create_task(self.feed.follow(self.draining))
        yield self
        self.draining.set()
        await task


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[list[Replica]]:
    made = [Replica(tmp_path / "store.db") for _ in range(2)]
    yield made
    for replica in made:
        replica.store.close()


async def take(
    feed: ChangeFeed, count: int, after: int = 0, query: AlertQuery = EVERYTHING
) -> list[tuple[int, AlertChange | None]]:
    taken: list[tuple[int, AlertChange | None]] = []
    async with asyncio.timeout(60), aclosing(feed.watch(query, after, 600)) as watching:  # type: ignore[type-var]
        async for sequence, change in watching:
            if change is not None:
                taken.append((sequence, change))
            if len(taken) == count:
                break
    return taken


async def test_begins_with_a_heartbeat_at_the_given_place(replicas: list[Replica]) -> None:
    await replicas[0].service.record([spike(0)])
    async for sequence, change in replicas[0].feed.watch(EVERYTHING, 1, 60):
        assert (sequence, change) == (1, None)
        break


async def test_log_then_live(replicas: list[Replica]) -> None:
    service, feed = replicas[0].service, replicas[0].feed
    await service.record([spike(0), spike(1)])
    watching = asyncio.create_task(take(feed, 4))
    await asyncio.sleep(0.05)
    await service.record([spike(2), spike(3)])
    assert [sequence for sequence, _ in await watching] == [1, 2, 3, 4]


async def test_own_commit_wakes_at_once(replicas: list[Replica]) -> None:
    service, feed = replicas[0].service, replicas[0].feed
    watching = asyncio.create_task(take(feed, 1))
    await asyncio.sleep(0.05)
    await service.record([spike(0)])
    await watching  # nothing follows the store here: without the wake-up this would run into the timeout


async def test_commit_between_reading_and_waiting_is_not_missed(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    late = spike(0)

    class Interrupted(SqliteStore):
        """Commits and wakes right after the watcher has read an empty log."""

        def changes_after(self, sequence: int, limit: int) -> list[AlertChange]:
            found = super().changes_after(sequence, limit)
            if not found and self.last_quote() == 0:
                self.commit_detection(late, opening(late), NOW)
                woken = threading.Event()
                loop.call_soon_threadsafe(feed.wake)
                loop.call_soon_threadsafe(woken.set)
                woken.wait(60)
            return found

    store = Interrupted(tmp_path / "store.db")
    feed = ChangeFeed(store)
    assert [sequence for sequence, _ in await take(feed, 1)] == [1]
    store.close()


async def test_triage_is_a_change_too(replicas: list[Replica]) -> None:
    service, feed = replicas[0].service, replicas[0].feed
    watching = asyncio.create_task(take(feed, 2))
    await service.record([spike(0)])
    (alert,) = (await asyncio.to_thread(replicas[0].store.list_alerts, EVERYTHING, 10, None)).items
    await service.update_alert(Triage(alert.alert_id, alert.etag, "ann", state=AlertState.ACKNOWLEDGED))
    _, (sequence, change) = await watching
    assert sequence == 2
    assert change is not None
    assert change.alert.state is AlertState.ACKNOWLEDGED


async def test_other_replicas_commit_is_seen(replicas: list[Replica]) -> None:
    async with replicas[0].following() as watched:
        watching = asyncio.create_task(take(watched.feed, 1))
        await asyncio.sleep(0.3)
        await replicas[1].service.record([spike(0)])
        assert [sequence for sequence, _ in await watching] == [1]


async def test_heartbeats_advance_the_place_while_nothing_matches(replicas: list[Replica]) -> None:
    service, feed = replicas[0].service, replicas[0].feed
    await service.record([spike(minute) for minute in range(5)])
    only_msft = AlertQuery(symbols=("MSFT",))
    seen = []
    async with asyncio.timeout(60):
        async for sequence, change in feed.watch(only_msft, 0, 0.05):
            assert change is None
            seen.append(sequence)
            if sequence == 5:
                break
    assert seen[0] == 0
    await service.record([spike(9, symbol="MSFT")])
    assert [sequence for sequence, _ in await take(feed, 1, after=5, query=only_msft)] == [6]


async def test_heartbeats_come_while_nothing_happens(replicas: list[Replica]) -> None:
    loop = asyncio.get_running_loop()
    times = []
    async with asyncio.timeout(60):
        async for _ in replicas[0].feed.watch(EVERYTHING, 0, 0.1):
            times.append(loop.time())
            if len(times) == 4:
                break
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 0.09


async def test_long_log_is_read_in_pages(replicas: list[Replica]) -> None:
    service, feed = replicas[0].service, replicas[0].feed
    await service.record([spike(minute) for minute in range(700)])
    assert [sequence for sequence, _ in await take(feed, 700)] == list(range(1, 701))


async def test_drain_ends_the_stream_with_unavailable(replicas: list[Replica]) -> None:
    async with replicas[0].following() as watched:
        watching = asyncio.create_task(take(watched.feed, 1))
        await asyncio.sleep(0.1)
        watched.draining.set()
        with pytest.raises(DependencyUnavailableError, match="resume_token"):
            await watching


async def test_reconnecting_anywhere_has_no_gap_and_no_repeat(replicas: list[Replica]) -> None:
    total = 60

    async def produce(number: int) -> None:
        for minute in range(total // 2):
            await replicas[number].service.record([spike(minute, symbol=f"S{number}")])
            await asyncio.sleep(0.002)

    async def consume() -> list[int]:
        seen: list[int] = []
        place = 0
        for connection in range(1_000):
            if place == total:
                return seen
            taken = 0
            async for sequence, change in replicas[connection % 2].feed.watch(EVERYTHING, place, 60):
                place = sequence
                if change is not None:
                    seen.append(sequence)
                    taken += 1
                if taken == 1 + connection % 4 or place == total:
                    break
        raise AssertionError("too many connections")

    async with replicas[0].following(), replicas[1].following(), asyncio.timeout(120):
        seen, *_ = await asyncio.gather(consume(), produce(0), produce(1))
    assert seen == list(range(1, total + 1))


async def test_a_store_that_goes_away_does_not_end_the_feed(tmp_path: Path) -> None:
    class Away(SqliteStore):
        away = False

        def last_change(self) -> int:
            if self.away:
                raise DependencyUnavailableError("the store", "away")
            return super().last_change()

    store = Away(tmp_path / "store.db")
    feed = ChangeFeed(store)
    draining = asyncio.Event()
    task = asyncio.create_task(feed.follow(draining))
    store.away = True
    await asyncio.sleep(0.5)
    assert not task.done()
    store.away = False
    item = spike(0)
    store.commit_detection(item, opening(item), NOW)
    async with asyncio.timeout(60):
        async for _, change in feed.watch(EVERYTHING, 0, 60):
            if change is not None:
                break
    draining.set()
    await task
    store.close()
