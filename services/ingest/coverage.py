"""Whether each series is being heard: a silent feed is the worst failure in surveillance."""

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from services.domain.quote import CANARY_TAPE, Quote, Series

_GAP_INTERVALS = 4
_GAP_MINIMUM = timedelta(days=4)
_STALE_INTERVALS = 3
_STALE_GRACE = timedelta(seconds=60)
_LONGEST_ERROR = 500
MAX_SERIES = 50_000
"""Series remembered; beyond it the ones longest unheard of are forgotten, so that old replays fade."""


class Freshness(IntEnum):
    """Whether a series is being heard; the numbers are the proto's."""

    FRESH = 1
    STALE = 2
    NEVER_SEEN = 3


@dataclass(frozen=True, slots=True)
class Coverage:
    """What ingest knows of one series. See proto/tapewatch/ingest/v1/coverage.proto."""

    series: Series
    freshness: Freshness
    last_event_time: datetime | None
    last_ingest_time: datetime | None
    silence: timedelta | None
    accepted_quotes: int
    rejected_quotes: int
    gaps: int
    consecutive_errors: int
    last_error: str


@dataclass(slots=True)
class _Record:
    last_event_time: datetime | None = None
    last_ingest_time: datetime | None = None
    accepted: int = 0
    rejected: int = 0
    gaps: int = 0
    errors: int = 0
    last_error: str = ""


def _shortened(error: str) -> str:
    return error if len(error) <= _LONGEST_ERROR else f"{error[:_LONGEST_ERROR]}…"


class CoverageBook:
    """Counts per series since the server started. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], datetime], max_series: int = MAX_SERIES) -> None:
        self._clock = clock
        self._max_series = max_series
        self._records: OrderedDict[Series, _Record] = OrderedDict()

    def _record(self, series: Series) -> _Record:
        record = self._records.get(series)
        if record is None:
            record = self._records[series] = _Record()
            if len(self._records) > self._max_series:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(series)
        return record

    def expect(self, series: Series) -> None:
        """Note that a source should give this series."""
        self._record(series)

    def accepted(self, quote: Quote) -> None:
        """Note a quote that is durable in the queue. Canaries are no feed: each is a series that ends for good."""
        if quote.tape == CANARY_TAPE:
            return
        record = self._record(quote.series)
        record.accepted += 1
        record.last_ingest_time = quote.ingest_time
        last = record.last_event_time
        if last is not None:
            step = quote.event_time - last
            if step > _GAP_MINIMUM and step > _GAP_INTERVALS * timedelta(seconds=quote.interval_seconds):
                record.gaps += 1
        if last is None or quote.event_time > last:
            record.last_event_time = quote.event_time

    def rejected(self, quote: Quote, reason: str) -> None:
        """Note a quote that can never be scored, if its series is known or expected.

        Others are nobody's feed: made-up symbols must neither fill this book nor push real series out of it.
        """
        record = self._records.get(quote.series)
        if record is not None:
            record.rejected += 1
            record.last_error = _shortened(reason)

    def failed(self, series: Series, error: str) -> None:
        """Note that the source could not be read for this series."""
        record = self._record(series)
        record.errors += 1
        record.last_error = _shortened(error)

    def succeeded(self, series: Series) -> None:
        """Note that the source could be read, whether or not it had news."""
        record = self._record(series)
        record.errors = 0
        record.last_error = ""

    def list(self, symbols: Collection[str] = (), tape: str = "") -> list[Coverage]:
        """Coverage in order of tape, source, symbol and interval; of all symbols and tapes when none is named."""
        now = self._clock()
        chosen = [
            (series, record)
            for series, record in self._records.items()
            if (not symbols or series.symbol in symbols) and (not tape or series.tape == tape)
        ]
        chosen.sort(key=lambda item: (item[0].tape, item[0].source, item[0].symbol, item[0].interval_seconds))
        return [self._coverage(series, record, now) for series, record in chosen]

    def _coverage(self, series: Series, record: _Record, now: datetime) -> Coverage:
        silence = None if record.last_ingest_time is None else max(timedelta(0), now - record.last_ingest_time)
        patience = _STALE_INTERVALS * timedelta(seconds=series.interval_seconds) + _STALE_GRACE
        if silence is None:
            freshness = Freshness.NEVER_SEEN
        else:
            freshness = Freshness.FRESH if silence <= patience else Freshness.STALE
        return Coverage(
            series=series,
            freshness=freshness,
            last_event_time=record.last_event_time,
            last_ingest_time=record.last_ingest_time,
            silence=silence,
            accepted_quotes=record.accepted,
            rejected_quotes=record.rejected,
            gaps=record.gaps,
            consecutive_errors=record.errors,
            last_error=record.last_error,
        )
