"""The mesh as processes, started as a user starts it, on free loopback ports and in a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.servers.process import REPOSITORY as REPOSITORY
from tests.servers.process import free_ports

TAPEWATCH = (sys.executable, "-m", "services.cli.main")
AAPL_BARS = 3_270
"""Of the bundled tape."""


@dataclass
class Mesh:
    """A folder, addresses and an environment for `tapewatch` commands."""

    folder: Path
    scorers: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        ingest, dispatch, gateway, *scorers = free_ports(3 + self.scorers)
        self.ingest, self.dispatch, self.gateway = (f"127.0.0.1:{port}" for port in (ingest, dispatch, gateway))
        self.pool = [f"127.0.0.1:{port}" for port in scorers]
        self.environment = {
            **os.environ,
            "TAPEWATCH_DIR": str(self.folder),
            "INGEST_ADDRESS": self.ingest,
            "DISPATCH_ADDRESS": self.dispatch,
            "GATEWAY_ADDRESS": self.gateway,
            "SCORER_ADDRESSES": ",".join(self.pool),
            "COLUMNS": "200",
            **self.environment,
        }

    @property
    def scorer(self) -> str:
        return self.pool[0]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*TAPEWATCH, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
        )
        self.started.append(process)
        return process

    def command(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*TAPEWATCH, *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=REPOSITORY,
        )

    def pids(self) -> dict[str, int]:
        try:
            return dict(json.loads((self.folder / "processes.json").read_text()))
        except FileNotFoundError:
            return {}

    def wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
            time.sleep(0.02)

    def kill_at_work(self, name: str, in_flight: Callable[[], int]) -> int:
        """Kill a process of the mesh while messages are in flight; how many.

        It is stopped for each look, so that they are not done with before it is killed.
        """
        counts: list[int] = []

        def killed() -> bool:
            pid = self.pids()[name]
            os.kill(pid, signal.SIGSTOP)
            counts.append(in_flight())
            os.kill(pid, signal.SIGKILL if counts[-1] > 0 else signal.SIGCONT)
            return counts[-1] > 0

        self.wait_for(killed, 60, f"work in flight at {name}")
        return counts[-1]

    def wait_serving(self) -> None:
        for address in (self.gateway, *self.pool, self.dispatch, self.ingest):
            self.wait_for(lambda a=address: serving(a), 60, f"{address} serving")  # type: ignore[misc]

    def stop(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()


def serving(address: str, seconds: float = 2) -> bool:
    """Whether the server at `address` says so in time: what `tapewatch health` asks, without a process each time."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=seconds, wait_for_ready=True)  # type: ignore[attr-defined]
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def alive(pid: int) -> bool:
    """Whether a thread of it is left: a zombie with others beside it still holds files and ports."""
    process = Path(f"/proc/{pid}")
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(list((process / "task").iterdir())) > 1
    except (FileNotFoundError, ProcessLookupError):  # it ended, maybe between two looks
        return False
