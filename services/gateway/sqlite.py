"""The embedded store: one SQLite file, shared by as many gateways as there are on the machine."""

import sqlite3
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from services.domain.alert import Alert, AlertChange, AlertChangeKind, AlertEvent, AlertState, Disposition
from services.domain.errors import ConflictError
from services.domain.quote import Series
from services.domain.score import RecordedQuote, ScoredQuote
from services.domain.typology import Typology
from services.gateway.ports import AlertQuery, AlertWrite, DetectionQuery, Item, Page, Position, QuoteQuery
from services.runtime.embedded_database import EmbeddedDatabase
from services.wire.alert import alert_from_proto, alert_to_proto
from services.wire.quote import quote_from_proto, quote_to_proto
from services.wire.score import score_from_proto, score_to_proto
from tapewatch.gateway.v1 import alert_pb2
from tapewatch.market.v1 import quote_pb2
from tapewatch.scorer.v1 import score_pb2

_VERSION = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_IN_CHUNK = 500

_SCHEMA = """
CREATE TABLE quotes (
    sequence INTEGER PRIMARY KEY,
    quote_id TEXT NOT NULL UNIQUE,
    tape TEXT NOT NULL,
    symbol TEXT NOT NULL,
    source TEXT NOT NULL,
    interval_seconds INTEGER NOT NULL,
    event_time INTEGER NOT NULL,
    record_time INTEGER NOT NULL,
    record_count INTEGER NOT NULL DEFAULT 1,
    mismatch_count INTEGER NOT NULL DEFAULT 0,
    typology INTEGER NOT NULL,
    alert_id TEXT NOT NULL,
    quote BLOB NOT NULL,
    score BLOB NOT NULL
);
CREATE INDEX quotes_by_time ON quotes (tape, symbol, event_time, sequence);
CREATE INDEX quotes_by_series ON quotes (tape, symbol, source, interval_seconds, event_time);
CREATE INDEX detections_by_time ON quotes (event_time, sequence) WHERE alert_id != '';
CREATE INDEX detections_by_alert ON quotes (alert_id, event_time, sequence) WHERE alert_id != '';

CREATE TABLE alerts (
    alert_id TEXT PRIMARY KEY,
    tape TEXT NOT NULL,
    symbol TEXT NOT NULL,
    source TEXT NOT NULL,
    interval_seconds INTEGER NOT NULL,
    typology INTEGER NOT NULL,
    state INTEGER NOT NULL,
    peak_score REAL NOT NULL,
    last_event_time INTEGER NOT NULL,
    version INTEGER NOT NULL,
    last_change INTEGER NOT NULL UNIQUE,
    alert BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX alerts_by_series ON alerts (tape, symbol, source, interval_seconds, typology, last_event_time);

-- The change log, each entry with the audit event that explains it.
CREATE TABLE changes (
    sequence INTEGER PRIMARY KEY,
    alert_id TEXT NOT NULL,
    kind INTEGER NOT NULL,
    change_time INTEGER NOT NULL,
    quote_id TEXT NOT NULL,
    alert BLOB NOT NULL,
    actor TEXT NOT NULL,
    from_state INTEGER,
    to_state INTEGER NOT NULL,
    disposition INTEGER NOT NULL,
    assignee TEXT NOT NULL,
    comment TEXT NOT NULL
);
CREATE INDEX changes_by_alert ON changes (alert_id, sequence);

CREATE TABLE archived (stream TEXT PRIMARY KEY, last INTEGER NOT NULL, writing INTEGER) WITHOUT ROWID;
CREATE TABLE identity (store_id TEXT NOT NULL)
"""

_QUOTE_COLUMNS = "sequence, record_time, record_count, mismatch_count, alert_id, quote, score"


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND


def _recorded(row: Sequence[Any]) -> RecordedQuote:
    sequence, record_time, record_count, mismatch_count, alert_id, quote, score = row
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


class _Where:
    """Conditions with their values, joined by AND."""

    def __init__(self) -> None:
        self._conditions = ["1"]
        self.values: list[Any] = []

    def add(self, condition: str, *values: Any) -> None:
        self._conditions.append(condition)
        self.values += values

    def add_any(self, column: str, values: Sequence[Any]) -> None:
        if values:
            self.add(f"{column} IN ({', '.join('?' * len(values))})", *values)

    def __str__(self) -> str:
        return " AND ".join(self._conditions)


def _page(rows: list[Any], limit: int, make: Callable[[Any], Item], position: Callable[[Any], Position]) -> Page[Item]:
    """A page of `limit` rows; `rows` has one more when there is a next page."""
    more = len(rows) > limit
    rows = rows[:limit]
    return Page([make(row) for row in rows], position(rows[-1]) if more else None)


class SqliteStore:
    """A `Store` in the file at `path`."""

    def __init__(self, path: Path, *, synchronous: str = "normal", busy_seconds: float = 5.0) -> None:
        self._database = EmbeddedDatabase(
            path,
            _SCHEMA,
            _VERSION,
            subject="the store",
            setting="STORE_PATH",
            synchronous=synchronous,
            busy_seconds=busy_seconds,
        )
        with self._database.transaction() as connection:
            row = connection.execute("SELECT store_id FROM identity").fetchone()
            if row is None:
                row = (uuid.uuid4().hex,)
                connection.execute("INSERT INTO identity VALUES (?)", row)
        self.store_id: str = row[0]

    def put_scores(self, items: Sequence[ScoredQuote], now: datetime) -> list[RecordedQuote | None]:
        """Keep what is absent, count what is repeated."""
        with self._database.transaction() as connection:
            known = _known(connection, [item.quote.quote_id for item in items])
            results: list[RecordedQuote | None] = []
            fresh: list[ScoredQuote] = []
            for item in items:
                existing = known.get(item.quote.quote_id)
                results.append(existing)
                if existing is None:
                    fresh.append(item)
                    continue
                differs = not existing.scored.score.same_as(item.score)
                connection.execute(
                    "UPDATE quotes SET record_count = record_count + 1, mismatch_count = mismatch_count + ?"
                    " WHERE sequence = ?",
                    (differs, existing.sequence),
                )
            _insert_quotes(connection, fresh, now, alert_id="")
        return results

    def commit_detection(self, item: ScoredQuote, write: AlertWrite, now: datetime) -> None:
        """One transaction for the detection, its alert and the change."""
        with self._database.transaction() as connection:
            if _known(connection, [item.quote.quote_id]):
                raise ConflictError(f"{item.quote.quote_id} is recorded already")
            _insert_quotes(connection, [item], now, alert_id=write.alert.alert_id)
            _write_alert(connection, write, now)

    def commit_triage(self, write: AlertWrite, now: datetime) -> None:
        """One transaction for the alert and the change."""
        with self._database.transaction() as connection:
            _write_alert(connection, write, now)

    def get_quote(self, quote_id: str) -> RecordedQuote | None:
        """What is kept of a quote."""
        with self._database.reading() as connection:
            return _known(connection, [quote_id]).get(quote_id)

    def cursor(self, series: Series) -> datetime | None:
        """event_time of the series' newest quote."""
        with self._database.reading() as connection:
            (newest,) = connection.execute(
                "SELECT max(event_time) FROM quotes"
                " WHERE tape = ? AND symbol = ? AND source = ? AND interval_seconds = ?",
                (series.tape, series.symbol, series.source, series.interval_seconds),
            ).fetchone()
        return None if newest is None else _moment(newest)

    def list_quotes(self, query: QuoteQuery, limit: int, after: Position | None) -> Page[RecordedQuote]:
        """A page by symbol and time."""
        where = _Where()
        where.add("tape = ?", query.tape)
        if query.symbol:
            where.add("symbol = ?", query.symbol)
        if query.source:
            where.add("source = ?", query.source)
        if query.interval_seconds:
            where.add("interval_seconds = ?", query.interval_seconds)
        if query.start_time is not None:
            where.add("event_time >= ?", _microseconds(query.start_time))
        if query.end_time is not None:
            where.add("event_time < ?", _microseconds(query.end_time))
        order, beyond = ("DESC", "<") if query.descending else ("ASC", ">")
        if after is not None:
            where.add(f"(symbol, event_time, sequence) {beyond} (?, ?, ?)", *after)
        rows = self._select(
            f"SELECT {_QUOTE_COLUMNS}, symbol, event_time FROM quotes WHERE {where}"  # noqa: S608
            f" ORDER BY symbol {order}, event_time {order}, sequence {order} LIMIT ?",
            (*where.values, limit + 1),
        )
        return _page(rows, limit, lambda row: _recorded(row[:-2]), lambda row: (row[-2], row[-1], row[0]))

    def list_detections(self, query: DetectionQuery, limit: int, after: Position | None) -> Page[RecordedQuote]:
        """A page, newest event first."""
        where = _Where()
        where.add("alert_id != ''")
        for column, value in (("tape", query.tape), ("symbol", query.symbol), ("alert_id", query.alert_id)):
            if value:
                where.add(f"{column} = ?", value)
        if query.typology is not Typology.UNSPECIFIED:
            where.add("typology = ?", query.typology.value)
        if query.start_time is not None:
            where.add("event_time >= ?", _microseconds(query.start_time))
        if query.end_time is not None:
            where.add("event_time < ?", _microseconds(query.end_time))
        if after is not None:
            where.add("(event_time, sequence) < (?, ?)", *after)
        rows = self._select(
            f"SELECT {_QUOTE_COLUMNS}, event_time FROM quotes WHERE {where}"  # noqa: S608
            " ORDER BY event_time DESC, sequence DESC LIMIT ?",
            (*where.values, limit + 1),
        )
        return _page(rows, limit, lambda row: _recorded(row[:-1]), lambda row: (row[-1], row[0]))

    def get_alert(self, alert_id: str) -> Alert | None:
        """An alert."""
        rows = self._select("SELECT alert FROM alerts WHERE alert_id = ?", (alert_id,))
        return _alert(rows[0][0]) if rows else None

    def latest_alert(self, series: Series, typology: Typology) -> Alert | None:
        """The series' alert of that typology with the newest detection."""
        rows = self._select(
            "SELECT alert FROM alerts WHERE tape = ? AND symbol = ? AND source = ? AND interval_seconds = ?"
            " AND typology = ? ORDER BY last_event_time DESC LIMIT 1",
            (series.tape, series.symbol, series.source, series.interval_seconds, typology.value),
        )
        return _alert(rows[0][0]) if rows else None

    def list_alerts(self, query: AlertQuery, limit: int, after: Position | None) -> Page[Alert]:
        """A page, newest change first."""
        where = _Where()
        where.add("peak_score >= ?", query.min_peak_score)
        if query.tape:
            where.add("tape = ?", query.tape)
        where.add_any("symbol", query.symbols)
        where.add_any("typology", [typology.value for typology in query.typologies])
        where.add_any("state", [state.value for state in query.states])
        if after is not None:
            where.add("last_change < ?", *after)
        rows = self._select(
            f"SELECT alert, last_change FROM alerts WHERE {where} ORDER BY last_change DESC LIMIT ?",  # noqa: S608
            (*where.values, limit + 1),
        )
        return _page(rows, limit, lambda row: _alert(row[0]), lambda row: (row[1],))

    def list_alert_events(self, alert_id: str, limit: int, after: Position | None) -> Page[AlertEvent]:
        """A page, oldest first."""
        rows = self._select(
            "SELECT sequence, alert_id, kind, actor, from_state, to_state, disposition, assignee, comment, quote_id,"
            " change_time FROM changes WHERE alert_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (alert_id, after[0] if after else 0, limit + 1),
        )
        return _page(rows, limit, _event, lambda row: (row[0],))

    def changes_after(self, sequence: int, limit: int) -> list[AlertChange]:
        """The change log's next entries."""
        rows = self._select(
            "SELECT sequence, kind, alert, change_time, quote_id FROM changes WHERE sequence > ?"
            " ORDER BY sequence LIMIT ?",
            (sequence, limit),
        )
        return [
            AlertChange(number, AlertChangeKind(kind), _alert(alert), _moment(change_time), quote_id)
            for number, kind, alert, change_time, quote_id in rows
        ]

    def last_change(self) -> int:
        """The change log's last sequence."""
        return int(self._select("SELECT coalesce(max(sequence), 0) FROM changes", ())[0][0])

    def quotes_after(self, sequence: int, limit: int) -> list[RecordedQuote]:
        """The next quotes in the order of recording."""
        rows = self._select(
            f"SELECT {_QUOTE_COLUMNS} FROM quotes WHERE sequence > ? ORDER BY sequence LIMIT ?",  # noqa: S608
            (sequence, limit),
        )
        return [_recorded(row) for row in rows]

    def archived(self, stream: str) -> tuple[int, int | None]:
        """How far a stream is in the lake."""
        rows = self._select("SELECT last, writing FROM archived WHERE stream = ?", (stream,))
        return (rows[0][0], rows[0][1]) if rows else (0, None)

    def begin_part(self, stream: str, last: int) -> None:
        """Note the part being written."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO archived VALUES (?, 0, ?) ON CONFLICT (stream) DO UPDATE SET writing = excluded.writing",
                (stream, last),
            )

    def end_part(self, stream: str, last: int) -> None:
        """Note the part written."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE archived SET last = ?, writing = NULL WHERE stream = ?", (last, stream))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _select(self, statement: str, values: Sequence[Any]) -> list[Any]:
        with self._database.reading() as connection:
            return connection.execute(statement, values).fetchall()


def _event(row: Sequence[Any]) -> AlertEvent:
    sequence, alert_id, kind, actor, from_state, to_state, disposition, assignee, comment, quote_id, moment = row
    return AlertEvent(
        sequence=sequence,
        alert_id=alert_id,
        kind=AlertChangeKind(kind),
        actor=actor,
        from_state=None if from_state is None else AlertState(from_state),
        to_state=AlertState(to_state),
        disposition=Disposition(disposition),
        assignee=assignee,
        comment=comment,
        quote_id=quote_id,
        event_time=_moment(moment),
    )


def _known(connection: sqlite3.Connection, quote_ids: Sequence[str]) -> dict[str, RecordedQuote]:
    found = {}
    for start in range(0, len(quote_ids), _IN_CHUNK):
        chunk = quote_ids[start : start + _IN_CHUNK]
        marks = ", ".join("?" * len(chunk))
        statement = f"SELECT {_QUOTE_COLUMNS} FROM quotes WHERE quote_id IN ({marks})"  # noqa: S608
        for row in connection.execute(statement, chunk):
            recorded = _recorded(row)
            found[recorded.scored.quote.quote_id] = recorded
    return found


def _insert_quotes(connection: sqlite3.Connection, items: Iterable[ScoredQuote], now: datetime, alert_id: str) -> None:
    (last,) = connection.execute("SELECT coalesce(max(sequence), 0) FROM quotes").fetchone()
    connection.executemany(
        "INSERT INTO quotes (sequence, quote_id, tape, symbol, source, interval_seconds, event_time, record_time,"
        " typology, alert_id, quote, score) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                sequence,
                item.quote.quote_id,
                item.quote.tape,
                item.quote.symbol,
                item.quote.source,
                item.quote.interval_seconds,
                _microseconds(item.quote.event_time),
                _microseconds(now),
                item.score.typology.value,
                alert_id,
                quote_to_proto(item.quote).SerializeToString(),
                score_to_proto(item.score).SerializeToString(),
            )
            for sequence, item in enumerate(items, last + 1)
        ),
    )


def _write_alert(connection: sqlite3.Connection, write: AlertWrite, now: datetime) -> None:
    alert, event = write.alert, write.event
    (last,) = connection.execute("SELECT coalesce(max(sequence), 0) FROM changes").fetchone()
    sequence = last + 1
    blob = alert_to_proto(alert).SerializeToString()
    last_event_time = _microseconds(alert.last_event_time)
    if write.expected_version is None:
        done = connection.execute(
            "INSERT INTO alerts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                alert.alert_id,
                alert.tape,
                alert.symbol,
                alert.source,
                alert.interval_seconds,
                alert.typology.value,
                alert.state.value,
                alert.peak_score,
                last_event_time,
                alert.version,
                sequence,
                blob,
            ),
        )
    else:
        done = connection.execute(
            "UPDATE alerts SET state = ?, peak_score = ?, last_event_time = ?, version = ?, last_change = ?, alert = ?"
            " WHERE alert_id = ? AND version = ?",
            (
                alert.state.value,
                alert.peak_score,
                last_event_time,
                alert.version,
                sequence,
                blob,
                alert.alert_id,
                write.expected_version,
            ),
        )
    if done.rowcount != 1:
        raise ConflictError(f"{alert.alert_id} changed meanwhile")
    connection.execute(
        "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            sequence,
            alert.alert_id,
            event.kind.value,
            _microseconds(now),
            event.quote_id,
            blob,
            event.actor,
            None if event.from_state is None else event.from_state.value,
            event.to_state.value,
            event.disposition.value,
            event.assignee,
            event.comment,
        ),
    )
