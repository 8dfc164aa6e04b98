"""How far replays and sources got, in a SQLite file that survives `kill -9`."""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from services.domain.errors import DependencyUnavailableError, NotConfiguredError
from services.domain.quote import Series, format_time
from services.ingest.ports import Replay, ReplayState

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replays (tape TEXT PRIMARY KEY, state INTEGER NOT NULL, replay TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS positions (
    tape TEXT, source TEXT, symbol TEXT, interval_seconds INTEGER, event_time TEXT NOT NULL,
    PRIMARY KEY (tape, source, symbol, interval_seconds)
);
"""


class SqliteProgress:
    """`Progress` in the file at `path`, made when missing.

    Raises: NotConfiguredError when the file cannot be made or written, DependencyUnavailableError when it is locked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._translated(opening=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_SCHEMA)

    @contextmanager
    def _translated(self, *, opening: bool = False) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error):
                raise DependencyUnavailableError("ingest", f"{self._path} is locked by another process") from error
            if opening or "readonly" in str(error):
                raise NotConfiguredError(
                    f"{self._path} cannot be used ({error}); ingest's progress", "INGEST_PATH to a writable file"
                ) from error
            raise DependencyUnavailableError("ingest", f"{self._path}: {error}") from error

    def save(self, replay: Replay) -> None:
        """Keep the replay as it is now."""
        values = {name: getattr(replay, name) for name in Replay.__dataclass_fields__}
        for name in ("create_time", "update_time", "position"):
            values[name] = None if values[name] is None else format_time(values[name])
        with self._translated():
            self._connection.execute(
                "INSERT OR REPLACE INTO replays VALUES (?, ?, ?)", (replay.tape, replay.state, json.dumps(values))
            )

    def find(self, tape: str) -> Replay | None:
        """The tape's replay, or None."""
        with self._translated():
            row = self._connection.execute("SELECT replay FROM replays WHERE tape = ?", (tape,)).fetchone()
        return None if row is None else _replay(row[0])

    def running(self) -> list[Replay]:
        """Replays that were running when last saved."""
        with self._translated():
            rows = self._connection.execute(
                "SELECT replay FROM replays WHERE state = ? ORDER BY tape", (ReplayState.RUNNING,)
            ).fetchall()
        return [_replay(row[0]) for row in rows]

    def advance(self, event_times: Mapping[Series, datetime]) -> None:
        """Keep the newest published event_time of each series."""
        rows = [(s.tape, s.source, s.symbol, s.interval_seconds, t.isoformat()) for s, t in event_times.items()]
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?)", rows)
            self._connection.execute("COMMIT")

    def advanced(self) -> dict[Series, datetime]:
        """The newest published event_time of each series."""
        with self._translated():
            rows = self._connection.execute("SELECT * FROM positions").fetchall()
        return {Series(*key): datetime.fromisoformat(moment) for *key, moment in rows}

    def close(self) -> None:
        """Close the file. Calling it twice is harmless."""
        with self._lock:
            self._connection.close()


def _replay(text: str) -> Replay:
    values = json.loads(text)
    for name in ("create_time", "update_time", "position"):
        values[name] = None if values[name] is None else datetime.fromisoformat(values[name])
    values["symbols"] = tuple(values["symbols"])
    values["state"] = ReplayState(values["state"])
    return Replay(**values)
