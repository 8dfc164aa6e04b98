"""What the scorer holds of one series: its state, and what limits the quality of the bars in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from services.domain.features import WINDOW, SeriesState
from services.domain.quote import Quote
from services.domain.score import Quality


@dataclass(frozen=True, slots=True)
class HeldSeries:
    """A series' state with one set of limits per bar of its window. Immutable: scoring makes the next one."""

    state: SeriesState = field(default_factory=SeriesState)
    limits: tuple[frozenset[Quality], ...] = ()

    @classmethod
    def from_history(cls, recorded: Sequence[Quote], borrowed: Sequence[Quote] = ()) -> "HeldSeries":
        """The series after its recorded quotes, completed in front by borrowed ones (yfinance's), oldest first."""
        held = cls()
        if borrowed:
            held = held.extended(borrowed, frozenset({Quality.FALLBACK}))[0]
        return held.extended(recorded)[0] if recorded else held

    @property
    def last_event_time(self) -> datetime | None:
        """event_time of the newest bar; None when there is none."""
        return self.state.last_event_time

    def extended(
        self, quotes: Sequence[Quote], because: frozenset[Quality] = frozenset()
    ) -> tuple["HeldSeries", list[tuple[Quality, ...]], list[int]]:
        """The series after these further quotes; per quote, the limits of its window and the bars before it in it."""
        limits = list(self.limits)
        last = self.last_event_time
        qualities, histories = [], []
        for quote in quotes:
            unknown = frozenset({Quality.UNADJUSTED}) if quote.split_ratio is None else frozenset()
            if quote.event_time == last and limits:  # a revision takes its bar's place
                limits.pop()
            limits = [*limits, because | unknown][-WINDOW:]
            last = quote.event_time
            qualities.append(tuple(sorted(frozenset().union(*limits))))
            histories.append(len(limits) - 1)
        return HeldSeries(self.state.extended(quotes), tuple(limits)), qualities, histories
