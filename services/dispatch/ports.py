"""What task mode needs of the outside: something that launches tasks, and the ledger of their batches.

Adapters block; callers run them in threads. They are safe to call from several threads, and several dispatchers may
share what is behind them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final, Protocol

from services.dispatch.batch import Entry, NewBatch, TaskState

MAX_TOKEN_CHARACTERS: Final = 64
"""Of a launch's token, ECS's limit on a clientToken."""


class TaskPhase(IntEnum):
    """How far a launched task is."""

    STARTING = 1
    RUNNING = 2
    STOPPED = 3


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """A launched task.

    `exit_code` is None while it runs, when it never started, and when nobody saw it end; one killed by signal n has
    128 + n. `reason` is the launcher's, in words.
    """

    phase: TaskPhase
    start_time: datetime | None = None
    exit_code: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NoCapacity:
    """Nothing was launched, because there is no room for it now; why, in the launcher's words."""

    reason: str


class TaskLauncher(Protocol):
    """Launches one-shot scorers."""

    def launch(self, token: str, environment: Mapping[str, str]) -> str | NoCapacity:
        """Launch a task; its name, or that there is no room for it.

        The same token with the same environment launches nothing: it names the same task.

        Raises: ConflictError when the token was used with another environment; DependencyUnavailableError when the
        launcher throttles, or is away, so that nobody knows whether it launched; NotConfiguredError when it can launch
        nothing as it is.
        """
        ...

    def describe(self, tasks: Sequence[str]) -> dict[str, TaskStatus]:
        """How the tasks are; one that is no longer known is absent. Raises: DependencyUnavailableError."""
        ...

    def stop(self, task: str, reason: str) -> None:
        """End a task at once; one that is gone is none. Raises: DependencyUnavailableError."""
        ...

    def close(self) -> None:
        """Release what is held. Calling it twice is harmless."""
        ...


class Ledger(Protocol):
    """Which batches are open, in lanes.

    Every method raises DependencyUnavailableError when the ledger is away or busy.
    """

    def enter(self, batch: NewBatch, now: datetime) -> Entry:
        """Put the batch at the end of its lanes; durable on return. An equal one that is open stays as it is."""
        ...

    def open(self) -> list[Entry]:
        """All open batches, oldest first."""
        ...

    def update(self, entry: Entry) -> Entry:
        """Keep the changed entry; one that is no longer open leaves its lanes. Returns it with its new version.

        Raises: ConflictError when it changed since it was read.
        """
        ...

    def update_together(self, entries: Sequence[Entry]) -> list[Entry]:
        """Keep all of the changed entries or none; up to MAX_TASK_BATCHES, which stay open.

        Raises: ConflictError when one of them changed since it was read.
        """
        ...

    def claim(self, entries: Sequence[Entry], limit: int) -> list[Entry] | None:
        """Keep all of the changed entries, which are about to share a task, unless `limit` tasks are there: None then.

        However many dispatchers claim at once, never more than `limit` succeed.

        Raises: ConflictError when one of them changed since it was read; then none is kept.
        """
        ...

    def get(self, entry_id: str) -> Entry | None:
        """The entry with that id, or None."""
        ...

    def list(self, limit: int, before: str = "", states: Collection[TaskState] = ()) -> "list[Entry]":
        """Up to `limit` entries, newest first, with ids below `before`; only these states when some are named."""
        ...

    def check(self) -> None:
        """Returns when the ledger can be written. Raises: DependencyUnavailableError, NotConfiguredError."""
        ...

    def close(self) -> None:
        """Release connections. Calling it twice is harmless."""
        ...
