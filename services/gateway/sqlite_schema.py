"""The embedded store's tables. Times are microseconds since 1970 in UTC; blobs are serialised protos."""

VERSION = 1
SCHEMA = """
-- A quote with its first score. A detection has an alert_id.
CREATE TABLE quotes (
    sequence INTEGER PRIMARY KEY,
    tape TEXT NOT NULL,
    symbol TEXT NOT NULL,
    event_time INTEGER NOT NULL,
    source TEXT NOT NULL,
    interval_seconds INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    quote BLOB NOT NULL,
    score BLOB NOT NULL,
    record_time INTEGER NOT NULL,
    record_count INTEGER NOT NULL DEFAULT 1,
    mismatch_count INTEGER NOT NULL DEFAULT 0,
    typology INTEGER NOT NULL,
    alert_id TEXT NOT NULL
);
CREATE UNIQUE INDEX quotes_by_identity ON quotes (tape, symbol, event_time, source, interval_seconds, revision);
CREATE INDEX detections_by_time ON quotes (event_time) WHERE alert_id <> '';
CREATE INDEX detections_by_alert ON quotes (alert_id, event_time) WHERE alert_id <> '';

-- How far each series has been recorded.
CREATE TABLE cursors (series TEXT PRIMARY KEY, event_time INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE alerts (
    number INTEGER PRIMARY KEY,
    alert_id TEXT NOT NULL UNIQUE,
    tape TEXT NOT NULL,
    symbol TEXT NOT NULL,
    source TEXT NOT NULL,
    interval_seconds INTEGER NOT NULL,
    typology INTEGER NOT NULL,
    state INTEGER NOT NULL,
    last_event_time INTEGER NOT NULL,
    peak_score REAL NOT NULL,
    version INTEGER NOT NULL,
    last_change INTEGER NOT NULL,
    alert BLOB NOT NULL
);
CREATE INDEX alerts_by_series ON alerts (tape, symbol, source, interval_seconds, typology, last_event_time);
CREATE INDEX alerts_by_change ON alerts (last_change);

-- The change log: the alert after each change, and the audit event that explains it.
CREATE TABLE changes (
    sequence INTEGER PRIMARY KEY,
    alert_id TEXT NOT NULL,
    kind INTEGER NOT NULL,
    quote_id TEXT NOT NULL,
    change_time INTEGER NOT NULL,
    alert BLOB NOT NULL,
    event BLOB NOT NULL
);
CREATE INDEX changes_by_alert ON changes (alert_id, sequence);

-- How far each stream is in the lake, and the end of the part being written.
CREATE TABLE archived (stream TEXT PRIMARY KEY, last INTEGER NOT NULL, pending INTEGER) WITHOUT ROWID;
CREATE TABLE identity (store_id TEXT NOT NULL)
"""
