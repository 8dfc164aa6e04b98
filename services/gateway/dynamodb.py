"""The store on DynamoDB: one table, every read by key or by the order of one partition, strongly consistent.

Quotes and changes are numbered without gaps by one counter item each, which every transaction that numbers something
sets from last to last + n under the condition that it still is last. Within a process writers take turns; between
gateways the condition decides, and the loser reads the counter and tries again.
"""

import heapq
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from services.domain.alert import Alert, AlertChange, AlertEvent
from services.domain.errors import ConflictError, DependencyUnavailableError
from services.domain.quote import Series
from services.domain.score import RecordedQuote, ScoredQuote
from services.domain.typology import Typology
from services.gateway import dynamodb_items as rows
from services.gateway.dax import DaxDetections
from services.gateway.dynamodb_items import ABSENT, number, text
from services.gateway.ports import AlertQuery, AlertWrite, Archived, DetectionQuery, Page, Position, QuoteQuery
from services.runtime.backoff import backoff_seconds
from services.runtime.dynamodb_table import (
    ConditionFailedError,
    DynamoDbTable,
    Item,
    check_write,
    key,
    put_write,
    update_write,
)

_ATTEMPTS = 40
_PAUSE_SECONDS = 0.008
_LONGEST_PAUSE_SECONDS = 0.256
_MOST_LISTED = 5_000
"""Items that one page of a list may look at; a page that found too little by then is short, and goes on later."""

_FAR_PAST, _FAR_FUTURE = "", "~"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class DynamoDbStore:
    """A `Store` in a table that exists.

    Args:
        table: The table.
        retention: How long quotes are kept that are no detections; None keeps them.
        clock: The present, for what has expired.
        cache: What detections are read through by key; closed with the store.

    Raises: NotConfiguredError or DependencyUnavailableError, naming table, region and permissions.
    """

    store_id: str

    def __init__(
        self,
        table: DynamoDbTable,
        retention: timedelta | None = None,
        clock: Callable[[], datetime] = _utc_now,
        cache: DaxDetections | None = None,
    ) -> None:
        self._table = table
        self._cache = cache
        self._retention = retention
        self._clock = clock
        self._turn = threading.Lock()
        self._last: dict[str, int] = {}
        self._known: set[Series] = set()
        self.store_id = self._identify()

    def _identify(self) -> str:
        if found := self._table.get(rows.STORE_KEY):
            return str(found["store_id"]["S"])
        with suppress(ConditionFailedError):  # another gateway named it just now
            self._table.transact([put_write(rows.STORE_KEY | {"store_id": text(uuid.uuid4().hex)}, ABSENT)])
        found = self._table.get(rows.STORE_KEY)
        if found is None:
            raise DependencyUnavailableError("store", f"{self._table.resource} does not keep what is written")
        return str(found["store_id"]["S"])

    def put_scores(self, items: Sequence[ScoredQuote], now: datetime) -> list[RecordedQuote | None]:
        """Keep the absent items, up to 90 in a transaction."""
        self._note_series(items)
        results: list[RecordedQuote | None] = [None] * len(items)
        pending = list(range(len(items)))
        attempt = 0
        while pending:
            block = pending[: rows.MAX_BLOCK]
            chosen = [items[i] for i in block]
            with self._turn:
                last = self._last_of(rows.LAST_QUOTE_KEY)
                writes = [self._quote_write(item, last + n, "", now) for n, item in enumerate(chosen, 1)]
                writes += self._log_writes(chosen, last, now)
                try:
                    self._table.transact(writes)
                except ConditionFailedError as error:
                    self._last.clear()
                    failed = error.failed
                else:
                    self._advance(rows.LAST_QUOTE_KEY, last + len(chosen))
                    pending = pending[len(block) :]
                    attempt = 0
                    continue
            there = [n for n in range(len(block)) if n in failed]
            if there:
                repeated = self._repeat([(chosen[n], failed[n]) for n in there])
                for n, existing in zip(there, repeated, strict=True):
                    results[block[n]] = existing
                gone = {block[n] for n in there}
                pending = [i for i in pending if i not in gone]
            else:
                attempt += 1
                self._pause(attempt)
        return results

    def commit_detection(self, item: ScoredQuote, write: AlertWrite, now: datetime) -> RecordedQuote | None:
        """Keep a detection with its alert, change and audit event in one transaction."""
        self._note_series([item])
        alert_id = write.alert.alert_id
        for attempt in itertools.count(1):
            with self._turn:
                last = self._last_of(rows.LAST_QUOTE_KEY)
                quote_writes = [self._quote_write(item, last + 1, alert_id, now), *self._log_writes([item], last, now)]
                change, alert_writes, demands = self._alert_writes(write, now)
                demands.append(_latest_write(item, write))
                index = [put_write(found) for found in rows.detection_items(item, last + 1, alert_id)]
                try:
                    self._table.transact([*quote_writes, *demands, *alert_writes, *index])
                except ConditionFailedError as error:
                    self._last.clear()
                    failed = error.failed
                else:
                    self._advance(rows.LAST_QUOTE_KEY, last + 1)
                    self._advance(rows.LAST_CHANGE_KEY, change)
                    return None
            if 0 in failed:
                return self._repeat([(item, failed[0])])[0]
            first = len(quote_writes)
            if any(first <= n < first + len(demands) for n in failed):
                raise ConflictError(f"the latest alert of {item.quote.series.key} is another one by now")
            self._pause(attempt)
        raise AssertionError

    def commit_triage(self, write: AlertWrite, now: datetime) -> None:
        """Keep an alert's next version, its change and its audit event in one transaction."""
        for attempt in itertools.count(1):
            with self._turn:
                change, writes, demands = self._alert_writes(write, now)
                try:
                    self._table.transact([*demands, *writes])
                except ConditionFailedError as error:
                    self._last.clear()
                    failed = error.failed
                else:
                    self._advance(rows.LAST_CHANGE_KEY, change)
                    return
            if any(n < len(demands) for n in failed):
                raise ConflictError(f"alert {write.alert.alert_id} has another version by now")
            self._pause(attempt)

    def get_quote(self, quote_id: str) -> RecordedQuote | None:
        """By the parts of its id."""
        quote_key = rows.parse_quote_id(quote_id)
        found = self._table.get(quote_key) if quote_key is not None else None
        if found is None or rows.is_expired(found, self._clock()):
            return None
        recorded = rows.recorded_of(found)
        return recorded if recorded.scored.quote.quote_id == quote_id else None

    def get_detection(self, quote_id: str) -> RecordedQuote | None:
        """From the cache where it has one, and from the table otherwise."""
        if self._cache is not None and (cached := self._cache.get(quote_id)) is not None:
            return cached
        found = self.get_quote(quote_id)
        return found if found is not None and found.alert_id else None

    def cursors(self, series: Sequence[Series]) -> list[datetime | None]:
        """From the newest item of each series' partition."""
        newest = self._table.newest([rows.quotes_partition(each) for each in series])
        return [None if item is None else rows.recorded_of(item).scored.quote.event_time for item in newest]

    def list_quotes(self, query: QuoteQuery, limit: int, after: Position | None) -> Page[RecordedQuote]:
        """The series of each symbol, merged."""
        found: list[RecordedQuote] = []
        for _, series in itertools.groupby(self._series(query, after), key=lambda each: each.symbol):
            sources = [self._quotes(each, query, limit, after) for each in series]
            found += itertools.islice(
                heapq.merge(*sources, key=_quote_place, reverse=query.descending), limit + 1 - len(found)
            )
            if len(found) > limit:
                return Page(found[:limit], _position(found[limit - 1]))
        return Page(found, None)

    def _series(self, query: QuoteQuery, after: Position | None) -> Iterator[Series]:
        """The tape's series that the query takes, by symbol, from the position's symbol on."""
        symbol = query.symbol or (str(after[0]) if after else "")
        last = f"{query.symbol}#~" if query.symbol else _FAR_FUTURE
        for page in self._table.query(f"tape#{query.tape}", first=f"{symbol}#", last=last):
            for item in page:
                series = rows.series_of(item)
                if (not query.source or series.source == query.source) and (
                    not query.interval_seconds or series.interval_seconds == query.interval_seconds
                ):
                    yield series

    def _quotes(self, series: Series, query: QuoteQuery, limit: int, after: Position | None) -> Iterator[RecordedQuote]:
        """One series' quotes that the query takes, after the position."""
        first = rows.time_key(query.start_time) if query.start_time else _FAR_PAST
        end = rows.time_key(query.end_time) if query.end_time else _FAR_FUTURE
        place = _place(after) if after is not None and after[0] == series.symbol else None
        if place is not None:
            bound = rows.time_key(place[0])
            first, end = (first, min(end, f"{bound}~")) if query.descending else (max(first, bound), end)
        now = self._clock()
        if first > end:
            return
        pages = self._table.query(
            rows.quotes_partition(series), first=first, last=end, descending=query.descending, page=limit + 1
        )
        for item in itertools.chain.from_iterable(pages):
            if rows.is_expired(item, now):
                continue
            recorded = rows.recorded_of(item)
            here = _quote_place(recorded)
            if place is not None and (here >= place if query.descending else here <= place):
                continue
            yield recorded

    def list_detections(self, query: DetectionQuery, limit: int, after: Position | None) -> Page[RecordedQuote]:
        """From the index of all detections by time, or from the alert's own."""
        prefix = rows.DETECTION_PREFIX if query.alert_id else ""
        partition = f"alert#{query.alert_id}" if query.alert_id else rows.DETECTIONS
        start = rows.time_key(query.start_time) if query.start_time else _FAR_PAST
        end = rows.time_key(query.end_time) if query.end_time else _FAR_FUTURE
        if start > end:
            return Page([], None)

        def wanted(item: Item) -> bool:
            return (
                query.takes_tape(item["tape"]["S"])
                and (not query.symbol or item["symbol"]["S"] == query.symbol)
                and (not query.typology or item["typology"]["S"] == query.typology.name)
            )

        chosen, following = self._page(partition, wanted, limit, after, prefix + start, prefix + end)
        keys = [rows.parse_quote_id(item["quote_id"]["S"]) for item in chosen]
        quotes = self._table.get_many([each for each in keys if each is not None])
        return Page([rows.recorded_of(item) for item in quotes if item is not None], following)

    def get_alert(self, alert_id: str) -> Alert | None:
        """By its id."""
        found = self._table.get(rows.alert_key(alert_id))
        return None if found is None else rows.alert_of(found)

    def latest_alert(self, series: Series, typology: Typology) -> Alert | None:
        """By the name that the series keeps of it."""
        found = self._table.get(rows.latest_key(series, typology))
        return None if found is None else self.get_alert(found["alert_id"]["S"])

    def list_alerts(self, query: AlertQuery, limit: int, after: Position | None) -> Page[Alert]:
        """From the change log, each alert at its last change."""

        def wanted(item: Item) -> bool:
            return "is_current" in item and query.matches(rows.alert_of(item))

        chosen, following = self._page(rows.CHANGES_LOG, wanted, limit, after)
        return Page([rows.alert_of(item) for item in chosen], following)

    def _page(
        self,
        partition: str,
        wanted: Callable[[Item], bool],
        limit: int,
        after: Position | None,
        first: str = "",
        last: str = "",
    ) -> tuple[list[Item], Position | None]:
        """Up to `limit` items, the highest sort key first, and where to go on."""
        chosen: list[Item] = []
        place = ""
        pages = self._table.query(
            partition, after=str(after[0]) if after else "", first=first, last=last, descending=True, page=limit + 1
        )
        for looked, item in enumerate(itertools.chain.from_iterable(pages)):
            if len(chosen) == limit or looked == _MOST_LISTED:
                return chosen, (place,)
            place = item["sk"]["S"]
            if wanted(item):
                chosen.append(item)
        return chosen, None

    def list_alert_events(self, alert_id: str, limit: int, after: Position | None) -> Page[AlertEvent]:
        """From the alert's partition."""
        pages = self._table.query(
            f"alert#{alert_id}",
            after=str(after[0]) if after else "",
            first=rows.EVENT_PREFIX,
            last=f"{rows.EVENT_PREFIX}~",
            page=limit + 1,
        )
        found = list(itertools.islice(itertools.chain.from_iterable(pages), limit + 1))
        following = (found[limit - 1]["sk"]["S"],) if len(found) > limit else None
        return Page([rows.event_of(item) for item in found[:limit]], following)

    def changes_after(self, sequence: int, limit: int) -> list[AlertChange]:
        """In the order of their sequence, up to the first gap: a page is no snapshot, so that it may miss one."""
        pages = self._table.query(rows.CHANGES_LOG, after=rows.sequence_key(sequence), page=limit)
        found: list[AlertChange] = []
        for item in itertools.islice(itertools.chain.from_iterable(pages), limit):
            change = rows.change_of(item)
            if change.sequence != sequence + len(found) + 1:
                break
            found.append(change)
        return found

    def last_change(self) -> int:
        """From the counter."""
        return self._read_last(rows.LAST_CHANGE_KEY)

    def check(self) -> None:
        """A strongly consistent read; a right that only a write needs is not seen by it."""
        self.last_change()

    def quotes_after(self, sequence: int, limit: int) -> list[RecordedQuote]:
        """From the blocks of the log, up to the first gap.

        The block that holds the next quote begins at most a block's length before it.
        """
        first = rows.sequence_key(max(0, sequence + 2 - rows.MAX_BLOCK))
        keys: list[Item] = []
        gap = False
        for item in itertools.chain.from_iterable(self._table.query(rows.QUOTES_LOG, first=first)):
            following = [(n, quote_key) for n, quote_key in rows.block_keys(item) if n > sequence]
            gap = bool(following) and following[0][0] != sequence + len(keys) + 1
            if gap or len(keys) >= limit:
                break
            keys += [quote_key for _, quote_key in following]
        quotes = self._table.get_many(keys[:limit])
        if None in quotes or (gap and not quotes):
            raise DependencyUnavailableError(
                "store", f"quotes after {sequence} have expired before they were archived: raise STORE_RETENTION_DAYS"
            )
        return [rows.recorded_of(item) for item in quotes if item is not None]

    def last_quote(self) -> int:
        """From the counter."""
        return self._read_last(rows.LAST_QUOTE_KEY)

    def archived(self, stream: str) -> Archived:
        """Nothing, for a stream that no part was begun of."""
        found = self._table.get(key("head#archived", stream))
        if found is None:
            return Archived(0, None)
        return Archived(int(found["archived_to"]["N"]), int(found["pending"]["N"]) if "pending" in found else None)

    def begin_part(self, stream: str, after: int, last: int) -> None:
        """Compare and set."""
        condition = "(archived_to = :after AND attribute_not_exists(pending))"
        if after == 0:
            condition += f" OR {ABSENT}"
        begun = self._table.update(
            key("head#archived", stream),
            "SET archived_to = :after, pending = :last",
            {":after": number(after), ":last": number(last)},
            condition,
        )
        if begun is None:
            raise ConflictError(f"another writer archives {stream}")

    def end_part(self, stream: str, last: int) -> None:
        """Compare and set."""
        self._table.update(
            key("head#archived", stream),
            "SET archived_to = :last REMOVE pending",
            {":last": number(last)},
            "pending = :last",
        )

    def close(self) -> None:
        """Release connections."""
        if self._cache is not None:
            self._cache.close()
        self._table.close()

    def _read_last(self, counter: Item) -> int:
        found = self._table.get(counter)
        return 0 if found is None else int(found["n"]["N"])

    def _last_of(self, counter: Item) -> int:
        """The counter as this process knows it: right, or its next transaction fails."""
        name = counter["pk"]["S"]
        if name not in self._last:
            self._last[name] = self._read_last(counter)
        return self._last[name]

    def _advance(self, counter: Item, last: int) -> None:
        self._last[counter["pk"]["S"]] = last

    def _note_series(self, items: Sequence[ScoredQuote]) -> None:
        """Note new series before their first quote; a series without quotes harms nobody."""
        new = {item.quote.series for item in items} - self._known
        if new:
            self._table.put_many([rows.series_item(series) for series in new])
            self._known |= new

    def _quote_write(self, item: ScoredQuote, sequence: int, alert_id: str, now: datetime) -> Item:
        made = rows.quote_item(item, sequence, alert_id, now, self._retention)
        return put_write(made, ABSENT, return_old=True)

    def _log_writes(self, items: Sequence[ScoredQuote], last: int, now: datetime) -> list[Item]:
        block = rows.block_item(items, last + 1, now, self._retention)
        return [put_write(block), _count(rows.LAST_QUOTE_KEY, last, last + len(items))]

    def _alert_writes(self, write: AlertWrite, now: datetime) -> tuple[int, list[Item], list[Item]]:
        """The next change's sequence, its writes, and those that fail when `write.expected` is outdated."""
        alert, expected = write.alert, write.expected
        grows = expected is not None and expected.alert_id == alert.alert_id
        before = self._table.get(rows.alert_key(alert.alert_id)) if grows else None
        superseded = 0 if before is None else int(before["change"]["N"])
        change = self._last_of(rows.LAST_CHANGE_KEY) + 1
        if superseded >= change:  # another gateway's: this one's counter is behind
            self._last.clear()
            change = self._last_of(rows.LAST_CHANGE_KEY) + 1
        item = rows.alert_item(alert, change)
        writes = [
            _count(rows.LAST_CHANGE_KEY, change - 1, change),
            put_write(rows.change_item(write, change, now)),
            put_write(rows.event_item(write, change)),
        ]
        if superseded:
            superseded_key = key(rows.CHANGES_LOG, rows.sequence_key(superseded))
            writes.append(update_write(superseded_key, "REMOVE is_current"))
        if expected is None:
            return change, writes, [put_write(item, ABSENT)]
        version = {":version": number(expected.version)}
        if grows:
            return change, writes, [put_write(item, "version = :version", version)]
        unchanged = check_write(rows.alert_key(expected.alert_id), "version = :version", version)
        return change, writes, [put_write(item, ABSENT), unchanged]

    def _repeat(self, pairs: Sequence[tuple[ScoredQuote, Item | None]]) -> list[RecordedQuote]:
        """Count scores that came again; what is kept of their quotes."""
        updates = []
        for item, there in pairs:
            existing = there or self._table.get(rows.quote_key(item))
            if existing is None:  # it just stood in the way
                raise DependencyUnavailableError("store", f"{item.quote.quote_id} is deleted just now")
            differs = not rows.recorded_of(existing).scored.score.same_as(item.score)
            expression = "ADD record_count :one, mismatch_count :differs"
            updates.append((rows.quote_key(item), expression, {":one": number(1), ":differs": number(int(differs))}))
        return [rows.recorded_of(item) for item in self._table.update_many(updates) if item is not None]

    def _pause(self, attempt: int) -> None:
        """Wait a little for other gateways' transactions, not in step with them."""
        if attempt >= _ATTEMPTS:
            raise DependencyUnavailableError("store", f"{self._table.resource}: other writers win every time")
        time.sleep(backoff_seconds(attempt, _PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS))


def _count(counter: Item, last: int, following: int) -> Item:
    """Set a counter that still is `last`."""
    condition = "n = :last" if last else f"n = :last OR {ABSENT}"
    return update_write(counter, "SET n = :n", condition, {":last": number(last), ":n": number(following)})


def _latest_write(item: ScoredQuote, write: AlertWrite) -> Item:
    """Demand that `write.expected` is still the latest alert, and name the new one when it is the later."""
    latest = rows.latest_key(item.quote.series, item.score.typology)
    alert, expected = write.alert, write.expected
    named = latest | {"alert_id": text(alert.alert_id)}
    if expected is None:
        return put_write(named, ABSENT)
    condition, values = "alert_id = :expected", {":expected": text(expected.alert_id)}
    if alert.alert_id != expected.alert_id and alert.last_event_time >= expected.last_event_time:
        return put_write(named, condition, values)
    return check_write(latest, condition, values)


_Place = tuple[datetime, str, int, int]


def _quote_place(recorded: RecordedQuote) -> Any:
    quote = recorded.scored.quote
    return quote.event_time, quote.source, quote.interval_seconds, quote.revision


def _position(recorded: RecordedQuote) -> Position:
    event_time, *rest = _quote_place(recorded)
    return recorded.scored.quote.symbol, rows.time_key(event_time), *rest


def _place(after: Position) -> _Place:
    return datetime.fromisoformat(str(after[1])), str(after[2]), int(after[3]), int(after[4])
