"""Judging bars in bulk, in columns: the same windows, features and model as one by one, without an object per bar."""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from services.domain.errors import FieldViolation, InvalidRequestError
from services.domain.feature_definitions import BAR_FIELDS, WINDOW
from services.domain.features import SeriesState, compute
from services.domain.model import Array, Judgements
from services.domain.quote import (
    EARLIEST_EVENT,
    MAX_CLOCK_SKEW,
    MAX_PRICE,
    MAX_VOLUME,
    Quote,
    Series,
    violations,
)
from services.domain.typology import Typology
from services.scorer.deployment_watch import detections
from services.scorer.ports import Model

COLUMNS = ("open", "high", "low", "close", "volume")
OPTIONAL_COLUMNS = tuple(name for name in BAR_FIELDS if name not in (*COLUMNS, "event_seconds", "interval_seconds"))

_ROWS = 512
_SHOWN_BARS = 20
_LEAST_RATIO = 1e-9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Block:
    """Bars of one series in columns.

    `times` are int64 (n,), microseconds since 1970 in UTC; `columns` float64 (n,) each, all of COLUMNS and any of
    OPTIONAL_COLUMNS, NaN in which means unknown.
    """

    series: Series
    times: NDArray[np.int64]
    columns: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.times)

    def quote(self, row: int) -> Quote:
        """One bar. Raises: OverflowError outside years 1 to 9999."""
        known = {name: float(column[row]) for name, column in self.columns.items() if not np.isnan(column[row])}
        unknown = dict.fromkeys((name for name in COLUMNS if name not in known), float("nan"))
        series = self.series
        return Quote(
            symbol=series.symbol,
            event_time=_moment(self.times[row]),
            interval_seconds=series.interval_seconds,
            tape=series.tape,
            source=series.source,
            **(known | unknown),  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True)
class ScoredBlock:
    """A block's judgements, every array (n,). `typology` holds values of Typology, UNSPECIFIED unless `detection`."""

    model: Model
    found: Judgements
    detection: NDArray[np.bool_]
    typology: NDArray[np.int64]
    typology_confidence: Array
    history: NDArray[np.int64]
    unadjusted: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Held:
    """Where a stream brought a series: its state, and which bars of the window have no split_ratio."""

    state: SeriesState
    unknown_split: NDArray[np.bool_]


class BlockProgress:
    """How far one caller's stream has brought each series."""

    def __init__(self) -> None:
        self.held: dict[Series, _Held] = {}


class BlockScoring:
    """Judges blocks with the model that `serving` names at the time, in one thread of its own beside the live path."""

    def __init__(self, serving: Callable[[], Model], clock: Callable[[], datetime]) -> None:
        self._serving = serving
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blocks")

    async def score(self, block: Block, progress: BlockProgress) -> ScoredBlock | InvalidRequestError:
        """The block's judgements; or why it is refused, which leaves its series where it was."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, block, progress)

    def _score(self, block: Block, progress: BlockProgress) -> ScoredBlock | InvalidRequestError:
        held = progress.held.get(block.series) or _Held(SeriesState(), np.empty(0, dtype=np.bool_))
        if wrong := violations_of(block, held.state.last_event_time, self._clock()):
            return InvalidRequestError(wrong)
        before = len(held.state)
        state, windows = held.state.continued(_rows(block), _moment(block.times[-1]))
        unknown = np.concatenate([held.unknown_split, np.isnan(_column(block, "split_ratio"))])
        model = self._serving()
        found = _judge(model, windows)
        history = np.minimum(before + np.arange(len(block), dtype=np.int64), WINDOW - 1)
        detection = detections(model, found.ensemble, history)
        counted = np.concatenate([[0], np.cumsum(unknown)])
        ends = np.arange(len(unknown) - len(block), len(unknown)) + 1
        progress.held[block.series] = _Held(state, unknown[-WINDOW:])
        return ScoredBlock(
            model=model,
            found=found,
            detection=detection,
            typology=np.where(detection, found.typology, int(Typology.UNSPECIFIED)),
            typology_confidence=np.where(detection, found.typology_confidence, 0.0),
            history=history,
            unadjusted=counted[ends] > counted[np.maximum(0, ends - WINDOW)],
        )

    def close(self) -> None:
        """End the judging thread."""
        self._thread.shutdown()


def _moment(micros: np.int64) -> datetime:
    return _EPOCH + int(micros) * _MICROSECOND


def _column(block: Block, name: str) -> Array:
    column = block.columns.get(name)
    return np.full(len(block), np.nan) if column is None else column


def _rows(block: Block) -> Array:
    """The raw inputs, float64 (n, len(BAR_FIELDS)), as `services.domain.series_state.bar_row` makes one bar's."""
    columns = {name: _column(block, name) for name in (*COLUMNS, *OPTIONAL_COLUMNS)}
    columns["volume"] = np.where(columns["volume"] > 0, columns["volume"], np.nan)
    columns["split_ratio"] = np.where(np.isnan(columns["split_ratio"]), 1.0, columns["split_ratio"])
    columns["event_seconds"] = block.times / 1e6
    columns["interval_seconds"] = np.full(len(block), float(block.series.interval_seconds))
    return np.stack([columns[name] for name in BAR_FIELDS], axis=1)


def _judge(model: Model, windows: Array) -> Judgements:
    parts = [model.judge(compute(windows[i : i + _ROWS])) for i in range(0, len(windows), _ROWS)]

    def joined(arrays: Sequence[Array | None]) -> Array | None:
        there = [array for array in arrays if array is not None]
        return np.concatenate(there) if there else None

    return Judgements(
        ensemble=np.concatenate([p.ensemble for p in parts]),
        margin=np.concatenate([p.margin for p in parts]),
        autoencoder_percentile=joined([p.autoencoder_percentile for p in parts]),
        classifier_probability=joined([p.classifier_probability for p in parts]),
        typology=np.concatenate([p.typology for p in parts]),
        typology_confidence=np.concatenate([p.typology_confidence for p in parts]),
    )


def violations_of(block: Block, after: datetime | None, now: datetime) -> list[FieldViolation]:
    """What is wrong with the block, by the rule of single quotes, each with its bar's place: of the first such bars."""
    if not len(block):
        return [FieldViolation("event_time_micros", "is required")]
    for name in (*COLUMNS, *OPTIONAL_COLUMNS):
        column = block.columns.get(name)
        if (name in COLUMNS or column is not None) and (column is None or len(column) != len(block)):
            count = 0 if column is None else len(column)
            return [FieldViolation(name, f"has {count:,} values for {len(block):,} bars")]
    found: list[FieldViolation] = []
    for row in itertools.islice([0, *np.flatnonzero(~_surely_good(block, now)).tolist()], _SHOWN_BARS):
        try:
            quote = block.quote(row)
        except OverflowError:
            found.append(FieldViolation(f"event_time_micros[{row}]", "lies outside years 1 to 9999"))
            continue
        for violation in violations(quote, now):
            name = "event_time_micros" if violation.field == "event_time" else violation.field
            whole = name in ("tape", "source", "symbol", "interval")
            field = f"series.{name}" if whole else f"{name}[{row}]"
            found.append(FieldViolation(field, violation.description))
    if found:
        return list(dict.fromkeys(found))
    if after is not None and _moment(block.times[0]) <= after:
        found.append(FieldViolation("event_time_micros[0]", "does not come after the series' bars before"))
    back = np.flatnonzero(np.diff(block.times) <= 0)
    found += [
        FieldViolation(f"event_time_micros[{row + 1}]", "does not come after the bar before it")
        for row in back[:_SHOWN_BARS].tolist()
    ]
    return found


def _surely_good(block: Block, now: datetime) -> NDArray[np.bool_]:
    """Bars that `violations` has nothing to say of, seen at a glance; it judges all others itself."""
    columns = block.columns
    low, high = columns["low"], columns["high"]
    good = (low > 0) & (high <= MAX_PRICE) & (columns["volume"] >= 0) & (columns["volume"] <= MAX_VOLUME)
    for name in ("open", "close"):
        good &= (low <= columns[name]) & (columns[name] <= high)
    earliest = (EARLIEST_EVENT - _EPOCH) // _MICROSECOND
    latest = (now + MAX_CLOCK_SKEW - _EPOCH) // _MICROSECOND
    good &= (block.times >= earliest) & (block.times <= latest)
    for name, least, most in (
        *((name, _LEAST_RATIO, MAX_PRICE) for name in ("split_ratio", "benchmark_volume_ratio", "peer_volume_ratio")),
        ("trades", 0.0, MAX_VOLUME),
        ("buy_volume", 0.0, MAX_VOLUME),
    ):
        if (column := columns.get(name)) is not None:
            good &= np.isnan(column) | ((column >= least) & (column <= most))
    for name in ("benchmark_return", "peer_return"):
        if (returns := columns.get(name)) is not None:
            good &= np.isnan(returns) | ((returns > -1.0) & np.isfinite(returns))
    return good
