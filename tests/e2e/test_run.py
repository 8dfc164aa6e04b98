"""`tapewatch run`, which `make run` calls: complete, sane on the real tape, unhurt by kills, and resumable."""

import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from services.archive import bokeh
from services.domain.errors import TapewatchError
from services.gateway.ports import DetectionQuery
from services.gateway.sqlite import SqliteStore
from services.queue.sqlite import SqliteQueue
from tests.e2e.processes import AAPL_BARS, REPOSITORY, Mesh, alive

BARS = 12_154
LAST_LINE = re.compile(
    r"tapewatch: published=(?P<published>\d+) scored=(?P<scored>\d+) stored=(?P<stored>\d+) lost=(?P<lost>\d+) "
    r"duplicated=(?P<duplicated>\d+) alerts=(?P<alerts>\d+) seconds=(?P<seconds>[\d.]+)"
)

CAPTURE = re.compile(r"<!-- capture:begin -->\n```\n(?P<output>.*?)```\n<!-- capture:end -->", re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def summary(output: str) -> dict[str, float]:
    match = LAST_LINE.fullmatch(output.strip().splitlines()[-1])
    assert match is not None, output
    return {name: float(value) for name, value in match.groupdict().items()}


def assert_complete(output: str, bars: int = BARS) -> dict[str, float]:
    found = summary(output)
    assert found["published"] == found["scored"] == found["stored"] == bars, output
    assert found["lost"] == found["duplicated"] == 0, output
    return found


def rows(output: str) -> list[str]:
    """What the summary's rows are called."""
    return [line.split("│")[1].strip() for line in output.splitlines() if line.count("│") == 3]


def detections(folder: Path) -> set[tuple[str, str]]:
    """(symbol, day) of every detection in the store."""
    store = SqliteStore(folder / "store.db")
    found = store.list_detections(DetectionQuery(), 1_000, None).items
    store.close()
    return {(r.scored.quote.symbol, r.scored.quote.event_time.date().isoformat()) for r in found}


def test_the_bundled_tape_end_to_end(mesh: Mesh) -> None:
    process = mesh.start("run")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    found = assert_complete(output)
    pids = mesh.pids()
    assert len(pids) == 4
    assert not any(alive(pid) for pid in pids.values())

    alarmed = detections(mesh.folder)
    assert ("AAPL", "2000-09-29") in alarmed, "a fall of 52 % in a day must alert"
    for split in (("AAPL", "2000-06-21"), ("AAPL", "2005-02-28"), ("MSFT", "2003-02-18"), ("MSFT", "2004-11-15")):
        assert split not in alarmed, f"{split} is a corporate action"
    assert len(alarmed) < 0.01 * BARS
    assert 0 < found["alerts"] <= len(alarmed)
    assert "AAPL" in output
    assert "2000-09-29" in output
    lines = [line for line in output.splitlines() if line.startswith("scored ")]
    assert lines
    assert re.search(rf"scored {BARS:,} of {BARS:,}, [\d,]+ quotes/s · published {BARS:,} · waiting 0 · ", lines[-1])
    assert " · freshness " in lines[-1]
    captured = CAPTURE.search((REPOSITORY / "README.md").read_text())
    assert captured is not None, "the README has no captured run"
    documented = assert_complete(captured["output"])
    assert rows(captured["output"]) == rows(output), "the README's summary has other rows"
    assert documented["alerts"] == found["alerts"], "the README's run is not one of this model: capture it again"

    lake = ds.dataset(mesh.folder / "lake" / "quotes", format="parquet").to_table(columns=["quote_id", "tape"])
    assert lake.num_rows == BARS
    assert len(set(lake["quote_id"].to_pylist())) == BARS


def test_a_finished_run_is_followed_by_a_new_one(mesh: Mesh) -> None:
    for _ in range(2):
        process = mesh.start("run", "--symbols", "FB")
        output, _ = process.communicate(timeout=120)
        assert_complete(output, bars=196)
    lake = ds.dataset(mesh.folder / "lake" / "quotes", format="parquet").to_table(columns=["tape"])
    assert len(set(lake["tape"].to_pylist())) == 2


def recorded(folder: Path) -> int:
    if not (folder / "store.db").exists():
        return 0
    try:
        store = SqliteStore(folder / "store.db")
    except TapewatchError:  # it is being made
        return 0
    count = store.last_quote()
    store.close()
    return count


@pytest.mark.parametrize("scorers", [1, 2])
def test_kills_in_the_middle_lose_and_double_nothing(tmp_path: Path, scorers: int) -> None:
    mesh = Mesh(tmp_path / "mesh", scorers=scorers)
    process = mesh.start("run", "--scorers", str(scorers))
    try:
        mesh.wait_for(lambda: recorded(mesh.folder) > 0, 90, "the first recorded quote")
        queue = SqliteQueue(mesh.folder / "queue.db")
        victims = ["gateway", "dispatch", "scorer" if scorers == 1 else "scorer-1"]
        in_flight_at_kill = {}
        for number, victim in enumerate(victims, 1):
            before = recorded(mesh.folder)
            target = max(before + 300, number * BARS // 5)
            mesh.wait_for(lambda t=target: recorded(mesh.folder) >= t, 90, f"{target} recorded quotes")  # type: ignore[misc]
            pid = mesh.pids()[victim]
            in_flight_at_kill[victim] = mesh.kill_at_work(victim, lambda: queue.depth().in_flight)
            mesh.wait_for(lambda v=victim, p=pid: mesh.pids()[v] != p, 30, f"{victim} started again")  # type: ignore[misc]
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert_complete(output)
        assert all(count > 0 for count in in_flight_at_kill.values()), in_flight_at_kill
        repeated = queue.statistics().deliveries_repeated
        assert repeated > 0, "no message was delivered twice: the kills hit nothing"
        queue.close()
        print(f"in flight at the kills {in_flight_at_kill}, messages delivered again {repeated}; {summary(output)}")
        assert ("AAPL", "2000-09-29") in detections(mesh.folder)
    finally:
        mesh.stop()


def delete(database: Path) -> None:
    for name in (database.name, f"{database.name}-wal", f"{database.name}-shm"):
        (database.parent / name).unlink(missing_ok=True)


@pytest.mark.parametrize(("name", "service"), [("store.db", "gateway"), ("queue.db", "ingest")])
def test_a_run_whose_file_is_deleted_in_the_middle_reports_the_loss(mesh: Mesh, name: str, service: str) -> None:
    process = mesh.start("run")
    mesh.wait_for(lambda: recorded(mesh.folder) > 1_000, 90, "a thousand recorded quotes")
    delete(mesh.folder / name)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output
    found = summary(output)
    assert found["lost"] == BARS - found["stored"] > 0
    assert re.search(rf"{service} was started again .*{name} was deleted or replaced while in use", output)


@pytest.mark.parametrize(("name", "service"), [("store.db", "gateway"), ("queue.db", "ingest")])
def test_a_run_whose_log_is_deleted_in_the_middle_loses_nothing_unnoticed(mesh: Mesh, name: str, service: str) -> None:
    """SQLite goes on with the deleted log, and saves it when everybody who has it ends before somebody opens anew."""
    process = mesh.start("run")
    mesh.wait_for(lambda: recorded(mesh.folder) > 1_000, 90, "a thousand recorded quotes")
    before = mesh.pids()[service]
    (mesh.folder / f"{name}-wal").unlink()
    output, _ = process.communicate(timeout=200)
    assert mesh.pids()[service] != before, "it was over before the service saw it"
    assert f"{name}-wal was deleted or replaced while in use" in (mesh.folder / "logs" / f"{service}.log").read_text()
    found = summary(output)
    assert found["lost"] == BARS - found["stored"]
    assert process.returncode == (1 if found["lost"] else 0), output
    checked = sqlite3.connect(mesh.folder / name)
    assert checked.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    checked.close()
    print(f"{service}: {output.splitlines()[-1]}")


def test_a_run_whose_replay_is_forgotten_in_the_middle_begins_it_again(mesh: Mesh) -> None:
    process = mesh.start("run")
    mesh.wait_for(lambda: recorded(mesh.folder) > 0, 90, "the first recorded quotes")
    ingest = mesh.pids()["ingest"]
    delete(mesh.folder / "ingest.db")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert mesh.pids()["ingest"] != ingest, "it was over before ingest saw it"
    assert_complete(output)


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(mesh: Mesh) -> None:
    process = mesh.start("run")
    mesh.wait_for(lambda: recorded(mesh.folder) > 1_000, 90, "a thousand recorded quotes")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "goes on" in output
    assert not any(alive(pid) for pid in mesh.pids().values())
    stopped_at = recorded(mesh.folder)
    assert 1_000 < stopped_at < BARS, "it was over before the interrupt"

    process = mesh.start("run")
    output, _ = process.communicate(timeout=200)
    assert "going on with" in output
    assert_complete(output)


def test_up_goes_on_with_its_replay_at_another_speed_and_starts_a_new_one_after_its_end(mesh: Mesh) -> None:
    def tapes() -> set[str]:
        store = SqliteStore(mesh.folder / "store.db")
        found = store.list_detections(DetectionQuery(), 1_000, None).items
        store.close()
        return {r.scored.quote.tape for r in found}

    def stop(process: "subprocess.Popen[str]") -> str:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output

    mesh.environment["CANARY_INTERVAL_SECONDS"] = "0"
    process = mesh.start("up", "--source", "replay", "--symbols", "AAPL", "--speed", str(86_400 * 20))
    mesh.wait_for(lambda: recorded(mesh.folder) > 10, 90, "the first recorded quotes")
    assert "the same command goes on" in stop(process)
    assert recorded(mesh.folder) < 3_000, "it was over before the interrupt"

    process = mesh.start("up", "--source", "replay", "--symbols", "AAPL")
    mesh.wait_for(lambda: recorded(mesh.folder) == AAPL_BARS, 150, "the rest of the tape")
    time.sleep(2)
    assert recorded(mesh.folder) == AAPL_BARS
    output = stop(process)
    assert "going on with" in output
    assert "starts a new tape" in output
    assert len(tapes()) == 1

    process = mesh.start("up", "--source", "replay", "--symbols", "AAPL")
    mesh.wait_for(lambda: recorded(mesh.folder) == 2 * AAPL_BARS, 150, "the tape once more")
    stop(process)
    assert len(tapes()) == 2


@pytest.mark.parametrize("least", [-1, 100], ids=["while its children start", "in the middle"])
def test_a_killed_supervisor_leaves_no_processes(mesh: Mesh, least: int) -> None:
    process = mesh.start("run")
    mesh.wait_for(lambda: len(mesh.pids()) == 4 and recorded(mesh.folder) > least, 90, "the moment")
    pids = mesh.pids()
    process.kill()
    process.communicate()
    mesh.wait_for(lambda: not any(alive(pid) for pid in pids.values()), 60, "the end of every process")
    process = mesh.start("run")
    output, _ = process.communicate(timeout=200)
    assert_complete(output)


def test_the_bundled_tape_is_the_documented_one() -> None:
    history = bokeh.read()
    assert sum(len(bars) for bars in history) == BARS
    assert {bars.symbol for bars in history} == {"AAPL", "FB", "GOOG", "IBM", "MSFT"}
