"""The README's grpcurl commands, as they stand there, with the real grpcurl against the running mesh."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import REPOSITORY, Mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

PORTS = {"50051": "scorer", "50052": "ingest", "50053": "dispatch", "50054": "gateway"}


def grpcurl() -> str:
    own = Path(sys.prefix) / "go" / "bin" / "grpcurl"
    found = str(own) if own.exists() else shutil.which("grpcurl")
    if found is None:
        pytest.skip("grpcurl is not installed: make tools")
    return found


def readme_commands() -> list[str]:
    text = (REPOSITORY / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(block.replace("\\\n", " ") for block in blocks)
    return [
        line.strip() for line in joined.splitlines() if re.match(r"\s*(grpcurl|echo .*grpcurl|timeout .*grpcurl)", line)
    ]


def run(command: str, mesh: Mesh) -> "subprocess.CompletedProcess[str]":
    for port, name in PORTS.items():
        command = command.replace(f"127.0.0.1:{port}", getattr(mesh, name))
    environment = {**os.environ, "PATH": f"{Path(grpcurl()).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, env=environment, cwd=REPOSITORY
    )


def command_with(part: str) -> str:
    (found,) = [command for command in readme_commands() if part in f"{command} "]
    return found


def messages(output: str) -> list[dict[str, object]]:
    decoder = json.JSONDecoder()
    found = []
    position = 0
    while position < len(output.rstrip()):
        position = len(output) - len(output[position:].lstrip())
        message, position = decoder.raw_decode(output, position)
        found.append(message)
    return found


def test_readme_has_a_command_for_each_use() -> None:
    for part in ("list", "ScorerService/Score ", "ScoreStream", "WatchAlerts", "Health/Check", "ListAlerts"):
        assert any(part in f"{command} " for command in readme_commands()), part


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_of_the_readme_works(command: str, running_mesh: Mesh) -> None:
    done = run(command, running_mesh)
    expected = (0, 124, 68) if "-max-time" in command or "timeout" in command else (0,)  # watching ends by its deadline
    assert done.returncode in expected, done.stdout + done.stderr
    assert done.stdout.strip(), done.stderr


def test_listing_names_every_service(running_mesh: Mesh) -> None:
    listed = run(command_with(" list"), running_mesh).stdout.split()
    assert set(listed) >= {
        "tapewatch.scorer.v1.ScorerService",
        "tapewatch.scorer.v1.ModelService",
        "grpc.health.v1.Health",
    }


def test_scoring_a_quote_ad_hoc_gives_a_score_in_words(running_mesh: Mesh) -> None:
    (answer,) = messages(run(command_with("ScorerService/Score "), running_mesh).stdout)
    score = answer["score"]
    assert isinstance(score, dict)
    assert 0 <= score["ensemble"] <= 1
    assert score["modelVersion"]


def test_streaming_answers_each_request(running_mesh: Mesh) -> None:
    answers = messages(run(command_with("ScoreStream"), running_mesh).stdout)
    results = [result for answer in answers for result in answer["results"]]  # type: ignore[attr-defined]
    assert len(results) >= 2
    assert any("error" in result for result in results), "the README shows that a bad quote does not end the stream"
    assert any("score" in result for result in results)


def test_watching_shows_alerts_with_reasons(running_mesh: Mesh) -> None:
    running_mesh.wait_for(
        lambda: "alertId" in run(command_with("ListAlerts"), running_mesh).stdout, 60, "the first alert"
    )
    answers = messages(run(command_with("WatchAlerts"), running_mesh).stdout)
    changes = [answer["change"] for answer in answers if "change" in answer]
    assert changes
    alert = changes[0]["alert"]  # type: ignore[index]
    assert alert["reasons"][0]["text"]
    assert all(answer["resumeToken"] for answer in answers)
