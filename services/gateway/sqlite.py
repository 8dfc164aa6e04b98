"""The embedded store: everything the gateway keeps, in one SQLite file that several gateways may share."""

import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from services.domain.alert import Alert, AlertChange, AlertChangeKind, AlertEvent
from services.domain.errors import ConflictError
from services.domain.quote import CANARY_TAPE, Series
from services.domain.score import RecordedQuote, ScoredQuote
from services.domain.typology import Typology
from services.gateway.ports import AlertQuery, AlertWrite, Archived, DetectionQuery, Page, Position, QuoteQuery
from services.gateway.sqlite_schema import SCHEMA, VERSION
from services.runtime.embedded_database import EmbeddedDatabase
from services.wire.alert import alert_from_proto, alert_to_proto, event_from_proto, event_to_proto
from services.wire.quote import quote_from_proto, quote_to_proto
from services.wire.score import score_from_proto, score_to_proto
from tapewatch.gateway.v1 import alert_pb2
from tapewatch.market.v1 import quote_pb2
from tapewatch.scorer.v1 import score_pb2

_QUOTE_COLUMNS = "sequence, quote, score, record_time, record_count, mismatch_count, alert_id"
_IDENTITY = "tape = ? AND symbol = ? AND event_time = ? AND source = ? AND interval_seconds = ? AND revision = ?"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_Identity = tuple[str, str, int, str, int, int]


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _identity(item: ScoredQuote) -> _Identity:
    quote = item.quote
    time = _microseconds(quote.event_time)
    return quote.tape, quote.symbol, time, quote.source, quote.interval_seconds, quote.revision


def _parse_quote_id(quote_id: str) -> _Identity | None:
    """The parts of a quote_id; None when it is none."""
    parts = quote_id.split("/")
    if len(parts) != 6 or not parts[3].endswith("s"):
        return None
    try:
        event_time = datetime.fromisoformat(parts[4])
        if event_time.tzinfo is None:
            return None
        identity = parts[0], parts[2], _microseconds(event_time), parts[1], int(parts[3][:-1]), int(parts[5])
    except ValueError:
        return None
    return identity if max(identity[4:]) < 2**63 else None


def _recorded(row: Sequence[Any]) -> RecordedQuote:
    sequence, quote, score, record_time, record_count, mismatch_count, alert_id = row
    return RecordedQuote(
        scored=ScoredQuote(
            quote_from_proto(quote_pb2.Quote.FromString(quote)), score_from_proto(score_pb2.Score.FromString(score))
        ),
        record_time=_moment(record_time),
        sequence=sequence,
        record_count=record_count,
        mismatch_count=mismatch_count,
        alert_id=alert_id,
    )


def _alert(blob: bytes) -> Alert:
    return alert_from_proto(alert_pb2.Alert.FromString(blob))


def _page(rows: Sequence[Any], limit: int, key_columns: int) -> tuple[Sequence[Any], Position | None]:
    """The rows of a page of which `limit` + 1 were asked for, and its position: the last row's leading columns."""
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], tuple(rows[limit - 1][:key_columns])


class SqliteStore:
    """A `Store` in the file at `path`, made when missing.

    Raises:
        NotConfiguredError: The file cannot be made, written or understood.
        DependencyUnavailableError: Another process has it locked.
    """

    store_id: str

    def __init__(
        self, path: Path, *, synchronous: Literal["normal", "full"] = "normal", busy_seconds: float = 5.0
    ) -> None:
        self._database = EmbeddedDatabase(
            path,
            SCHEMA,
            VERSION,
            subject="the store",
            setting="STORE_PATH",
            synchronous=synchronous,
            busy_seconds=busy_seconds,
        )
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO identity SELECT ? WHERE NOT EXISTS (SELECT 1 FROM identity)", (uuid.uuid4().hex,)
            )
            (self.store_id,) = connection.execute("SELECT store_id FROM identity").fetchone()

    def put_scores(self, items: Sequence[ScoredQuote], now: datetime) -> list[RecordedQuote | None]:
        """Keep the absent items in one transaction."""
        prepared = [_Row(item, "") for item in items]  # before the transaction, so that it is short
        with self._database.transaction() as connection:
            sequence = _last(connection, "quotes")
            results: list[RecordedQuote | None] = []
            for row in prepared:
                existing = None if row.insert(connection, sequence + 1, now) else _repeat(connection, row.item)
                sequence += existing is None
                results.append(existing)
            kept = [item for item, existing in zip(items, results, strict=True) if existing is None]
            _advance_cursors(connection, kept)
        return results

    def commit_detection(self, item: ScoredQuote, write: AlertWrite, now: datetime) -> RecordedQuote | None:
        """Keep a detection with its alert in one transaction."""
        row = _Row(item, write.alert.alert_id)
        with self._database.transaction() as connection:
            if not row.insert(connection, _last(connection, "quotes") + 1, now):
                return _repeat(connection, item)
            latest = _latest_alert(connection, item.quote.series, item.score.typology)
            if _version(latest) != _version(write.expected):
                raise ConflictError(f"the latest alert of {item.quote.series.key} is another one by now")
            _advance_cursors(connection, [item])
            _write_alert(connection, write, now)
        return None

    def commit_triage(self, write: AlertWrite, now: datetime) -> None:
        """Keep an alert's next version in one transaction."""
        with self._database.transaction() as connection:
            if _version(_get_alert(connection, write.alert.alert_id)) != _version(write.expected):
                raise ConflictError(f"alert {write.alert.alert_id} has another version by now")
            _write_alert(connection, write, now)

    def get_quote(self, quote_id: str) -> RecordedQuote | None:
        """By the parts of its id."""
        identity = _parse_quote_id(quote_id)
        if identity is None:
            return None
        with self._database.reading() as connection:
            found = _find(connection, identity)
        return found if found is not None and found.scored.quote.quote_id == quote_id else None

    def get_detection(self, quote_id: str) -> RecordedQuote | None:
        """By the parts of its id."""
        found = self.get_quote(quote_id)
        return found if found is not None and found.alert_id else None

    def cursors(self, series: Sequence[Series]) -> list[datetime | None]:
        """By the series' key."""
        with self._database.reading() as connection:
            rows = [
                connection.execute("SELECT event_time FROM cursors WHERE series = ?", (each.key,)).fetchone()
                for each in series
            ]
        return [None if row is None else _moment(row[0]) for row in rows]

    def list_quotes(self, query: QuoteQuery, limit: int, after: Position | None) -> Page[RecordedQuote]:
        """In the order of quotes_by_identity."""
        where = _Where()
        where.add("tape = ?", query.tape)
        where.add_if("symbol = ?", query.symbol)
        where.add_if("source = ?", query.source)
        where.add_if("interval_seconds = ?", query.interval_seconds)
        where.add_times(query.start_time, query.end_time)
        keys = ("symbol", "event_time", "source", "interval_seconds", "revision")
        if after is not None:
            sign = "<" if query.descending else ">"
            where.add(f"({', '.join(keys)}) {sign} (?, ?, ?, ?, ?)", *after)
        direction = "DESC" if query.descending else "ASC"
        order = ", ".join(f"{key} {direction}" for key in keys)
        sql = f"SELECT {', '.join(keys)}, {_QUOTE_COLUMNS} FROM quotes {where} ORDER BY {order} LIMIT ?"  # noqa: S608
        with self._database.reading() as connection:
            found = connection.execute(sql, (*where.values, limit + 1)).fetchall()
        rows, following = _page(found, limit, len(keys))
        return Page([_recorded(row[len(keys) :]) for row in rows], following)

    def list_detections(self, query: DetectionQuery, limit: int, after: Position | None) -> Page[RecordedQuote]:
        """In the order of detections_by_time or detections_by_alert."""
        where = _Where()
        where.add("alert_id <> ''")
        where.add_if("alert_id = ?", query.alert_id)
        if query.tape or not query.alert_id:
            where.add_tape(query.tape)
        where.add_if("symbol = ?", query.symbol)
        where.add_if("typology = ?", query.typology.value)
        where.add_times(query.start_time, query.end_time)
        if after is not None:
            where.add("(event_time, sequence) < (?, ?)", *after)
        index = "detections_by_alert" if query.alert_id else "detections_by_time"
        sql = (
            f"SELECT event_time, sequence, {_QUOTE_COLUMNS} FROM quotes INDEXED BY {index} {where}"  # noqa: S608
            " ORDER BY event_time DESC, sequence DESC LIMIT ?"
        )
        with self._database.reading() as connection:
            found = connection.execute(sql, (*where.values, limit + 1)).fetchall()
        rows, following = _page(found, limit, 2)
        return Page([_recorded(row[2:]) for row in rows], following)

    def get_alert(self, alert_id: str) -> Alert | None:
        """By its id."""
        with self._database.reading() as connection:
            return _get_alert(connection, alert_id)

    def latest_alert(self, series: Series, typology: Typology) -> Alert | None:
        """In the order of alerts_by_series."""
        with self._database.reading() as connection:
            return _latest_alert(connection, series, typology)

    def list_alerts(self, query: AlertQuery, limit: int, after: Position | None) -> Page[Alert]:
        """In the order of alerts_by_change."""
        where = _Where()
        where.add("peak_score >= ?", query.min_peak_score)
        where.add_tape(query.tape)
        where.add_any("symbol", query.symbols)
        where.add_any("typology", [typology.value for typology in query.typologies])
        where.add_any("state", [state.value for state in query.states])
        if after is not None:
            where.add("last_change < ?", *after)
        sql = f"SELECT last_change, alert FROM alerts {where} ORDER BY last_change DESC LIMIT ?"  # noqa: S608
        with self._database.reading() as connection:
            found = connection.execute(sql, (*where.values, limit + 1)).fetchall()
        rows, following = _page(found, limit, 1)
        return Page([_alert(blob) for _, blob in rows], following)

    def list_alert_events(self, alert_id: str, limit: int, after: Position | None) -> Page[AlertEvent]:
        """In the order of changes_by_alert."""
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT sequence, event FROM changes WHERE alert_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
                (alert_id, after[0] if after else 0, limit + 1),
            ).fetchall()
        rows, following = _page(found, limit, 1)
        return Page([event_from_proto(alert_pb2.AlertEvent.FromString(blob)) for _, blob in rows], following)

    def changes_after(self, sequence: int, limit: int) -> list[AlertChange]:
        """In the order of their sequence."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT sequence, kind, alert, change_time, quote_id FROM changes WHERE sequence > ?"
                " ORDER BY sequence LIMIT ?",
                (sequence, limit),
            ).fetchall()
        return [
            AlertChange(number, AlertChangeKind(kind), _alert(alert), _moment(change_time), quote_id)
            for number, kind, alert, change_time, quote_id in rows
        ]

    def last_change(self) -> int:
        """The changes are never deleted."""
        with self._database.reading() as connection:
            return _last(connection, "changes")

    def check(self) -> None:
        """That the file can be written."""
        self._database.check_writable()

    def quotes_after(self, sequence: int, limit: int) -> list[RecordedQuote]:
        """In the order of their sequence."""
        sql = f"SELECT {_QUOTE_COLUMNS} FROM quotes WHERE sequence > ? ORDER BY sequence LIMIT ?"  # noqa: S608
        with self._database.reading() as connection:
            rows = connection.execute(sql, (sequence, limit)).fetchall()
        return [_recorded(row) for row in rows]

    def last_quote(self) -> int:
        """The quotes are never deleted."""
        with self._database.reading() as connection:
            return _last(connection, "quotes")

    def archived(self, stream: str) -> Archived:
        """Nothing, for a stream that no part was begun of."""
        with self._database.reading() as connection:
            return _archived(connection, stream)

    def begin_part(self, stream: str, after: int, last: int) -> None:
        """Compare and set."""
        with self._database.transaction() as connection:
            if _archived(connection, stream) != Archived(after, None):
                raise ConflictError(f"another writer archives {stream}")
            connection.execute("INSERT OR REPLACE INTO archived VALUES (?, ?, ?)", (stream, after, last))

    def end_part(self, stream: str, last: int) -> None:
        """Compare and set."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE archived SET last = ?, pending = NULL WHERE stream = ? AND pending = ?", (last, stream, last)
            )

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class _Row:
    """A scored quote as its row, serialised."""

    def __init__(self, item: ScoredQuote, alert_id: str) -> None:
        self.item = item
        self._identity = _identity(item)
        self._quote = quote_to_proto(item.quote).SerializeToString()
        self._score = score_to_proto(item.score).SerializeToString()
        self._alert_id = alert_id

    def insert(self, connection: sqlite3.Connection, sequence: int, now: datetime) -> bool:
        """Insert it unless its quote is there; whether it was inserted."""
        added = connection.execute(
            "INSERT INTO quotes (sequence, tape, symbol, event_time, source, interval_seconds, revision, quote, score,"
            " record_time, typology, alert_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (tape, symbol, event_time, source, interval_seconds, revision) DO NOTHING",
            (
                sequence,
                *self._identity,
                self._quote,
                self._score,
                _microseconds(now),
                self.item.score.typology.value,
                self._alert_id,
            ),
        )
        return added.rowcount == 1


class _Where:
    """Conditions and their values."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self.values: list[object] = []

    def add(self, condition: str, *values: object) -> None:
        self._conditions.append(condition)
        self.values += values

    def add_if(self, condition: str, value: str | int) -> None:
        if value:
            self.add(condition, value)

    def add_tape(self, tape: str) -> None:
        """The tape; without one, all but canaries."""
        if tape:
            self.add("tape = ?", tape)
        else:
            self.add("tape <> ?", CANARY_TAPE)

    def add_any(self, column: str, values: Sequence[object]) -> None:
        if values:
            self.add(f"{column} IN ({', '.join('?' * len(values))})", *values)

    def add_times(self, start_time: datetime | None, end_time: datetime | None) -> None:
        if start_time is not None:
            self.add("event_time >= ?", _microseconds(start_time))
        if end_time is not None:
            self.add("event_time < ?", _microseconds(end_time))

    def __str__(self) -> str:
        return f"WHERE {' AND '.join(self._conditions)}"


def _last(connection: sqlite3.Connection, table: Literal["quotes", "changes"]) -> int:
    (last,) = connection.execute(f"SELECT coalesce(max(sequence), 0) FROM {table}").fetchone()  # noqa: S608
    return int(last)


def _find(connection: sqlite3.Connection, identity: _Identity) -> RecordedQuote | None:
    sql = f"SELECT {_QUOTE_COLUMNS} FROM quotes WHERE {_IDENTITY}"  # noqa: S608
    row = connection.execute(sql, identity).fetchone()
    return None if row is None else _recorded(row)


def _repeat(connection: sqlite3.Connection, item: ScoredQuote) -> RecordedQuote:
    """Count a score that came again; what is kept of its quote."""
    found = _find(connection, _identity(item))
    if found is None:  # its insertion just met it
        raise AssertionError(item.quote.quote_id)
    differs = not found.scored.score.same_as(item.score)
    connection.execute(
        "UPDATE quotes SET record_count = record_count + 1, mismatch_count = mismatch_count + ? WHERE sequence = ?",
        (differs, found.sequence),
    )
    return replace(
        found, record_count=found.record_count + 1, mismatch_count=found.mismatch_count + (1 if differs else 0)
    )


def _advance_cursors(connection: sqlite3.Connection, items: Iterable[ScoredQuote]) -> None:
    newest: dict[str, int] = {}
    for item in items:
        time = _microseconds(item.quote.event_time)
        newest[item.quote.series.key] = max(time, newest.get(item.quote.series.key, time))
    connection.executemany(
        "INSERT INTO cursors VALUES (?, ?)"
        " ON CONFLICT (series) DO UPDATE SET event_time = max(event_time, excluded.event_time)",
        newest.items(),
    )


def _version(alert: Alert | None) -> tuple[str, int] | None:
    return None if alert is None else (alert.alert_id, alert.version)


def _get_alert(connection: sqlite3.Connection, alert_id: str) -> Alert | None:
    row = connection.execute("SELECT alert FROM alerts WHERE alert_id = ?", (alert_id,)).fetchone()
    return None if row is None else _alert(row[0])


def _latest_alert(connection: sqlite3.Connection, series: Series, typology: Typology) -> Alert | None:
    row = connection.execute(
        "SELECT alert FROM alerts"
        " WHERE tape = ? AND symbol = ? AND source = ? AND interval_seconds = ? AND typology = ?"
        " ORDER BY last_event_time DESC, number DESC LIMIT 1",
        (series.tape, series.symbol, series.source, series.interval_seconds, typology.value),
    ).fetchone()
    return None if row is None else _alert(row[0])


def _write_alert(connection: sqlite3.Connection, write: AlertWrite, now: datetime) -> None:
    alert = write.alert
    blob = alert_to_proto(alert).SerializeToString()
    sequence = _last(connection, "changes") + 1
    event = event_to_proto(replace(write.event, sequence=sequence)).SerializeToString()
    connection.execute(
        "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?)",
        (sequence, alert.alert_id, write.event.kind.value, write.event.quote_id, _microseconds(now), blob, event),
    )
    connection.execute(
        "INSERT INTO alerts (alert_id, tape, symbol, source, interval_seconds, typology, state, last_event_time,"
        " peak_score, version, last_change, alert) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (alert_id) DO UPDATE SET state = excluded.state, last_event_time = excluded.last_event_time,"
        " peak_score = excluded.peak_score, version = excluded.version, last_change = excluded.last_change,"
        " alert = excluded.alert",
        (
            alert.alert_id,
            alert.tape,
            alert.symbol,
            alert.source,
            alert.interval_seconds,
            alert.typology.value,
            alert.state.value,
            _microseconds(alert.last_event_time),
            alert.peak_score,
            alert.version,
            sequence,
            blob,
        ),
    )


def _archived(connection: sqlite3.Connection, stream: str) -> Archived:
    row = connection.execute("SELECT last, pending FROM archived WHERE stream = ?", (stream,)).fetchone()
    return Archived(0, None) if row is None else Archived(*row)
