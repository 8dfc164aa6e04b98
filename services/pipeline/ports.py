"""What score-then-record needs of the outside: a scorer, a recorder, and the history behind a series.

Results are answered per item, in the order of the items: a value, or the error that this item met. A method raises only
when the whole call failed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Protocol

from services.domain.errors import TapewatchError
from services.domain.quote import Quote, Series
from services.domain.score import Score, ScoredQuote

Cursors = Mapping[Series, datetime | None]
"""event_time of each series' newest recorded quote; None when none is recorded."""


class RecordOutcome(IntEnum):
    """What recording a score did; the numbers are the proto's."""

    CREATED = 1
    UNCHANGED = 2
    DIFFERENT = 3


@dataclass(frozen=True, slots=True)
class QueuedQuote:
    """A valid quote as a queue message carried it."""

    quote: Quote
    body: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entered:
    """The quote's batch is durable in the ledger of task mode, and will be scored by a task."""

    batch_id: str


Carried = Score | Entered | TapewatchError


class Carrier(Protocol):
    """Carries queued quotes to where they may be acknowledged."""

    async def carry(self, messages: Sequence[QueuedQuote]) -> Sequence[Carried]:
        """One result per message: its score, durable; its batch, durable in the ledger; or why it is neither.

        Raises: DependencyUnavailableError or NotConfiguredError when all of them must come again.
        """
        ...


class Scorer(Protocol):
    """Judges quotes."""

    async def score(self, quotes: Sequence[Quote], cursors: Cursors) -> list[Score | TapewatchError]:
        """One result per quote. Quotes of one series come in order of event_time.

        Raises: DependencyUnavailableError when no scorer can be reached.
        """
        ...


class Recorder(Protocol):
    """Keeps scores, exactly once."""

    async def cursors(self, series: Sequence[Series]) -> Cursors:
        """How far the series have been recorded, strongly consistent.

        Raises: DependencyUnavailableError when the recorder cannot be reached.
        """
        ...

    async def record(self, items: Sequence[ScoredQuote]) -> list[RecordOutcome | TapewatchError]:
        """One result per item; an outcome means that the score is durable.

        Raises: DependencyUnavailableError when the recorder cannot be reached.
        """
        ...


class Record(Protocol):
    """What is recorded by now."""

    async def scores(self, quotes: Sequence[Quote]) -> Mapping[str, Score]:
        """The recorded scores of those quotes that have one, by quote_id; strongly consistent.

        Raises: DependencyUnavailableError when the record cannot be reached.
        """
        ...


class History(Protocol):
    """The recorded quotes of a series."""

    async def before(self, series: Series, event_time: datetime, limit: int) -> list[Quote]:
        """The last `limit` quotes with an earlier event_time, oldest first; of a revised bar the newest revision.

        Raises: DependencyUnavailableError when the history cannot be reached.
        """
        ...
