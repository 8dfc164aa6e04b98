"""The archiver on a real store and a real folder: whatever dies when, every row is in the lake once."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from services.archive import lake as layout
from services.domain.alert import AlertChange
from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.domain.score import RecordedQuote
from services.gateway.archiver import HEALTH_SERVICE_LAKE, Archiver
from services.gateway.lake import FileSystemLake
from services.gateway.ports import Archived
from services.gateway.sqlite import SqliteStore
from services.runtime.health import address_health, address_serving
from services.runtime.settings import ClientSettings
from tests.gateway_quotes import NOW, adding, opening, scored, spike
from tests.integration.gateway_server import running_gateway
from tests.servers.process import CREDENTIALS, free_port


class Killed(BaseException):
    """Stands for the end of the process at this very point."""


class MortalStore(SqliteStore):
    """Dies at the n-th step of archiving."""

    def __init__(self, path: Path, steps: list[str]) -> None:
        super().__init__(path)
        self.steps = steps

    def begin_part(self, stream: str, after: int, last: int) -> None:
        step(self.steps, "before the intent")
        super().begin_part(stream, after, last)
        step(self.steps, "after the intent")

    def end_part(self, stream: str, last: int) -> None:
        step(self.steps, "before the progress")
        super().end_part(stream, last)
        step(self.steps, "after the progress")


class MortalLake(FileSystemLake):
    """Dies with half a file written."""

    def __init__(self, uri: str, steps: list[str]) -> None:
        super().__init__(uri)
        self.root = Path(uri)
        self.steps = steps

    def write_quotes(self, quotes: Sequence[RecordedQuote]) -> None:
        try:
            step(self.steps, "in the file")
        except Killed:
            for path in layout.parts(quotes):
                scratch = self.root / f"{path}.dead.writing"
                scratch.parent.mkdir(parents=True, exist_ok=True)
                scratch.write_bytes(b"PAR1 half")
            raise
        super().write_quotes(quotes)


def step(steps: list[str], here: str) -> None:
    """Die when the next step on the list is this one."""
    if steps and steps[0] == here:
        steps.pop(0)
        raise Killed


def fill(store: SqliteStore, quotes: int, detections: int = 0, symbol: str = "AAPL") -> None:
    start = store.last_quote()
    store.put_scores([scored(start + i, symbol=symbol) for i in range(quotes)], NOW)
    for i in range(detections):
        item = spike(10_000 + start + i, symbol=symbol)
        latest = store.latest_alert(item.quote.series, item.score.typology)
        store.commit_detection(item, adding(item, latest) if latest else opening(item), NOW)


def sequences(root: Path, stream: str) -> list[int]:
    found: list[int | None] = []
    for path in sorted((root / stream).rglob("*.parquet")):
        found += pq.ParquetFile(path).read()["sequence"].to_pylist()
    return sorted(number for number in found if number is not None)


def parts(root: Path, stream: str) -> list[str]:
    return sorted(path.name for path in (root / stream).rglob("*.parquet"))


async def archived(store: SqliteStore, last: int) -> None:
    """Wait until everything up to `last` is in the lake."""
    async with asyncio.timeout(30):
        while store.archived("quotes") != Archived(last, None):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "store.db")
    yield made
    made.close()


def test_full_parts_at_once_and_the_rest_when_told(store: SqliteStore, tmp_path: Path) -> None:
    archiver = Archiver(store, FileSystemLake(str(tmp_path / "lake")), flush_rows=10, flush_seconds=60)
    fill(store, 25, 3)
    assert archiver.write(partial=False) == 20
    assert parts(tmp_path / "lake", "quotes") == [
        "part-000000000001-000000000010.parquet",
        "part-000000000011-000000000020.parquet",
    ]
    assert archiver.write(partial=False) == 0
    assert archiver.write(partial=True) == 8 + 3
    assert parts(tmp_path / "lake", "quotes")[2:] == ["part-000000000021-000000000028.parquet"]
    assert parts(tmp_path / "lake", "changes") == ["part-000000000001-000000000003.parquet"]
    assert archiver.write(partial=True) == 0
    assert sequences(tmp_path / "lake", "quotes") == list(range(1, 29))


@pytest.mark.parametrize(
    "deaths",
    [
        ["before the intent"],
        ["after the intent"],
        ["in the file"],
        ["before the progress"],
        ["after the progress"],
        ["in the file", "in the file", "before the progress", "after the intent"],
        ["after the intent", "before the intent", "after the progress", "in the file"],
    ],
)
def test_killed_at_any_point_nothing_is_lost_or_doubled(tmp_path: Path, deaths: list[str]) -> None:
    steps = list(deaths)
    recorded = 0
    for _ in range(len(deaths) + 3):
        store = MortalStore(tmp_path / "store.db", steps)
        archiver = Archiver(store, MortalLake(str(tmp_path / "lake"), steps), flush_rows=10, flush_seconds=60)
        fill(store, 13)  # more was recorded since, so that the next writer would choose another part by itself
        recorded += 13
        try:
            archiver.write(partial=True)
        except Killed:
            pass
        finally:
            store.close()
    assert steps == [], "every death was died"
    last = SqliteStore(tmp_path / "store.db")
    Archiver(last, FileSystemLake(str(tmp_path / "lake")), flush_rows=10, flush_seconds=60).write(partial=True)
    assert sequences(tmp_path / "lake", "quotes") == list(range(1, recorded + 1))
    assert last.archived("quotes") == Archived(recorded, None)
    last.close()
    assert not list((tmp_path / "lake").rglob("*.writing"))


def test_two_archivers_at_once_write_each_row_once(tmp_path: Path) -> None:
    stores = [SqliteStore(tmp_path / "store.db") for _ in range(2)]
    fill(stores[0], 400, 20)
    written: Counter[str] = Counter()

    class CountingLake(FileSystemLake):
        def write_quotes(self, quotes: Sequence[RecordedQuote]) -> None:
            written.update(layout.parts(quotes).keys())
            super().write_quotes(quotes)

        def write_changes(self, changes: Sequence[AlertChange]) -> None:
            written[f"changes {changes[0].sequence}"] += 1
            super().write_changes(changes)

    def archive(store: SqliteStore) -> None:
        archiver = Archiver(store, CountingLake(str(tmp_path / "lake")), flush_rows=7, flush_seconds=60)
        while True:
            try:
                archiver.write(partial=True)
                return
            except DependencyUnavailableError:
                continue  # the other one tidied up this one's scratch file: as in run(), look again

    threads = [threading.Thread(target=archive, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sequences(tmp_path / "lake", "quotes") == list(range(1, 421))
    assert sequences(tmp_path / "lake", "changes") == list(range(1, 21))
    for store in stores:
        assert store.archived("quotes") == Archived(420, None)
        store.close()


async def test_lake_that_is_away_is_caught_up_with_later(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.gateway.archiver._LOOK_SECONDS", 0.02)
    (tmp_path / "lake").write_text("a file where the folder should be")
    archiver = Archiver(store, FileSystemLake(str(tmp_path / "lake")), flush_rows=10, flush_seconds=0.01)
    draining = asyncio.Event()
    running = asyncio.create_task(archiver.run(draining))
    fill(store, 5)
    async with asyncio.timeout(30):
        while "the lake waits" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert not running.done()
    (tmp_path / "lake").unlink()
    fill(store, 5)
    await archived(store, 10)
    draining.set()
    await running
    assert sequences(tmp_path / "lake", "quotes") == list(range(1, 11))


async def test_waiting_rows_are_flushed_after_a_while(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.archiver._LOOK_SECONDS", 0.02)
    archiver = Archiver(store, FileSystemLake(str(tmp_path / "lake")), flush_rows=1_000, flush_seconds=0.4)
    draining = asyncio.Event()
    running = asyncio.create_task(archiver.run(draining))
    began = time.monotonic()
    fill(store, 5)
    await archived(store, 5)
    assert time.monotonic() - began >= 0.4
    draining.set()
    await running


async def test_a_lake_that_cannot_be_written_is_told_before_there_is_a_part_and_when_it_can_again(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path / "store.db")
    told: list[str] = []
    (tmp_path / "taken").write_text("a file where the folder should be")
    lake = tmp_path / "taken" / "lake"
    archiver = Archiver(store, FileSystemLake(str(lake)), flush_rows=10, flush_seconds=0.1, on_health=told.append)
    draining = asyncio.Event()
    running = asyncio.create_task(archiver.run(draining))
    async with asyncio.timeout(60):
        while not told:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert "the lake cannot be written" in told[0]
        assert str(lake) in told[0]
        assert store.last_quote() == 0
        (tmp_path / "taken").unlink()
        fill(store, 5)
        while told[-1] or not lake.exists() or not parts(lake, "quotes"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    draining.set()
    await running
    assert sequences(lake, "quotes") == [1, 2, 3, 4, 5]
    store.close()


async def test_a_gateway_whose_lake_refuses_does_not_start_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file where the folder should be")
    with pytest.raises(NotConfiguredError, match=f"the lake cannot be written: .*{tmp_path}/lake.*set LAKE_URI"):
        async with running_gateway(tmp_path):
            pass


async def test_a_gateway_whose_lake_is_away_serves_and_health_says_so_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("services.gateway.main._LAKE_SECONDS", 0.5)
    async with running_gateway(tmp_path, lake_uri="s3://bucket/lake") as gateway:
        assert await address_serving(gateway.address, ClientSettings(), timeout_seconds=30)
        words = ""
        async with asyncio.timeout(60):
            while not words.startswith("not serving"):
                await asyncio.sleep(0.1)
                words = (await address_health(gateway.address, ClientSettings(), 2.0, HEALTH_SERVICE_LAKE)).words
        assert "s3://bucket/lake" in words


@pytest.mark.parametrize("lost", [3, 5])
def test_a_part_with_a_missing_row_waits_until_the_row_is_there(tmp_path: Path, lost: int) -> None:
    class Missing(SqliteStore):
        lost: int | None = None

        def quotes_after(self, sequence: int, limit: int) -> list[RecordedQuote]:
            return [row for row in super().quotes_after(sequence, limit + 1) if row.sequence != self.lost][:limit]

    store = Missing(tmp_path / "store.db")
    fill(store, 5)
    store.lost = lost
    archiver = Archiver(store, FileSystemLake(str(tmp_path / "lake")), flush_rows=5, flush_seconds=60)
    with pytest.raises(DependencyUnavailableError, match="up to 5, are not all there"):
        archiver.write(partial=True)
    assert store.archived("quotes") == Archived(0, 5)
    assert parts(tmp_path / "lake", "quotes") == []
    store.lost = None
    assert archiver.write(partial=True) == 5
    assert sequences(tmp_path / "lake", "quotes") == [1, 2, 3, 4, 5]
    store.close()
