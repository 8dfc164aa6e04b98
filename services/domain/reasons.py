"""Why a bar was judged as it was: the features that move the score most, in words."""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from services.domain.feature_definitions import FEATURES
from services.domain.model import FeatureUsual, logistic
from services.domain.score import Reason

MAX_REASONS = 3

Margin = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""The log-odds of a score, float64 (n,), of feature rows, float32 (n, F)."""

_BY_NAME = {feature.name: (i, feature) for i, feature in enumerate(FEATURES)}
_USUAL_MOVE = _BY_NAME["usual_move"][0]
_IN_USUAL_MOVES = frozenset(
    _BY_NAME[name][0] for name in ("return_z", "relative_return_z", "peer_relative_return_z", "gap_z")
)
_BAR_LENGTH = _BY_NAME["bar_length"][0]
"""Never a reason, and never set back: it chooses which networks judge."""
_BOUND = 60.0
_USUAL_SHARE = {
    _BY_NAME[f"{kind}_return_z"][0]: _BY_NAME[f"{kind}_volatility_log_ratio"][0]
    for kind in ("relative", "peer_relative")
}
"""What a feature's usual move is of the bar's usual move, as a logarithm."""
_ALIKE = tuple(
    tuple(_BY_NAME[f"{kind}{name}"][0] for kind in ("", "relative_", "peer_relative_"))
    for name in ("return_z", "runup_3_z", "runup_10_z", "return_over_past_extreme", "volume_z")
)
"""Features that hold the same where the feed has no benchmark, or no peers: only the first of those is named then."""
_COMPANIONS = {
    _BY_NAME[f"{name}_z"][0]: _BY_NAME[f"{name}_standard_z"][0]
    for name in ("return", "relative_return", "peer_relative_return", "volume")
}
"""Features and the same in other deviations: only the first of each pair is named, and both are set back."""
_BARS = re.compile(r"\bbar(s?)\b(?!'s)")
_LENGTHS = {60: "minute", 3_600: "hour", 86_400: "day"}
"""What a bar of so many seconds is called; others are bars."""
_FIRST = {second: first for first, second in _COMPANIONS.items()}


def occlude(features: NDArray[np.float32], margin: Margin, usual: Sequence[FeatureUsual]) -> list[list[int]]:
    """The columns that hold each row's score up, strongest first.

    Greedy occlusion through the real model: set each feature outside its usual range to its usual median, keep the one
    that lowers the score most, and go on from there. Greedy, because features of one event stand in for each other: a
    single one set back may change nothing. Features inside their usual range are tried only when none is outside.

    Args:
        features: float32 (m, F).
        margin: The model's log-odds.
        usual: F usual ranges.

    Returns:
        Up to MAX_REASONS columns for each row, at least one.
    """
    medians = np.array([u.median for u in usual], dtype=np.float32)
    low = np.array([u.low for u in usual], dtype=np.float32)
    high = np.array([u.high for u in usual], dtype=np.float32)
    chosen: list[list[int]] = []
    for row in features:
        twins = _twins(row)
        outside = np.flatnonzero((row < low) | (row > high))
        outside = outside[outside != _BAR_LENGTH]
        firsts = {twin: first for first, alike in twins.items() for twin in alike}
        unnamed = {*firsts, *_COMPANIONS.values(), _BAR_LENGTH}
        named = [_FIRST.get(i, i) for i in map(int, outside)]
        named = [firsts.get(i, i) for i in named]
        candidates = list(dict.fromkeys(named)) or [i for i in range(len(row)) if i not in unnamed]
        current = row.copy()
        picked: list[int] = []
        best = float(margin(current[None])[0])
        while candidates and len(picked) < MAX_REASONS:
            trials = np.repeat(current[None], len(candidates), axis=0)
            for k, i in enumerate(candidates):
                alike = [i, *twins.get(i, ())]
                alike += [_COMPANIONS[j] for j in alike if j in _COMPANIONS]
                trials[k, alike] = medians[alike]
            margins = margin(trials)
            k = int(np.argmin(margins))
            if picked and margins[k] >= best:
                break
            best = float(margins[k])
            current = trials[k]
            picked.append(candidates.pop(k))
        chosen.append(picked)
    return chosen


def _twins(row: NDArray[np.float32]) -> dict[int, list[int]]:
    """The features that hold the same as one before them in _ALIKE, by that one."""
    found: dict[int, list[int]] = {}
    for columns in _ALIKE:
        for k, column in enumerate(columns[1:], start=1):
            first = next((each for each in columns[:k] if row[each] == row[column]), None)
            if first is not None:
                found.setdefault(first, []).append(column)
    return found


def explain(features: NDArray[np.float32], margin: Margin, usual: Sequence[FeatureUsual]) -> list[tuple[Reason, ...]]:
    """Each row's reasons, strongest first, with value and usual range in words.

    `contribution` is how much the score, in [0, 1], falls when that feature alone is set to its usual median.
    """
    found = []
    for row, columns in zip(features, occlude(features, margin, usual), strict=True):
        trials = np.repeat(row[None], len(columns) + 1, axis=0)
        for k, i in enumerate(columns, start=1):
            trials[k, i] = usual[i].median
        scores = logistic(margin(trials))
        found.append(
            tuple(
                Reason(
                    feature=usual[i].name,
                    value=float(row[i]),
                    usual_low=usual[i].low,
                    usual_high=usual[i].high,
                    contribution=float(scores[0] - scores[k]),
                    text=words(usual[i], float(row[i]), _percent(i, row), _interval_seconds(row)),
                )
                for k, i in enumerate(columns, start=1)
            )
        )
    return found


def _percent(column: int, row: NDArray[np.float32]) -> float | None:
    """The price move behind a feature counted in usual moves of this bar, in percent; None for other features.

    None as well where the feature has reached its bound, so that its move is not known.
    """
    if column not in _IN_USUAL_MOVES or abs(row[column]) >= _BOUND:
        return None
    usual_move = float(row[_USUAL_MOVE])
    if column in _USUAL_SHARE:
        usual_move += float(row[_USUAL_SHARE[column]])
    return 100.0 * math.expm1(float(row[column]) * math.exp(usual_move) / 100.0)


def _interval_seconds(row: NDArray[np.float32]) -> int:
    return round(60.0 * math.exp(float(row[_BAR_LENGTH])))


def words(usual: FeatureUsual, value: float, percent: float | None = None, interval_seconds: int = 0) -> str:
    """One feature in words, for example "volume 14.0x its usual (usual 0.4x to 2.1x)".

    With `percent`: "price change -51.9 %, -17.8 robust deviations (usual -2.2 to +2.2)". Bars of a minute, an hour or a
    day are called so: "price change over 3 minutes +6.1 robust deviations (usual -2.2 to +2.2)".
    """
    feature = _BY_NAME[usual.name][1]
    low, high = feature.unit.words(usual.low), feature.unit.words(usual.high)
    shown = feature.unit.words(value)
    if percent is not None:
        shown = f"{percent:+.1f} %, {shown}"
    phrase = feature.phrase
    if length := _LENGTHS.get(interval_seconds):
        phrase = _BARS.sub(rf"{length}\1", phrase)
    return f"{phrase.format(value=shown)} (usual {low} to {high})"
