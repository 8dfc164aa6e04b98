"""A scorer and a recorder in memory, with the failures that tests ask for."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from services.domain.errors import DependencyUnavailableError, TapewatchError
from services.domain.quote import Quote, Series
from services.domain.score import Score, ScoredQuote
from services.pipeline.ports import Cursors, RecordOutcome

START = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)


def quote(i: int, symbol: str = "AAPL", **changes: object) -> Quote:
    values: dict[str, object] = {
        "symbol": symbol,
        "event_time": START + timedelta(minutes=i),
        "open": 10.0,
        "high": 10.2,
        "low": 9.9,
        "close": 10.1,
        "volume": 1_000.0 + i,
        "split_ratio": 1.0,
    }
    return Quote(**{**values, **changes})  # type: ignore[arg-type]


def score(of: Quote, ensemble: float = 0.1) -> Score:
    return Score(
        quote_id=of.quote_id,
        ensemble=ensemble,
        threshold=0.5,
        detection=ensemble >= 0.5,
        model_version="m1",
        feature_hash="f1",
        score_time=START,
    )


class FakeScorer:
    def __init__(self) -> None:
        self.failures: dict[str, TapewatchError] = {}
        self.away = False
        self.batches: list[tuple[list[str], dict[Series, datetime | None]]] = []

    async def score(self, quotes: Sequence[Quote], cursors: Cursors) -> list[Score | TapewatchError]:
        if self.away:
            raise DependencyUnavailableError("scorer", "is away")
        self.batches.append(([q.quote_id for q in quotes], dict(cursors)))
        return [self.failures.get(q.quote_id) or score(q) for q in quotes]


class FakeRecorder:
    def __init__(self) -> None:
        self.failures: dict[str, TapewatchError] = {}
        self.away = False
        self.recorded: list[ScoredQuote] = []

    async def cursors(self, series: Sequence[Series]) -> Cursors:
        if self.away:
            raise DependencyUnavailableError("gateway", "is away")
        return {
            each: max((r.quote.event_time for r in self.recorded if r.quote.series == each), default=None)
            for each in series
        }

    async def record(self, items: Sequence[ScoredQuote]) -> list[RecordOutcome | TapewatchError]:
        results: list[RecordOutcome | TapewatchError] = []
        for item in items:
            if failure := self.failures.get(item.quote.quote_id):
                results.append(failure)
                continue
            known = any(r.quote.quote_id == item.quote.quote_id for r in self.recorded)
            if not known:
                self.recorded.append(item)
            results.append(RecordOutcome.UNCHANGED if known else RecordOutcome.CREATED)
        return results
