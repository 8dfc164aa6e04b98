"""The command line, as its users see it, the wrong uses included."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import threading
from pathlib import Path

import pytest

from services.gateway.ports import QuoteQuery
from services.gateway.sqlite import SqliteStore
from services.queue.ports import OutgoingMessage
from services.queue.sqlite import SqliteQueue
from services.scorer.registry import PACKAGED_MODELS
from tests.e2e.processes import REPOSITORY, Mesh, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def test_help_names_every_command(mesh: Mesh) -> None:
    done = mesh.command("--help")
    assert done.returncode == 0
    for name in (
        "run",
        "up",
        "watch",
        "alerts",
        "health",
        "canary",
        "calibrate",
        "model",
        "replay",
        "doctor",
        "ingest",
        "dispatch",
        "scorer",
        "gateway",
    ):
        assert f" {name} " in done.stdout, name


def test_health_tells_serving_from_silence(running_mesh: Mesh) -> None:
    assert running_mesh.command("health", running_mesh.gateway).returncode == 0
    assert running_mesh.command("health", "127.0.0.1:1", "--timeout", "0.5").returncode == 1
    assert running_mesh.command("health", "nonsense").returncode == 2
    unknown = running_mesh.command("health", running_mesh.dispatch, "--service", "NOSUCH")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith(f"tapewatch health: {running_mesh.dispatch}: service: health knows no 'NOSUCH'")
    assert "tapewatch.dispatch.v1.DispatchService" in unknown.stderr


def test_doctor_finds_the_mesh_well(running_mesh: Mesh) -> None:
    done = running_mesh.command("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("ingest", "dispatch", "scorer 1", "gateway"):
        (row,) = [line for line in done.stdout.splitlines() if f" {name} " in line]
        assert " ok " in row, done.stdout


def test_doctor_names_what_is_missing(mesh: Mesh, tmp_path: Path) -> None:
    done = mesh.command("doctor", MODEL_DIR=str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "bad" in done.stdout
    assert "nobody serves" in done.stdout


def test_watch_prints_alerts_and_resumes(running_mesh: Mesh) -> None:
    process = running_mesh.start("watch", "--from-start", "--json")
    assert process.stdout is not None
    first = json.loads(next(line for line in process.stdout if line.startswith("{")))  # stderr says what it waits for
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert first["change"]["alert"]["reasons"]
    assert first["resumeToken"]


def test_watch_of_a_foreign_token_is_refused_in_words(running_mesh: Mesh) -> None:
    done = running_mesh.command("watch", "--resume-token", "bm9ib2R5OjU=")
    assert done.returncode == 2
    assert "another store" in done.stderr


def test_replay_through_a_running_mesh(running_mesh: Mesh) -> None:
    done = running_mesh.command("replay", "--symbols", "FB", "--tape", "again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "196 quotes published" in done.stdout
    nowhere = running_mesh.command("replay", "--from", "/no/such/file.csv")
    assert nowhere.returncode == 2
    assert "/no/such/file.csv" in nowhere.stdout
    for words, arguments in (("ZZZZ", ("--symbols", "AAPL,ZZZZ")), ("live is not", ("--tape", "live"))):
        wrong = running_mesh.command("replay", *arguments)
        assert wrong.returncode == 2, wrong.stdout
        assert words in wrong.stdout
    brackets = running_mesh.command("replay", "--from", "/no/[/such].csv")
    assert brackets.returncode == 2
    assert "/no/[/such].csv" in brackets.stdout
    assert "Traceback" not in brackets.stderr


def test_a_busy_port_ends_in_one_sentence(mesh: Mesh) -> None:
    host, port = mesh.gateway.split(":")
    with socket.socket() as busy:
        busy.bind((host, int(port)))
        busy.listen()
        alone = mesh.command("gateway", "serve", GRPC_PORT=port, STORE_PATH=str(mesh.folder / "s.db"), LAKE_URI="none")
        whole = mesh.command("run", "--symbols", "FB")
    assert alone.returncode == 2
    assert "GRPC_PORT" in alone.stderr
    assert "Traceback" not in alone.stderr
    assert whole.returncode == 2
    assert mesh.gateway in whole.stdout
    assert "Traceback" not in whole.stdout + whole.stderr


def test_a_missing_or_damaged_model_ends_in_one_sentence(mesh: Mesh, tmp_path: Path) -> None:
    none = mesh.command("scorer", "serve", GRPC_PORT="0", MODEL_DIR=str(tmp_path / "none"))
    assert none.returncode == 2
    assert "train" in none.stderr
    damaged = tmp_path / "models"
    shutil.copytree(PACKAGED_MODELS, damaged)
    classifier = next(damaged.glob("*/classifier.tflite"))
    classifier.write_bytes(classifier.read_bytes()[:-1] + b"?")
    done = mesh.command("scorer", "serve", GRPC_PORT="0", MODEL_DIR=str(damaged))
    assert done.returncode == 2
    assert "damaged" in done.stderr
    assert "Traceback" not in none.stderr + done.stderr


def test_a_locked_or_foreign_store_ends_in_one_sentence(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path, isolation_level=None) as holder:
        holder.execute("PRAGMA journal_mode = WAL")
        holder.execute("BEGIN EXCLUSIVE")
        locked = mesh.command("gateway", "serve", GRPC_PORT="0", STORE_PATH=str(path), LAKE_URI="none")
        holder.execute("ROLLBACK")
    assert locked.returncode == 2
    assert "locked" in locked.stderr
    path.write_text("not a database, and long enough to be seen as one" * 40)
    (tmp_path / "store.db-wal").unlink(missing_ok=True)
    foreign = mesh.command("gateway", "serve", GRPC_PORT="0", STORE_PATH=str(path), LAKE_URI="none")
    assert foreign.returncode == 2
    assert "STORE_PATH" in foreign.stderr
    assert "Traceback" not in locked.stderr + foreign.stderr


def test_up_shows_why_a_service_is_not_serving(mesh: Mesh) -> None:
    """Also while the service that a reading needs answers nothing."""
    process = mesh.start("up", "--source", "csv", "--from", str(REPOSITORY / "tests" / "events"))
    assert process.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda out: lines.extend(out), args=(process.stdout,))
    reader.start()
    mesh.wait_serving()

    def told(words: str) -> bool:
        """Whether the newest line on the whole mesh says so: lines on canaries come between."""
        return words in next((line for line in reversed(lines) if line.startswith("scored")), "")

    locked = f"gateway is not serving: the store: {mesh.folder / 'store.db'} is locked by another process"
    other = sqlite3.connect(mesh.folder / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    mesh.wait_for(lambda: told(locked), 40, "the reason on the screen")
    other.close()
    mesh.wait_for(lambda: told("scored") and not told("gateway"), 40, "the gateway serving again")
    os.kill(ingest := mesh.pids()["ingest"], signal.SIGSTOP)
    try:
        mesh.wait_for(lambda: told("ingest does not answer"), 40, "the silence on the screen")
    finally:
        os.kill(ingest, signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    reader.join(10)


def test_a_service_that_cannot_start_again_for_the_moment_does_not_end_the_mesh(mesh: Mesh) -> None:
    mesh.environment["CANARY_INTERVAL_SECONDS"] = "0"
    process = mesh.start("up", "--source", "csv", "--from", str(REPOSITORY / "tests" / "events"))
    mesh.wait_serving()
    log = mesh.folder / "logs" / "gateway.log"
    began = len(log.read_text())
    other = sqlite3.connect(mesh.folder / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    os.kill(mesh.pids()["gateway"], signal.SIGKILL)
    mesh.wait_for(lambda: "tapewatch gateway: the store: " in log.read_text()[began:], 90, "its last words")
    other.close()
    mesh.wait_for(lambda: serving(mesh.gateway), 90, "the gateway again")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def test_a_wrong_setting_is_named(mesh: Mesh) -> None:
    done = mesh.command("gateway", "serve", GRPC_PORT="many")
    assert done.returncode == 2
    assert "GRPC_PORT='many'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_public_address_needs_tls_and_a_token(mesh: Mesh) -> None:
    for name in ("ingest", "dispatch", "scorer", "gateway"):
        done = mesh.command(
            name,
            "serve",
            GRPC_HOST="0.0.0.0",
            GRPC_PORT="0",
            STORE_PATH=str(mesh.folder / "s.db"),
            QUEUE_PATH=str(mesh.folder / "q.db"),
            INGEST_PATH=str(mesh.folder / "i.db"),
            LAKE_URI="none",
        )
        assert done.returncode == 2, name
        assert "TLS_CERT_FILE" in done.stderr


def test_a_missing_dependency_is_named(mesh: Mesh, tmp_path: Path) -> None:
    """An interpreter in which yfinance cannot be imported."""
    hidden = tmp_path / "hidden" / "yfinance"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not installed')\n")
    done = mesh.command(
        "scorer",
        "serve",
        GRPC_PORT="0",
        FALLBACK_TO_YFINANCE="true",
        PYTHONPATH=f"{hidden.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    )
    assert done.returncode == 2
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_once_scores_and_records_a_batch(running_mesh: Mesh) -> None:
    messages = [
        {
            "message_type": "MARKET_DATA",
            "symbol": "ZZZ",
            "data": {
                "symbol": "ZZZ",
                "timestamp": f"2026-01-05T15:{minute:02d}:00Z",
                "open": 10.0,
                "high": 10.2,
                "low": 9.9,
                "close": 10.1,
                "volume": 1_000,
                "previous_close": None,
            },
            "source": "yahoo_finance",
            "ingestion_timestamp": "2026-01-05T15:31:05Z",
            "batch_id": "b1",
        }
        for minute in (31, 32, 33)
    ]
    environment = {"BATCH_MARKET_DATA": json.dumps(messages), "BATCH_SIZE": "3", "CORRELATION_ID": "c1"}
    done = running_mesh.command("scorer", "run-once", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = json.loads(done.stdout.strip().splitlines()[-1])
    assert printed["recorded"] == printed["received"] == 3
    assert printed["correlation_id"] == "c1"

    messages[1]["data"]["high"] = 1.0  # type: ignore[index]
    done = running_mesh.command("scorer", "run-once", **{**environment, "BATCH_MARKET_DATA": json.dumps(messages)})
    assert done.returncode == 1
    printed = json.loads(done.stdout.strip().splitlines()[-1])
    assert printed["recorded"] == 2
    assert "high" in printed["invalid"][0]
    for nonsense in ("[" * 100_000, f"[{'1' * 5_000}]"):
        done = running_mesh.command("scorer", "run-once", **{**environment, "BATCH_MARKET_DATA": nonsense})
        assert done.returncode != 0
        assert "BATCH_MARKET_DATA: is not JSON" in done.stderr
        assert "Traceback" not in done.stderr
    done = running_mesh.command("scorer", "run-once")
    assert done.returncode == 2
    assert "BATCH_MARKET_DATA" in done.stderr


def test_poison_goes_to_the_dead_letters_and_its_neighbours_are_scored(running_mesh: Mesh) -> None:
    def body(minute: int, close: object) -> str:
        data = {
            "symbol": "QQQ",
            "timestamp": f"2026-01-05T15:{minute:02d}:00Z",
            "open": 10.0,
            "high": 10.2,
            "low": 9.9,
            "close": close,
            "volume": 5,
        }
        return json.dumps({"message_type": "MARKET_DATA", "symbol": "QQQ", "data": data, "source": "yahoo_finance"})

    queue = SqliteQueue(running_mesh.folder / "queue.db")
    bodies = [body(31, 10.0), body(32, -3), "not json", body(33, "ten"), body(34, 10.1)]
    queue.send([OutgoingMessage(b, "market-data-QQQ", f"poison-{i}") for i, b in enumerate(bodies)])
    running_mesh.wait_for(lambda: (depth := queue.depth()).ready + depth.in_flight == 0, 60, "an empty queue")
    store = SqliteStore(running_mesh.folder / "store.db")
    assert len(store.list_quotes(QuoteQuery("live", "QQQ"), 100, None).items) == 2
    store.close()
    letters = [letter for letter in queue.list_dead_letters() if letter.group_id == "market-data-QQQ"]
    assert len(letters) == 3
    assert all(letter.reason for letter in letters)
    queue.close()
    shown = running_mesh.command("dispatch", "dead-letters")
    assert "close" in shown.stdout
