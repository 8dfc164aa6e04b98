"""The dispatch Lambda as its zip, behind an event source mapping: nothing of this checkout, nothing heavy in it."""

import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.domain.score import RecordedQuote
from services.gateway.ports import QuoteQuery
from services.queue.market_message import encode
from services.queue.ports import OutgoingMessage
from tests.e2e.mapped_function import Function, mapped_function
from tests.e2e.processes import REPOSITORY
from tests.gateway_quotes import scored
from tests.servers.process import INSTALLED, Server

FB_BARS = 196
COLD_SECONDS_LIMIT = 5.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def function(ministack: Server, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Function]:
    with mapped_function(ministack, code, tmp_path, monkeypatch) as made:
        yield made


def test_the_zip_holds_nothing_heavy_and_no_boto3(code: Path) -> None:
    with zipfile.ZipFile(code) as archive:
        names = {entry.split("/")[0] for entry in archive.namelist()}
        size = sum(entry.file_size for entry in archive.infolist())
    assert {"services", "tapewatch", "grpc"} <= names
    assert not names & {"numpy", "pandas", "pyarrow", "ai_edge_litert", "tensorflow", "boto3", "botocore"}
    assert size < 60 * 1024 * 1024
    print(f"{code.stat().st_size:,} bytes, {size:,} unzipped")


def test_the_handler_starts_without_boto3(code: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(code) as archive:
        archive.extractall(tmp_path)
    script = (
        "import sys, time; began = time.process_time(); import services.dispatch.handler;"
        "print(time.process_time() - began, *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    python = str(INSTALLED / "ministack" / "bin" / "python")
    environment = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([python, "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seconds, *modules = done.stdout.split()
    assert not {"boto3", "botocore", "numpy", "pandas", "pyarrow"} & set(modules)
    assert float(seconds) < COLD_SECONDS_LIMIT
    print(f"imported in {float(seconds):.2f} s of CPU")


def test_a_run_through_the_function_with_the_gateway_killed(function: Function) -> None:
    mesh = function.mesh
    process = mesh.start("run", "--symbols", "FB")
    mesh.wait_for(lambda: "gateway" in mesh.pids(), 60, "the mesh")
    mesh.wait_serving()
    store = function.store()
    mesh.wait_for(lambda: store.last_quote() >= 20, 60, "the first recorded quotes")
    pid = mesh.pids()["gateway"]
    in_flight = mesh.kill_at_work("gateway", lambda: function.queue.depth().in_flight)
    recorded = store.last_quote()
    mesh.wait_for(lambda: mesh.pids()["gateway"] != pid, 30, "the gateway started again")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert re.search(rf"published={FB_BARS} scored={FB_BARS} stored={FB_BARS} lost=0 duplicated=0", output), output
    assert recorded < FB_BARS, "the gateway was killed too late"
    assert in_flight > 0, "the kill hit nothing"
    times = [r.scored.quote.event_time for r in store.quotes_after(0, 1_000)]
    assert times == sorted(set(times)), "order within the series"
    store.close()
    print(f"killed at {recorded} recorded with {in_flight} in flight; {output.strip().splitlines()[-1]}")


def test_a_poison_message_goes_to_the_dead_letters_and_its_neighbours_are_scored(function: Function) -> None:
    mesh = function.mesh
    quotes = [scored(minute).quote for minute in range(6)]
    messages = [encode(quote) for quote in quotes]
    poison = OutgoingMessage('{"message_type": "MARKET_DATA"', messages[0].group_id, "poison")
    mesh.start("up", "--source", "csv", "--from", str(REPOSITORY / "tests" / "events"))
    mesh.wait_serving()
    function.queue.send([*messages[:3], poison, *messages[3:]])
    store = function.store()

    def kept() -> list[RecordedQuote]:
        return store.list_quotes(QuoteQuery("live", "AAPL"), 10, None).items

    mesh.wait_for(lambda: len(kept()) == 6, 60, "the neighbours' scores")
    mesh.wait_for(lambda: function.queue.depth().dead_letters == 1, 30, "the dead letter")
    (letter,) = function.queue.list_dead_letters()
    assert letter.body == poison.body
    assert "JSON" in letter.reason
    assert [r.scored.quote for r in kept()] == quotes
    store.close()
