"""What every task launcher must do: a subprocess here, RunTask on ECS there."""

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from services.cli.run_task_validator import RefusedError
from services.dispatch.launcher_ecs import EcsLauncher
from services.dispatch.launcher_subprocess import SubprocessLauncher
from services.dispatch.ports import NoCapacity, TaskLauncher, TaskPhase, TaskStatus
from services.dispatch.task_environment import MAX_OVERRIDE_CHARACTERS, container_overrides
from services.domain.errors import ConflictError, DependencyUnavailableError, NotConfiguredError
from tests.servers.faulty_ecs import FaultyEcs
from tests.servers.process import CREDENTIALS, REGION, Server

PROGRAM = """
import os, sys, time
with open(os.path.join(os.environ["OUT"], os.environ["CORRELATION_ID"]), "a") as out:
    out.write(f"{os.getpid()} {os.environ.get('BATCH_SIZE', '')} {os.environ.get('PLACE', '')}\\n")
time.sleep(float(os.environ.get("SECONDS", "0")))
sys.exit(int(os.environ.get("CODE", "0")))
"""
COMMAND = (sys.executable, "-S", "-c", PROGRAM)
CONTAINER = "scorer"


@pytest.fixture
def validator(ministack: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyEcs]:
    made = FaultyEcs(ministack.url, COMMAND, {"OUT": str(tmp_path), "PLACE": "task"}).start()
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL_ECS": made.url}).items():
        monkeypatch.setenv(name, value)
    yield made
    made.stop()


@pytest.fixture
def deployment(validator: FaultyEcs) -> tuple[str, str]:
    """A cluster and a task definition with two containers."""
    ecs = boto3.client("ecs", region_name=REGION)
    name = f"tapewatch-{uuid.uuid4().hex[:8]}"
    ecs.create_cluster(clusterName=name)
    ecs.register_task_definition(
        family=name,
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        containerDefinitions=[
            {"name": CONTAINER, "image": "scorer", "essential": True},
            {"name": "telemetry", "image": "collector", "essential": False},
        ],
    )
    return name, name


MakeLauncher = Callable[[], TaskLauncher]


@pytest.fixture(params=["subprocess", "ecs"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeLauncher]:
    """Opens a launcher on the same tasks, as a dispatcher that was started again does."""
    opened: list[TaskLauncher] = []
    if request.param == "ecs":
        cluster, definition = request.getfixturevalue("deployment")

    def open_one() -> TaskLauncher:
        if request.param == "subprocess":
            opened.append(SubprocessLauncher(tmp_path / "tasks", COMMAND, {"OUT": str(tmp_path), "PLACE": "task"}))
        else:
            opened.append(EcsLauncher.connect(cluster, definition, CONTAINER, ["subnet-1", "subnet-2"], ["sg-1"]))
        return opened[-1]

    yield open_one
    for launcher in opened:
        launcher.close()


@pytest.fixture
def launcher(make: MakeLauncher) -> TaskLauncher:
    return make()


def launched(launcher: TaskLauncher, token: str, variables: dict[str, str]) -> str:
    task = launcher.launch(token, variables)
    assert isinstance(task, str), task
    return task


def environment(name: str = "one", **more: str) -> dict[str, str]:
    return {"CORRELATION_ID": name, "BATCH_SIZE": "3", **more}


def ended(launcher: TaskLauncher, task: str) -> TaskStatus:
    deadline = time.monotonic() + 60
    while (status := launcher.describe([task])[task]).phase is not TaskPhase.STOPPED:
        assert time.monotonic() < deadline, "the task did not end"
        time.sleep(0.05)
    return status


def lines(folder: Path, name: str = "one") -> list[str]:
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


def started(folder: Path, name: str = "one") -> int:
    """The process id of the running task."""
    deadline = time.monotonic() + 60
    while not lines(folder, name):
        assert time.monotonic() < deadline, "the task did not start"
        time.sleep(0.02)
    return int(lines(folder, name)[0].split()[0])


def test_a_task_has_its_environment_and_ends_with_its_code(launcher: TaskLauncher, tmp_path: Path) -> None:
    task = launched(launcher, "token-1", environment(CODE="1"))
    status = ended(launcher, task)
    assert status.exit_code == 1
    assert status.start_time is not None
    ((_, size, place),) = (line.split() for line in lines(tmp_path))
    assert (size, place) == ("3", "task")


def test_it_runs_until_it_ends(launcher: TaskLauncher, tmp_path: Path) -> None:
    task = launched(launcher, "token-1", environment(SECONDS="300"))
    started(tmp_path)
    assert launcher.describe([task])[task].phase is TaskPhase.RUNNING
    launcher.stop(task, "enough")
    status = ended(launcher, task)
    assert status.exit_code in (None, 128 + signal.SIGKILL)
    launcher.stop(task, "again")


def test_the_same_launch_twice_is_one_task(launcher: TaskLauncher, tmp_path: Path) -> None:
    first = launched(launcher, "token-1", environment(SECONDS="0.5"))
    assert launched(launcher, "token-1", environment(SECONDS="0.5")) == first
    ended(launcher, first)
    assert launched(launcher, "token-1", environment(SECONDS="0.5")) == first, "also after its end"
    assert len(lines(tmp_path)) == 1


def test_a_token_used_for_something_else_is_refused(launcher: TaskLauncher, tmp_path: Path) -> None:
    first = launched(launcher, "token-1", environment())
    with pytest.raises(ConflictError):
        launched(launcher, "token-1", environment("two"))
    assert launched(launcher, "token-2", environment("two")) != first
    started(tmp_path, "two")


def test_a_killed_task_says_so(launcher: TaskLauncher, tmp_path: Path) -> None:
    task = launched(launcher, "token-1", environment(SECONDS="300"))
    os.kill(started(tmp_path), signal.SIGKILL)
    assert ended(launcher, task).exit_code == 128 + signal.SIGKILL


def test_another_launcher_knows_the_tasks(make: MakeLauncher, tmp_path: Path) -> None:
    first, second = make(), make()
    running = launched(first, "token-1", environment(SECONDS="300"))
    quick = launched(first, "token-2", environment("two"))
    started(tmp_path)
    ended(first, quick)
    seen = second.describe([running, quick])
    assert seen[running].phase is TaskPhase.RUNNING
    assert (seen[quick].phase, seen[quick].exit_code) == (TaskPhase.STOPPED, 0)
    assert launched(second, "token-1", environment(SECONDS="300")) == running
    second.stop(running, "not needed")
    assert ended(second, running).phase is TaskPhase.STOPPED
    assert len(lines(tmp_path)) == 1


def test_what_nobody_launched_is_unknown(launcher: TaskLauncher) -> None:
    assert launcher.describe(["arn:aws:ecs:eu-central-1:000000000000:task/nothing/0"]) == {}
    launcher.stop("arn:aws:ecs:eu-central-1:000000000000:task/nothing/0", "no reason")


def test_a_token_too_long_is_refused(launcher: TaskLauncher) -> None:
    with pytest.raises(NotConfiguredError):
        launched(launcher, "t" * 65, environment())


def test_a_process_that_cannot_start_says_so(tmp_path: Path) -> None:
    launcher = SubprocessLauncher(tmp_path, ("/nonexistent/program",))
    with pytest.raises(DependencyUnavailableError, match="/nonexistent/program"):
        launched(launcher, "token-1", {})
    status = launcher.describe(["token-1"])["token-1"]
    assert (status.phase, status.start_time) == (TaskPhase.STOPPED, None)


def test_no_capacity_and_throttling_pass(validator: FaultyEcs, deployment: tuple[str, str]) -> None:
    launcher = EcsLauncher.connect(*deployment, CONTAINER, ["subnet-1"], [])
    validator.no_capacity = 1
    answer = launcher.launch("token-1", environment())
    assert isinstance(answer, NoCapacity)
    assert "Capacity is unavailable" in answer.reason
    validator.throttled = 10  # more than the client's own retries
    with pytest.raises(DependencyUnavailableError, match="ThrottlingException") as refused:
        launched(launcher, "token-1", environment())
    assert refused.value.retry_delay_seconds > 0
    validator.throttled = 0
    assert ended(launcher, launched(launcher, "token-1", environment())).exit_code == 0
    launcher.close()


def test_a_task_that_aws_took_away_has_no_exit_code(
    validator: FaultyEcs, deployment: tuple[str, str], tmp_path: Path
) -> None:
    validator.stop_code = "SpotInterruption"
    launcher = EcsLauncher.connect(*deployment, CONTAINER, ["subnet-1"], [])
    task = launched(launcher, "token-1", environment(SECONDS="300"))
    os.kill(started(tmp_path), signal.SIGKILL)
    status = ended(launcher, task)
    assert (status.exit_code, status.reason.partition(":")[0]) == (None, "SpotInterruption")
    launcher.close()


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"cluster": ""}, "ECS_CLUSTER_NAME"),
        ({"task_definition": "tapewatch-nothing"}, "ECS_TASK_DEFINITION"),
        ({"container": "nobody"}, "ECS_CONTAINER_NAME"),
        ({"subnets": []}, "ECS_SUBNET_IDS"),
    ],
)
def test_a_wrong_setting_is_named(deployment: tuple[str, str], changes: dict[str, object], setting: str) -> None:
    given: dict[str, object] = {
        "cluster": deployment[0],
        "task_definition": deployment[1],
        "container": CONTAINER,
        "subnets": ["subnet-1"],
        "security_groups": [],
    }
    with pytest.raises(NotConfiguredError, match=setting):
        EcsLauncher.connect(**(given | changes)).launch("token-1", environment())  # type: ignore[arg-type]


def test_the_validator_refuses_what_aws_refuses(validator: FaultyEcs, deployment: tuple[str, str]) -> None:
    ecs = boto3.client("ecs", region_name=REGION)
    subnets = {"subnets": ["subnet-1"]}
    network = {"awsvpcConfiguration": subnets}
    good: dict[str, Any] = {"cluster": deployment[0], "taskDefinition": deployment[1], "networkConfiguration": network}
    room = MAX_OVERRIDE_CHARACTERS - len(str(container_overrides(CONTAINER, {"CORRELATION_ID": ""})))
    fitting = container_overrides(CONTAINER, {"CORRELATION_ID": "x" * room})
    large = container_overrides(CONTAINER, {"CORRELATION_ID": "x" * (room + 1)})
    wrongs: tuple[dict[str, Any], ...] = (
        {"count": 11},
        {"clientToken": "t" * 65},
        {"clientToken": "two words"},
        {"clientToken": "\u00e4"},
        {"startedBy": "s" * 129},
        {"startedBy": "tapewatch.dispatch"},
        {"tags": [{"key": str(i), "value": ""} for i in range(51)]},
        {"launchType": "EC2"},
        {"launchType": "FARGATE", "capacityProviderStrategy": [{"capacityProvider": "FARGATE_SPOT"}]},
        {"overrides": large},
        {"overrides": container_overrides("nobody", {})},
        {"networkConfiguration": {}},
        {"networkConfiguration": {"awsvpcConfiguration": {"subnets": [f"subnet-{i}" for i in range(17)]}}},
        {"networkConfiguration": {"awsvpcConfiguration": {**subnets, "securityGroups": list("abcdef")}}},
    )
    for wrong in wrongs:
        with pytest.raises(ecs.exceptions.InvalidParameterException):
            ecs.run_task(**(good | wrong))
    with pytest.raises(ecs.exceptions.InvalidParameterException):
        ecs.describe_tasks(cluster=deployment[0], tasks=[str(i) for i in range(101)])
    ecs.run_task(**good, overrides=fitting, clientToken="!" * 64, startedBy="s" * 128, launchType="FARGATE")
    ecs.run_task(**good, count=10, overrides=container_overrides(CONTAINER, environment("ten")))
    with pytest.raises(ecs.exceptions.InvalidParameterException):
        ecs.run_task(**good, overrides={"containerOverrides": fitting["containerOverrides"] * 2})
    ecs.run_task(**good, clientToken="t", overrides=container_overrides(CONTAINER, environment("t")))
    with pytest.raises(ecs.exceptions.ConflictException):
        ecs.run_task(**good, clientToken="t", overrides=container_overrides(CONTAINER, environment("u")))


def test_the_validator_holds_the_launch_rate(validator: FaultyEcs) -> None:
    refused = 0
    began = time.monotonic()
    for _ in range(120):
        try:
            validator._spend(1)
        except RefusedError:
            refused += 1
    refilled = 20 * (time.monotonic() - began)
    assert 20 - refilled - 1 <= refused <= 20, "a bucket of 100, refilled with 20 a second"
