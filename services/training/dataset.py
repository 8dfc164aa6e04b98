"""Bars in, feature rows out: reading, the split by ticker and time, and what is labelled.

The split is fixed before training: a ticker belongs to one side by the CRC-32 of its symbol, a bar to one period by its
time. Test rows are of tickers and of times that no training or validation row has; validation rows are of tickers that
no training row has.
"""

import ast
import hashlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.archive.bars import Bars
from services.archive.benchmark import Benchmark
from services.domain.feature_definitions import FEATURE_NAMES, FEATURES, WINDOW
from services.domain.features import bar_rows, bars_windows, compute
from services.training.injection import MANIPULATED, NORMAL, TOUCHED, inject

HELD_OUT_SYMBOLS = frozenset({"AAPL", "MSFT", "GOOG", "GOOGL", "IBM", "FB", "META"})
"""Never trained on when there are other symbols: `make run` replays them."""

LEAD = WINDOW - 1
"""Bars at the start of a series that only serve as history."""

UNJUDGED_LOG_RATIO = float(np.log(2.0))

_FEW_SYMBOLS = 20
_TRAIN_TIME, _VALIDATION_TIME = 0.60, 0.80


class Part(Enum):
    """A side of the split."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Rows:
    """n feature rows with what is known of them.

    `features` float32 (n, F); `label` int8, see `injection`; `typology` int8, a Typology; `strength` float32 in
    deviations; `event` int64, unique in the sample, -1 for none; `series` int32, index of the symbol; `position` int32,
    index of the bar in its series; `time` datetime64[us].
    """

    features: NDArray[np.float32]
    label: NDArray[np.int8]
    typology: NDArray[np.int8]
    strength: NDArray[np.float32]
    event: NDArray[np.int64]
    series: NDArray[np.int32]
    position: NDArray[np.int32]
    time: NDArray[np.datetime64]

    def __len__(self) -> int:
        return len(self.label)

    def where(self, mask: NDArray[np.bool_] | NDArray[np.int64]) -> "Rows":
        """The rows of a mask or of indices."""
        return Rows(*(getattr(self, f.name)[mask] for f in fields(self)))


def concatenate(parts: list[Rows]) -> Rows:
    """All rows of all parts, which are taken out of the list one by one: to hold both would take twice the memory."""
    n = sum(map(len, parts))
    whole = Rows(
        np.empty((n, len(FEATURES)), np.float32),
        np.empty(n, np.int8),
        np.empty(n, np.int8),
        np.empty(n, np.float32),
        np.empty(n, np.int64),
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.empty(n, "datetime64[us]"),
    )
    while parts:
        part = parts.pop()
        for f in fields(Rows):
            getattr(whole, f.name)[n - len(part) : n] = getattr(part, f.name)
        n -= len(part)
    return whole


def trainable(history: Sequence[Bars], leave_out: Callable[[Bars, str], None] = lambda bars, why: None) -> list[Bars]:
    """The series that may be trained on: long enough, traded, and none of HELD_OUT_SYMBOLS when others remain.

    Of an index nothing is traded (volume in less than a tenth of its bars): it cannot be manipulated by trading it.
    `leave_out` is called with each series that may not, and why.
    """
    good: list[Bars] = []
    for bars in history:
        if len(bars) <= 2 * WINDOW:
            leave_out(bars, f"fewer than {2 * WINDOW + 1} bars")
        elif np.count_nonzero(bars.volume > 0) < 0.1 * len(bars):
            leave_out(bars, "volume in less than a tenth of the bars")
        else:
            good.append(bars)
    others = [bars for bars in good if bars.symbol not in HELD_OUT_SYMBOLS]
    if others:
        for bars in good:
            if bars.symbol in HELD_OUT_SYMBOLS:
                leave_out(bars, "never trained on where there are others, because `make run` replays them")
    return sorted(others or good, key=lambda bars: bars.symbol)


def part_of(symbol: str) -> Part:
    """The side of the split a ticker belongs to: 60 % train, 20 % validation, 20 % test."""
    drawn = zlib.crc32(symbol.encode()) % 10
    return Part.TRAIN if drawn < 6 else Part.VALIDATION if drawn < 8 else Part.TEST


def split(history: Sequence[Bars]) -> dict[Part, list[Bars]]:
    """The series of each side, cut to its period.

    The last 20 % of all bars are the test's period, the 20 % before them the validation's; training tickers are learnt
    from until the test's period begins. With fewer than 20 symbols tickers appear on every side, and are learnt from
    until the validation's period begins.
    """
    times = np.sort(np.concatenate([bars.event_time for bars in history]).astype("datetime64[us]").astype(np.int64))
    validated, tested = (int(times[int(share * len(times))]) for share in (_TRAIN_TIME, _VALIDATION_TIME))
    few = len(history) < _FEW_SYMBOLS
    periods = {
        Part.TRAIN: (int(times[0]), validated if few else tested),
        Part.VALIDATION: (validated, tested),
        Part.TEST: (tested, int(times[-1]) + 1),
    }
    sides: dict[Part, list[Bars]] = {}
    for part, (start, stop) in periods.items():
        sides[part] = [
            cut_bars
            for bars in history
            if few or part_of(bars.symbol) is part
            if len(cut_bars := cut(bars, start, stop)) > WINDOW
        ]
    return sides


def before_test(history: Sequence[Bars]) -> list[Bars]:
    """The series of all but the test side's tickers, cut to the time before its period."""
    tested = split(history)[Part.TEST]
    first = min(bars.event_time[0] for bars in tested).astype("datetime64[us]").astype(np.int64)
    others = history if len(history) < _FEW_SYMBOLS else [b for b in history if part_of(b.symbol) is not Part.TEST]
    kept = [cut(bars, np.iinfo(np.int64).min, int(first)) for bars in others]
    return [bars for bars in kept if len(bars) > WINDOW]


def cut(bars: Bars, start: int, stop: int) -> Bars:
    """The bars with start <= event_time < stop, both in microseconds since 1970."""
    moments = bars.event_time.astype("datetime64[us]").astype(np.int64)
    part = slice(int(np.searchsorted(moments, start)), int(np.searchsorted(moments, stop)))
    columns = ("event_time", "open", "high", "low", "close", "volume", "split_ratio")
    return replace(bars, **{name: getattr(bars, name)[part] for name in columns})


def mirrored(bars: Bars) -> Bars:
    """The series upside down, its prices' reciprocals: what rose falls by the same logarithm. Splits are taken out."""
    ratio = np.where(np.isnan(bars.split_ratio), 1.0, bars.split_ratio)
    later = np.ones(len(ratio))
    later[:-1] = np.cumprod(ratio[:0:-1])[::-1]
    return replace(
        bars,
        open=later / bars.open,
        high=later / bars.low,
        low=later / bars.high,
        close=later / bars.close,
        volume=bars.volume * later,
        split_ratio=np.ones(len(ratio)),
    )


def mirrored_benchmark(benchmark: Benchmark) -> Benchmark:
    """The market and the peers of mirrored series."""
    peers = {
        symbol: replace(group, simple_return=1.0 / (1.0 + group.simple_return) - 1.0)
        for symbol, group in benchmark.peers.items()
    }
    return replace(benchmark, simple_return=1.0 / (1.0 + benchmark.simple_return) - 1.0, peers=peers)


def _raw(bars: Bars, benchmark: Benchmark | None) -> NDArray[np.float64]:
    return bar_rows(bars, {} if benchmark is None else benchmark.beside(bars))


def untouched(
    history: Iterable[Bars], advance: Callable[[], None] = lambda: None, *, benchmark: Benchmark | None = None
) -> Rows:
    """The rows of all bars as they are, LEAD bars at the start of each series left out.

    Args:
        history: The real series.
        advance: Called after each series.
        benchmark: The market's returns; None is a feed without.
    """

    def rows(number: int, bars: Bars) -> Rows | None:
        if len(bars) <= LEAD:
            return None
        features = np.concatenate([compute(w) for w in bars_windows(_raw(bars, benchmark))])[LEAD:]
        n = len(features)
        return Rows(
            features,
            np.zeros(n, np.int8),
            np.zeros(n, np.int8),
            np.zeros(n, np.float32),
            np.full(n, -1, np.int64),
            np.full(n, number, np.int32),
            np.arange(LEAD, LEAD + n, dtype=np.int32),
            bars.event_time[LEAD:],
        )

    parts = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy leaves other threads their turn
        for part in pool.map(rows, itertools.count(), history):
            if part is not None:
                parts.append(part)
            advance()
    return concatenate(parts)


def unjudged(rows: Rows) -> NDArray[np.bool_]:
    """Untouched bars that training does not call normal, bool (n,).

    Price change and volume are both more than twice the largest of the 60 bars before (7 daily bars in 10,000).
    Nobody has looked at them, and a surveillance system is to show exactly such bars to somebody. Held-out bars are
    never left out: there they count as false alerts.
    """
    names = ("return_over_past_extreme", "volume_over_past_extreme")
    columns = np.stack([rows.features[:, FEATURE_NAMES.index(name)] for name in names])
    extreme: NDArray[np.bool_] = (rows.label == NORMAL) & (columns.min(axis=0) > UNJUDGED_LOG_RATIO)
    return extreme


def injected(
    history: Iterable[Bars],
    seed: int,
    *,
    advance: Callable[[], None] = lambda: None,
    only_near: int | None = None,
    benchmark: Benchmark | None = None,
    **choices: object,
) -> Rows:
    """The rows of all bars after injection.

    Args:
        history: The real series.
        seed: Of the injection.
        advance: Called after each series.
        only_near: Keep only labelled bars and this many normal bars after each event; None keeps all bars.
        benchmark: The market's returns, which no injection changes; None is a feed without.
        choices: Passed on to `inject`.
    """
    parts = []
    events = 0
    for number, bars in enumerate(history):
        made = inject(bars, seed, **choices)  # type: ignore[arg-type]
        keep = np.zeros(len(bars), dtype=bool)
        keep[LEAD:] = True
        if only_near is not None:
            keep[:] = made.label == MANIPULATED
            for event in made.events:
                keep[event.stop : event.stop + only_near] = True
            keep[made.label == TOUCHED] = False
        places = np.flatnonzero(keep)
        if len(places):
            features = []
            for k, windows in enumerate(bars_windows(_raw(made.bars, benchmark))):
                here = places[(places >= k * 8_192) & (places < (k + 1) * 8_192)] - k * 8_192
                features.append(compute(windows[here]))
            owner = made.event[places]
            typology = np.array([e.typology for e in made.events] + [0], dtype=np.int8)[owner]
            strength = np.array([e.strength for e in made.events] + [0.0], dtype=np.float32)[owner]
            parts.append(
                Rows(
                    np.concatenate(features),
                    made.label[places],
                    typology,
                    strength,
                    np.where(owner >= 0, owner + events, -1),
                    np.full(len(places), number, np.int32),
                    places.astype(np.int32),
                    bars.event_time[places],
                )
            )
        events += len(made.events)
        advance()
    return concatenate(parts)


def fingerprint(history: Sequence[Bars], settings: str) -> str:
    """SHA-256 of the bars, of the code that makes features, labels and models of them, and of the settings.

    Of the code what it does counts: comments, docstrings, annotations of arguments and layout do not, nor does
    `train`, which only puts together what these make.
    """
    digest = hashlib.sha256(settings.encode())
    add_bars(digest, history)
    services = Path(__file__).parents[1]
    made_by = (
        "calibrate",
        "dataset",
        "figures",
        "fit",
        "held_out",
        "injection",
        "labels",
        "networks",
        "sources",
    )
    code = [
        *services.glob("domain/feature*.py"),
        services / "domain/session_profile.py",
        services / "domain/model.py",
        services / "domain/typology.py",
        services / "archive/benchmark.py",
        services / "archive/peers.py",
        *(services / f"training/{name}.py" for name in made_by),
    ]
    for path in sorted(code):
        digest.update(path.name.encode() + instructions(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def add_bars(digest: "hashlib._Hash", history: Iterable[Bars]) -> None:
    """Let a digest depend on all that these bars say."""
    for bars in history:
        digest.update(f"{bars.symbol}/{bars.interval_seconds}/{len(bars)}".encode())
        for name in ("event_time", "open", "high", "low", "close", "volume", "split_ratio"):
            digest.update(np.ascontiguousarray(getattr(bars, name)).tobytes())


def instructions(source: str) -> str:
    r"""Python code without comments, docstrings, annotations of arguments and layout.

    >>> instructions("def f(x: int):\n    'Says x.'\n    return (x)  # it")
    'def f(x):\n    return x'
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                part for part in body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return ast.unparse(tree)
