"""The labelled pump-and-dumps (La Morgia et al. 2020) as chunks of 25 seconds, one chunk of each event labelled."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.domain.errors import TapewatchError
from services.domain.feature_definitions import BAR_FIELDS, FEATURE_NAMES
from services.domain.features import bars_windows, compute
from services.training.pumps import columns

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

CHUNK_SECONDS = 25
_CELLS = CHUNK_SECONDS // columns.STEP
_SHIFTED_WITHIN = 900
_WATCHED = 86_400
PAST_PREFIX = "minutes_"
"""Of the columns that are the scorer's features or the study's, and of these against the last 60 chunks."""
_PAST = (5, 20, 60)
_FOLLOWED = ("return_z", "volume_log_ratio", "trades_log_ratio", "range_log_ratio", "runup_3_z", "elapsed_log_ratio")
_OF_STOCKS = ("relative_", "peer_", "benchmark_", "session_")
"""How features begin that say nothing of their own of coins: they trade around the clock, without a benchmark."""
OF_QUOTES = tuple(name for name in FEATURE_NAMES if "_lag_" in name or not name.startswith(_OF_STOCKS))
"""What the mesh computes of a coin's quotes: the others."""
OF_COINS = (
    "return_z",
    "relative_return_z",
    "gap_z",
    "body_z",
    "range_z",
    "range_log_ratio",
    "upper_shadow_z",
    "lower_shadow_z",
    "close_location",
    "runup_3_z",
    "runup_5_z",
    "runup_10_z",
    "runup_20_z",
    "peak_reversal_3_z",
    "peak_reversal_10_z",
    "dip_recovery_3_z",
    "dip_recovery_10_z",
    "trend_share_10",
    "efficiency_10",
    "largest_step_share_10",
    "volatility_log_ratio",
    "usual_move",
    "past_extreme_z",
    "return_over_past_extreme",
    "bars_since_jump",
    "volume_log_ratio",
    "volume_z",
    "volume_5_z",
    "volume_before_z",
    "volume_over_past_extreme",
    "volume_price_divergence",
    "impact_log_ratio",
    "signed_volume_10",
    "missing_volume_share",
    "unchanged_share",
    "elapsed_log_ratio",
    "bar_length",
    "trades_log_ratio",
    "trade_size_log_ratio",
    "buy_share",
    "buy_share_change",
)
"""What the columns here take: named one by one, so that a new feature of the scorer changes no pump model.

`relative_return_z`, without a benchmark the same as `return_z`, is among them as it was when they were measured.
"""
_SIZES = PUBLISHED[:8]
"""The study's features but its four of the clock."""
_SOURCE = {
    "open": "open",
    "high": "high",
    "low": "low",
    "close": "close",
    "base": "volume_base",
    "volume": "volume_quote_btc",
    "bought": "buy_volume_quote_btc",
    "trades": "trades",
    "buys": "buy_trades",
    "rush": "rush_orders",
}


@dataclass(frozen=True, slots=True)
class Shifted:
    """Chunks around the onsets that begin 5 to 20 s later than the grid's: more looks at the same pumps, to train on.

    `long` float32 (m, L) as `Pumps.long`; `label` bool (m,), whether the chunk holds the onset; `event` int64 (m,).
    """

    long: NDArray[np.float32]
    label: NDArray[np.bool_]
    event: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pumps:
    """The n chunks of all events, in the file's order.

    `features` float32 (n, F), Tapewatch's; `published` float32 (n, 12); `long` float32 (n, L), columns in `long_names`
    order, against hours and days before; `label` bool (n,); `event` int64 (n,), place in `names`; `moment` and
    `seconds` float64 (n,), seconds since 1970 and since the event's labelled chunk; `finer` float64 (E,), seconds from
    the chunk labelled at 25 s to the bar labelled at 5 s, by event; `symbol_days` the days watched;
    `width` a chunk's seconds.
    """

    features: NDArray[np.float32]
    published: NDArray[np.float32]
    long: NDArray[np.float32]
    long_names: tuple[str, ...]
    label: NDArray[np.bool_]
    event: NDArray[np.int64]
    names: tuple[str, ...]
    moment: Array
    seconds: Array
    finer: Array
    symbol_days: float
    width: int
    shifted: Shifted


@dataclass(frozen=True, slots=True)
class Recording:
    """One event's bars of 5 s with trades: `seconds` int64 (m,) since 1970, `bars` float64 (m,) each, its labels."""

    name: str
    seconds: NDArray[np.int64]
    bars: dict[str, Array]
    onset: int
    finer_onset: int


def digest(folder: Path) -> str:
    """SHA-256 of both files. Raises: TapewatchError when one cannot be read."""
    found = hashlib.sha256()
    for name in (EVENTS_FILE, FEATURES_FILE):
        try:
            found.update((folder / name).read_bytes())
        except OSError as error:
            raise TapewatchError(f"{folder / name} cannot be read: {error.strerror}") from error
    return found.hexdigest()


def _table(path: Path, wanted: list[str]) -> pa.Table:
    """Columns of a Parquet file. Raises: TapewatchError when it cannot be read, or lacks one."""
    try:
        file = pq.ParquetFile(path)
        lacking = [name for name in wanted if name not in file.schema_arrow.names]
        if lacking:
            raise TapewatchError(f"{path} lacks the columns {', '.join(lacking)}")
        return file.read(columns=wanted)
    except (OSError, pa.ArrowInvalid) as error:
        raise TapewatchError(f"{path} is not readable as Parquet: {error}") from error


def recordings(path: Path) -> Iterator[Recording]:
    """The events' recordings, in the file's order."""
    table = _table(path, ["event", "time", "onset_25s", "onset_5s", *_SOURCE.values()])
    event = np.asarray(table["event"].to_pylist(), dtype=str)

    def seconds(name: str) -> NDArray[np.int64]:
        found: NDArray[np.int64] = table[name].to_numpy().astype("datetime64[us]").astype(np.int64) // 1_000_000
        return found

    time, onset, finer = seconds("time"), seconds("onset_25s"), seconds("onset_5s")
    bars = {name: np.asarray(table[source].to_numpy(), dtype=np.float64) for name, source in _SOURCE.items()}
    starts = np.flatnonzero(np.concatenate([[True], event[1:] != event[:-1]]))
    for start, stop in zip(starts, [*starts[1:], len(event)], strict=True):
        part = slice(int(start), int(stop))
        yield Recording(
            str(event[start]),
            time[part],
            {name: values[part] for name, values in bars.items()},
            int(onset[start]),
            int(finer[start]),
        )


def chunk_rows(recording: Recording) -> Array:
    """The recording's chunks of 25 s with trades as rows in BAR_FIELDS order."""
    bars = recording.bars
    chunk, first = np.unique(recording.seconds // CHUNK_SECONDS, return_index=True)
    last = np.append(first[1:], len(recording.seconds)) - 1
    volume = np.add.reduceat(bars["base"], first)
    values = {
        "open": bars["open"][first],
        "high": np.maximum.reduceat(bars["high"], first),
        "low": np.minimum.reduceat(bars["low"], first),
        "close": bars["close"][last],
        "volume": volume,
        "split_ratio": np.ones(len(chunk)),
        "trades": np.add.reduceat(bars["trades"], first),
        # Bought in coins is not recorded: the bought share of the quote currency stands for it.
        "buy_volume": volume * np.add.reduceat(bars["bought"], first) / np.add.reduceat(bars["volume"], first),
        "event_seconds": chunk * float(CHUNK_SECONDS),
        "interval_seconds": np.full(len(chunk), float(CHUNK_SECONDS)),
    }
    unknown = np.full(len(chunk), np.nan)
    return np.stack([values.get(name, unknown) for name in BAR_FIELDS], axis=1)


def mesh_features(recording: Recording, begins: Array) -> NDArray[np.float32]:
    """What the scorer computes of the chunks as quotes of 25 s with trades and bought volume, without a benchmark.

    Args:
        recording: The bars.
        begins: float64 (m,), begins of chunks with trades, in seconds since 1970.

    Returns:
        float32 (m, F), columns in FEATURE_NAMES order, each row of the last 61 chunks with trades.
    """
    rows = chunk_rows(recording)
    computed = np.concatenate([compute(windows) for windows in bars_windows(rows)])
    return computed[np.searchsorted(rows[:, BAR_FIELDS.index("event_seconds")], begins)]


def read(folder: Path) -> Pumps:
    """The labelled chunks, Tapewatch's features of them, and columns against hours and days before."""
    table = _table(folder / FEATURES_FILE, [*PUBLISHED, "gt", "event", "date"])
    label = np.asarray(table["gt"].to_numpy()) == 1
    event_name = np.asarray(table["event"].to_pylist(), dtype=str)
    moment = table["date"].to_numpy().astype("datetime64[us]").astype(np.int64) / 1e6
    names, event = np.unique(event_name, return_inverse=True)
    onset, finer = np.zeros(len(names)), np.zeros(len(names))
    onset[event[label]] = moment[label]
    features = np.zeros((len(label), len(FEATURE_NAMES)), np.float32)
    long: NDArray[np.float32] | None = None
    long_names: tuple[str, ...] = ()
    shifted: list[Shifted] = []
    days = 0.0
    for recording in recordings(folder / EVENTS_FILE):
        here = np.flatnonzero(event_name == recording.name)
        features[here] = mesh_features(recording, moment[here])
        tape = columns.tape(recording.seconds, recording.bars)
        found = columns.compute(tape, moment[here].astype(np.int64), _CELLS)
        if long is None:
            long_names = tuple(found)
            long = np.zeros((len(label), len(found)), np.float32)
        long[here] = np.stack(list(found.values()), axis=1)
        number = int(event[here[0]])
        finer[number] = recording.finer_onset - recording.onset
        shifted.append(_shift(recording, tape, number))
        days += float(np.ptp(moment[here])) / 86_400.0
    if long is None:
        raise TapewatchError(f"{folder / EVENTS_FILE} holds no event")
    return Pumps(
        features=features,
        published=np.stack([table[name].to_numpy() for name in PUBLISHED], axis=1).astype(np.float32),
        long=long,
        long_names=long_names,
        label=label,
        event=event,
        names=tuple(str(name) for name in names),
        moment=moment,
        seconds=moment - onset[event],
        finer=finer,
        symbol_days=days,
        width=CHUNK_SECONDS,
        shifted=Shifted(
            np.concatenate([part.long for part in shifted]),
            np.concatenate([part.label for part in shifted]),
            np.concatenate([part.event for part in shifted]),
        ),
    )


def read_finest(folder: Path) -> Pumps:
    """Every bar of 5 s with trades within a day of the onset, labelled at 5 s, with the columns against days only."""
    long, moment, event, names, onsets, finer = [], [], [], [], [], []
    days = 0.0
    long_names: tuple[str, ...] = ()
    for number, recording in enumerate(recordings(folder / EVENTS_FILE)):
        here = np.abs(recording.seconds - recording.onset) <= _WATCHED
        begins = recording.seconds[here]
        found = columns.compute(columns.tape(recording.seconds, recording.bars), begins, 1)
        long_names = tuple(found)
        long.append(np.stack(list(found.values()), axis=1))
        moment.append(begins.astype(np.float64))
        event.append(np.full(len(begins), number, np.int64))
        names.append(recording.name)
        # Where the labelled bar has no trades, the first one after it stands for it.
        onsets.append(float(begins[np.searchsorted(begins, recording.finer_onset)]))
        finer.append(0.0)
        days += float(np.ptp(begins)) / 86_400.0
    place = np.concatenate(event)
    seconds = np.concatenate(moment) - np.array(onsets)[place]
    count = len(seconds)
    return Pumps(
        features=np.empty((count, 0), np.float32),
        published=np.empty((count, 0), np.float32),
        long=np.concatenate(long),
        long_names=long_names,
        label=seconds == 0.0,
        event=place,
        names=tuple(names),
        moment=np.concatenate(moment),
        seconds=seconds,
        finer=np.array(finer),
        symbol_days=days,
        width=columns.STEP,
        shifted=Shifted(np.empty((0, len(long_names)), np.float32), np.empty(0, bool), np.empty(0, np.int64)),
    )


def _shift(recording: Recording, tape: columns.Tape, number: int) -> Shifted:
    """The chunks near the onset on the grids 5 to 20 s later; none where the labels at 25 s and at 5 s disagree."""
    onset = recording.finer_onset
    agree = recording.onset <= onset < recording.onset + CHUNK_SECONDS
    near = recording.seconds[np.abs(recording.seconds - onset) < _SHIFTED_WITHIN] if agree else recording.seconds[:0]
    begins = np.concatenate(
        [
            np.unique((near - shift) // CHUNK_SECONDS * CHUNK_SECONDS + shift)
            for shift in range(columns.STEP, CHUNK_SECONDS, columns.STEP)
        ]
    )
    begins = begins[begins + CHUNK_SECONDS <= recording.seconds[-1] + columns.STEP]
    found = columns.compute(tape, begins, _CELLS)
    return Shifted(
        np.stack(list(found.values()), axis=1),
        (begins <= onset) & (onset < begins + CHUNK_SECONDS),
        np.full(len(begins), number, np.int64),
    )


def against_past(
    features: NDArray[np.float32], published: NDArray[np.float32], event: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Tapewatch's and the study's features, the previous chunk's, and each against its highest of the past chunks.

    An onset is the first extreme: what comes after it is as high, but not higher than what went before.
    """
    chosen = [FEATURE_NAMES.index(name) for name in _FOLLOWED]
    sizes = published[:, : len(_SIZES)]
    followed = np.hstack([features[:, chosen], sizes])
    judged = [FEATURE_NAMES.index(name) for name in OF_COINS]
    everything = [features[:, judged], sizes]
    starts = np.flatnonzero(np.concatenate([[True], event[1:] != event[:-1]]))
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


def past_names() -> tuple[str, ...]:
    """The columns of `against_past`."""
    followed = (*_FOLLOWED, *_SIZES)
    names = [*OF_COINS, *_SIZES, *(f"{name}_before" for name in followed)]
    for lag in _PAST:
        names += [f"{name}_highest_of_{lag}" for name in followed]
        names += [f"{name}_over_highest_of_{lag}" for name in followed]
    return tuple(f"{PAST_PREFIX}{name}" for name in names)
