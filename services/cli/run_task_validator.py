"""ECS on this machine: RunTask with AWS's real limits in front of ministack, and tasks that are processes.

ministack keeps clusters, task definitions and tasks, but accepts what AWS refuses, ignores clientToken, and without
Docker its tasks run nothing. This proxy answers RunTask as AWS documents it (count, override characters, clientToken
and its idempotency, container names, awsvpc's subnets, launch rate), passes what is right on, and then runs `command`
with the environment that the container would have, its metadata endpoint included. DescribeTasks tells what became of
the process.

Sources: Amazon ECS API reference, RunTask and "Ensuring idempotency"; Amazon ECS quotas, "Task launch rate"; Amazon ECS
developer guide, "Task metadata available for tasks on Fargate", version 4.
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

MAX_COUNT: Final = 10
MAX_OVERRIDE_CHARACTERS: Final = 8_192
MAX_SUBNETS: Final = 16
MAX_SECURITY_GROUPS: Final = 5
MAX_TAGS: Final = 50
MAX_DESCRIBED: Final = 100
LAUNCHES_PER_SECOND: Final = 20.0
BURST: Final = 100.0
_TOKEN = re.compile(r"[!-~]{0,64}")
_STARTED_BY = re.compile(r"[A-Za-z0-9/_-]{0,128}")
_TARGET = "AmazonEC2ContainerServiceV20141113."
_METADATA = "/v4/"
_FORWARD_SECONDS = 30


class RefusedError(Exception):
    """AWS's answer to a wrong call: its code, and its words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class _Running:
    task: Mapping[str, Any]
    container: str
    process: "subprocess.Popen[bytes]"
    started: float
    stop_code: str
    stopped_reason: str = "Essential container in task exited"
    stopped: float | None = None


@dataclass
class RunTaskValidator:
    """A proxy on a free loopback port; everything but ECS's task calls goes through to `upstream` unchanged.

    A task's process has this process's environment, then that of its container in the task definition, then
    `environment`, then what its launch overrides. Its output goes to a file in `logs`, where that is given.

    `launched` counts processes by clientToken.
    """

    upstream: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    logs: Path | None = None
    launched: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[str, dict[str, Any]]] = {}
        self._running: dict[str, _Running] = {}
        self._allowance, self._filled = BURST, time.monotonic()
        if self.logs is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
        validator = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._answer(*validator.answer(dict(self.headers), body))

            def do_GET(self) -> None:
                found = validator.metadata(self.path)
                self._answer(404 if found is None else 200, json.dumps(found).encode())

            def _answer(self, status: int, answer: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens: AWS_ENDPOINT_URL_ECS."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> "RunTaskValidator":
        """Serve, in a thread of its own."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Answer nothing more, and kill the tasks that run."""
        self._server.shutdown()
        self._server.server_close()
        for running in self._running.values():
            if running.process.poll() is None:
                running.process.kill()
            running.process.wait()

    def __enter__(self) -> "RunTaskValidator":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def pids(self) -> list[int]:
        """Processes of tasks that run now."""
        with self._lock:
            return [each.process.pid for each in self._running.values() if each.process.poll() is None]

    def answer(self, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """ECS's answer to a call: HTTP status and content."""
        operation = headers.get("X-Amz-Target", "").removeprefix(_TARGET)
        try:
            with self._lock:
                if operation == "RunTask":
                    return 200, json.dumps(self._run_task(headers, json.loads(body))).encode()
                if operation == "StopTask":
                    self._stop_task(json.loads(body))
                if operation == "DescribeTasks" and len(json.loads(body).get("tasks", [])) > MAX_DESCRIBED:
                    raise RefusedError(
                        "InvalidParameterException", f"Tasks cannot have more than {MAX_DESCRIBED} items."
                    )
            status, answer = self._forward(headers, body)
            if operation in ("DescribeTasks", "StopTask") and status == 200:
                with self._lock:
                    answer = self._patched(answer)
        except RefusedError as refused:
            return 400, json.dumps({"__type": refused.code, "message": str(refused)}).encode()
        return status, answer

    def metadata(self, path: str) -> dict[str, Any] | None:
        """What ECS's metadata endpoint, version 4, answers a task's container of itself or, at `/task`, of its task."""
        key, _, of = path.removeprefix(_METADATA).partition("/")
        with self._lock:
            arn = next((arn for arn in self._running if _task_id(arn) == key), None)
            if arn is None or not path.startswith(_METADATA) or of not in ("", "task"):
                return None
            running = self._running[arn]
        container = next(each for each in running.task["containers"] if each["name"] == running.container)
        if not of:
            return {"DockerId": f"{key}-0", "DockerName": running.container, "ContainerARN": container["containerArn"]}
        family, _, revision = running.task["taskDefinitionArn"].rpartition("/")[2].partition(":")
        return {
            "Cluster": running.task["clusterArn"],
            "TaskARN": arn,
            "Family": family,
            "Revision": revision,
            "LaunchType": running.task.get("launchType", "FARGATE"),
        }

    def _forward(self, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        kept = {name: value for name, value in headers.items() if name.lower() not in ("host", "content-length")}
        request = urllib.request.Request(self.upstream, data=body, headers=kept, method="POST")  # noqa: S310 - loopback
        try:
            with urllib.request.urlopen(request, timeout=_FORWARD_SECONDS) as response:  # noqa: S310
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def _called(self, headers: Mapping[str, str], operation: str, **request: Any) -> dict[str, Any]:
        changed = {**headers, "X-Amz-Target": f"{_TARGET}{operation}"}
        status, answer = self._forward(changed, json.dumps(request).encode())
        read: dict[str, Any] = json.loads(answer)
        if status != 200:
            raise RefusedError(read.get("__type", "ClientException"), read.get("message", ""))
        return read

    def _run_task(self, headers: Mapping[str, str], request: dict[str, Any]) -> dict[str, Any]:
        token = request.get("clientToken", "")
        described = self._called(headers, "DescribeTaskDefinition", taskDefinition=request["taskDefinition"])
        definition = described["taskDefinition"]
        _validate(request, definition)
        same = json.dumps({name: value for name, value in request.items() if name != "clientToken"}, sort_keys=True)
        if token in self._tokens:
            parameters, known = self._tokens[token]
            if parameters != same:
                raise RefusedError(
                    "ConflictException", "The RunTask request could not be processed due to conflicts: the client "
                    "token was used with other parameters."
                )  # fmt: skip
            return known
        count = request.get("count", 1)
        self._spend(count)
        if (full := self._no_room()) is not None:
            return {"tasks": [], "failures": [{"reason": full}]}
        status, raw = self._forward(headers, json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(raw)
        if status != 200:
            raise RefusedError(answer.get("__type", "ClientException"), answer.get("message", ""))
        container, environment = self._environment_of(request, definition)
        for task in answer["tasks"]:
            where = {"ECS_CONTAINER_METADATA_URI_V4": f"{self.url}{_METADATA}{_task_id(task['taskArn'])}"}
            self._start(task, container, environment | where)
        self.launched[token] = self.launched.get(token, 0) + len(answer["tasks"])
        if token:
            self._tokens[token] = (same, answer)
        return answer

    def _spend(self, launches: int) -> None:
        """A bucket of 100 launches, refilled with 20 a second."""
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._filled) * LAUNCHES_PER_SECOND)
        self._filled = now
        if self._allowance < launches:
            raise RefusedError("ThrottlingException", "Rate exceeded")
        self._allowance -= launches

    def _no_room(self) -> str | None:
        """Why there is no capacity for a task; None where there is."""
        return None

    def _environment_of(self, request: Mapping[str, Any], definition: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        """The overridden container, or the only one, and what it is given."""
        overridden = request.get("overrides", {}).get("containerOverrides", [])
        first = (overridden or definition["containerDefinitions"])[0]["name"]
        environment = dict(os.environ)
        for containers, more in ((definition["containerDefinitions"], self.environment), (overridden, {})):
            for container in containers:
                if container["name"] == first:
                    environment |= {each["name"]: each["value"] for each in container.get("environment", [])}
            environment |= more
        return first, environment

    def _start(self, task: Mapping[str, Any], container: str, environment: Mapping[str, str]) -> None:
        arn = task["taskArn"]
        name = os.devnull if self.logs is None else str(self.logs / f"{_task_id(arn)}.log")
        with Path(name).open("ab") as log:
            process = subprocess.Popen(
                list(self.command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running[arn] = _Running(task, container, process, time.time(), self._stop_code())

    def _stop_code(self) -> str:
        """With what a task ends whose process ends by itself."""
        return "EssentialContainerExited"

    def _stop_task(self, request: Mapping[str, Any]) -> None:
        running = self._running.get(request["task"])
        if running is None or running.process.poll() is not None:
            return
        running.stop_code, running.stopped_reason = "UserInitiated", request.get("reason", "")
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()

    def _patched(self, raw: bytes) -> bytes:
        answer = json.loads(raw)
        for task in [*answer.get("tasks", []), *([answer["task"]] if "task" in answer else [])]:
            self._patch(task)
        return json.dumps(answer).encode()

    def _patch(self, task: dict[str, Any]) -> None:
        """Tell of a task what its process is."""
        running = self._running.get(task["taskArn"])
        if running is None:
            return
        code = running.process.poll()
        task["startedAt"] = running.started
        task["lastStatus"] = "RUNNING" if code is None else "STOPPED"
        task["stopCode"] = task["stoppedReason"] = ""
        if code is not None:
            running.stopped = running.stopped or datetime.now(UTC).timestamp()
            task |= {"stopCode": running.stop_code, "stoppedReason": running.stopped_reason}
            task["stoppedAt"] = running.stopped
            for container in task["containers"]:
                container |= {"lastStatus": "STOPPED", "exitCode": code if code >= 0 else 128 - code}


def _task_id(arn: str) -> str:
    return arn.rpartition("/")[2]


def override_characters(overrides: Mapping[str, Any]) -> int:
    """What ECS counts: the overrides' JSON."""
    return len(json.dumps(overrides))


def _validate(request: Mapping[str, Any], definition: Mapping[str, Any]) -> None:
    def refuse(message: str) -> None:
        raise RefusedError("InvalidParameterException", message)

    if not 1 <= request.get("count", 1) <= MAX_COUNT:
        refuse(f"Count must be between 1 and {MAX_COUNT}.")
    if not _TOKEN.fullmatch(request.get("clientToken", "")):
        refuse("Client token must be at most 64 characters in the range of 33-126.")
    if not _STARTED_BY.fullmatch(request.get("startedBy", "")):
        refuse("startedBy must be at most 128 letters, numbers, hyphens, slashes and underscores.")
    if len(request.get("tags", [])) > MAX_TAGS:
        refuse(f"Tags can not have more than {MAX_TAGS} items.")
    _validate_launch_type(request, definition, refuse)
    overrides = request.get("overrides", {})
    if override_characters(overrides) > MAX_OVERRIDE_CHARACTERS:
        refuse(f"Container Overrides length must be at most {MAX_OVERRIDE_CHARACTERS}")
    names = {container["name"] for container in definition["containerDefinitions"]}
    for container in overrides.get("containerOverrides", []):
        if container.get("name") not in names:
            refuse(f"Override for container named {container.get('name')} is not a container in the TaskDefinition.")
    network = request.get("networkConfiguration", {}).get("awsvpcConfiguration", {})
    if definition.get("networkMode") == "awsvpc" and not network.get("subnets"):
        refuse("Network Configuration must be provided when networkMode 'awsvpc' is specified.")
    if len(network.get("subnets", [])) > MAX_SUBNETS:
        refuse(f"subnets can have at most {MAX_SUBNETS} items.")
    if len(network.get("securityGroups", [])) > MAX_SECURITY_GROUPS:
        refuse(f"securityGroups can have at most {MAX_SECURITY_GROUPS} items.")


def _validate_launch_type(
    request: Mapping[str, Any], definition: Mapping[str, Any], refuse: Callable[[str], None]
) -> None:
    launch_type = request.get("launchType")
    if launch_type and request.get("capacityProviderStrategy"):
        refuse("Specifying both a launch type and capacity provider strategy is not supported.")
    if launch_type and launch_type not in (definition.get("requiresCompatibilities") or [launch_type]):
        refuse(f"Task definition does not support launch_type {launch_type}.")
