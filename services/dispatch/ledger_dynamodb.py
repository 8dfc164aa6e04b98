"""The ledger on DynamoDB: open batches in one partition, finished ones by the day on which they entered.

Items: `open` / digest for each open batch, `tasks#<YYYYMMDD>` / id for each finished one (which expires),
`lane#<lane>` / `tail` with the id of the batch that entered last, and `busy` / `count` with how many tasks there are.
A batch enters in one transaction with the tails of its lanes, on condition that these are still the ones that it
was told to wait for. Batches that share a task get it in one transaction with its count; it is counted no more in the
one with the change by which the first of them has none any more.
"""

import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from heapq import merge
from typing import Final

from services.dispatch.batch import (
    OPEN_STATES,
    Entry,
    NewBatch,
    TaskState,
    enter,
    entry_from_json,
    entry_to_json,
    kept,
    parse_id,
)
from services.domain.errors import ConflictError, DependencyUnavailableError
from services.runtime.backoff import backoff_seconds
from services.runtime.dynamodb_table import (
    EXPIRES,
    ConditionFailedError,
    DynamoDbTable,
    Item,
    delete_write,
    key,
    put_write,
    update_write,
)

_OPEN = "open"
_BUSY = key("busy", "count")
_COUNTED = "ADD held :change, changes :one"
_ATTEMPTS = 10
_LANE_RETENTION = timedelta(days=30)
"""Longer than any batch stays open: the tail of a lane that was not used for so long waits for nobody."""

SETTLE_PERMISSIONS: Final = ("dynamodb:Query", "dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem")
"""What `DynamoDbLedger` needs of its table to settle and launch what has entered."""
LEDGER_PERMISSIONS: Final = (*SETTLE_PERMISSIONS, "dynamodb:GetItem", "dynamodb:BatchGetItem")
"""The same, and to put a batch behind those that are last in its lanes."""


def _lane_key(lane: str) -> Item:
    return key(f"lane#{lane}", "tail")


def _day(moment: datetime) -> str:
    return f"tasks#{moment.astimezone(UTC):%Y%m%d}"


def _item(item_key: Item, entry: Entry) -> Item:
    text = json.dumps(entry_to_json(entry), separators=(",", ":"))
    version = {"N": str(entry.version)}
    return {**item_key, "id": {"S": entry.id}, "version": version, "slot": {"BOOL": entry.slot}, "entry": {"S": text}}


def _entry(item: Item) -> Entry:
    slot = item.get("slot", {}).get("BOOL", False)
    return replace(entry_from_json(json.loads(item["entry"]["S"])), slot=slot)


def _count(change: int, limit: int | None = None) -> Item:
    """A transaction's change of how many are busy; with `limit` on condition that they are fewer."""
    values = {":change": {"N": str(change)}, ":one": {"N": "1"}}
    if limit is None:
        return update_write(_BUSY, _COUNTED, "", values)
    below = "attribute_not_exists(held) OR held < :limit"
    return update_write(_BUSY, _COUNTED, below, values | {":limit": {"N": str(limit)}})


def _conflict(entries: Sequence[Entry]) -> ConflictError:
    return ConflictError(f"{', '.join(entry.id for entry in entries[:3])} changed since read, or one beside")


def _expiry(moment: datetime) -> Item:
    return {EXPIRES: {"N": str(int(moment.timestamp()))}}


class DynamoDbLedger:
    """A `Ledger` in a table with the keys of `DynamoDbTable`; finished batches expire after `retention`."""

    def __init__(self, table: DynamoDbTable, retention: timedelta) -> None:
        self._table = table
        self._retention = retention

    def enter(self, batch: NewBatch, now: datetime) -> Entry:
        """Read the lanes' tails, then write batch and tails together; again when another batch came between."""
        keys = [_lane_key(lane) for lane in batch.lanes]
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(backoff_seconds(attempt, first=0.01, longest=0.5))
            if (known := self._table.get(key(_OPEN, batch.digest))) is not None:
                return _entry(known)
            tails = [None if item is None else item["tail"]["S"] for item in self._table.get_many(keys)]
            entry = enter(batch, tuple(sorted({tail for tail in tails if tail is not None})), now)
            writes = [put_write(_item(key(_OPEN, batch.digest), entry), "attribute_not_exists(pk)")]
            for lane_key, tail in zip(keys, tails, strict=True):
                lane = {**lane_key, "tail": {"S": entry.id}, **_expiry(now + _LANE_RETENTION)}
                if tail is None:
                    writes.append(put_write(lane, "attribute_not_exists(pk)"))
                else:
                    writes.append(put_write(lane, "tail = :tail", {":tail": {"S": tail}}))
            try:
                self._table.transact(writes)
            except ConditionFailedError:
                continue
            return entry
        raise DependencyUnavailableError("ledger", f"{len(batch.lanes)} lanes are too busy after {_ATTEMPTS} attempts")

    def open(self) -> list[Entry]:
        """One partition, strongly consistent."""
        return sorted((_entry(item) for page in self._table.query(_OPEN) for item in page), key=lambda entry: entry.id)

    def update(self, entry: Entry) -> Entry:
        """Write it on condition of its version; a finished one moves to its day in the same transaction."""
        return self.update_together([entry])[0]

    def update_together(self, entries: Sequence[Entry]) -> list[Entry]:
        """One transaction on condition of their versions, with the count when it changes."""
        changed, writes = self._change_all(entries)
        if more := sum(new.slot - old.slot for new, old in zip(changed, entries, strict=True)):
            writes.append(_count(more))
        try:
            self._table.transact(writes)
        except ConditionFailedError as error:
            raise _conflict(entries) from error
        return changed

    def claim(self, entries: Sequence[Entry], limit: int) -> list[Entry] | None:
        """Write them and count their task in one transaction, on condition that fewer are counted."""
        changed, writes = self._change_all(entries)
        try:
            self._table.transact([*writes, _count(1, limit)])
        except ConditionFailedError as error:
            if any(failed < len(writes) for failed in error.failed):
                raise _conflict(entries) from error
            self._correct_count()
            return None
        return changed

    def _change_all(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[Item]]:
        changes = [self._change(entry) for entry in entries]
        return [changed for changed, _ in changes], [write for _, writes in changes for write in writes]

    def _change(self, entry: Entry) -> tuple[Entry, list[Item]]:
        changed = kept(entry)
        open_key = key(_OPEN, entry.digest)
        condition = "id = :id AND version = :version"
        values = {":id": {"S": entry.id}, ":version": {"N": str(entry.version)}}
        if changed.open:
            return changed, [put_write(_item(open_key, changed), condition, values)]
        done = _item(key(_day(changed.entered_time), changed.id), changed)
        done |= _expiry((changed.stop_time or changed.entered_time) + self._retention)
        return changed, [delete_write(open_key, condition, values), put_write(done)]

    def _correct_count(self) -> None:
        """Count anew, should the count be wrong: a dispatcher of an older version does not keep it, nor does a hand.

        On condition that nothing was counted meanwhile, so that a right count stays right.
        """
        counter = self._table.get(_BUSY)
        busy = sum(entry.holds_place for entry in self.open())
        if counter is None or int(counter["held"]["N"]) == busy:
            return
        values = {":busy": {"N": str(busy)}, ":one": {"N": "1"}, ":seen": counter["changes"]}
        self._table.update(_BUSY, "SET held = :busy ADD changes :one", values, "changes = :seen")

    def get(self, entry_id: str) -> Entry | None:
        """By its digest among the open ones, else by its day."""
        parsed = parse_id(entry_id)
        if parsed is None or not parsed[1]:
            return None
        entered, digest = parsed
        item = self._table.get(key(_OPEN, digest))
        if item is None or item["id"]["S"] != entry_id:
            item = self._table.get(key(_day(entered), entry_id))
        return None if item is None else _entry(item)

    def list(self, limit: int, before: str = "", states: Collection[TaskState] = ()) -> "list[Entry]":
        """The open ones, merged with the finished ones of day after day backwards."""
        wanted = set(states or TaskState)
        sources: list[Iterator[Entry]] = []
        if wanted & OPEN_STATES:
            sources.append(entry for entry in reversed(self.open()) if not before or entry.id < before)
        if TaskState.RECORDED in wanted:
            sources.append(self._finished(before, limit))
        found: list[Entry] = []
        seen: set[str] = set()  # one that finished between the two reads is in both
        for entry in merge(*sources, key=lambda each: each.id, reverse=True):
            if entry.state in wanted and entry.id not in seen:
                found.append(entry)
                seen.add(entry.id)
            if len(found) == limit:
                break
        return found

    def _finished(self, before: str, page: int) -> Iterator[Entry]:
        now = datetime.now(UTC)
        parsed = parse_id(before) if before else None
        day = min(now, parsed[0]) if parsed else now
        oldest = now - self._retention - timedelta(days=1)
        while day >= oldest:
            for items in self._table.query(_day(day), last=before, descending=True, page=page):
                yield from (_entry(item) for item in items if not before or item["sk"]["S"] < before)
            day -= timedelta(days=1)

    def check(self) -> None:
        """Ask for an item that is not there."""
        self._table.get(key(_OPEN, "-"))

    def close(self) -> None:
        """Release connections."""
        self._table.close()
