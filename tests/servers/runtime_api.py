"""Lambda's Runtime API on loopback, and a function under `awslambdaric` that asks it for work.

AWS documents the API as "Lambda runtime API", version 2018-06-01.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.servers.process import CREDENTIALS, INSTALLED, REGION, installed

_PREFIX = "/2018-06-01/runtime/"
_ARN = f"arn:aws:lambda:{REGION}:000000000000:function:dispatch"
_START_SECONDS = 120.0


class FunctionFailedError(Exception):
    """The function answered with an error, or not in time: Lambda's event source would send everything again."""


@dataclass
class Invocation:
    """An event under way. `answer` is what came back; `failed` says that it is an error."""

    event: dict[str, Any]
    seconds: float
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    began: float = 0.0
    ended: float = 0.0
    answer: Any = None
    failed: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # without it every warm call shows a false 44 ms
    wbufsize = -1
    server: "_Server"

    def do_GET(self) -> None:
        self.server.waiting.set()
        invocation = self.server.events.get()
        if invocation is None:
            self.close_connection = True
            return
        invocation.began = time.monotonic()
        self.server.under_way[invocation.request_id] = invocation
        body = json.dumps(invocation.event).encode()
        self._answer(
            200,
            body,
            {
                "Content-Type": "application/json",
                "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
                "Lambda-Runtime-Deadline-Ms": str(int((time.time() + invocation.seconds) * 1_000)),
                "Lambda-Runtime-Invoked-Function-Arn": _ARN,
                "Lambda-Runtime-Trace-Id": "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0",
            },
        )

    def do_POST(self) -> None:
        ended = time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"null")
        parts = self.path.removeprefix(_PREFIX).split("/")
        if parts[0] == "init":
            self.server.init_error = body
            self.server.waiting.set()
        else:
            invocation = self.server.under_way.pop(parts[1])
            invocation.answer, invocation.failed, invocation.ended = body, parts[2] == "error", ended
            invocation.done.set()
        self._answer(202, b"", {})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: queue.Queue[Invocation | None] = queue.Queue()
        self.under_way: dict[str, Invocation] = {}
        self.waiting = threading.Event()
        self.init_error: Any = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a killed function lets its connection go
            super().handle_error(request, client_address)


def runtime_python() -> Path:
    """The interpreter with awslambdaric and boto3, and nothing of this checkout."""
    installed(INSTALLED / "awslambdaric" / ".installed")
    return INSTALLED / "awslambdaric" / "bin" / "python"


class LambdaFunction:
    """One execution environment: a process of the function's zip.

    Args:
        code: The zip.
        handler: Its handler.
        environment: The function's variables.
        folder: Where the zip is unpacked and the log is kept.
    """

    def __init__(self, code: Path, handler: str, environment: Mapping[str, str], folder: Path) -> None:
        self._root = folder / "task"
        if not self._root.exists():
            with zipfile.ZipFile(code) as archive:
                archive.extractall(self._root)
        self._server = _Server()
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.log = folder / "function.log"
        self._handler = handler
        self._environment = {
            **CREDENTIALS,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self._root),
            "LAMBDA_TASK_ROOT": str(self._root),
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_address[1]}",
            "AWS_LAMBDA_FUNCTION_NAME": "dispatch",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.init_seconds = 0.0
        """From the process's start until it asks for its first event."""

    def __enter__(self) -> "LambdaFunction":
        self._thread.start()
        began = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(runtime_python()), "-m", "awslambdaric", self._handler],
                env=self._environment,
                cwd=self._root,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        ready = self._server.waiting.wait(_START_SECONDS)
        self.init_seconds = time.monotonic() - began
        if not ready or self._server.init_error is not None:
            self.__exit__()
            raise FunctionFailedError(f"{self._server.init_error}: {self.log.read_text()[-2_000:]}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._server.events.put(None)
        self._server.shutdown()
        self._server.server_close()

    def invoke(self, event: dict[str, Any], seconds: float = 30.0) -> Invocation:
        """Give it an event. Raises: FunctionFailedError for an error, or when it is not done in `seconds`."""
        invocation = Invocation(event, seconds)
        self._server.events.put(invocation)
        if not invocation.done.wait(seconds):
            raise FunctionFailedError(f"timed out after {seconds} s: {self.log.read_text()[-2_000:]}")
        if invocation.failed:
            raise FunctionFailedError(str(invocation.answer))
        return invocation
