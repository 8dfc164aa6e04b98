"""The models that are compared on the labelled pumps: ensembles of trees in parts, and the published forest."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.domain.feature_definitions import FEATURE_NAMES
from services.training import tree_tables
from services.training.networks import tensorflow
from services.training.pumps.protocol import FOLDS, Choice, Chosen, Fit, Rows, Scorer
from services.training.pumps.recordings import OF_QUOTES, PAST_PREFIX, PUBLISHED, Pumps, against_past, past_names

Array = NDArray[np.float64]
Matrix = NDArray[np.float32]

MINUTES, DAYS, COURSE = "minutes", "days", "course"
"""The parts: against the last 60 chunks; against hours and days; both, for a pump's course, not its onset alone."""

_COURSES = (0, 1_800)
CHOICE = Choice(
    onset=((MINUTES,), (DAYS,), (MINUTES, DAYS), (MINUTES, DAYS, COURSE)),
    alert=((MINUTES, DAYS), (COURSE,), (MINUTES, DAYS, COURSE)),
    course_seconds=_COURSES,
)
DAYS_CHOICE = Choice(
    onset=((DAYS,), (DAYS, COURSE)), alert=((DAYS,), (COURSE,), (DAYS, COURSE)), course_seconds=_COURSES
)
MINUTES_CHOICE = Choice(
    onset=((MINUTES,), (MINUTES, COURSE)), alert=((MINUTES,), (COURSE,), (MINUTES, COURSE)), course_seconds=_COURSES
)
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
_FLOW = ("bought_", "sold_", "trades_", "buys_", "rush_", "buy_", "trade_", "net_bought_", PAST_PREFIX)
_BEYOND_QUOTES = ("buys_", "rush_", f"{PAST_PREFIX}std_rush", f"{PAST_PREFIX}avg_rush")


class Feed(StrEnum):
    """What is known of the trades in a bar.

    TRADES: their number, the takers' side and rush orders. QUOTES: their number and the bought volume, as
    `market.v1.Quote` has them. BARS: price and volume only.
    """

    TRADES = "trades"
    QUOTES = "quotes"
    BARS = "bars"

    def has(self, column: str) -> bool:
        """Whether a column can be computed from it; MINUTES has columns of trades, so BARS has none of it."""
        lacking = {Feed.TRADES: (), Feed.QUOTES: _BEYOND_QUOTES, Feed.BARS: _FLOW}[self]
        return not column.startswith(lacking)


@dataclass(frozen=True, slots=True)
class Model:
    """A model to be fitted: `inputs` float32 (n, C), what its file takes, columns in `names` order; parts; choice."""

    inputs: Matrix
    names: tuple[str, ...]
    parts: Mapping[str, Fit]
    choice: Choice


class Trees:
    """A fitted part: a forest on some columns of a model's inputs."""

    def __init__(self, forest: Any, inputs: Matrix, columns: NDArray[np.int64]) -> None:
        self._forest, self._inputs, self._columns = forest, inputs, columns

    def __call__(self, rows: Rows) -> Array:
        """The log-odds of rows, float64 (n,), by scikit-learn."""
        share = self._forest.predict_proba(self._inputs[np.ix_(rows, self._columns)])[:, 1]
        bounded = np.clip(share, _FLOOR, 1.0 - _FLOOR)
        found: Array = np.log(bounded / (1.0 - bounded))
        return found

    def table(self) -> tree_tables.TreeTable:
        """The forest as a table."""
        return tree_tables.TreeTable.of_forest(self._forest, self._columns)


def tflite(chosen: Chosen, inputs: int) -> bytes:
    """A TFLite file, float32: rows (n, inputs) to log-odds of onset and of alert, (n, 2), means of the fitted parts."""
    tf = tensorflow()
    names = list(chosen.fitted)
    heads = np.zeros((FOLDS * len(names), 2), np.float32)
    for head, parts in enumerate((chosen.onset, chosen.alert)):
        for part in parts:
            place = FOLDS * names.index(part)
            heads[place : place + FOLDS, head] = 1.0 / (FOLDS * len(parts))

    def log_odds(share: Any) -> Any:
        bounded = tf.clip_by_value(share, _FLOOR, 1.0 - _FLOOR)
        return tf.matmul(tf.math.log(bounded) - tf.math.log(1.0 - bounded), heads)

    fitted = [scorer for name in names for scorer in chosen.fitted[name]]
    return tree_tables.export([scorer.table() for scorer in fitted if isinstance(scorer, Trees)], inputs, log_odds)


def trees(pumps: Pumps, feed: Feed = Feed.TRADES, *, minutes: bool = True, seed: int = 1) -> Model:
    """The ensemble of trees.

    Args:
        pumps: The chunks.
        feed: What of the trades is known.
        minutes: Whether `features` and `published` are there to be used; not with Feed.BARS.
        seed: Of the trees.
    """
    days = [i for i, name in enumerate(pumps.long_names) if feed.has(name)]
    names = tuple(pumps.long_names[i] for i in days)
    inputs = np.ascontiguousarray(pumps.long[:, days])
    shifted = np.ascontiguousarray(pumps.shifted.long[:, days])
    recent = [i for i, name in enumerate(past_names()) if minutes and feed.has(name)]
    if recent:
        names += tuple(past_names()[i] for i in recent)
        inputs = np.hstack([inputs, against_past(pumps.features, pumps.published, pumps.event)[:, recent]])
    place = np.arange(len(names))
    busy = _BUSY if feed is not Feed.BARS else _BUSY[:1]
    parts = {
        DAYS: _trees(pumps, busy, inputs, place[: len(days)], pumps.label, seed, shifted),
        COURSE: _trees(pumps, busy, inputs, place, _course(pumps), seed + 1),
    }
    if not recent:
        return Model(inputs, names, parts, DAYS_CHOICE)
    parts[MINUTES] = _trees(pumps, busy, inputs, place[len(days) :], pumps.label, seed)
    return Model(inputs, names, parts, CHOICE)


def mesh_features(pumps: Pumps, seed: int = 1) -> Model:
    """The ensemble on the features that the scorer itself computes: what the mesh could find in quotes of 25 s."""
    inputs, place = pumps.features, np.array([FEATURE_NAMES.index(name) for name in OF_QUOTES])
    parts = {
        MINUTES: _trees(pumps, _BUSY, inputs, place, pumps.label, seed),
        COURSE: _trees(pumps, _BUSY, inputs, place, _course(pumps), seed + 1),
    }
    return Model(inputs, FEATURE_NAMES, parts, MINUTES_CHOICE)


def forest(pumps: Pumps) -> Model:
    """The published random forest: 200 trees of depth 5 on the study's 12 features, on every training row."""
    from sklearn.ensemble import RandomForestClassifier  # type: ignore[import-untyped, unused-ignore]

    columns = np.arange(len(PUBLISHED))

    def fit(train: Rows) -> Scorer:
        model = RandomForestClassifier(200, max_depth=5, random_state=1, n_jobs=1)
        model.fit(np.asfortranarray(pumps.published[train]), pumps.label[train])
        return Trees(model, pumps.published, columns)

    return Model(pumps.published, PUBLISHED, {"forest": fit}, FOREST_CHOICE)


def _course(pumps: Pumps) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = (pumps.seconds >= 0) & (pumps.seconds <= COURSE_SECONDS)
    return mask


def _trees(
    pumps: Pumps,
    busy_by: tuple[str, ...],
    inputs: Matrix,
    columns: NDArray[np.int64],
    label: NDArray[np.bool_],
    seed: int,
    shifted: Matrix | None = None,
) -> Fit:
    """Extremely randomised trees on chunks busier than the ten minutes before and on every 12th of the others."""
    from sklearn.ensemble import ExtraTreesClassifier

    busy = pumps.long[:, [pumps.long_names.index(name) for name in busy_by]].max(axis=1) > _BUSY_FROM
    every = np.random.default_rng(seed).random(len(label)) < 1.0 / _EVERY
    shown = busy | label | every
    weight = np.where(busy | label, 1.0, float(_EVERY))

    def fit(train: Rows) -> Scorer:
        rows = train[shown[train]]
        values, target, weights = inputs[np.ix_(rows, columns)], label[rows], weight[rows]
        if shifted is not None:
            more = np.isin(pumps.shifted.event, np.unique(pumps.event[train]))
            values = np.concatenate([values, shifted[more]])
            target = np.concatenate([target, pumps.shifted.label[more]])
            weights = np.concatenate([weights, np.full(int(more.sum()), _SHIFTED_WEIGHT)])
        model = ExtraTreesClassifier(
            _TREES, min_samples_leaf=2, max_features=_COLUMNS_A_SPLIT, random_state=seed, n_jobs=1
        )
        # By column: trees look at one column at a time, and take half as long.
        model.fit(np.asfortranarray(values), target, sample_weight=weights)
        return Trees(model, inputs, columns)

    return fit
