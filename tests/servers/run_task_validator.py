"""ECS in front of ministack: RunTask with AWS's real limits, and tasks that are real processes.

ministack keeps clusters, task definitions and tasks, but accepts what AWS refuses, ignores clientToken, and without
Docker its tasks run nothing. This proxy answers RunTask as AWS documents it (count, override characters, clientToken
and its idempotency, container names, awsvpc's subnets, launch rate), passes what is right on, and then runs `command`
with the environment that the container would have. DescribeTasks tells what became of the process.

Sources: Amazon ECS API reference, RunTask and "Ensuring idempotency"; Amazon ECS quotas, "Task launch rate".
"""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_COUNT = 10
MAX_OVERRIDE_CHARACTERS = 8_192
MAX_TOKEN_CHARACTERS = 64
LAUNCHES_PER_SECOND = 20.0
BURST = 100.0
TARGET = "AmazonEC2ContainerServiceV20141113."
NO_CAPACITY = "Capacity is unavailable at this time. Please try again later or in a different availability zone"


class RefusedError(Exception):
    """AWS's answer to a wrong call."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def override_characters(overrides: Mapping[str, Any]) -> int:
    """What ECS counts: the overrides' JSON."""
    return len(json.dumps(overrides))


@dataclass
class _Running:
    process: "subprocess.Popen[bytes]"
    started: float
    stop_code: str
    stopped_reason: str = "Essential container in task exited"
    stopped: float | None = None


@dataclass
class RunTaskValidator:
    """A proxy on a free loopback port; everything but ECS's task calls goes through to `upstream` unchanged.

    `no_capacity` and `throttled` make that many next launches fail as AWS does, and `never_starts` lets them stay in
    PROVISIONING; `stop_code` is what tasks end with by themselves. `launched` counts processes by token.
    """

    upstream: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    no_capacity: int = 0
    throttled: int = 0
    never_starts: int = 0
    stop_code: str = "EssentialContainerExited"
    launched: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[str, dict[str, Any]]] = {}
        self._running: dict[str, _Running] = {}
        self._stuck: set[str] = set()
        self._allowance, self._filled = BURST, time.monotonic()
        validator = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer = validator.answer(dict(self.headers), body)
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
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> "RunTaskValidator":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for running in self._running.values():
            if running.process.poll() is None:
                running.process.kill()
            running.process.wait()

    def pids(self) -> list[int]:
        """Processes of tasks that run now."""
        with self._lock:
            return [each.process.pid for each in self._running.values() if each.process.poll() is None]

    def answer(self, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        operation = headers.get("X-Amz-Target", "").removeprefix(TARGET)
        try:
            with self._lock:
                if operation == "RunTask":
                    return 200, json.dumps(self._run_task(headers, json.loads(body))).encode()
                if operation == "StopTask":
                    self._stop_task(json.loads(body))
            status, answer = self._forward(headers, body)
            if operation in ("DescribeTasks", "StopTask") and status == 200:
                with self._lock:
                    answer = self._patched(answer)
        except RefusedError as refused:
            return 400, json.dumps({"__type": refused.code, "message": str(refused)}).encode()
        return status, answer

    def _forward(self, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        kept = {name: value for name, value in headers.items() if name.lower() not in ("host", "content-length")}
        request = urllib.request.Request(self.upstream, data=body, headers=kept, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def _called(self, headers: Mapping[str, str], operation: str, **request: Any) -> dict[str, Any]:
        changed = {**headers, "X-Amz-Target": f"{TARGET}{operation}"}
        status, answer = self._forward(changed, json.dumps(request).encode())
        read: dict[str, Any] = json.loads(answer)
        if status != 200:
            raise RefusedError(read.get("__type", "ClientException"), read.get("message", ""))
        return read

    def _run_task(self, headers: Mapping[str, str], request: dict[str, Any]) -> dict[str, Any]:
        token = request.get("clientToken", "")
        self._validate(headers, request)
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
        if self.no_capacity > 0:
            self.no_capacity -= 1
            return {"tasks": [], "failures": [{"reason": NO_CAPACITY}]}
        status, raw = self._forward(headers, json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(raw)
        if status != 200:
            raise RefusedError(answer.get("__type", "ClientException"), answer.get("message", ""))
        for task in answer["tasks"]:
            self._start(task["taskArn"], request)
        self.launched[token] = self.launched.get(token, 0) + len(answer["tasks"])
        if token:
            self._tokens[token] = (same, answer)
        return answer

    def _validate(self, headers: Mapping[str, str], request: Mapping[str, Any]) -> None:
        def refuse(message: str) -> None:
            raise RefusedError("InvalidParameterException", message)

        count = request.get("count", 1)
        if not 1 <= count <= MAX_COUNT:
            refuse(f"Count must be between 1 and {MAX_COUNT}.")
        if len(request.get("clientToken", "")) > MAX_TOKEN_CHARACTERS:
            refuse(f"Client token must be at most {MAX_TOKEN_CHARACTERS} characters.")
        overrides = request.get("overrides", {})
        if override_characters(overrides) > MAX_OVERRIDE_CHARACTERS:
            refuse(f"Container Overrides length must be at most {MAX_OVERRIDE_CHARACTERS}")
        described = self._called(headers, "DescribeTaskDefinition", taskDefinition=request["taskDefinition"])
        definition = described["taskDefinition"]
        names = {container["name"] for container in definition["containerDefinitions"]}
        for container in overrides.get("containerOverrides", []):
            if container.get("name") not in names:
                refuse(
                    f"Override for container named {container.get('name')} is not a container in the TaskDefinition."
                )
        network = request.get("networkConfiguration", {}).get("awsvpcConfiguration", {})
        if definition.get("networkMode") == "awsvpc" and not network.get("subnets"):
            refuse("Network Configuration must be provided when networkMode 'awsvpc' is specified.")
        if len(network.get("subnets", [])) > 16:
            refuse("subnets can have at most 16 items.")

    def _spend(self, launches: int) -> None:
        """A bucket of 100 launches, refilled with 20 a second."""
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._filled) * LAUNCHES_PER_SECOND)
        self._filled = now
        if self.throttled > 0 or self._allowance < launches:
            self.throttled = max(0, self.throttled - 1)
            raise RefusedError("ThrottlingException", "Rate exceeded")
        self._allowance -= launches

    def _start(self, arn: str, request: Mapping[str, Any]) -> None:
        if self.never_starts > 0:
            self.never_starts -= 1
            self._stuck.add(arn)
            return
        environment = {**os.environ, **self.environment}
        for container in request.get("overrides", {}).get("containerOverrides", []):
            environment |= {each["name"]: each["value"] for each in container.get("environment", [])}
        process = subprocess.Popen(
            list(self.command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._running[arn] = _Running(process, time.time(), self.stop_code)

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
        arn = task["taskArn"]
        if arn in self._stuck:
            if task["lastStatus"] != "STOPPED":
                task["lastStatus"] = "PROVISIONING"
            task.pop("startedAt", None)
            return
        running = self._running.get(arn)
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
