"""The gateway's decisions: recording exactly once, detections into alerts, triage, and watching."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.domain.alert import (
    SYSTEM_ACTOR,
    Alert,
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
from services.gateway.change_feed import ChangeFeed
from services.gateway.ports import AlertWrite, DetectionQuery, QuoteQuery, Store
from services.runtime.backoff import backoff_seconds

_ATTEMPTS = 10
_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.16
_EVIDENCE_LIMIT = 2_000


@dataclass(frozen=True, slots=True)
class Recorded:
    """An item is durable: now (`created`), or before; `same` when the first score is the same as this one.

    `opened`: it was the first detection of its alert.
    """

    created: bool
    same: bool
    alert_id: str
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Triage:
    """A step of triage as the caller asks for it; None leaves a field as it is."""

    alert_id: str
    etag: str
    actor: str
    comment: str = ""
    state: AlertState | None = None
    disposition: Disposition | None = None
    assignee: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """One alert with what an analyst files, each list oldest first; `truncated` when more belongs to it than fits."""

    alert: Alert
    detections: list[RecordedQuote]
    quotes: list[RecordedQuote]
    events: list[AlertEvent]
    truncated: bool


def _utc_now() -> datetime:
    return datetime.now(UTC)


class GatewayService:
    """Records, groups and triages on one store, and tells its feed. Blocking store calls run in threads."""

    def __init__(self, store: Store, feed: ChangeFeed, clock: Callable[[], datetime] = _utc_now) -> None:
        self.store = store
        self.feed = feed
        self._clock = clock

    async def record(self, items: Sequence[ScoredQuote]) -> list[Recorded | TapewatchError]:
        """Keep scores with their quotes. One result per item, in order; a result that is no error is durable.

        Items of one series come in order of event_time; after an error the later ones of that series are not tried.
        """
        results = await asyncio.to_thread(self._record, items)
        if any(isinstance(result, Recorded) and result.alert_id and result.created for result in results):
            self.feed.wake()
        return results

    def _record(self, items: Sequence[ScoredQuote]) -> list[Recorded | TapewatchError]:
        results: dict[int, Recorded | TapewatchError] = {}
        blocked: dict[Series, str] = {}
        run: dict[str, int] = {}

        def fail(i: int, error: TapewatchError) -> None:
            quote = items[i].quote
            results[i] = PredecessorFailedError(blocked[quote.series]) if quote.series in blocked else error
            blocked.setdefault(quote.series, quote.quote_id)

        def flush() -> None:
            if not run:
                return
            try:
                kept = self.store.put_scores([items[i] for i in run.values()], self._clock())
            except DependencyUnavailableError as error:
                for i in run.values():
                    fail(i, error)
            else:
                for i, existing in zip(run.values(), kept, strict=True):
                    results[i] = _recorded(items[i], existing)
            run.clear()

        for i, item in enumerate(items):
            if item.score.detection or item.quote.quote_id in run:
                flush()
            if item.quote.series in blocked:
                results[i] = PredecessorFailedError(blocked[item.quote.series])
            elif not item.score.detection:
                run[item.quote.quote_id] = i
            else:
                try:
                    results[i] = self._record_detection(item)
                except DependencyUnavailableError as error:
                    fail(i, error)
        flush()
        return [results[i] for i in range(len(items))]

    def _record_detection(self, item: ScoredQuote) -> Recorded:
        for attempt in range(_ATTEMPTS):
            now = self._clock()
            latest = self.store.latest_alert(item.quote.series, item.score.typology)
            if latest is not None and takes(latest, item):
                before, alert, kind = latest, add_detection(latest, item, now), AlertChangeKind.DETECTION_ADDED
            else:
                before, alert, kind = None, open_alert(item, now), AlertChangeKind.OPENED
            event = _event(alert, before, kind, now, actor=SYSTEM_ACTOR, quote_id=item.quote.quote_id)
            try:
                existing = self.store.commit_detection(item, AlertWrite(alert, latest, event), now)
            except ConflictError:
                _pause(attempt)
                continue
            if existing is not None:
                return _recorded(item, existing)
            return Recorded(created=True, same=True, alert_id=alert.alert_id, opened=before is None)
        raise DependencyUnavailableError("store", f"the alert that {item.quote.quote_id} belongs to keeps changing")

    async def cursors(self, series: Sequence[Series]) -> dict[Series, datetime | None]:
        """How far the series have been recorded."""
        return dict(zip(series, await asyncio.to_thread(self.store.cursors, series), strict=True))

    async def get_alert(self, alert_id: str) -> Alert:
        """An alert. Raises: NotFoundError."""
        alert = await asyncio.to_thread(self.store.get_alert, alert_id)
        if alert is None:
            raise NotFoundError("alert", alert_id)
        return alert

    async def get_detection(self, quote_id: str) -> RecordedQuote:
        """A detection. Raises: NotFoundError, also for a quote that is recorded but no detection."""
        recorded = await asyncio.to_thread(self.store.get_detection, quote_id)
        if recorded is None:
            raise NotFoundError("detection", quote_id)
        return recorded

    async def update_alert(self, step: Triage) -> Alert:
        """A step of triage.

        Raises: NotFoundError, EtagMismatchError, IllegalTransitionError, InvalidRequestError.
        """
        current = await self.get_alert(step.alert_id)
        if current.etag != step.etag:
            raise EtagMismatchError(step.alert_id)
        now = self._clock()
        alert = triage(
            current,
            now,
            comment=step.comment,
            state=step.state,
            disposition=step.disposition,
            assignee=step.assignee,
        )
        event = _event(alert, current, AlertChangeKind.TRIAGED, now, actor=step.actor, comment=step.comment)
        try:
            await asyncio.to_thread(self.store.commit_triage, AlertWrite(alert, current, event), now)
        except ConflictError as error:
            raise EtagMismatchError(step.alert_id) from error
        self.feed.wake()
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
        since = quotes(_EVIDENCE_LIMIT + context_quotes, start_time=alert.first_event_time)
        inside = [r for r in since if r.scored.quote.event_time <= alert.last_event_time]
        after = since[len(inside) : len(inside) + context_quotes]
        detections = self.store.list_detections(DetectionQuery(alert_id=alert.alert_id), _EVIDENCE_LIMIT, None)
        events = self.store.list_alert_events(alert.alert_id, _EVIDENCE_LIMIT, None)
        return Evidence(
            alert,
            detections.items[::-1],
            [*before[::-1], *inside, *after],
            events.items,
            truncated=len(inside) > _EVIDENCE_LIMIT or bool(detections.next or events.next),
        )


def _pause(attempt: int) -> None:
    """Wait a little, more with each attempt, and not in step with whoever won."""
    time.sleep(backoff_seconds(attempt + 1, _PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS))


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
