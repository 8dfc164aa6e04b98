"""The gateway's stores and its lake, as the service needs them.

The store's port fits a key-value store with conditional writes (DynamoDB) as well as SQL: every read goes by a key or
by the order of one index, and a transaction holds a handful of items. Adapters block, are safe to call from several
threads, and several gateways may share one store. Every method raises DependencyUnavailableError when the store is away
or busy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from services.domain.alert import Alert, AlertChange, AlertEvent, AlertState
from services.domain.quote import CANARY_TAPE, Series
from services.domain.score import RecordedQuote, ScoredQuote
from services.domain.typology import Typology

Item = TypeVar("Item")
Position = tuple[int | str, ...]
"""Where a page ended, in the order of its list; opaque to everyone but the store that gave it."""


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Items, and where the next page goes on; None when this is the last. A page may be short and not the last."""

    items: list[Item]
    next: Position | None


@dataclass(frozen=True, slots=True)
class QuoteQuery:
    """Which recorded quotes. Times are a half-open range; empty fields match everything.

    Ordered by event_time, then source, interval and revision. Without a symbol it is the whole tape, by symbol first,
    and must neither be descending nor name times.
    """

    tape: str
    symbol: str = ""
    source: str = ""
    interval_seconds: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    descending: bool = False


@dataclass(frozen=True, slots=True)
class DetectionQuery:
    """Which detections, newest event first. Times are a half-open range; empty fields match everything.

    With neither tape nor alert named, the canary tape is left out.
    """

    tape: str = ""
    symbol: str = ""
    typology: Typology = Typology.UNSPECIFIED
    alert_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None

    def takes_tape(self, tape: str) -> bool:
        """Whether a detection of this tape may be one of them."""
        if self.tape or self.alert_id:
            return self.tape in ("", tape)
        return tape != CANARY_TAPE


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """Which alerts; empty fields match everything, but the canary tape must be asked for by its name."""

    tape: str = ""
    symbols: tuple[str, ...] = ()
    typologies: tuple[Typology, ...] = ()
    states: tuple[AlertState, ...] = ()
    min_peak_score: float = 0.0

    def matches(self, alert: Alert) -> bool:
        """Whether the alert is one of them."""
        return (
            (alert.tape == self.tape if self.tape else alert.tape != CANARY_TAPE)
            and (not self.symbols or alert.symbol in self.symbols)
            and (not self.typologies or alert.typology in self.typologies)
            and (not self.states or alert.state in self.states)
            and alert.peak_score >= self.min_peak_score
        )


@dataclass(frozen=True, slots=True)
class AlertWrite:
    """An alert's next version, and the audit event that explains it.

    `expected` is the alert that the writer read and built upon: the write counts only while it is still stored in that
    version. `event.sequence` is the store's to fill in.
    """

    alert: Alert
    expected: Alert | None
    event: AlertEvent


@dataclass(frozen=True, slots=True)
class Archived:
    """How far a stream is in the lake: up to sequence `last`; `pending` ends the part that is being written."""

    last: int
    pending: int | None


class Store(Protocol):
    """Quotes with scores, detections, alerts, their change log and audit trail."""

    @property
    def store_id(self) -> str:
        """Names this store's data for as long as it exists; resume tokens carry it."""
        ...

    def put_scores(self, items: Sequence[ScoredQuote], now: datetime) -> list[RecordedQuote | None]:
        """Keep each item whose quote_id is absent, in order, numbering them without gaps.

        The quote_ids are distinct, and none is a detection of this call's. Returns per item None when it was kept, or
        what is kept already, after counting the repetition (and the mismatch, when the score differs). When it raises,
        the first items may have been kept.
        """
        ...

    def commit_detection(self, item: ScoredQuote, write: AlertWrite, now: datetime) -> RecordedQuote | None:
        """In one transaction: the quote with its detection, the alert, the next change, its audit event.

        Returns None then; or, when the quote is there already, what is kept, after counting the repetition, with
        nothing else written. Raises: ConflictError, with nothing written, unless `write.expected` is still the latest
        alert of the series and typology in that version.
        """
        ...

    def commit_triage(self, write: AlertWrite, now: datetime) -> None:
        """In one transaction: the alert, the next change, its audit event.

        Raises: ConflictError, with nothing written, unless the alert still has the version of `write.expected`.
        """
        ...

    def get_quote(self, quote_id: str) -> RecordedQuote | None:
        """What is kept of a quote, strongly consistent; None when nothing is."""
        ...

    def get_detection(self, quote_id: str) -> RecordedQuote | None:
        """A detection by key; None when the quote is none.

        Its counts of repetitions may be old (a cache may answer); the rest of a detection never changes.
        """
        ...

    def cursors(self, series: Sequence[Series]) -> list[datetime | None]:
        """event_time of each series' newest quote, strongly consistent; None when it has none."""
        ...

    def list_quotes(self, query: QuoteQuery, limit: int, after: Position | None) -> Page[RecordedQuote]:
        """A page of quotes, strongly consistent."""
        ...

    def list_detections(self, query: DetectionQuery, limit: int, after: Position | None) -> Page[RecordedQuote]:
        """A page of detections."""
        ...

    def get_alert(self, alert_id: str) -> Alert | None:
        """An alert, strongly consistent; None when there is none."""
        ...

    def latest_alert(self, series: Series, typology: Typology) -> Alert | None:
        """The series' alert of that typology with the newest detection, strongly consistent; None when it has none.

        Of several with one newest event_time, the one opened last.
        """
        ...

    def list_alerts(self, query: AlertQuery, limit: int, after: Position | None) -> Page[Alert]:
        """A page of alerts, newest change first. An alert that changes between two pages moves to the front."""
        ...

    def list_alert_events(self, alert_id: str, limit: int, after: Position | None) -> Page[AlertEvent]:
        """A page of an alert's audit trail, oldest first; empty for an unknown alert."""
        ...

    def changes_after(self, sequence: int, limit: int) -> list[AlertChange]:
        """The change log's next entries. An entry is never visible before those with a lower sequence."""
        ...

    def last_change(self) -> int:
        """The change log's last sequence; 0 when it is empty."""
        ...

    def quotes_after(self, sequence: int, limit: int) -> list[RecordedQuote]:
        """The next quotes in the order of recording; none is visible before those with a lower sequence."""
        ...

    def last_quote(self) -> int:
        """The last recorded quote's sequence; 0 when there is none."""
        ...

    def archived(self, stream: str) -> Archived:
        """How far a stream is in the lake."""
        ...

    def begin_part(self, stream: str, after: int, last: int) -> None:
        """Note that the part from `after` + 1 to `last` is being written.

        A writer that takes over from a killed one so writes the very same part again. Raises: ConflictError unless the
        stream is archived up to `after` with no part pending.
        """
        ...

    def end_part(self, stream: str, last: int) -> None:
        """Note that everything up to `last` is in the lake; nothing changes when it is noted already."""
        ...

    def check(self) -> None:
        """Return when the store can be written now, as far as that can be told without writing."""
        ...

    def close(self) -> None:
        """Release connections. Calling it twice is harmless."""
        ...


class Lake(Protocol):
    """Files for those who come later: replay, training, queries. Writing a part again replaces it by an equal one."""

    def check(self) -> None:
        """Returns when it can be written.

        Raises: NotConfiguredError when somebody has to do something first, DependencyUnavailableError when it is away.
        """
        ...

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
