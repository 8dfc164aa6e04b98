"""How far replays and sources got, in a SQLite file that survives `kill -9`."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from services.domain.quote import Series
from services.ingest.ports import Replay, ReplayState, replay_from_json, replay_to_json
from services.runtime.embedded_database import EmbeddedDatabase

_SCHEMA = """
CREATE TABLE replays (tape TEXT PRIMARY KEY, state INTEGER NOT NULL, replay TEXT NOT NULL);
CREATE TABLE positions (
    tape TEXT, source TEXT, symbol TEXT, interval_seconds INTEGER, event_time TEXT NOT NULL,
    PRIMARY KEY (tape, source, symbol, interval_seconds)
)
"""
_VERSION = 1


class SqliteProgress:
    """`Progress` in the file at `path`, made when missing.

    Raises: NotConfiguredError when the file cannot be made or written, DependencyUnavailableError when it is locked.
    """

    def __init__(self, path: Path) -> None:
        self._database = EmbeddedDatabase(path, _SCHEMA, _VERSION, subject="ingest's progress", setting="INGEST_PATH")

    def check(self) -> None:
        """That the file can be written."""
        self._database.check_writable()

    def save(self, replay: Replay) -> None:
        """Keep the replay as it is now."""
        text = json.dumps(replay_to_json(replay))
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO replays VALUES (?, ?, ?)", (replay.tape, replay.state, text))

    def find(self, tape: str) -> Replay | None:
        """The tape's replay, or None."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT replay FROM replays WHERE tape = ?", (tape,)).fetchone()
        return None if row is None else replay_from_json(json.loads(row[0]))

    def running(self) -> list[Replay]:
        """Replays that were running when last saved."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT replay FROM replays WHERE state = ? ORDER BY tape", (ReplayState.RUNNING,)
            ).fetchall()
        return [replay_from_json(json.loads(row[0])) for row in rows]

    def advance(self, event_times: Mapping[Series, datetime]) -> None:
        """Keep the newest published event_time of each series."""
        rows = [(s.tape, s.source, s.symbol, s.interval_seconds, t.isoformat()) for s, t in event_times.items()]
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?)", rows)

    def advanced(self) -> dict[Series, datetime]:
        """The newest published event_time of each series."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT * FROM positions").fetchall()
        return {Series(*key): datetime.fromisoformat(moment) for *key, moment in rows}

    def close(self) -> None:
        """Close the file. Calling it twice is harmless."""
        self._database.close()
