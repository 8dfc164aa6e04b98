"""What is observed of a deployment: drift, the shadow's disagreement, and the canary's judgements."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from services.domain.feature_definitions import FEATURE_NAMES
from services.domain.model import Judgements
from services.domain.quote import CANARY_TAPE, LIVE_TAPE, Series
from services.domain.stability import AUTOENCODER_PERCENTILE, SCORE, Stability, StabilityMonitor, references
from services.scorer.deployment import Deployment
from services.scorer.ports import Model

_BAR_LENGTH = FEATURE_NAMES.index("bar_length")
REPLAY = "replay"
_TAPES = (LIVE_TAPE, REPLAY)
_REPLAYED = _TAPES.index(REPLAY)
_KINDS = {LIVE_TAPE: _TAPES.index(LIVE_TAPE), CANARY_TAPE: -1}
"""Of a tape's name; a replay has a tape of its own, and all of them are one kind. -1 is not monitored."""


@dataclass(frozen=True, slots=True)
class Batch:
    """n judged rows: whose they are, how many quotes of history each saw, and what came out.

    `series` (n,); `history` int64 (n,); `features` float32 (n, F); `ensemble` float64 (n,) and `detection` bool (n,) as
    recorded; `parts` each model that judged with its rows and judgements; `shadow` the shadow's judgements of all rows,
    None without one or when it failed.
    """

    series: Sequence[Series]
    history: NDArray[np.int64]
    features: NDArray[np.float32]
    ensemble: NDArray[np.float64]
    detection: NDArray[np.bool_]
    parts: Sequence[tuple[Model, NDArray[np.int64], Judgements]]
    shadow: Judgements | None


@dataclass(slots=True)
class ShadowTally:
    """How a shadow's judgements differ from the recorded ones. See ShadowReport in model_service.proto."""

    model_version: str
    start_time: datetime
    quotes: int = 0
    difference_sum: float = 0.0
    largest_difference: float = 0.0
    both_detections: int = 0
    shadow_only_detections: int = 0
    recorded_only_detections: int = 0
    failed_batches: int = 0

    @property
    def mean_absolute_difference(self) -> float:
        """Of the ensembles; 0 before the first quote."""
        return self.difference_sum / self.quotes if self.quotes else 0.0

    @property
    def detection_difference_share(self) -> float:
        """Share of quotes on which the two differ in whether it is a detection; 0 before the first quote."""
        differing = self.shadow_only_detections + self.recorded_only_detections
        return differing / self.quotes if self.quotes else 0.0


@dataclass(slots=True)
class CanaryTally:
    """What a canary judged for real, beside the serving model. See CanaryReport in model_service.proto."""

    model_version: str
    weight: float
    start_time: datetime
    quotes: int = 0
    detections: int = 0
    serving_quotes: int = 0
    serving_detections: int = 0


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the newest `quotes` of one kind of tape are from training's bars of the nearest length."""

    tape: str
    interval_seconds: int
    quotes: int
    values: list[Stability]


def detections(model: Model, ensemble: NDArray[np.float64], history: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows are detections of this model, bool (n,): at the threshold, with enough history."""
    found: NDArray[np.bool_] = (ensemble >= model.metadata.threshold) & (history >= model.metadata.min_history_quotes)
    return found


@dataclass(slots=True)
class _Counts:
    """Everything counted since the deployment's last change of that part."""

    drift: dict[tuple[int, int], StabilityMonitor]
    """By the place of the kind of tape in _TAPES, and of the bar length in the metadata's `usual`."""
    shadow: ShadowTally | None = None
    canary: CanaryTally | None = None
    changed: threading.Lock = field(default_factory=threading.Lock)


class DeploymentWatch:
    """Counts what the judging thread tells it; safe to read from others."""

    def __init__(self, deployment: Deployment, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._deployment = deployment
        self._counts = _Counts(_monitors(deployment.serving))
        self._begin_candidates(shadow=True, canary=True)

    def follow(self, deployment: Deployment) -> None:
        """Count for another deployment from now on; what has not changed goes on counting."""
        with self._counts.changed:
            before, self._deployment = self._deployment, deployment
            another = before.serving is not deployment.serving
            if another:
                self._counts.drift = _monitors(deployment.serving)
            same_canary = before.canary is deployment.canary and before.canary_weight == deployment.canary_weight
            self._begin_candidates(
                shadow=another or before.shadow is not deployment.shadow, canary=another or not same_canary
            )

    def _begin_candidates(self, *, shadow: bool, canary: bool) -> None:
        now, deployment = self._clock(), self._deployment
        if shadow:
            model = deployment.shadow
            self._counts.shadow = None if model is None else ShadowTally(model.metadata.version, now)
        if canary:
            model = deployment.canary
            self._counts.canary = (
                None if model is None else CanaryTally(model.metadata.version, deployment.canary_weight, now)
            )

    def observe(self, deployment: Deployment, batch: Batch) -> None:
        """Count a batch; one of a deployment that is gone by now is left out."""
        with self._counts.changed:
            if deployment is not self._deployment:
                return
            self._observe_shadow(batch)
            self._observe_canary(batch)
            self._observe_drift(batch)

    def _observe_shadow(self, batch: Batch) -> None:
        tally, shadow = self._counts.shadow, self._deployment.shadow
        if tally is None or shadow is None:
            return
        if batch.shadow is None:
            tally.failed_batches += 1
            return
        # What the shadow's own version judged for real, as canary, would be compared with itself.
        others = [rows for model, rows, _ in batch.parts if model.metadata.version != shadow.metadata.version]
        if not others:
            return
        rows = np.concatenate(others)
        ensemble, recorded = batch.shadow.ensemble[rows], batch.detection[rows]
        difference = np.abs(ensemble - batch.ensemble[rows])
        found = detections(shadow, ensemble, batch.history[rows])
        tally.quotes += len(rows)
        tally.difference_sum += float(difference.sum())
        tally.largest_difference = max(tally.largest_difference, float(difference.max(initial=0.0)))
        tally.both_detections += int(np.count_nonzero(found & recorded))
        tally.shadow_only_detections += int(np.count_nonzero(found & ~recorded))
        tally.recorded_only_detections += int(np.count_nonzero(~found & recorded))

    def _observe_canary(self, batch: Batch) -> None:
        tally = self._counts.canary
        if tally is None:
            return
        for model, rows, _ in batch.parts:
            detected = int(np.count_nonzero(batch.detection[rows]))
            if model is self._deployment.canary:
                tally.quotes += len(rows)
                tally.detections += detected
            else:
                tally.serving_quotes += len(rows)
                tally.serving_detections += detected

    def _observe_drift(self, batch: Batch) -> None:
        serving = self._deployment.serving
        kinds = np.array([_KINDS.get(series.tape, _REPLAYED) for series in batch.series])
        for model, rows, judgements in batch.parts:
            if model is not serving:
                continue
            enough = batch.history[rows] >= serving.metadata.min_history_quotes
            length = serving.metadata.nearest(batch.features[rows, _BAR_LENGTH].astype(np.float64))
            for (kind, place), monitor in self._counts.drift.items():
                own = enough & (kinds[rows] == kind) & (length == place)
                if not own.any():
                    continue
                columns = [batch.features[rows[own]].astype(np.float64)]
                if AUTOENCODER_PERCENTILE in monitor.names:
                    assert judgements.autoencoder_percentile is not None
                    columns.append(judgements.autoencoder_percentile[own, None])
                if SCORE in monitor.names:
                    columns.append(judgements.ensemble[own, None])
                monitor.observe(np.concatenate(columns, axis=1))

    def shadow(self) -> ShadowTally | None:
        """The shadow's tally as it is now; None without a shadow."""
        with self._counts.changed:
            return None if self._counts.shadow is None else replace(self._counts.shadow)

    def canary(self) -> CanaryTally | None:
        """The canary's tally as it is now; None without a canary."""
        with self._counts.changed:
            return None if self._counts.canary is None else replace(self._counts.canary)

    def drifts(self) -> list[Drift]:
        """Drift by kind of tape and bar length; of what has not been seen, nothing."""
        with self._counts.changed:
            usual = self._deployment.serving.metadata.usual
            return [
                Drift(_TAPES[kind], usual[place].interval_seconds, monitor.rows, monitor.read())
                for (kind, place), monitor in self._counts.drift.items()
                if monitor.rows
            ]


def _monitors(serving: Model) -> dict[tuple[int, int], StabilityMonitor]:
    empty = serving.judge(np.empty((0, len(serving.metadata.features)), dtype=np.float32))
    with_autoencoder = empty.autoencoder_percentile is not None
    return {
        (kind, place): StabilityMonitor(references(bars, with_autoencoder=with_autoencoder))
        for kind in range(len(_TAPES))
        for place, bars in enumerate(serving.metadata.usual)
    }
