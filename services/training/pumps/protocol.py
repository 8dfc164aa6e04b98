"""How models are measured on the labelled pumps: five folds by event, everything chosen inside the training folds.

Each training side is split by event again, into five. The five models fitted on four of them each score the fifth; by
these scores the model's parts, the threshold of best F1 and the threshold of the alert budget are chosen. The mean of
the five models scores the test fold, once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.training.figures import average_precision
from services.training.pumps.recordings import Pumps

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

FOLDS = 5
ALERTS_PER_SYMBOL_DAY = 0.1
DETECT_WITHIN_SECONDS = 120
AFTERMATH_SECONDS = 3_600
_ALERT_WINDOW = 1_800
_DRAWS = 1_000

Scorer = Callable[[Rows], Array]
"""Scores rows: log-odds, float64 (n,)."""

Fit = Callable[[Rows], Scorer]
"""Fits on rows."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What may be chosen from: parts whose mean log-odds find the onset's chunk, and parts whose mean raises alerts.

    `course_seconds` are for how long after a likely onset there may be no other: see `onset_score`.
    """

    onset: tuple[tuple[str, ...], ...]
    alert: tuple[tuple[str, ...], ...]
    course_seconds: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What training rows decided: the parts for the onset and for alerts, a threshold for each, and the fitted parts.

    `fitted` has the FOLDS scorers of every chosen part. `average_precision` and `detected` are those of the scores that
    chose: of events that each single scorer did not see, but at their own best.
    """

    onset: tuple[str, ...]
    alert: tuple[str, ...]
    course_seconds: int
    onset_threshold: float
    alert_threshold: float
    average_precision: float
    detected: float
    fitted: Mapping[str, tuple[Scorer, ...]]


Publish = Callable[[Chosen], Scorer]
"""Makes of what was chosen what scores unseen rows: log-odds of onset and of alert, float64 (n, 2)."""


@dataclass(frozen=True, slots=True)
class PumpFigures:
    """One model's figures over the five folds; intervals are 95 % bootstrap intervals by event."""

    average_precision: float
    average_precision_interval: tuple[float, float]
    precision: float
    recall: float
    f1: float
    f1_interval: tuple[float, float]
    detected_within_120_s: float
    detected_interval: tuple[float, float]
    median_delay_seconds: float
    false_alerts_per_symbol_day: float
    false_alerts_interval: tuple[float, float]
    chosen_onset: tuple[str, ...]
    chosen_alert: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the chosen models said of every chunk, n each: scores, best-F1 detections, and detections that alert."""

    score: Array
    chosen: NDArray[np.bool_]
    alerting: NDArray[np.bool_]
    onset_parts: tuple[str, ...]
    alert_parts: tuple[str, ...]


def folds(event: NDArray[np.int64], count: int = FOLDS) -> list[tuple[Rows, Rows]]:
    """GroupKFold over the events: rows to train on, rows to test."""
    from sklearn.model_selection import GroupKFold  # type: ignore[import-untyped, unused-ignore]

    return list(GroupKFold(count).split(event, event, event))


def apart(pumps: Pumps, train: Rows, test: Rows) -> Rows:
    """The training rows without events of a test event's symbol at the same time: one pump can be listed twice."""
    symbol = np.array([name.split("_")[0] for name in pumps.names])
    first, last = _spans(pumps)
    kept = np.ones(len(symbol), bool)
    for event in np.unique(pumps.event[test]):
        kept &= ~((symbol == symbol[event]) & (first <= last[event]) & (first[event] <= last))
    return train[kept[pumps.event[train]]]


def _spans(pumps: Pumps) -> tuple[Array, Array]:
    first, last = np.full(len(pumps.names), np.inf), np.full(len(pumps.names), -np.inf)
    np.minimum.at(first, pumps.event, pumps.moment)
    np.maximum.at(last, pumps.event, pumps.moment)
    return first, last


def choose(pumps: Pumps, parts: Mapping[str, Fit], choice: Choice, train: Rows) -> Chosen:
    """Fits the parts on four fifths of the rows' events at a time, and chooses by their scores of the other fifth."""
    held = {name: np.zeros(len(train)) for name in parts}
    fitted: dict[str, list[Scorer]] = {name: [] for name in parts}
    for inner, validation in folds(pumps.event[train]):
        rows = apart(pumps, train[inner], train[validation])
        for name, fit in parts.items():
            scorer = fit(rows)
            held[name][validation] = scorer(train[validation])
            fitted[name].append(scorer)
    label = pumps.label[train]
    scores = {
        (names, seconds): onset_score(pumps, train, _mean(held, names), seconds)
        for names in choice.onset
        for seconds in choice.course_seconds
    }
    precisions = {key: average_precision(label, score) for key, score in scores.items()}
    onset, seconds = max(precisions, key=lambda key: precisions[key])
    lines = {names: budget(pumps, train, _mean(held, names)) for names in choice.alert}
    shares = {names: detected(pumps, train, _mean(held, names) >= line) for names, line in lines.items()}
    alert = max(shares, key=lambda names: shares[names])
    return Chosen(
        onset,
        alert,
        seconds,
        best_f1(label, scores[onset, seconds]),
        lines[alert],
        precisions[onset, seconds],
        shares[alert],
        {name: tuple(scorers) for name, scorers in fitted.items() if name in {*onset, *alert}},
    )


def mean_scores(chosen: Chosen) -> Scorer:
    """The mean of the chosen parts' scorers."""

    def score(rows: Rows) -> Array:
        by_part = {name: np.mean([scorer(rows) for scorer in fits], axis=0) for name, fits in chosen.fitted.items()}
        return np.stack([_mean(by_part, chosen.onset), _mean(by_part, chosen.alert)], axis=1)

    return score


def judge(pumps: Pumps, parts: Mapping[str, Fit], choice: Choice, publish: Publish = mean_scores) -> Verdicts:
    """Scores every chunk by models that never saw its event, with parts and thresholds chosen without its fold."""
    n = len(pumps.label)
    score, found, alerting = np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)
    onset_parts, alert_parts = [], []
    for train, test in folds(pumps.event):
        chosen = choose(pumps, parts, choice, apart(pumps, train, test))
        scores = publish(chosen)(test)
        score[test] = onset_score(pumps, test, scores[:, 0], chosen.course_seconds)
        found[test] = score[test] >= chosen.onset_threshold
        alerting[test] = scores[:, 1] >= chosen.alert_threshold
        once = f", once in {chosen.course_seconds} s" if chosen.course_seconds else ""
        onset_parts.append(" + ".join(chosen.onset) + once)
        alert_parts.append(" + ".join(chosen.alert))
    return Verdicts(score, found, alerting, tuple(onset_parts), tuple(alert_parts))


def onset_score(pumps: Pumps, rows: Rows, score: Array, seconds: int) -> Array:
    """Scores less what the highest of the same event's in the `seconds` before has above even odds.

    A pump begins once: what follows a chunk that is likelier than not its onset is its course.

    Args:
        pumps: The chunks.
        rows: int64 (m,), rows that are judged, in order.
        score: float64 (m,), their log-odds.
        seconds: How far back; 0 leaves the scores as they are.
    """
    event, moment = pumps.event[rows], pumps.moment[rows]
    highest = np.zeros(len(rows))
    for lag in range(1, len(rows)):
        near = (event[lag:] == event[:-lag]) & (moment[lag:] - moment[:-lag] <= seconds)
        if not near.any():
            break
        highest[lag:] = np.maximum(highest[lag:], np.where(near, score[:-lag], 0.0))
    return score - highest


def _mean(scores: Mapping[str, Array], names: tuple[str, ...]) -> Array:
    found: Array = np.mean([scores[name] for name in names], axis=0)
    return found


def figures(pumps: Pumps, verdicts: Verdicts) -> tuple[PumpFigures, Array]:
    """Figures, and each event's delay in seconds; infinite where nothing alerted."""
    score, label = verdicts.score, pumps.label
    delay = delays(pumps, verdicts.alerting)
    events = len(pumps.names)
    rows_of = [np.flatnonzero(pumps.event == event) for event in range(events)]
    first, last = _spans(pumps)
    counts = np.array(
        [
            (
                (verdicts.chosen[rows] & label[rows]).sum(),
                verdicts.chosen[rows].sum(),
                false_alerts(pumps, rows, verdicts.alerting[rows]),
                (last[event] - first[event]) / 86_400.0,
            )
            for event, rows in enumerate(rows_of)
        ],
        dtype=np.float64,
    )

    def measured(drawn: Rows) -> tuple[float, ...]:
        rows = np.concatenate([rows_of[event] for event in drawn])
        hits, found, false, days = counts[drawn].sum(axis=0)
        return (
            average_precision(label[rows], score[rows]),
            float(hits / max(1.0, found)),
            float(hits / len(drawn)),
            float(2.0 * hits / (found + len(drawn))),
            float(np.mean(delay[drawn] <= DETECT_WITHIN_SECONDS)),
            float(false / days),
        )

    rng = np.random.default_rng(7)
    draws = np.array([measured(rng.integers(0, events, events)) for _ in range(_DRAWS)])
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    interval = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    precision_average, precision, recall, f1, caught, false = measured(np.arange(events))
    finite = delay[np.isfinite(delay)]
    return (
        PumpFigures(
            average_precision=precision_average,
            average_precision_interval=interval[0],
            precision=precision,
            recall=recall,
            f1=f1,
            f1_interval=interval[3],
            detected_within_120_s=caught,
            detected_interval=interval[4],
            median_delay_seconds=float(np.median(finite)) if len(finite) else float("nan"),
            false_alerts_per_symbol_day=false,
            false_alerts_interval=interval[5],
            chosen_onset=verdicts.onset_parts,
            chosen_alert=verdicts.alert_parts,
        ),
        delay,
    )


def best_f1(label: NDArray[np.bool_], score: Array) -> float:
    """The threshold with the highest F1."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(label[order])
    f1 = 2.0 * hits / (np.arange(1, len(hits) + 1) + label.sum())
    return float(score[order][int(np.argmax(f1))])


def false_alerts(pumps: Pumps, rows: Rows, detected_rows: NDArray[np.bool_]) -> int:
    """Alerts outside [onset, onset + 1 h]: detections of one event less than 30 minutes apart are one.

    Args:
        pumps: The chunks.
        rows: int64 (m,), rows that are judged, in order.
        detected_rows: bool (m,), which of them are detections.
    """
    outside = rows[detected_rows & ((pumps.seconds[rows] < 0) | (pumps.seconds[rows] > AFTERMATH_SECONDS))]
    if not len(outside):
        return 0
    fresh = (np.diff(pumps.event[outside]) != 0) | (np.diff(pumps.moment[outside]) > _ALERT_WINDOW)
    return 1 + int(fresh.sum())


def budget(pumps: Pumps, rows: Rows, score: Array) -> float:
    """The lowest threshold that keeps these rows' false alerts within ALERTS_PER_SYMBOL_DAY."""
    first, last = _spans(pumps)
    events = np.unique(pumps.event[rows])
    allowed = ALERTS_PER_SYMBOL_DAY * float((last - first)[events].sum()) / 86_400.0
    best = float(np.nextafter(score.max(), np.inf))
    for line in np.unique(score)[::-1]:
        if false_alerts(pumps, rows, score >= line) > allowed:
            break
        best = float(line)
    return best


def detected(pumps: Pumps, rows: Rows, detections: NDArray[np.bool_]) -> float:
    """Share of these rows' events with a detection within DETECT_WITHIN_SECONDS of onset."""
    seconds = pumps.seconds[rows]
    caught = detections & (seconds >= 0) & (seconds <= DETECT_WITHIN_SECONDS)
    return len(np.unique(pumps.event[rows][caught])) / len(np.unique(pumps.event[rows]))


def delays(pumps: Pumps, detections: NDArray[np.bool_]) -> Array:
    """Seconds from each event's onset chunk to its first detection at or after it; infinite when there is none."""
    found = np.full(len(pumps.names), np.inf)
    within = detections & (pumps.seconds >= 0) & (pumps.seconds <= AFTERMATH_SECONDS)
    np.minimum.at(found, pumps.event[within], pumps.seconds[within])
    return found


def _event_f1(pumps: Pumps, chosen: NDArray[np.bool_], right: NDArray[np.bool_]) -> float:
    """F1 where each event with a detection among the right rows is one hit, and each detection elsewhere is wrong."""
    hits = len(np.unique(pumps.event[chosen & right]))
    return 2.0 * hits / (hits + int((chosen & ~right).sum()) + len(pumps.names))


def errors(pumps: Pumps, verdicts: Verdicts) -> dict[str, Any]:
    """What the misses and false detections at the best-F1 threshold are, and the events without an alert in time."""
    label, chosen = pumps.label, verdicts.chosen
    wrong = chosen & ~label
    near = wrong & (np.abs(pumps.seconds) <= DETECT_WITHIN_SECONDS)
    missed = np.setdiff1d(pumps.event[label], pumps.event[label & chosen])
    width = float(pumps.width)
    finer = pumps.finer
    disputed = (finer < 0) | (finer >= width)
    into_finer = finer[pumps.event] - pumps.seconds
    either = label | ((into_finer >= 0) & (into_finer < width))
    late = np.flatnonzero(delays(pumps, verdicts.alerting) > DETECT_WITHIN_SECONDS)
    return {
        "false": int(wrong.sum()),
        "false_near_onset": int(near.sum()),
        "f1_either_label": _event_f1(pumps, chosen, either),
        "f1_within_a_chunk": _event_f1(pumps, chosen, np.abs(pumps.seconds) <= width),
        "missed": len(missed),
        "missed_found_near": len(np.intersect1d(missed, pumps.event[near])),
        "missed_disputed": int(disputed[missed].sum()),
        "disputed": int(disputed.sum()),
        "early_alerts": len(
            np.unique(pumps.event[verdicts.alerting & (pumps.seconds < 0) & (pumps.seconds >= -DETECT_WITHIN_SECONDS)])
        ),
        "missed_alerted": len(np.setdiff1d(missed, late)),
        "undetected": [pumps.names[event] for event in late],
    }
