"""What every memory of ingest's progress must do, whatever is behind it."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.domain.errors import NotConfiguredError
from services.domain.quote import Series
from services.ingest.ports import Progress, Replay, ReplayState
from services.ingest.progress_dynamodb import DynamoDbProgress
from services.ingest.progress_sqlite import SqliteProgress
from services.runtime.dynamodb_table import DynamoDbTable
from tests.servers.process import CREDENTIALS, REGION

MakeProgress = Callable[[], Progress]
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
SERIES = Series("live", "csv", "AAPL", 60)


@pytest.fixture(params=["sqlite", "dynamodb_local", "ministack"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeProgress]:
    """Opens the same memory once more, as the next process does."""
    opened: list[Progress] = []
    table = f"ingest-{uuid.uuid4().hex[:12]}"
    if request.param != "sqlite":
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", request.getfixturevalue(request.param).url)
        DynamoDbTable.connect(table, REGION).create()

    def open_one() -> Progress:
        if request.param == "sqlite":
            opened.append(SqliteProgress(tmp_path / "ingest.db"))
        else:
            opened.append(DynamoDbProgress(DynamoDbTable.connect(table, REGION)))
        return opened[-1]

    yield open_one
    for progress in opened:
        progress.close()


@pytest.fixture
def progress(make: MakeProgress) -> Progress:
    return make()


def replay(tape: str = "run-1", state: ReplayState = ReplayState.RUNNING) -> Replay:
    return Replay(
        tape, "s3://lake/lake", ("AAPL", "BRK.B"), 2.5, state, MOMENT, MOMENT, 7, 1, 9, MOMENT, "why", end=MOMENT
    )


def test_a_new_one_remembers_nothing(progress: Progress) -> None:
    progress.check()
    assert progress.find("run-1") is None
    assert progress.find("") is None
    assert progress.running() == []
    assert progress.advanced() == {}


def test_it_outlives_its_process(progress: Progress, make: MakeProgress) -> None:
    progress.save(replay())
    progress.advance({SERIES: MOMENT})
    progress.close()
    progress.close()
    again = make()
    assert again.find("run-1") == replay()
    assert again.running() == [replay()]
    assert again.advanced() == {SERIES: MOMENT}


def test_the_newest_save_of_a_tape_stays(progress: Progress) -> None:
    fresh = Replay("run-1", "bokeh", (), 0.0, ReplayState.RUNNING, MOMENT, MOMENT)
    progress.save(fresh)
    done = fresh.changed(
        MOMENT + timedelta(seconds=1), state=ReplayState.SUCCEEDED, published_quotes=12_154, total_quotes=12_154
    )
    progress.save(done)
    assert progress.find("run-1") == done
    assert progress.running() == []


def test_only_what_runs_goes_on(progress: Progress) -> None:
    states = {f"run-{int(state)}": state for state in ReplayState}
    for tape, state in states.items():
        progress.save(replay(tape, state))
    progress.save(replay("another"))
    assert progress.running() == [replay("another"), replay("run-1")]
    assert {tape: progress.find(tape).state for tape in states} == states  # type: ignore[union-attr]


def test_each_series_has_its_own_newest_time(progress: Progress, make: MakeProgress) -> None:
    others = [
        replace(SERIES, symbol="BRK.B"),
        replace(SERIES, interval_seconds=86_400),
        replace(SERIES, source="yahoo_finance"),
        replace(SERIES, tape="canary/1"),
    ]
    first = {series: MOMENT + timedelta(minutes=i) for i, series in enumerate([SERIES, *others])}
    progress.advance(first)
    progress.advance({})
    progress.advance({SERIES: MOMENT + timedelta(hours=1)})
    assert make().advanced() == first | {SERIES: MOMENT + timedelta(hours=1)}


def test_many_series_at_once(progress: Progress) -> None:
    times = {replace(SERIES, symbol=f"S{i}"): MOMENT + timedelta(seconds=i) for i in range(300)}
    progress.advance(times)
    assert progress.advanced() == times


@pytest.mark.usefixtures("progress")
@pytest.mark.parametrize("make", ["dynamodb_local", "ministack"], indirect=True)
def test_a_missing_table_is_named_with_its_setting() -> None:
    missing = DynamoDbProgress(DynamoDbTable.connect("nothing", REGION, setting="INGEST_TABLE"))
    with pytest.raises(NotConfiguredError, match=r"there is no table at nothing.* set INGEST_TABLE"):
        missing.check()
    missing.close()
