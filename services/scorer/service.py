"""Judging quotes: the right state for each series, the features, the model, and the reasons."""

import asyncio
import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from services.domain.errors import (
    DependencyUnavailableError,
    FieldViolation,
    InvalidQuoteError,
    PredecessorFailedError,
    TapewatchError,
)
from services.domain.features import FEATURE_HASH, WINDOW, compute
from services.domain.model import Judgements
from services.domain.quote import LIVE_TAPE, Quote, Series, violations
from services.domain.score import Quality, Reason, Score
from services.domain.typology import Typology
from services.pipeline.ports import Cursors, History
from services.scorer.deployment import Deployment
from services.scorer.deployment_watch import Batch, DeploymentWatch, detections
from services.scorer.held_series import HeldSeries
from services.scorer.micro_batch import MicroBatcher
from services.scorer.ports import Model

_log = logging.getLogger(__name__)
Result = Score | TapewatchError
HISTORY_QUOTES = WINDOW - 1
MAX_HELD_SERIES = 20_000
"""Some 5 KB each."""

_LOCKS = 1_024


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class _About:
    """Whose window it is, and how many quotes of history are in it."""

    series: Series
    history: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Judged:
    """One window's judgement, before it meets its quote."""

    model: Model
    ensemble: float
    autoencoder_percentile: float | None
    classifier_probability: float | None
    typology: Typology
    typology_confidence: float
    reasons: tuple[Reason, ...]


class StreamProgress:
    """How far one caller's stream has brought each series: what a later request of the stream continues from."""

    def __init__(self) -> None:
        self.held: dict[Series, HeldSeries] = {}


class ScoringService:
    """Judges quotes with the models that are deployed, keeping one HeldSeries per series.

    `history` is the gateway's; without it a series begins empty. `fallback` completes a history of the live tape that
    is shorter than the window. `deploy` changes the models: a batch is judged by those it began with.
    """

    def __init__(
        self,
        model: Model,
        history: History | None,
        fallback: History | None = None,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._deployment = Deployment(model)
        self.watch = DeploymentWatch(self._deployment, clock)
        self._history = history
        self._fallback = fallback
        self._clock = clock
        self._held: dict[Series, HeldSeries] = {}
        self._locks = [asyncio.Lock() for _ in range(_LOCKS)]
        self._batcher: MicroBatcher[_About, _Judged] = MicroBatcher(self._judge)

    @property
    def deployment(self) -> Deployment:
        """The models that judge."""
        return self._deployment

    def deploy(self, deployment: Deployment) -> None:
        """Judge with other models from the next batch on."""
        self._deployment = deployment
        self.watch.follow(deployment)

    async def score(
        self, quotes: Sequence[Quote], cursors: Cursors, progress: StreamProgress | None = None
    ) -> list[Result]:
        """One result per quote; those of one series come in order of event_time.

        A series is continued from memory when its state ends where the gateway's cursor does (or, later in a stream,
        where the stream brought it); otherwise it is rebuilt from history to just before its first quote.
        """
        results: dict[int, Result] = {}
        by_series: dict[Series, list[int]] = defaultdict(list)
        now = self._clock()
        for i, quote in enumerate(quotes):
            if found := violations(quote, now):
                results[i] = InvalidQuoteError(found, quote_id=quote.quote_id)
            else:
                by_series[quote.series].append(i)
        async with AsyncExitStack() as stack:
            for stripe in sorted({hash(series) % _LOCKS for series in by_series}):  # one order for all: no deadlock
                await stack.enter_async_context(self._locks[stripe])
            parts = await asyncio.gather(
                *(
                    self._prepare(series, [quotes[i] for i in indices], cursors, progress)
                    for series, indices in by_series.items()
                )
            )
            judged = await self._judge_parts([p for p in parts if isinstance(p, _Prepared)])
            for (series, indices), part in zip(by_series.items(), parts, strict=True):
                if isinstance(part, TapewatchError):
                    results |= dict.fromkeys(indices, part)
                    continue
                for i, score in zip(indices, judged[series], strict=False):
                    results[i] = score
                for i in indices[len(part.quotes) :]:
                    results[i] = PredecessorFailedError(part.quotes[-1].quote_id, "has a later event_time")
                if part.keeps:
                    self._keep(series, part.after)
                else:  # a revision or a late quote changed the history that the held state stands for
                    self._held.pop(series, None)
                if progress is not None:
                    progress.held[series] = part.after
        return [results[i] for i in range(len(quotes))]

    async def score_one(self, quote: Quote, history: Sequence[Quote] | None) -> Score:
        """Judge one quote by hand, after the given history or the recorded one; no state changes.

        Raises:
            InvalidQuoteError: The quote or one of its history, named by `quote.` or `history[i].` before the field.
            DependencyUnavailableError: Without a gateway.
        """
        now = self._clock()
        wrong = _under("quote", violations(quote, now))
        for i, given in enumerate(history or ()):
            path = f"history[{i}]"
            wrong += _under(path, violations(given, now))
            if given.series != quote.series:
                wrong.append(FieldViolation(path, f"is not of the series {quote.series.key}"))
            elif given.event_time >= quote.event_time:
                wrong.append(FieldViolation(f"{path}.event_time", "does not lie before the quote's"))
        if wrong:
            raise InvalidQuoteError(wrong, quote_id=quote.quote_id)
        if history:
            held = HeldSeries.from_history(sorted(history, key=lambda q: (q.event_time, q.revision)))
        else:
            held = await self._rebuild(quote.series, quote.event_time)
        prepared = _Prepared.make(quote.series, held, [quote], keeps=False)
        return (await self._judge_parts([prepared]))[quote.series][0]

    async def _prepare(
        self, series: Series, quotes: list[Quote], cursors: Cursors, progress: StreamProgress | None
    ) -> "_Prepared | TapewatchError":
        in_order = 1
        while in_order < len(quotes) and quotes[in_order].event_time >= quotes[in_order - 1].event_time:
            in_order += 1
        first = quotes[0].event_time
        continued = progress.held.get(series) if progress is not None else None
        if continued is not None and continued.last_event_time is not None and continued.last_event_time <= first:
            return _Prepared.make(series, continued, quotes[:in_order], keeps=False)
        cursor = cursors.get(series)
        # What comes again, perhaps with other values, is not what the gateway keeps: its state must not stay.
        new = series in cursors and (cursor is None or cursor < first)
        held = self._held.get(series, HeldSeries())
        if not new or held.last_event_time != cursor:
            try:
                held = await self._rebuild(series, first)
            except DependencyUnavailableError as error:
                return error
        return _Prepared.make(series, held, quotes[:in_order], keeps=new)

    async def _rebuild(self, series: Series, before: datetime) -> HeldSeries:
        recorded = [] if self._history is None else await self._history.before(series, before, HISTORY_QUOTES)
        borrowed: list[Quote] = []
        if self._fallback is not None and series.tape == LIVE_TAPE and len(recorded) < HISTORY_QUOTES:
            earliest = recorded[0].event_time if recorded else before
            try:
                borrowed = await self._fallback.before(series, earliest, HISTORY_QUOTES - len(recorded))
            except DependencyUnavailableError as error:
                _log.warning("no fallback history for %s: %s", series.key, error.message)
        return HeldSeries.from_history(recorded, borrowed)

    def _keep(self, series: Series, held: HeldSeries) -> None:
        self._held.pop(series, None)
        self._held[series] = held  # newest last, so that the first is the longest unused
        if len(self._held) > MAX_HELD_SERIES:
            del self._held[next(iter(self._held))]

    async def _judge_parts(self, parts: Sequence["_Prepared"]) -> dict[Series, list[Score]]:
        if not parts:
            return {}
        about = [_About(part.series, history) for part in parts for history in part.histories]
        judged = await self._batcher.run(np.concatenate([part.windows for part in parts]), about)
        scores: dict[Series, list[Score]] = {}
        start = 0
        now = self._clock()
        for part in parts:
            own = judged[start : start + len(part.quotes)]
            start += len(part.quotes)
            scores[part.series] = [
                _score(quote, j, limits, history, now)
                for quote, j, limits, history in zip(part.quotes, own, part.limits, part.histories, strict=True)
            ]
        return scores

    def _judge(self, windows: NDArray[np.float64], about: Sequence["_About"]) -> list[_Judged]:
        """Runs in the batcher's thread."""
        deployment = self._deployment
        features = compute(windows)
        series = [each.series for each in about]
        history = np.array([each.history for each in about], dtype=np.int64)
        judged: list[_Judged | None] = [None] * len(about)
        ensemble = np.empty(len(about))
        detection = np.empty(len(about), dtype=bool)
        parts = []
        for model, rows in deployment.parts(series):
            own = features if len(rows) == len(about) else features[rows]
            found = model.judge(own)
            parts.append((model, rows, found))
            ensemble[rows] = found.ensemble
            detection[rows] = detections(model, found.ensemble, history[rows])
            for row, result in zip(rows.tolist(), _results(model, own, found), strict=True):
                judged[row] = result
        shadow = None if deployment.shadow is None else _try_to_judge(deployment.shadow, features)
        self.watch.observe(deployment, Batch(series, history, features, ensemble, detection, parts, shadow))
        return [each for each in judged if each is not None]

    def close(self) -> None:
        """End the judging thread."""
        self._batcher.close()


@dataclasses.dataclass(frozen=True, slots=True)
class _Prepared:
    """A series' quotes with their windows and the state they leave; `keeps` when later batches may go on from it."""

    series: Series
    quotes: list[Quote]
    windows: NDArray[np.float64]
    after: HeldSeries
    limits: list[tuple[Quality, ...]]
    histories: list[int]
    keeps: bool

    @classmethod
    def make(cls, series: Series, held: HeldSeries, quotes: list[Quote], *, keeps: bool) -> "_Prepared":
        after, limits, histories = held.extended(quotes)
        return cls(series, quotes, held.state.windows(quotes), after, limits, histories, keeps)


def _under(path: str, found: Sequence[FieldViolation]) -> list[FieldViolation]:
    return [FieldViolation(f"{path}.{violation.field}", violation.description) for violation in found]


def _results(model: Model, features: NDArray[np.float32], found: Judgements) -> list[_Judged]:
    """The judgements by row, with the reasons of those at the threshold."""
    alarming = np.flatnonzero(found.ensemble >= model.metadata.threshold)
    reasons = dict(zip(alarming.tolist(), model.explain(features[alarming]), strict=True)) if len(alarming) else {}
    percentiles, probabilities = found.autoencoder_percentile, found.classifier_probability
    return [
        _Judged(
            model=model,
            ensemble=float(found.ensemble[i]),
            autoencoder_percentile=None if percentiles is None else float(percentiles[i]),
            classifier_probability=None if probabilities is None else float(probabilities[i]),
            typology=Typology(int(found.typology[i])),
            typology_confidence=float(found.typology_confidence[i]),
            reasons=reasons.get(i, ()),
        )
        for i in range(len(features))
    ]


def _try_to_judge(shadow: Model, features: NDArray[np.float32]) -> Judgements | None:
    """The shadow's judgements; None when it fails, which must touch nothing that is recorded."""
    try:
        return shadow.judge(features)
    except Exception:
        _log.exception("the shadow %s cannot judge", shadow.metadata.version)
        return None


def _score(quote: Quote, judged: _Judged, limits: tuple[Quality, ...], history: int, now: datetime) -> Score:
    metadata = judged.model.metadata
    quality = set(limits)
    if history < metadata.min_history_quotes:
        quality.add(Quality.WARMING_UP)
    if judged.autoencoder_percentile is None or judged.classifier_probability is None:
        quality.add(Quality.PARTIAL_MODEL)
    detection = judged.ensemble >= metadata.threshold and Quality.WARMING_UP not in quality
    return Score(
        quote_id=quote.quote_id,
        ensemble=judged.ensemble,
        threshold=metadata.threshold,
        detection=detection,
        model_version=metadata.version,
        feature_hash=FEATURE_HASH,
        score_time=now,
        autoencoder_percentile=judged.autoencoder_percentile,
        classifier_probability=judged.classifier_probability,
        typology=judged.typology if detection else Typology.UNSPECIFIED,
        typology_confidence=judged.typology_confidence if detection else 0.0,
        reasons=judged.reasons if detection else (),
        quality=tuple(sorted(quality)),
        history_quotes=history,
    )
