"""`tapewatch doctor` judges what is there, and makes nothing."""

import sqlite3
from pathlib import Path

import pytest

from services.cli.doctor import Finding, examine
from services.cli.settings import MeshSettings
from services.domain.errors import DependencyUnavailableError
from services.gateway.sqlite import SqliteStore
from services.queue.ports import OutgoingMessage
from services.queue.sqlite import SqliteQueue
from services.runtime.health import Health, address_health
from services.runtime.settings import ClientSettings, ServerSettings
from tests.integration.runtime_server import running


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "LEDGER_PATH",
        "DISPATCH_MODE",
        "QUEUE_PATH",
        "STORE_PATH",
        "QUEUE_BACKEND",
        "STORE_BACKEND",
        "MODEL_VERSION",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


async def findings(folder: Path, gateway: str = "127.0.0.1:1") -> dict[str, Finding]:
    nobody = "127.0.0.1:1"
    settings = MeshSettings(
        tapewatch_dir=folder,
        ingest_address=nobody,
        dispatch_address=nobody,
        gateway_address=gateway,
        scorer_addresses=nobody,
    )
    return {finding.subject: finding for finding in await examine(settings)}


async def test_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCH_MODE", "task")
    folder = tmp_path / "mesh"
    found = await findings(folder)
    assert found["task mode"].state == "ok"
    assert found["queue"].state == found["store"].state == "ok"
    assert "is made on first use" in found["store"].detail
    assert list(tmp_path.iterdir()) == []


async def test_what_is_there_is_counted(tmp_path: Path) -> None:
    queue = SqliteQueue(tmp_path / "queue.db")
    queue.send([OutgoingMessage("{}", "group", "1")])
    queue.close()
    SqliteStore(tmp_path / "store.db").close()
    before = sorted(path.name for path in tmp_path.iterdir())
    found = await findings(tmp_path)
    assert found["queue"] == Finding("queue", "ok", "sqlite: 1 ready, 0 in flight, 0 dead")
    assert found["store"].detail == f"sqlite: {tmp_path / 'store.db'}, 0 quotes, 0 alert changes"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(("name", "setting"), [("store", "STORE_PATH"), ("queue", "QUEUE_PATH")])
async def test_files_that_the_mesh_would_refuse_are_bad(tmp_path: Path, name: str, setting: str) -> None:
    path = tmp_path / f"{name}.db"

    async def refused(words: str) -> None:
        finding = (await findings(tmp_path))[name]
        assert finding.state == "bad"
        assert words in finding.detail
        assert setting in finding.detail

    path.write_text("not a database, and long enough to be seen as one" * 40)
    await refused("not a database")
    path.unlink()
    path.mkdir()
    await refused("unable to open")
    path.rmdir()

    (SqliteStore if name == "store" else SqliteQueue)(path).close()
    with sqlite3.connect(path, isolation_level=None) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        await refused("locked")
        holder.execute("ROLLBACK")
        holder.execute("PRAGMA user_version = 99")
    await refused("format 99")


async def test_a_service_that_does_not_serve_is_bad_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> None:
        raise DependencyUnavailableError("store", "locked")

    async with running(ServerSettings(), lambda lifetime: lifetime.need("the store", away)) as server:

        async def patient(address: str, settings: ClientSettings, timeout_seconds: float) -> Health:
            return await address_health(address, settings, 30.0 if address == server.address else timeout_seconds)

        monkeypatch.setattr("services.cli.doctor.address_health", patient)
        found = await findings(tmp_path, server.address)
    assert found["gateway"] == Finding("gateway", "bad", f"{server.address}: not serving: store: locked")
    assert found["ingest"].state == "off"


async def test_a_model_version_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_VERSION", "zz")
    finding = (await findings(tmp_path))["model"]
    assert finding.state == "bad"
    assert "set MODEL_VERSION to a version that is there" in finding.detail
