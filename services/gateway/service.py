"""The gateway's decisions: recording exactly once, detections into alerts, triage, and watching."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.domain.alert import (
    SYSTEM_ACTOR,
    Alert,
    AlertChange,
    AlertChangeKind,
    AlertEvent,
    AlertState,
    Disposition,
    add_detection,
    open_alert,
    takes,
    triage,
)
from services.domain.errors import (
    ConflictError,
    DependencyUnavailableError,
    EtagMismatchError,
    NotFoundError,
    PredecessorFailedError,
    TapewatchError,
)
from services.domain.quote import Series
from services.domain.score import RecordedQuote, ScoredQuote
from services.gateway.ports import AlertQuery, AlertWrite, DetectionQuery, QuoteQuery, Store

_ATTEMPTS = 8
_CHANGES_PAGE = 500
_OTHER_REPLICA_POLL_SECONDS = 0.2
_EVIDENCE_LIMIT = 2_000


@dataclass(frozen=True, slots=True)
class Recorded:
    """An item is durable: now (`created`), or before; `same` when the first score is the same as this one."""

    created: bool
    same: bool
    alert_id: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """One alert with what an analyst files."""

    alert: Alert
    detections: list[RecordedQuote]
    quotes: list[RecordedQuote]
    events: list[AlertEvent]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class GatewayService:
    """Records, groups, triages and watches on one store. Blocking store calls run in threads."""

    def __init__(self, store: Store, clock: Callable[[], datetime] = _utc_now) -> None:
        self.store = store
        self._clock = clock
        self._committed = asyncio.Event()

    async def record(self, items: Sequence[ScoredQuote]) -> list[Recorded | TapewatchError]:
        """Keep scores with their quotes. One result per item, in order; a result that is no error is durable.

        Items of one series come in order of event_time; after an error the later ones of that series are not tried.
        """
        results = await asyncio.to_thread(self._record, items)
        if any(isinstance(result, Recorded) and result.alert_id and result.created for result in results):
            self._wake()
        return results

    def _record(self, items: Sequence[ScoredQuote]) -> list[Recorded | TapewatchError]:
        results: dict[int, Recorded | TapewatchError] = {}
        blocked: dict[Series, str] = {}
        run: list[int] = []

        def fail(indices: Sequence[int], error: TapewatchError) -> None:
            for i in indices:
                series = items[i].quote.series
                results[i] = PredecessorFailedError(blocked[series]) if series in blocked else error
                blocked.setdefault(series, items[i].quote.quote_id)

        def flush() -> None:
            try:
                kept = self.store.put_scores([items[i] for i in run], self._clock()) if run else []
            except DependencyUnavailableError as error:
                fail(run, error)
            else:
                for i, existing in zip(run, kept, strict=True):
                    results[i] = _recorded(items[i], existing)
            run.clear()

        for i, item in enumerate(items):
            if item.quote.series in blocked:
                results[i] = PredecessorFailedError(blocked[item.quote.series])
            elif not item.score.detection:
                run.append(i)
            else:
                flush()
                try:
                    if item.quote.series not in blocked:
                        results[i] = self._record_detection(item)
                    else:
                        results[i] = PredecessorFailedError(blocked[item.quote.series])
                except DependencyUnavailableError as error:
                    fail([i], error)
        flush()
        return [results[i] for i in range(len(items))]

    def _record_detection(self, item: ScoredQuote) -> Recorded:
        for attempt in range(_ATTEMPTS):
            if self.store.get_quote(item.quote.quote_id) is not None:
                (existing,) = self.store.put_scores([item], self._clock())
                return _recorded(item, existing)
            now = self._clock()
            current = self.store.latest_alert(item.quote.series, item.score.typology)
            if current is not None and takes(current, item):
                alert, expected, kind = (
                    add_detection(current, item, now),
                    current.version,
                    AlertChangeKind.DETECTION_ADDED,
                )
            else:
                current, expected, kind = None, None, AlertChangeKind.OPENED
                alert = open_alert(item, now)
            event = _event(alert, current, kind, now, actor=SYSTEM_ACTOR, quote_id=item.quote.quote_id)
            try:
                self.store.commit_detection(item, AlertWrite(alert, expected, event), now)
            except ConflictError:
                _pause(attempt)
                continue
            return Recorded(created=True, same=True, alert_id=alert.alert_id)
        raise DependencyUnavailableError("store", f"{item.quote.quote_id}: its alert keeps changing; try again")

    async def cursors(self, series: Sequence[Series]) -> dict[Series, datetime | None]:
        """How far the series have been recorded."""
        return await asyncio.to_thread(lambda: {each: self.store.cursor(each) for each in series})

    async def get_alert(self, alert_id: str) -> Alert:
        """An alert. Raises: NotFoundError."""
        alert = await asyncio.to_thread(self.store.get_alert, alert_id)
        if alert is None:
            raise NotFoundError("alert", alert_id)
        return alert

    async def get_detection(self, quote_id: str) -> RecordedQuote:
        """A detection. Raises: NotFoundError, also for a quote that is recorded but no detection."""
        recorded = await asyncio.to_thread(self.store.get_quote, quote_id)
        if recorded is None or not recorded.alert_id:
            raise NotFoundError("detection", quote_id)
        return recorded

    async def update_alert(
        self,
        alert_id: str,
        etag: str,
        actor: str,
        comment: str,
        *,
        state: AlertState | None = None,
        disposition: Disposition | None = None,
        assignee: str | None = None,
    ) -> Alert:
        """A step of triage.

        Raises: NotFoundError, EtagMismatchError, IllegalTransitionError, InvalidRequestError.
        """
        current = await self.get_alert(alert_id)
        if current.etag != etag:
            raise EtagMismatchError(alert_id)
        now = self._clock()
        alert = triage(current, now, comment=comment, state=state, disposition=disposition, assignee=assignee)
        event = _event(alert, current, AlertChangeKind.TRIAGED, now, actor=actor, comment=comment)
        try:
            await asyncio.to_thread(self.store.commit_triage, AlertWrite(alert, current.version, event), now)
        except ConflictError as error:
            raise EtagMismatchError(alert_id) from error
        self._wake()
        return alert

    async def evidence(self, alert_id: str, context_quotes: int) -> Evidence:
        """An alert with its detections, the quotes around them and its audit trail. Raises: NotFoundError."""
        alert = await self.get_alert(alert_id)
        return await asyncio.to_thread(self._evidence, alert, context_quotes)

    def _evidence(self, alert: Alert, context_quotes: int) -> Evidence:
        series = {
            "tape": alert.tape,
            "symbol": alert.symbol,
            "source": alert.source,
            "interval_seconds": alert.interval_seconds,
        }

        def quotes(limit: int, **query: object) -> list[RecordedQuote]:
            return self.store.list_quotes(QuoteQuery(**series, **query), limit, None).items  # type: ignore[arg-type]

        before = quotes(context_quotes, end_time=alert.first_event_time, descending=True)
        since = quotes(_EVIDENCE_LIMIT, start_time=alert.first_event_time)
        inside = [r for r in since if r.scored.quote.event_time <= alert.last_event_time]
        after = since[len(inside) : len(inside) + context_quotes]
        detections = self.store.list_detections(DetectionQuery(alert_id=alert.alert_id), _EVIDENCE_LIMIT, None).items
        events = self.store.list_alert_events(alert.alert_id, _EVIDENCE_LIMIT, None).items
        return Evidence(alert, detections[::-1], [*before[::-1], *inside, *after], events)

    async def watch(
        self, query: AlertQuery, after: int, heartbeat_seconds: float, draining: asyncio.Event
    ) -> AsyncIterator[tuple[int, AlertChange | None]]:
        """The change log after a sequence, then live, until `draining` is set.

        Yields (sequence, change) for what matches, and (sequence, None) as a heartbeat: everything up to `sequence` is
        told then. Other replicas' commits are seen by asking the store, this one's at once.
        """
        loop = asyncio.get_running_loop()
        told = after
        last_sign = loop.time()
        while not draining.is_set():
            woken = self._committed
            changes = await asyncio.to_thread(self.store.changes_after, after, _CHANGES_PAGE)
            for change in changes:
                after = change.sequence
                if query.matches(change.alert):
                    told, last_sign = after, loop.time()
                    yield after, change
            if changes:
                continue
            if loop.time() - last_sign >= heartbeat_seconds or told < after - _CHANGES_PAGE:
                told, last_sign = after, loop.time()
                yield after, None
            try:
                await asyncio.wait_for(woken.wait(), _OTHER_REPLICA_POLL_SECONDS)
            except TimeoutError:
                continue

    def _wake(self) -> None:
        """Wake every watcher of this process once."""
        self._committed.set()
        self._committed = asyncio.Event()


def _pause(attempt: int) -> None:
    """Wait a little, more with each attempt, and not in step with whoever won."""
    time.sleep(random.uniform(0, 0.005 * 2**attempt))  # noqa: S311


def _recorded(item: ScoredQuote, existing: RecordedQuote | None) -> Recorded:
    if existing is None:
        return Recorded(created=True, same=True, alert_id="")
    return Recorded(created=False, same=existing.scored.score.same_as(item.score), alert_id=existing.alert_id)


def _event(
    alert: Alert,
    before: Alert | None,
    kind: AlertChangeKind,
    now: datetime,
    *,
    actor: str,
    comment: str = "",
    quote_id: str = "",
) -> AlertEvent:
    return AlertEvent(
        sequence=0,
        alert_id=alert.alert_id,
        kind=kind,
        actor=actor,
        from_state=None if before is None else before.state,
        to_state=alert.state,
        disposition=alert.disposition,
        assignee=alert.assignee,
        comment=comment,
        quote_id=quote_id,
        event_time=now,
    )
