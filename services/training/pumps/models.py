"""The models that are compared on the labelled pumps: parts of an ensemble, and the published forest."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.training.pumps.protocol import Choice, Fit, Rows
from services.training.pumps.recordings import Pumps, against_past

Array = NDArray[np.float64]

MINUTES, DAYS, COURSE = "minutes", "days", "course"
"""The parts: against the last 60 chunks; against hours and days; both, for a pump's course, not its onset alone."""

CHOICE = Choice(
    onset=((MINUTES,), (DAYS,), (MINUTES, DAYS), (MINUTES, DAYS, COURSE)),
    alert=((MINUTES, DAYS), (COURSE,), (MINUTES, DAYS, COURSE)),
)
PRICE_AND_VOLUME_CHOICE = Choice(onset=((DAYS,), (DAYS, COURSE)), alert=((DAYS,), (COURSE,), (DAYS, COURSE)))
FOREST_CHOICE = Choice(onset=(("forest",),), alert=(("forest",),))

COURSE_SECONDS = 100
"""How long after its onset a pump is still shown to the course's part: the chunks that end within 125 s."""

_BUSY = ("volume_peak_600", "trades_peak_600")
_BUSY_FROM = 0.5
_EVERY = 12
_SHIFTED_WEIGHT = 0.25
_TREES = 60
_COLUMNS_A_SPLIT = 40
_FLOOR = 1e-4
_FLOW_PREFIXES = ("bought_", "sold_", "trades_", "buys_", "rush_", "buy_", "trade_", "net_bought_")


def parts(pumps: Pumps, *, trades: bool, minutes: bool = True, seed: int = 1) -> dict[str, Fit]:
    """The ensemble's parts.

    Args:
        pumps: The chunks.
        trades: Whether to use trade counts, the takers' side and rush orders.
        minutes: Whether `features` and `published` are there to be used; only with `trades`.
        seed: Of the trees.
    """
    names = [i for i, name in enumerate(pumps.long_names) if trades or not name.startswith(_FLOW_PREFIXES)]
    days = np.ascontiguousarray(pumps.long[:, names])
    shifted = np.ascontiguousarray(pumps.shifted.long[:, names])
    busy = _BUSY if trades else _BUSY[:1]
    onset = _trees(pumps, busy, days, pumps.label, seed, shifted)
    if not (trades and minutes):
        return {DAYS: onset, COURSE: _trees(pumps, busy, days, _course(pumps), seed + 1)}
    past = against_past(pumps.features, pumps.published, pumps.event)
    return {
        MINUTES: _trees(pumps, busy, past, pumps.label, seed),
        DAYS: onset,
        COURSE: _trees(pumps, busy, np.hstack([days, past]), _course(pumps), seed + 1),
    }


def forest(pumps: Pumps) -> dict[str, Fit]:
    """The published random forest: 200 trees of depth 5 on the study's 12 features, on every training row."""
    from sklearn.ensemble import RandomForestClassifier  # type: ignore[import-untyped, unused-ignore]

    def fit(train: Rows) -> Callable[[Rows], Array]:
        model = RandomForestClassifier(200, max_depth=5, random_state=1, n_jobs=1)
        model.fit(pumps.published[train], pumps.label[train])
        return _scorer(model, pumps.published)

    return {"forest": fit}


def _course(pumps: Pumps) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = (pumps.seconds >= 0) & (pumps.seconds <= COURSE_SECONDS)
    return mask


def _trees(
    pumps: Pumps,
    busy_by: tuple[str, ...],
    features: NDArray[np.float32],
    label: NDArray[np.bool_],
    seed: int,
    shifted: NDArray[np.float32] | None = None,
) -> Fit:
    """Extremely randomised trees on chunks busier than the ten minutes before and on every 12th of the others."""
    from sklearn.ensemble import ExtraTreesClassifier

    busy = pumps.long[:, [pumps.long_names.index(name) for name in busy_by]].max(axis=1) > _BUSY_FROM
    every = np.random.default_rng(seed).random(len(label)) < 1.0 / _EVERY
    shown = busy | label | every
    weight = np.where(busy | label, 1.0, float(_EVERY))

    def fit(train: Rows) -> Callable[[Rows], Array]:
        rows = train[shown[train]]
        values, target, weights = features[rows], label[rows], weight[rows]
        if shifted is not None:
            more = np.isin(pumps.shifted.event, np.unique(pumps.event[train]))
            values = np.concatenate([values, shifted[more]])
            target = np.concatenate([target, pumps.shifted.label[more]])
            weights = np.concatenate([weights, np.full(int(more.sum()), _SHIFTED_WEIGHT)])
        model = ExtraTreesClassifier(
            _TREES, min_samples_leaf=2, max_features=_COLUMNS_A_SPLIT, random_state=seed, n_jobs=1
        )
        model.fit(values, target, sample_weight=weights)
        return _scorer(model, features)

    return fit


def _scorer(model: Any, features: NDArray[np.float32]) -> Callable[[Rows], Array]:
    def score(rows: Rows) -> Array:
        share = np.clip(model.predict_proba(features[rows])[:, 1], _FLOOR, 1.0 - _FLOOR)
        found: Array = np.log(share / (1.0 - share))
        return found

    return score
