"""The DynamoDB table's keys and items. docs/data-model.md explains them; blobs are serialised protos.

Sort keys compare as text, so times are ISO 8601 with six digits and numbers have leading zeros. `#` separates parts: it
sorts below every character of a symbol, a source or an interval.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from services.domain.alert import Alert, AlertChange, AlertChangeKind, AlertEvent
from services.domain.quote import Series
from services.domain.score import RecordedQuote, ScoredQuote
from services.domain.typology import Typology
from services.gateway.ports import AlertWrite
from services.runtime.dynamodb_table import EXPIRES, Item, key
from services.wire.alert import alert_from_proto, alert_to_proto, event_from_proto, event_to_proto
from services.wire.quote import quote_from_proto, quote_to_proto
from services.wire.score import score_from_proto, score_to_proto
from tapewatch.gateway.v1 import alert_pb2
from tapewatch.market.v1 import quote_pb2
from tapewatch.scorer.v1 import score_pb2

QUOTES_LOG = "log#quotes"
CHANGES_LOG = "log#changes"
DETECTIONS = "detections"
MAX_BLOCK = 90
"""Quotes in one transaction: each is an item, beside a few others, and DynamoDB takes 100."""

ALERT_SORT = "alert"
EVENT_PREFIX = "event#"
DETECTION_PREFIX = "detection#"
STORE_KEY = key("head#store", "id")
LAST_QUOTE_KEY = key("head#quotes", "last")
LAST_CHANGE_KEY = key("head#changes", "last")
ABSENT = "attribute_not_exists(pk)"


def text(value: str) -> Item:
    """A string attribute."""
    return {"S": value}


def number(value: int) -> Item:
    """A number attribute."""
    return {"N": str(value)}


def time_key(moment: datetime) -> str:
    """A time as it sorts.

    >>> time_key(datetime(1970, 1, 1, tzinfo=UTC))
    '1970-01-01T00:00:00.000000Z'
    """
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def sequence_key(sequence: int) -> str:
    """A sequence as it sorts."""
    return f"{sequence:015d}"


def quotes_partition(series: Series) -> str:
    """Where a series' quotes are."""
    return f"quote#{series.key}"


def quote_sort(event_time: datetime, revision: int) -> str:
    """A quote's place in its series."""
    return f"{time_key(event_time)}#{revision:010d}"


def quote_key(item: ScoredQuote) -> Item:
    """A quote's key."""
    quote = item.quote
    return key(quotes_partition(quote.series), quote_sort(quote.event_time, quote.revision))


def parse_quote_id(quote_id: str) -> Item | None:
    """The key of the quote with that id; None when it is no id."""
    parts = quote_id.split("/")
    if len(parts) != 6 or not all(parts):
        return None
    try:
        event_time, revision = datetime.fromisoformat(parts[4]), int(parts[5])
    except ValueError:
        return None
    if event_time.tzinfo is None:
        return None
    return key(f"quote#{'/'.join(parts[:4])}", quote_sort(event_time, revision))


def series_item(series: Series) -> Item:
    """Notes that a tape has a series; ordered by symbol, then source, then interval."""
    sort = f"{series.symbol}#{series.source}#{series.interval_seconds:07d}"
    return key(f"tape#{series.tape}", sort)


def series_of(item: Item) -> Series:
    """The series that `series_item` noted."""
    symbol, source, interval = item["sk"]["S"].split("#")
    return Series(item["pk"]["S"].removeprefix("tape#"), source, symbol, int(interval))


def quote_item(item: ScoredQuote, sequence: int, alert_id: str, now: datetime, retention: timedelta | None) -> Item:
    """A quote with its score. Detections are kept for ever, others for as long as `retention` says."""
    made = quote_key(item) | {
        "sequence": number(sequence),
        "quote": {"B": quote_to_proto(item.quote).SerializeToString()},
        "score": {"B": score_to_proto(item.score).SerializeToString()},
        "recorded_at": text(time_key(now)),
        "record_count": number(1),
        "mismatch_count": number(0),
    }
    if alert_id:
        made["alert_id"] = text(alert_id)
    elif retention is not None:
        made[EXPIRES] = expiry(now, retention)
    return made


def expiry(now: datetime, retention: timedelta) -> Item:
    """When an item written now is to go: seconds since 1970, as DynamoDB's TTL wants it."""
    return number(int((now + retention).timestamp()))


def is_expired(item: Item, now: datetime) -> bool:
    """Whether the item's time is over. DynamoDB deletes such items within days."""
    return EXPIRES in item and int(item[EXPIRES]["N"]) <= now.timestamp()


def recorded_of(item: Item) -> RecordedQuote:
    """The quote that `quote_item` wrote."""
    return RecordedQuote(
        scored=ScoredQuote(
            quote_from_proto(quote_pb2.Quote.FromString(item["quote"]["B"])),
            score_from_proto(score_pb2.Score.FromString(item["score"]["B"])),
        ),
        record_time=datetime.fromisoformat(item["recorded_at"]["S"]),
        sequence=int(item["sequence"]["N"]),
        record_count=int(item["record_count"]["N"]),
        mismatch_count=int(item["mismatch_count"]["N"]),
        alert_id=item["alert_id"]["S"] if "alert_id" in item else "",
    )


def block_item(items: Sequence[ScoredQuote], first: int, now: datetime, retention: timedelta | None) -> Item:
    """The quotes of one transaction in the order of recording: `first` and the following sequences."""
    made = key(QUOTES_LOG, sequence_key(first)) | {"quote_ids": {"L": [text(item.quote.quote_id) for item in items]}}
    if retention is not None:
        made[EXPIRES] = expiry(now, retention)
    return made


def block_keys(item: Item) -> list[tuple[int, Item]]:
    """The sequences and keys of a block's quotes."""
    first = int(item["sk"]["S"])
    keys = [parse_quote_id(each["S"]) for each in item["quote_ids"]["L"]]
    return [(first + i, found) for i, found in enumerate(keys) if found is not None]


def alert_key(alert_id: str) -> Item:
    """An alert's key."""
    return key(f"alert#{alert_id}", ALERT_SORT)


def alert_item(alert: Alert, change: int) -> Item:
    """An alert as it is now, and its last change."""
    return alert_key(alert.alert_id) | {
        "version": number(alert.version),
        "change": number(change),
        "alert": {"B": alert_to_proto(alert).SerializeToString()},
    }


def alert_of(item: Item) -> Alert:
    """The alert of an alert's item or a change's."""
    return alert_from_proto(alert_pb2.Alert.FromString(item["alert"]["B"]))


def latest_key(series: Series, typology: Typology) -> Item:
    """Where a series' latest alert of a typology is named."""
    return key(f"latest#{series.key}", typology.name)


def change_item(write: AlertWrite, sequence: int, now: datetime) -> Item:
    """An entry of the change log; `is_current` marks the last change of each alert."""
    return key(CHANGES_LOG, sequence_key(sequence)) | {
        "kind": number(write.event.kind.value),
        "quote_id": text(write.event.quote_id),
        "changed_at": text(time_key(now)),
        "alert": {"B": alert_to_proto(write.alert).SerializeToString()},
        "is_current": {"BOOL": True},
    }


def change_of(item: Item) -> AlertChange:
    """The change that `change_item` wrote."""
    return AlertChange(
        sequence=int(item["sk"]["S"]),
        kind=AlertChangeKind(int(item["kind"]["N"])),
        alert=alert_of(item),
        change_time=datetime.fromisoformat(item["changed_at"]["S"]),
        quote_id=item["quote_id"]["S"],
    )


def event_item(write: AlertWrite, sequence: int) -> Item:
    """An entry of the alert's audit trail."""
    event = event_to_proto(replace(write.event, sequence=sequence)).SerializeToString()
    return key(f"alert#{write.alert.alert_id}", f"{EVENT_PREFIX}{sequence_key(sequence)}") | {"event": {"B": event}}


def event_of(item: Item) -> AlertEvent:
    """The event that `event_item` wrote."""
    return event_from_proto(alert_pb2.AlertEvent.FromString(item["event"]["B"]))


def detection_items(item: ScoredQuote, sequence: int, alert_id: str) -> list[Item]:
    """Where a detection is found: among all by time, and among its alert's by time."""
    quote = item.quote
    place = f"{time_key(quote.event_time)}#{sequence_key(sequence)}"
    found = {
        "quote_id": text(quote.quote_id),
        "tape": text(quote.tape),
        "symbol": text(quote.symbol),
        "typology": text(item.score.typology.name),
    }
    return [key(DETECTIONS, place) | found, key(f"alert#{alert_id}", f"{DETECTION_PREFIX}{place}") | found]
