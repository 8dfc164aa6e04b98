"""Whether today's values are still those of training: the population stability index over a moving window."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.domain.feature_definitions import FEATURES
from services.domain.model import UsualBars

Array = NDArray[np.float64]

SCORE = "score"
AUTOENCODER_PERCENTILE = "autoencoder_percentile"
USUAL_SHARES = (0.05, 0.5, 0.95)
"""What a feature's usual low, median and high are quantiles of."""

FEWEST_ROWS = 500
BLOCK_ROWS = 2_000
BLOCKS = 5
_TIED_SHARE = 0.01
"""So many values equal to an edge show that the value gathers there, as at a bound: also in training, then."""
_SMALLEST_SHARE = 1e-4
"""Stands for an empty bin, whose logarithm would be infinite."""
_OPTIONAL = frozenset(feature.name for feature in FEATURES if feature.optional)


@dataclass(frozen=True, slots=True)
class Reference:
    """A value's distribution in training: its quantiles `edges` at the cumulative `shares`, both ascending.

    An `optional` value that is 0 in every row is one that the tape does not have.
    """

    name: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    optional: bool = False

    def bounds(self) -> tuple[Array, Array, NDArray[np.bool_]]:
        """The distinct edges, the share at or below each, and where that is only the least it may be.

        Where quantiles coincide, many training values were equal to that edge: the share at or below it is then only
        known to lie between the last coinciding quantile's and the next one's.
        """
        edges = np.array(sorted(set(self.edges)))
        low = np.array([max(s for e, s in zip(self.edges, self.shares, strict=True) if e == edge) for edge in edges])
        tied = np.array([self.edges.count(float(edge)) > 1 for edge in edges])
        return edges, low, tied


def references(bars: UsualBars, *, with_autoencoder: bool = True) -> tuple[Reference, ...]:
    """What each value was like on the normal bars of one length in training, features first, in the model's order.

    A feature's full `reference` is used where there is one, its usual low, median and high otherwise. The percentile of
    the reconstruction error is uniform on normal bars by its definition. The score is left out when there is no
    reference of it.
    """
    found = []
    for usual in bars.features:
        if usual.name in bars.reference:
            found.append(_evenly(usual.name, bars.reference[usual.name]))
        else:
            edges = (usual.low, usual.median, usual.high)
            found.append(Reference(usual.name, edges, USUAL_SHARES, usual.name in _OPTIONAL))
    if with_autoencoder:
        found.append(_evenly(AUTOENCODER_PERCENTILE, tuple(i / 10 for i in range(1, 10))))
    if SCORE in bars.reference:
        found.append(_evenly(SCORE, bars.reference[SCORE]))
    return tuple(found)


def _evenly(name: str, edges: Sequence[float]) -> Reference:
    count = len(edges) + 1
    return Reference(name, tuple(edges), tuple(i / count for i in range(1, count)), name in _OPTIONAL)


@dataclass(frozen=True, slots=True)
class Stability:
    """One value's index, None while there are too few rows, or when it is `absent` from the tape, over `bins` bins."""

    name: str
    index: float | None
    bins: int
    absent: bool = False


@dataclass(slots=True)
class _Counted:
    """Rows of one block by value: within each bin, equal to each edge, and other than 0."""

    within: NDArray[np.int64]
    equal: NDArray[np.int64]
    other: NDArray[np.int64]

    @classmethod
    def none(cls, shape: tuple[int, int]) -> "_Counted":
        values, bins = shape
        return cls(np.zeros(shape, np.int64), np.zeros((values, bins - 1), np.int64), np.zeros(values, np.int64))


class StabilityMonitor:
    """Counts values into the bins of their references, over the newest BLOCKS blocks of BLOCK_ROWS rows.

    Not safe to call from several threads at once.
    """

    def __init__(self, against: Sequence[Reference]) -> None:
        self._names = [reference.name for reference in against]
        bounds = [reference.bounds() for reference in against]
        self._sizes = [len(edges) + 1 for edges, _, _ in bounds]
        width = max(self._sizes, default=1)
        self._shares, self._tied = [share for _, share, _ in bounds], [tied for _, _, tied in bounds]
        self._edges = np.full((width - 1, len(against)), np.inf, dtype=np.float64)
        for i, (edges, _, _) in enumerate(bounds):
            self._edges[: len(edges), i] = edges
        self._offsets = np.arange(len(against)) * width
        self._shape = (len(against), width)
        self._optional = np.array([reference.optional for reference in against], dtype=np.bool_)
        self._full: deque[_Counted] = deque(maxlen=BLOCKS - 1)
        self._open = _Counted.none(self._shape)
        self._open_rows = 0

    @property
    def names(self) -> Sequence[str]:
        """What the columns of `observe` are."""
        return self._names

    @property
    def rows(self) -> int:
        """Rows that the indices stand on."""
        return self._open_rows + BLOCK_ROWS * len(self._full)

    def observe(self, values: Array) -> None:
        """Count rows, float64 (n, len(names)), in the references' order."""
        for start in range(0, len(values), BLOCK_ROWS):  # at most one block is closed per turn
            self._count(values[start : start + BLOCK_ROWS])

    def _count(self, values: Array) -> None:
        room = BLOCK_ROWS - self._open_rows
        for part in (values[:room], values[room:]):
            if not len(part):
                continue
            bins = np.tile(self._offsets, (len(part), 1))
            for i, edges in enumerate(self._edges):  # edge by edge: faster than one comparison in three dimensions
                bins += part > edges
                self._open.equal[:, i] += np.count_nonzero(part == edges, axis=0)
            counts = np.bincount(bins.ravel(), minlength=self._open.within.size)
            self._open.within += counts.reshape(self._shape)
            self._open.other += np.count_nonzero(part, axis=0)
            self._open_rows += len(part)
            if self._open_rows >= BLOCK_ROWS:
                self._full.append(self._open)
                self._open, self._open_rows = _Counted.none(self._shape), 0

    def read(self) -> list[Stability]:
        """The index of each value."""
        rows = self.rows
        if rows < FEWEST_ROWS:
            return [Stability(name, None, size) for name, size in zip(self._names, self._sizes, strict=True)]
        blocks = [*self._full, self._open]
        within, equal = (sum(getattr(b, n) for b in blocks) / rows for n in ("within", "equal"))
        absent = self._optional & (sum(block.other for block in blocks) == 0)
        found = []
        for i, (name, size) in enumerate(zip(self._names, self._sizes, strict=True)):
            if absent[i]:
                found.append(Stability(name, None, size, absent=True))
                continue
            low = self._shares[i]
            tied = self._tied[i] | (equal[i, : size - 1] > _TIED_SHARE)
            high = np.where(tied, np.append(low[1:], 1.0), low)
            found.append(Stability(name, _index(within[i, :size], low, high), size))
        return found


def _index(now: Array, low: Array, high: Array) -> float:
    below = np.clip(np.cumsum(now)[:-1], low, high)  # the most favourable of what training may have been
    expected = np.diff(np.concatenate([[0.0], below, [1.0]]))
    p, q = np.maximum(now, _SMALLEST_SHARE), np.maximum(expected, _SMALLEST_SHARE)
    return float(np.sum((p - q) * np.log(p / q)))
