"""The labelled pump-and-dumps (La Morgia et al. 2020): 25-second chunks, five folds by event.

One row is one chunk with trades, one chunk of each event is labelled. Thresholds are chosen inside the training folds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.domain.feature_definitions import BAR_FIELDS, FEATURE_NAMES
from services.domain.features import bars_windows, compute
from services.training.figures import average_precision

Array = NDArray[np.float64]

EVENTS_FILE = "pump_events_5s_2018_2020h1.parquet"
FEATURES_FILE = "pump_features_25s_2018_2020h1.parquet"
PUBLISHED = (
    "std_rush_order",
    "avg_rush_order",
    "std_trades",
    "std_volume",
    "avg_volume",
    "std_price",
    "avg_price",
    "avg_price_max",
    "hour_sin",
    "hour_cos",
    "minute_sin",
    "minute_cos",
)
"""The study's own features, in the file's order."""

FLOW = ("trades_log_ratio", "trade_size_log_ratio", "buy_share", "buy_share_change")
"""Features that need trade counts or the takers' side."""

CHUNK_SECONDS = 25
FOLDS = 5
_DETECT_WITHIN = 120
_AFTERMATH = 3_600
_NEAR = 7_200
_EVERY = 4
_ALERT_WINDOW = 1_800
_PRICES = ("open", "high", "low", "close")
_PAST = (5, 20, 60)
_FOLLOWED = ("return_z", "volume_log_ratio", "trades_log_ratio", "range_log_ratio", "runup_3_z", "elapsed_log_ratio")


@dataclass(frozen=True, slots=True)
class Pumps:
    """The n chunks of all events, in the file's order.

    `features` float32 (n, F); `published` float32 (n, 12); `label` bool (n,); `event` int64 (n,); `moment` and
    `seconds` float64 (n,), seconds since 1970 and since the event's labelled chunk; `symbol_days` the days watched.
    """

    features: NDArray[np.float32]
    published: NDArray[np.float32]
    label: NDArray[np.bool_]
    event: NDArray[np.int64]
    moment: Array
    seconds: Array
    symbol_days: float


def read(folder: Path) -> Pumps:
    """The labelled chunks with Tapewatch's features of the same chunks, computed from the 5-second bars."""
    names = [*PUBLISHED, "gt", "event", "date"]
    table = pq.ParquetFile(folder / FEATURES_FILE).read(columns=names)
    label = np.asarray(table["gt"].to_numpy()) == 1
    event_name = np.asarray(table["event"].to_pylist(), dtype=str)
    moment = table["date"].to_numpy().astype("datetime64[us]").astype(np.int64) / 1e6
    order, event = np.unique(event_name, return_inverse=True)
    onset = np.zeros(len(order))
    onset[event[label]] = moment[label]
    features = np.zeros((len(label), len(FEATURE_NAMES)), np.float32)
    days = 0.0
    for name, rows in _chunks(folder / EVENTS_FILE):
        here = np.flatnonzero(event_name == name)
        computed = np.concatenate([compute(windows) for windows in bars_windows(rows)])
        features[here] = computed[np.searchsorted(rows[:, BAR_FIELDS.index("event_seconds")], moment[here])]
        days += float(np.ptp(moment[here])) / 86_400.0
    published = np.stack([table[name].to_numpy() for name in PUBLISHED], axis=1).astype(np.float32)
    return Pumps(features, published, label, event, moment, moment - onset[event], days)


def _chunks(path: Path) -> list[tuple[str, Array]]:
    """Each event's 25-second bars as rows in BAR_FIELDS order."""
    table = pq.ParquetFile(path).read()
    event = np.asarray(table["event"].to_pylist(), dtype=str)
    seconds = table["time"].to_numpy().astype("datetime64[us]").astype(np.int64) // 1_000_000
    column = {
        name: np.asarray(table[name].to_numpy(), dtype=np.float64)
        for name in (
            "open",
            "high",
            "low",
            "close",
            "volume_base",
            "volume_quote_btc",
            "buy_volume_quote_btc",
            "trades",
        )
    }
    found = []
    starts = np.flatnonzero(np.concatenate([[True], event[1:] != event[:-1]]))
    for start, stop in zip(starts, [*starts[1:], len(event)], strict=True):
        part = slice(int(start), int(stop))
        chunk, first = np.unique(seconds[part] // CHUNK_SECONDS, return_index=True)
        last = np.append(first[1:], stop - start) - 1
        volume = np.add.reduceat(column["volume_base"][part], first)
        bought = np.add.reduceat(column["buy_volume_quote_btc"][part], first)
        quoted = np.add.reduceat(column["volume_quote_btc"][part], first)
        values = {
            "open": column["open"][part][first],
            "high": np.maximum.reduceat(column["high"][part], first),
            "low": np.minimum.reduceat(column["low"][part], first),
            "close": column["close"][part][last],
            "volume": volume,
            "split_ratio": np.ones(len(chunk)),
            "trades": np.add.reduceat(column["trades"][part], first),
            # Bought in coins is not recorded: the bought share of the quote currency stands for it.
            "buy_volume": volume * bought / quoted,
            "benchmark_return": np.full(len(chunk), np.nan),
            "event_seconds": chunk * float(CHUNK_SECONDS),
            "interval_seconds": np.full(len(chunk), float(CHUNK_SECONDS)),
        }
        found.append((str(event[start]), np.stack([values[name] for name in BAR_FIELDS], axis=1)))
    return found


def folds(pumps: Pumps) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """GroupKFold(5) over the events, in the file's order."""
    from sklearn.model_selection import GroupKFold  # type: ignore[import-untyped, unused-ignore]

    return list(GroupKFold(FOLDS).split(pumps.label, pumps.label, pumps.event))


def against_past(pumps: Pumps) -> NDArray[np.float32]:
    """Tapewatch's and the study's features, the previous chunk's, and each against its highest of the past chunks.

    An onset is the first extreme: what comes after it is as high, but not higher than what went before.
    """
    columns = [FEATURE_NAMES.index(name) for name in _FOLLOWED]
    followed = np.hstack([pumps.features[:, columns], pumps.published[:, :8]])
    everything = [pumps.features, pumps.published[:, :8]]
    starts = np.flatnonzero(np.concatenate([[True], pumps.event[1:] != pumps.event[:-1]]))
    number = np.arange(len(followed)) - np.repeat(starts, np.diff([*starts, len(followed)]))
    running = np.zeros_like(followed)
    for lag in range(1, max(_PAST) + 1):
        shifted = np.roll(followed, lag, axis=0)
        inside = (number >= lag)[:, None]
        if lag == 1:
            running = np.where(inside, shifted, 0.0)
            everything.append(running)
        else:
            running = np.where(inside, np.maximum(running, shifted), running)
        if lag in _PAST:
            everything += [running, followed - running]
    return np.hstack(everything).astype(np.float32)


@dataclass(frozen=True, slots=True)
class PumpFigures:
    """One model's figures over the five folds; `intervals` are 95 % bootstrap intervals by event."""

    average_precision: float
    precision: float
    recall: float
    f1: float
    detected_within_120_s: float
    median_delay_seconds: float
    false_alerts_per_symbol_day: float
    average_precision_interval: tuple[float, float]
    detected_interval: tuple[float, float]


def evaluate(
    pumps: Pumps, features: NDArray[np.float32], make: Callable[[], Any], *, thin: bool = True
) -> tuple[PumpFigures, Array]:
    """Five folds by event; figures, and each event's delay in seconds.

    Within each training side an inner split by event chooses two thresholds: the one with the best F1, for precision,
    recall and F1, and the lowest one with at most 1 false alert per 10 symbol-days, for detection and delay.
    """
    score = np.zeros(len(pumps.label))
    chosen, alerting = np.zeros(len(score), bool), np.zeros(len(score), bool)
    for train, test in folds(pumps):
        inner = train[pumps.event[train] % 4 != 0], train[pumps.event[train] % 4 == 0]
        score[test] = _scores(make(), features, pumps, train, test, thin)
        tuned = _scores(make(), features, pumps, inner[0], inner[1], thin)
        chosen[test] = score[test] >= _best_f1(pumps.label[inner[1]], tuned)
        alerting[test] = score[test] >= _budget(pumps, inner[1], tuned)
    hits = int((chosen & pumps.label).sum())
    precision = hits / max(1, int(chosen.sum()))
    recall = hits / int(pumps.label.sum())
    delays = _delays(pumps, alerting)
    rng = np.random.default_rng(7)
    events = np.unique(pumps.event)
    rows_of = [np.flatnonzero(pumps.event == e) for e in events]
    draws = []
    for _ in range(200):
        drawn = rng.integers(0, len(events), len(events))
        rows = np.concatenate([rows_of[i] for i in drawn])
        caught = np.mean([delays[i] <= _DETECT_WITHIN for i in drawn])
        draws.append((average_precision(pumps.label[rows], score[rows]), caught))
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)
    return (
        PumpFigures(
            average_precision(pumps.label, score),
            precision,
            recall,
            2 * precision * recall / max(precision + recall, 1e-12),
            float(np.mean(delays <= _DETECT_WITHIN)),
            float(np.median(delays[np.isfinite(delays)])) if np.isfinite(delays).any() else float("nan"),
            _false_alerts(pumps, np.arange(len(score)), alerting) / pumps.symbol_days,
            (float(low[0]), float(high[0])),
            (float(low[1]), float(high[1])),
        ),
        delays,
    )


def _scores(
    model: Any,
    features: NDArray[np.float32],
    pumps: Pumps,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    thin: bool,
) -> Array:
    """Scores of the test rows; `thin` keeps every fourth training row far from an onset, with four times the weight."""
    if thin:
        near = np.abs(pumps.seconds[train]) < _NEAR
        kept = near | (np.arange(len(train)) % _EVERY == 0)
        train, near = train[kept], near[kept]
        model.fit(features[train], pumps.label[train], sample_weight=np.where(near, 1.0, float(_EVERY)))
    else:
        model.fit(features[train], pumps.label[train])
    scores: Array = model.predict_proba(features[test])[:, 1]
    return scores


def _best_f1(label: NDArray[np.bool_], score: Array) -> float:
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(label[order])
    f1 = 2.0 * hits / (np.arange(1, len(hits) + 1) + label.sum())
    return float(score[order][int(np.argmax(f1))])


def _false_alerts(pumps: Pumps, rows: NDArray[np.int64], detected: NDArray[np.bool_]) -> int:
    """Alerts outside [onset, onset + 1 h]: detections of one event less than 30 minutes apart are one."""
    outside = rows[detected & ((pumps.seconds[rows] < 0) | (pumps.seconds[rows] > _AFTERMATH))]
    if not len(outside):
        return 0
    fresh = (np.diff(pumps.event[outside]) != 0) | (np.diff(pumps.moment[outside]) > _ALERT_WINDOW)
    return 1 + int(fresh.sum())


def _budget(pumps: Pumps, rows: NDArray[np.int64], score: Array) -> float:
    days = pumps.symbol_days * len(np.unique(pumps.event[rows])) / len(np.unique(pumps.event))
    best = float(np.nextafter(score.max(), np.inf))
    for line in np.unique(score[score > np.quantile(score, 0.99)])[::-1]:
        if _false_alerts(pumps, rows, score >= line) > 0.1 * days:
            break
        best = float(line)
    return best


def _delays(pumps: Pumps, detected: NDArray[np.bool_]) -> Array:
    """Seconds from each event's onset chunk to its first detection at or after it; infinite when there is none."""
    delays = np.full(int(pumps.event.max()) + 1, np.inf)
    within = detected & (pumps.seconds >= 0) & (pumps.seconds <= _AFTERMATH)
    np.minimum.at(delays, pumps.event[within], pumps.seconds[within])
    return delays
