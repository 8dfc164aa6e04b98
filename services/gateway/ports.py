"""The gateway's stores and its lake, as the service needs them.

The store's port fits a key-value store with conditional writes (DynamoDB) as well as SQL: every read goes by a key or
by the order of one index, and the one transaction holds a handful of items. Adapters block and are safe to call from
several threads; several gateways may share one store. Every method raises DependencyUnavailableError when the store is
away or busy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from services.domain.alert import Alert, AlertChange, AlertEvent, AlertState
from services.domain.quote import Series
from services.domain.score import RecordedQuote, ScoredQuote
from services.domain.typology import Typology

Item = TypeVar("Item")
Position = tuple[int | str, ...]
"""Where a page ended, in the order of its list; opaque to callers."""


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Items, and where the next page goes on; None when this is the last."""

    items: list[Item]
    next: Position | None


@dataclass(frozen=True, slots=True)
class QuoteQuery:
    """Which recorded quotes; times are a half-open range. Without a symbol: the whole tape, by symbol, then time."""

    tape: str
    symbol: str = ""
    source: str = ""
    interval_seconds: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    descending: bool = False


@dataclass(frozen=True, slots=True)
class DetectionQuery:
    """Which detections, newest event first."""

    tape: str = ""
    symbol: str = ""
    typology: Typology = Typology.UNSPECIFIED
    alert_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """Which alerts; empty means all."""

    tape: str = ""
    symbols: tuple[str, ...] = ()
    typologies: tuple[Typology, ...] = ()
    states: tuple[AlertState, ...] = ()
    min_peak_score: float = 0.0

    def matches(self, alert: Alert) -> bool:
        """Whether the alert is one of them."""
        return (
            (not self.tape or alert.tape == self.tape)
            and (not self.symbols or alert.symbol in self.symbols)
            and (not self.typologies or alert.typology in self.typologies)
            and (not self.states or alert.state in self.states)
            and alert.peak_score >= self.min_peak_score
        )


@dataclass(frozen=True, slots=True)
class AlertWrite:
    """An alert's next version with the audit event that explains it.

    `expected_version` is the version that must be stored now; None when the alert must be absent. The event's sequence
    is the store's to fill in.
    """

    alert: Alert
    expected_version: int | None
    event: AlertEvent


class Store(Protocol):
    """Quotes with scores, detections, alerts, their change log and audit trail."""

    @property
    def store_id(self) -> str:
        """Names this store's data for as long as it exists; resume tokens carry it."""
        ...

    def put_scores(self, items: Sequence[ScoredQuote], now: datetime) -> list[RecordedQuote | None]:
        """Keep each item whose quote_id is absent, in order.

        Returns per item None when it was kept, or what is kept already, after counting the repetition (and the
        mismatch, when the score differs).
        """
        ...

    def commit_detection(self, item: ScoredQuote, write: AlertWrite, now: datetime) -> None:
        """In one transaction: the item if absent, the alert at its expected version, the next change, its audit event.

        Raises: ConflictError when the item is there already or the alert has another version; nothing is written then.
        """
        ...

    def commit_triage(self, write: AlertWrite, now: datetime) -> None:
        """In one transaction: the alert at its expected version, the next change, its audit event.

        Raises: ConflictError when the alert has another version; nothing is written then.
        """
        ...

    def get_quote(self, quote_id: str) -> RecordedQuote | None:
        """What is kept of a quote, strongly consistent."""
        ...

    def cursor(self, series: Series) -> datetime | None:
        """event_time of the series' newest quote, strongly consistent."""
        ...

    def list_quotes(self, query: QuoteQuery, limit: int, after: Position | None) -> Page[RecordedQuote]:
        """A page of quotes, strongly consistent."""
        ...

    def list_detections(self, query: DetectionQuery, limit: int, after: Position | None) -> Page[RecordedQuote]:
        """A page of detections."""
        ...

    def get_alert(self, alert_id: str) -> Alert | None:
        """An alert, strongly consistent."""
        ...

    def latest_alert(self, series: Series, typology: Typology) -> Alert | None:
        """The alert of the series and typology with the newest detection, strongly consistent."""
        ...

    def list_alerts(self, query: AlertQuery, limit: int, after: Position | None) -> Page[Alert]:
        """A page of alerts, newest change first."""
        ...

    def list_alert_events(self, alert_id: str, limit: int, after: Position | None) -> Page[AlertEvent]:
        """A page of an alert's audit trail, oldest first."""
        ...

    def changes_after(self, sequence: int, limit: int) -> list[AlertChange]:
        """The change log's next entries."""
        ...

    def last_change(self) -> int:
        """The change log's last sequence; 0 when it is empty."""
        ...

    def quotes_after(self, sequence: int, limit: int) -> list[RecordedQuote]:
        """The next quotes in the order of recording."""
        ...

    def archived(self, stream: str) -> tuple[int, int | None]:
        """Up to which sequence a stream is in the lake, and the end of the part being written, if one is."""
        ...

    def begin_part(self, stream: str, last: int) -> None:
        """Note that the part up to `last` is being written: a killed writer's part is written again, equal."""
        ...

    def end_part(self, stream: str, last: int) -> None:
        """Note that everything up to `last` is in the lake."""
        ...

    def close(self) -> None:
        """Release connections. Calling it twice is harmless."""
        ...


class Lake(Protocol):
    """Files for those who come later: replay, training, queries. Writing a part again replaces it by an equal one."""

    def write_quotes(self, quotes: Sequence[RecordedQuote]) -> None:
        """Make one part of quotes with neighbouring sequences durable.

        Raises: DependencyUnavailableError when the lake cannot be written.
        """
        ...

    def write_changes(self, changes: Sequence[AlertChange]) -> None:
        """Make one part of changes with neighbouring sequences durable.

        Raises: DependencyUnavailableError when the lake cannot be written.
        """
        ...
