"""The mesh on one machine: every service a process of its own, started, watched, restarted and stopped from here."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.cli.settings import MeshSettings
from services.domain.errors import DependencyUnavailableError
from services.runtime.exit_codes import EXIT_MISCONFIGURED
from services.runtime.health import address_serving

_log = logging.getLogger(__name__)
PROCESSES_FILE = "processes.json"
TASK_BATCH_SIZE = "1000"
"""Messages in a task's batch, unless DISPATCH_BATCH_SIZE says otherwise: a task takes about a second to start."""

_POLL_SECONDS = 0.1
_LOG_BYTES = 10 * 1024 * 1024
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_LONGEST_RESTART_PAUSE_SECONDS = 5.0
_HEALTHY_SECONDS = 10.0
_RESTARTS_TO_GIVE_UP = 5
"""So often in a row a service is started again that has served before and now says that it cannot run: what it needs
may be away for the moment."""


@dataclass(slots=True)
class Process:
    """One service's process. `restarts` counts how often it had to be started again, `end` is what it last ended with.

    `setting` is the environment variable that `address` comes from.
    """

    name: str
    command: Sequence[str]
    address: str
    setting: str
    environment: Mapping[str, str]
    log: Path
    popen: "subprocess.Popen[bytes] | None" = None
    restarts: int = 0
    end: str = ""
    quick_failures: int = 0
    started: float = 0.0
    start_again_at: float = field(default=0.0)

    def start(self) -> None:
        """Start it in a session of its own: Ctrl-C reaches the command only, which stops the mesh in order."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "services.cli.main", *self.command],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.popen is not None and self.popen.poll() is None

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else "nothing in its log"


class MeshFailedError(DependencyUnavailableError):
    """A service cannot run; the message is its own last words. Its log is named unless it was not started.

    It is retryable where the service was too slow, and not where somebody must mend what the message names.
    """

    def __init__(self, process: Process, detail: str, *, started: bool = True, retryable: bool = False) -> None:
        super().__init__(process.name, f"{detail} (log: {process.log})" if started else detail)
        self.retryable = retryable


def _in_use(process: Process) -> str:
    return f"{process.address} is in use; stop what listens there, or set {process.setting} to another address"


def _processes(
    settings: MeshSettings, scorers: int, ingest: Mapping[str, str], dispatch: Mapping[str, str], mode: str
) -> list[Process]:
    """In mode `task` no scorer is running: one is launched for each batch."""
    folder = settings.tapewatch_dir.resolve()
    pool = settings.pool(scorers)
    dispatch = {**dispatch, "DISPATCH_MODE": mode}
    if mode == "task":
        dispatch |= {"DISPATCH_BATCH_SIZE": os.environ.get("DISPATCH_BATCH_SIZE", TASK_BATCH_SIZE)}
    shared = {
        "QUEUE_PATH": str(folder / "queue.db"),
        "STORE_PATH": str(folder / "store.db"),
        "INGEST_PATH": str(folder / "ingest.db"),
        "LAKE_URI": str(folder / "lake"),
        "LEDGER_PATH": str(folder / "ledger.db"),
        "BATCHES_URI": str(folder / "lake" / "batches"),
        "TASKS_PATH": str(folder / "tasks"),
        "THRESHOLD_DIR": str(folder),
    }
    shared = {name: os.environ.get(name, value) for name, value in shared.items()} | {
        "INGEST_ADDRESS": settings.ingest_address,
        "GATEWAY_ADDRESS": settings.gateway_address,
        "SCORER_ADDRESSES": ",".join(pool),
        "EXIT_WITH_PARENT": str(os.getpid()),
    }

    def process(name: str, service: str, address: str, extra: Mapping[str, str] | None = None) -> Process:
        host, _, port = address.rpartition(":")
        environment = {**shared, "GRPC_HOST": host, "GRPC_PORT": port, **(extra or {})}
        setting = "SCORER_ADDRESSES" if service == "scorer" else f"{service.upper()}_ADDRESS"
        return Process(name, (service, "serve"), address, setting, environment, folder / "logs" / f"{name}.log")

    many = len(pool) > 1
    running = () if mode == "task" else enumerate(pool, 1)
    return [
        process("gateway", "gateway", settings.gateway_address),
        *(process(f"scorer-{i}" if many else "scorer", "scorer", address) for i, address in running),
        process("dispatch", "dispatch", settings.dispatch_address, dispatch),
        process("ingest", "ingest", settings.ingest_address, ingest),
    ]


class Mesh:
    """All processes, in the order in which they are started; they are stopped in the opposite one."""

    def __init__(
        self,
        settings: MeshSettings,
        scorers: int = 1,
        ingest: Mapping[str, str] | None = None,
        canary_interval_seconds: float = 0.0,
        mode: str = "warm",
    ) -> None:
        self._settings = settings
        dispatch = {"CANARY_INTERVAL_SECONDS": str(canary_interval_seconds)}
        self.processes = _processes(settings, scorers, ingest or {}, dispatch, mode)
        self._watching: asyncio.Task[None] | None = None
        self._served = False
        self.failure: MeshFailedError | None = None

    async def start(self) -> None:
        """Start everything and wait until all are serving.

        Raises: MeshFailedError when one cannot run; the others are stopped by then.
        """
        for process in self.processes:
            if await self._occupied(process.address):
                raise MeshFailedError(process, _in_use(process), started=False)
        for process in self.processes:
            process.start()
        self._note_processes()
        self._watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait_for(asyncio.gather(*(self._ready(p) for p in self.processes)), _START_SECONDS)
        except (TimeoutError, MeshFailedError) as error:
            late = [p for p in self.processes if not await address_serving(p.address, self._settings, 1.0)]
            late = late or self.processes
            await self.stop()
            if isinstance(error, MeshFailedError):
                raise
            words = f"was not serving after {_START_SECONDS:.0f} s"
            raise MeshFailedError(late[0], words, retryable=True) from error
        self._served = True

    def _note_processes(self) -> None:
        """Keep names and process ids in the folder, for operators and for tests that kill."""
        pids = {p.name: p.popen.pid for p in self.processes if p.popen is not None}
        path = self._settings.tapewatch_dir / PROCESSES_FILE
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(pids))
        scratch.replace(path)

    async def _occupied(self, address: str) -> bool:
        host, _, port = address.rpartition(":")
        try:
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            return False
        writer.close()
        return True

    async def _ready(self, process: Process) -> None:
        while not await address_serving(process.address, self._settings, timeout_seconds=1.0):
            if self.failure is not None:
                raise self.failure
            await asyncio.sleep(_POLL_SECONDS)

    async def _watch(self) -> None:
        """Restart what dies, more slowly the faster it dies; give up on what cannot run as it is configured."""
        while True:
            for process in self.processes:
                if process.running:
                    continue
                now = time.monotonic()
                if process.start_again_at == 0.0:
                    code = process.popen.returncode if process.popen is not None else None
                    tries = _RESTARTS_TO_GIVE_UP if self._served else 0
                    if code == EXIT_MISCONFIGURED and process.quick_failures >= tries:
                        words = process.last_words()
                        if "GRPC_PORT" in words:  # another program was faster; the port comes from the address here
                            words = _in_use(process)
                        self.failure = MeshFailedError(process, words)
                        return
                    process.end = process.last_words()
                    quick = now - process.started < _HEALTHY_SECONDS
                    process.quick_failures = process.quick_failures + 1 if quick else 0
                    pause = min(_LONGEST_RESTART_PAUSE_SECONDS, 0.1 * 2**process.quick_failures)
                    process.start_again_at = now + pause
                    _log.warning("%s ended with %s; starting it again", process.name, code)
                elif now >= process.start_again_at:
                    process.start_again_at = 0.0
                    process.restarts += 1
                    process.start()
                    self._note_processes()
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self) -> None:
        """Stop everything, sources first, so that each drains into what is still there. Harmless when repeated."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        for process in reversed(self.processes):
            if not process.running:
                continue
            assert process.popen is not None
            process.popen.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.popen.wait, _STOP_SECONDS)
            except subprocess.TimeoutExpired:
                _log.warning("%s did not end in %.0f s: killed", process.name, _STOP_SECONDS)
                process.popen.kill()
                await asyncio.to_thread(process.popen.wait)
