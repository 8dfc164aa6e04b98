"""Alerts: how detections become one, and how an analyst takes it through its life."""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import IntEnum

from services.domain.errors import FieldViolation, IllegalTransitionError, InvalidRequestError
from services.domain.quote import format_time
from services.domain.score import Reason, ScoredQuote
from services.domain.typology import Typology

SYSTEM_ACTOR = "system"
MAX_COMMENT_CHARACTERS = 4_000
_WINDOW_BARS = 5
_MIN_WINDOW = timedelta(minutes=30)


class AlertState(IntEnum):
    """Where an alert is in its life; the numbers are the proto's and may only rise."""

    NEW = 1
    ACKNOWLEDGED = 2
    INVESTIGATING = 3
    CLOSED = 4


class Disposition(IntEnum):
    """What was decided of a closed alert; the numbers are the proto's."""

    UNSPECIFIED = 0
    CONFIRMED = 1
    DISMISSED = 2


class AlertChangeKind(IntEnum):
    """How an alert changed; the numbers are the proto's."""

    OPENED = 1
    DETECTION_ADDED = 2
    TRIAGED = 3


@dataclass(frozen=True, slots=True)
class Alert:
    """The detections of one series and typology within a window. `version` counts its changes and makes the etag."""

    alert_id: str
    tape: str
    source: str
    symbol: str
    interval_seconds: int
    typology: Typology
    first_event_time: datetime
    last_event_time: datetime
    detection_count: int
    peak_score: float
    peak_quote_id: str
    reasons: tuple[Reason, ...]
    summary: str
    create_time: datetime
    update_time: datetime
    state: AlertState = AlertState.NEW
    disposition: Disposition = Disposition.UNSPECIFIED
    assignee: str = ""
    version: int = 1

    @property
    def etag(self) -> str:
        """Changes with every change of the alert."""
        return f'"{self.version}"'


@dataclass(frozen=True, slots=True)
class AlertChange:
    """One entry of the change log; `sequence` is 1, 2, 3, … over all alerts, without gaps."""

    sequence: int
    kind: AlertChangeKind
    alert: Alert
    change_time: datetime
    quote_id: str = ""


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """One entry of an alert's audit trail."""

    sequence: int
    alert_id: str
    kind: AlertChangeKind
    actor: str
    from_state: AlertState | None
    to_state: AlertState
    disposition: Disposition
    assignee: str
    comment: str
    quote_id: str
    event_time: datetime


def window(interval_seconds: int) -> timedelta:
    """How far apart two detections of one alert may be: five bars, at least 30 minutes.

    Daily bars count calendar days, so a weekend lies within the window.
    """
    return max(_MIN_WINDOW, timedelta(seconds=_WINDOW_BARS * interval_seconds))


def takes(alert: Alert, scored: ScoredQuote) -> bool:
    """Whether the alert counts this detection: open, same series and typology, within the window."""
    quote = scored.quote
    return (
        alert.state is not AlertState.CLOSED
        and (alert.tape, alert.source, alert.symbol, alert.interval_seconds)
        == (quote.tape, quote.source, quote.symbol, quote.interval_seconds)
        and alert.typology is scored.score.typology
        and abs(quote.event_time - alert.last_event_time) <= window(alert.interval_seconds)
    )


def summarise(scored: ScoredQuote) -> str:
    """The alert in one sentence, as of its peak: what price and volume are consistent with; no finding of intent."""
    quote, score = scored.quote, scored.score
    reasons = "; ".join(reason.text for reason in score.reasons)
    return (
        f"{quote.symbol} {format_time(quote.event_time)}: price and volume consistent with "
        f"{score.typology.words} (score {score.ensemble:.3f}): {reasons}"
    )


def open_alert(scored: ScoredQuote, now: datetime) -> Alert:
    """A new alert from its first detection. The id follows from the detection, so that a retry opens the same one."""
    quote, score = scored.quote, scored.score
    digest = hashlib.sha256(f"{quote.quote_id}|{score.typology.name}".encode()).hexdigest()
    return Alert(
        alert_id=f"al_{digest[:24]}",
        tape=quote.tape,
        source=quote.source,
        symbol=quote.symbol,
        interval_seconds=quote.interval_seconds,
        typology=score.typology,
        first_event_time=quote.event_time,
        last_event_time=quote.event_time,
        detection_count=1,
        peak_score=score.ensemble,
        peak_quote_id=quote.quote_id,
        reasons=score.reasons,
        summary=summarise(scored),
        create_time=now,
        update_time=now,
    )


def add_detection(alert: Alert, scored: ScoredQuote, now: datetime) -> Alert:
    """The alert with one more detection; its peak and reasons follow the highest score."""
    quote, score = scored.quote, scored.score
    count = alert.detection_count + 1
    grown = replace(
        alert,
        first_event_time=min(alert.first_event_time, quote.event_time),
        last_event_time=max(alert.last_event_time, quote.event_time),
        detection_count=count,
        update_time=now,
        version=alert.version + 1,
    )
    if score.ensemble <= alert.peak_score:
        return grown
    return replace(
        grown,
        peak_score=score.ensemble,
        peak_quote_id=quote.quote_id,
        reasons=score.reasons,
        summary=summarise(scored),
    )


def triage(
    alert: Alert,
    now: datetime,
    *,
    comment: str,
    state: AlertState | None = None,
    disposition: Disposition | None = None,
    assignee: str | None = None,
) -> Alert:
    """The alert after an analyst's step; None leaves a field as it is.

    Raises: IllegalTransitionError when the state would go back or the alert is closed already; InvalidRequestError
    when it is closed without a disposition and a comment, or a disposition comes without closing.
    """
    to_state = alert.state if state is None else state
    if alert.state is AlertState.CLOSED and (state, disposition, assignee) != (None, None, None):
        raise IllegalTransitionError(alert.state.name, to_state.name)
    if to_state < alert.state:
        raise IllegalTransitionError(alert.state.name, to_state.name)
    decided = alert.disposition if disposition is None else disposition
    wrong = []
    if len(comment) > MAX_COMMENT_CHARACTERS:
        wrong.append(FieldViolation("comment", f"is longer than {MAX_COMMENT_CHARACTERS:,} characters"))
    if to_state is AlertState.CLOSED and alert.state is not AlertState.CLOSED:
        if decided is Disposition.UNSPECIFIED:
            wrong.append(FieldViolation("alert.disposition", "closing needs CONFIRMED or DISMISSED"))
        if not comment.strip():
            wrong.append(FieldViolation("comment", "closing needs a comment"))
    elif to_state is not AlertState.CLOSED and decided is not Disposition.UNSPECIFIED:
        wrong.append(FieldViolation("alert.disposition", "is set only when the alert is closed"))
    if wrong:
        raise InvalidRequestError(wrong)
    return replace(
        alert,
        state=to_state,
        disposition=decided,
        assignee=alert.assignee if assignee is None else assignee,
        update_time=now,
        version=alert.version + 1,
    )
