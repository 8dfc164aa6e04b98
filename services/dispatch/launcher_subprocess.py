"""Tasks as processes on this machine: the container's own entry point, with the environment that ECS would give it.

Every launch has a record and a lock file, named by its token. The process inherits the lock, so it is held exactly as
long as the process lives, whatever became of the dispatcher: a new dispatcher neither takes a running task for a dead
one nor launches it twice.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.dispatch.ports import MAX_TOKEN_CHARACTERS, TaskPhase, TaskStatus
from services.domain.errors import ConflictError, DependencyUnavailableError, NotConfiguredError

RUN_ONCE = (sys.executable, "-m", "services.cli.main", "scorer", "run-once")
_WORK = ("CORRELATION_ID", "BATCH_SIZE", "BATCH_MARKET_DATA", "BATCH_MANIFEST_URI", "PROCESSING_MODE", "TRACEPARENT",
         "TRACESTATE")  # fmt: skip
"""What only the launch may set."""

_TOKEN = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_TOKEN_CHARACTERS}}}")
_KEPT_SECONDS = 24 * 3600.0
_log = logging.getLogger(__name__)


class SubprocessLauncher:
    """A `TaskLauncher` whose records and logs lie in `folder`.

    Args:
        folder: Where; made when missing. What is older than a day is removed.
        command: The task's program.
        environment: Added to this process's own; a launch's comes on top.

    Raises: NotConfiguredError when the folder cannot be written.
    """

    def __init__(
        self, folder: Path, command: Sequence[str] = RUN_ONCE, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._command = tuple(command)
        self._environment = {name: value for name, value in os.environ.items() if name not in _WORK}
        self._environment |= environment or {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_old()
        except OSError as error:
            raise NotConfiguredError(
                f"tasks cannot use {folder} ({error.strerror})", "set TASKS_PATH to a writable folder"
            ) from error

    def launch(self, token: str, environment: Mapping[str, str]) -> str:
        """Start the process, unless the token has been used; its name is the token."""
        if not _TOKEN.fullmatch(token):
            raise NotConfiguredError(
                f"no task may be named {token[:80]!r}", "name it by 1 to 64 letters, digits, _ . -"
            )
        with self._lock, self._translated(), self._open_lock(token) as lock:
            if (record := self._read(token)) is not None:
                if record["environment"] != dict(environment):
                    raise ConflictError(f"the token {token} was used with another environment")
                return token
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return token  # another dispatcher launches it at this moment
            record = {"environment": dict(environment), "launch_time": datetime.now(UTC).isoformat()}
            self._write(token, record)
            with self._path(token, ".log").open("ab") as log:
                child = subprocess.Popen(
                    self._command,
                    env=self._environment | dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock],
                    start_new_session=True,
                )
            self._children[token] = child
            self._write(token, record | {"pid": child.pid})
        return token

    def describe(self, tasks: Sequence[str]) -> dict[str, TaskStatus]:
        """By their locks: a held one runs. Who launched a task also knows how it ended."""
        with self._lock, self._translated():
            return {task: status for task in tasks if (status := self._describe(task)) is not None}

    def _describe(self, task: str) -> TaskStatus | None:
        child = self._children.get(task)
        code = None if child is None else child.poll()  # before the lock: an ended child has released it
        record = self._read(task) if _TOKEN.fullmatch(task) else None
        if record is None:
            return None
        started = datetime.fromisoformat(record["launch_time"])
        if code is not None:
            self._children.pop(task)
            record["exit_code"] = code if code >= 0 else 128 - code
            self._write(task, record)
        elif child is not None or self._running(task):
            return TaskStatus(TaskPhase.RUNNING, started)
        exit_code = record.get("exit_code")
        if "pid" not in record:
            return TaskStatus(TaskPhase.STOPPED, None, None, "the process never started")
        reason = "nobody saw how it ended" if exit_code is None else f"ended with exit code {exit_code}"
        return TaskStatus(TaskPhase.STOPPED, started, exit_code, reason)

    def stop(self, task: str, reason: str) -> None:
        """Kill the process."""
        with self._lock, self._translated():
            record = self._read(task) if _TOKEN.fullmatch(task) else None
            if record is None or "pid" not in record or not self._running(task):
                return
            _log.warning("task %s is killed: %s", task[:12], reason)
            with contextlib.suppress(ProcessLookupError):
                os.kill(record["pid"], signal.SIGKILL)
            if (child := self._children.get(task)) is not None:
                child.wait()

    def close(self) -> None:
        """Kill the processes that this launcher started: their batches stay open, and nothing is held against them."""
        with self._lock:
            for child in self._children.values():
                if child.poll() is None:
                    child.kill()
                    child.wait()
            self._children.clear()

    @contextlib.contextmanager
    def _translated(self) -> Any:
        try:
            yield
        except OSError as error:
            raise DependencyUnavailableError("task launcher", f"{self._command[0]}: {error.strerror}") from error

    def _path(self, token: str, suffix: str) -> Path:
        return self._folder / f"{token}{suffix}"

    @contextlib.contextmanager
    def _open_lock(self, token: str) -> Any:
        lock = os.open(self._path(token, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield lock
        finally:
            os.close(lock)

    def _running(self, token: str) -> bool:
        with self._open_lock(token) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def _read(self, token: str) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self._path(token, ".json").read_text())
        except FileNotFoundError:
            return None
        return record

    def _write(self, token: str, record: Mapping[str, Any]) -> None:
        scratch = self._path(token, ".tmp")
        scratch.write_text(json.dumps(record))
        scratch.replace(self._path(token, ".json"))

    def _remove_old(self) -> None:
        oldest = time.time() - _KEPT_SECONDS
        for path in self._folder.iterdir():
            if path.suffix in (".json", ".lock", ".log", ".tmp") and path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
