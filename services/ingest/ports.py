"""What ingest needs of the outside: sources, a trace of each publication, and a memory of how far it got."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import IntEnum
from typing import Any, Protocol

from services.domain.quote import Quote, Series, format_time


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """What one look at a source gave: quotes in order per series, and the series that could not be read, with why."""

    quotes: Sequence[Quote]
    failures: Mapping[Series, str] = field(default_factory=dict)


class QuoteSource(Protocol):
    """Something that prints quotes: Yahoo Finance, a CSV file that grows, an archive that is replayed."""

    @property
    def expected(self) -> Sequence[Series]:
        """The series that the source should give; empty when it cannot know."""
        ...

    def batches(self) -> AsyncIterator[SourceBatch]:
        """Batches as they come. A source that fails for a while says so in `failures` and goes on."""
        ...


class Market(Protocol):
    """Where the quotes come from."""

    def is_open(self, moment: datetime) -> bool:
        """Whether quotes must come at that moment."""
        ...


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C trace context of one quote's publication."""

    traceparent: str = ""
    tracestate: str = ""


class Tracing(Protocol):
    """Makes a publication visible in traces."""

    def publishing(self, quotes: Sequence[Quote]) -> AbstractContextManager[list[TraceContext]]:
        """One producer span per quote, open until the block ends; their contexts in order."""
        ...


class ReplayState(IntEnum):
    """Where a replay is; the numbers are the proto's."""

    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4


@dataclass(frozen=True, slots=True)
class Replay:
    """One playing of an archive onto a tape. See proto/tapewatch/ingest/v1/replay.proto."""

    tape: str
    location: str
    symbols: tuple[str, ...]
    speed: float
    state: ReplayState
    create_time: datetime
    update_time: datetime
    published_quotes: int = 0
    rejected_quotes: int = 0
    total_quotes: int = 0
    position: datetime | None = None
    error: str = ""
    start: datetime | None = None
    end: datetime | None = None

    @property
    def next_row(self) -> int:
        """How many quotes of the source are done."""
        return self.published_quotes + self.rejected_quotes

    def plays_same(
        self, location: str, symbols: Sequence[str], start: datetime | None = None, end: datetime | None = None
    ) -> bool:
        """Whether it plays the same quotes."""
        return (self.location, self.symbols, self.start, self.end) == (location, tuple(symbols), start, end)

    def changed(self, now: datetime, **changes: object) -> "Replay":
        """The replay after a change."""
        return replace(self, update_time=now, **changes)  # type: ignore[arg-type]


_REPLAY_TIMES = ("create_time", "update_time", "position")
_REPLAY_BOUNDS = ("start", "end")
"""Left out where there are none: so an earlier release reads what this one wrote."""


def replay_to_json(replay: Replay) -> dict[str, Any]:
    """The replay as JSON values."""
    values: dict[str, Any] = {each.name: getattr(replay, each.name) for each in fields(replay)}
    for name in _REPLAY_TIMES:
        values[name] = None if values[name] is None else format_time(values[name])
    for name in _REPLAY_BOUNDS:
        if (bound := values.pop(name)) is not None:
            values[name] = format_time(bound)
    return values | {"state": int(replay.state)}


def replay_from_json(values: Mapping[str, Any]) -> Replay:
    """The replay of `replay_to_json`."""
    read = dict(values)
    for name in _REPLAY_TIMES:
        read[name] = None if read[name] is None else datetime.fromisoformat(read[name])
    for name in read.keys() & _REPLAY_BOUNDS:
        read[name] = datetime.fromisoformat(read[name])
    return Replay(**(read | {"symbols": tuple(read["symbols"]), "state": ReplayState(read["state"])}))


class Progress(Protocol):
    """Remembers, durably, how far replays and sources got. Every method raises DependencyUnavailableError.

    Adapters block; callers run them in threads.
    """

    def save(self, replay: Replay) -> None:
        """Keep the replay as it is now."""
        ...

    def find(self, tape: str) -> Replay | None:
        """The tape's replay, or None."""
        ...

    def running(self) -> list[Replay]:
        """Replays that were running when last saved."""
        ...

    def advance(self, event_times: Mapping[Series, datetime]) -> None:
        """Keep the newest published event_time of each series of a polled source."""
        ...

    def advanced(self) -> dict[Series, datetime]:
        """The newest published event_time of each series."""
        ...

    def check(self) -> None:
        """Returns when it can be used. Raises: NotConfiguredError too."""
        ...

    def close(self) -> None:
        """Release what is held. Calling it twice is harmless."""
        ...
