"""`tapewatch up-aws-local`: the whole mesh on the AWS adapters, started and stopped by one command."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import boto3
import pytest

from services.gateway.dynamodb import DynamoDbStore
from services.runtime.dynamodb_table import DynamoDbTable
from tests.e2e.processes import Mesh
from tests.servers.process import INSTALLED, REGION, free_port, installed

GOOG_BARS, FB_BARS = 2_148, 196

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def children(pid: int) -> set[int]:
    """The processes below one, by /proc."""
    found: set[int] = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if parent == pid:
                found |= {int(folder.name)} | children(int(folder.name))
    return found


def gone(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_one_command_starts_and_stops_everything(
    mesh: Mesh, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = installed(INSTALLED / "ministack" / "bin" / "ministack")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for name, value in (("AWS_ACCESS_KEY_ID", "local"), ("AWS_SECRET_ACCESS_KEY", "local"), ("AWS_ENDPOINT_URL", url)):
        monkeypatch.setenv(name, value)
    mesh.environment |= {"AWS_PROFILE": "a-real-account", "AWS_ACCESS_KEY_ID": "AKIAREAL"}
    options = ["--ministack", str(program), "--function", str(code), "--port", str(port), "--symbols", "GOOG"]
    command = mesh.start("up-aws-local", *options)
    mesh.folder = mesh.folder / "aws-local"
    mesh.wait_for(lambda: len(mesh.pids()) == 4 or command.poll() is not None, 90, "the mesh")
    assert command.poll() is None, command.communicate()[0]
    mesh.wait_serving()
    table = DynamoDbTable.connect("tapewatch", REGION)
    store = DynamoDbStore(table)
    mesh.wait_for(lambda: store.last_quote() >= GOOG_BARS, 150, "every bar in DynamoDB")
    mesh.wait_for(lambda: store.last_change() > 0, 60, "alerts")
    push = ["health", mesh.gateway, "--service", "tapewatch.gateway.push"]
    mesh.wait_for(lambda: mesh.command(*push).returncode == 0, 60, "alerts pushed to AppSync Events")
    mesh.wait_for(lambda: store.archived("push").last >= store.last_change(), 60, "every change pushed")
    store.close()
    dispatched = (mesh.folder / "logs" / "dispatch.log").read_text()
    assert "messages wait" not in dispatched, "the function dispatches, not this process"
    functions: Any = boto3.Session(region_name=REGION).client("lambda")
    (mapping,) = functions.list_event_source_mappings()["EventSourceMappings"]
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]

    below = children(command.pid)
    assert len(below) > 5
    os.kill(command.pid, signal.SIGINT)
    output, _ = command.communicate(timeout=90)
    assert command.returncode == 0, output
    assert f"on {url}" in output
    assert "/alerts/live/*" in output
    assert "what it held was in memory and is gone, and the same command begins anew" in output
    assert "goes on" not in output
    assert "is kept" not in output
    mesh.wait_for(lambda: all(gone(pid) for pid in below), 30, "no process left")
    assert not listens(port)


def test_tasks_are_launched_for_the_batches_of_the_queue(
    mesh: Mesh, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = installed(INSTALLED / "ministack" / "bin" / "ministack")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for name, value in (("AWS_ACCESS_KEY_ID", "local"), ("AWS_SECRET_ACCESS_KEY", "local"), ("AWS_ENDPOINT_URL", url)):
        monkeypatch.setenv(name, value)
    mesh.environment["CANARY_INTERVAL_SECONDS"] = "0"
    options = ["--ministack", str(program), "--function", str(code), "--port", str(port)]
    command = mesh.start("up-aws-local", *options, "--symbols", "FB", "--mode", "task")
    mesh.folder = mesh.folder / "aws-local"
    mesh.wait_for(lambda: len(mesh.pids()) == 3 or command.poll() is not None, 90, "the mesh, without a scorer")
    assert command.poll() is None, command.communicate()[0]
    store = DynamoDbStore(DynamoDbTable.connect("tapewatch", REGION))
    mesh.wait_for(lambda: store.last_quote() >= FB_BARS, 150, "every bar in DynamoDB")
    store.close()
    buckets: Any = boto3.Session(region_name=REGION).client("s3")
    assert buckets.list_objects_v2(Bucket="tapewatch-lake", Prefix="batches/")["KeyCount"] > 0, "manifests"
    dispatcher = Path(f"/proc/{mesh.pids()['dispatch']}/environ").read_text().split("\0")
    (endpoint,) = [line.partition("=")[2] for line in dispatcher if line.startswith("AWS_ENDPOINT_URL_ECS=")]
    ecs: Any = boto3.Session(region_name=REGION).client("ecs", endpoint_url=endpoint)
    launched = ecs.list_tasks(cluster="tapewatch", startedBy="tapewatch-dispatch")["taskArns"]
    tasks = ecs.describe_tasks(cluster="tapewatch", tasks=launched)["tasks"]
    assert tasks, "batches went by RunTask"
    assert all(task["launchType"] == "FARGATE" for task in tasks)
    assert len(list((mesh.folder / "logs" / "tasks").glob("*.log"))) == len(tasks), "a process for each"
    with pytest.raises(ecs.exceptions.InvalidParameterException, match="Count must be between 1 and 10"):
        ecs.run_task(cluster="tapewatch", taskDefinition="tapewatch-runonce", count=11)
    os.kill(command.pid, signal.SIGINT)
    output, _ = command.communicate(timeout=90)
    assert command.returncode == 0, output
    assert "batches in mode task" in output
    assert f"tasks: ECS RunTask on {endpoint}" in output
    assert not listens(port)


def test_what_is_missing_is_told_in_one_sentence_and_an_earlier_runs_folder_stays(mesh: Mesh, tmp_path: Path) -> None:
    kept = mesh.folder / "aws-local" / "logs" / "gateway.log"
    kept.parent.mkdir(parents=True)
    kept.write_text("of an earlier run")
    without = mesh.command("up-aws-local", "--ministack", str(tmp_path / "none"), "--port", str(free_port()))
    assert without.returncode == 2
    assert "ministack is not at" in without.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        program = str(installed(INSTALLED / "ministack" / "bin" / "ministack"))
        busy = mesh.command("up-aws-local", "--ministack", program, "--port", port)
    assert busy.returncode == 2
    assert f"port {port} is in use" in busy.stderr
    no_zip = mesh.command("up-aws-local", "--ministack", program, "--function", "none.zip", "--port", str(free_port()))
    assert no_zip.returncode == 2
    assert "make lambda-zip" in no_zip.stderr
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text("import sys\nsys.modules['boto3'] = None\n")
    (tmp_path / "code.zip").write_bytes(b"")
    paths = [str(tmp_path / "hidden"), mesh.environment.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")]
    mesh.environment |= {"PYTHONPATH": os.pathsep.join(paths)}
    options = ["--function", str(tmp_path / "code.zip"), "--port", str(free_port())]
    no_boto3 = mesh.command("up-aws-local", "--ministack", program, *options)
    assert no_boto3.returncode == 2
    assert "needs boto3" in no_boto3.stderr
    assert kept.read_text() == "of an earlier run"
