"""Bars that analysts decided, as `tapewatch calibrate --export-labels` writes them, and what training makes of them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.archive.bars import Bars
from services.archive.benchmark import Benchmark
from services.domain.errors import FieldViolation, InvalidRequestError
from services.domain.quote import CANARY_TAPE
from services.domain.typology import Typology
from services.training import dataset
from services.training.dataset import Rows
from services.training.injection import MANIPULATED, NORMAL

_COLUMNS = ("tape", "symbol", "interval_seconds", "event_time", "label", "typology")

Decision = tuple[bool, Typology]
"""Whether a manipulation was confirmed, and of which kind."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Decisions by symbol and bar length, then by event_time in microseconds; `digest` is of the file."""

    decisions: dict[tuple[str, int], dict[int, Decision]] = field(default_factory=dict)
    digest: str = ""

    def __len__(self) -> int:
        return sum(map(len, self.decisions.values()))

    @classmethod
    def read(cls, path: Path) -> "Labels":
        """The decisions in a Parquet file; those on canaries are left out, of one bar the last row's counts.

        Raises: InvalidRequestError naming the file and what is wrong with it.
        """
        try:
            content = path.read_bytes()
            table = pq.read_table(pa.BufferReader(content))
        except (OSError, pa.ArrowException) as error:
            raise _unusable(path, f"is not a readable Parquet file: {error}") from error
        missing = [name for name in _COLUMNS if name not in table.column_names]
        if missing:
            raise _unusable(path, f"lacks {', '.join(missing)}: tapewatch calibrate --export-labels writes such files")
        decisions: dict[tuple[str, int], dict[int, Decision]] = {}
        for number, row in enumerate(table.select(list(_COLUMNS)).to_pylist(), 1):
            if row["tape"] == CANARY_TAPE:
                continue
            if row["label"] not in (0, 1) or row["typology"] not in Typology.__members__:
                raise _unusable(path, f"row {number} has label {row['label']!r} and typology {row['typology']!r}")
            moment = int(np.datetime64(row["event_time"].replace(tzinfo=None), "us").astype(np.int64))
            series = decisions.setdefault((row["symbol"], row["interval_seconds"]), {})
            series[moment] = (row["label"] == 1, Typology[row["typology"]])
        return cls(decisions, hashlib.sha256(content).hexdigest())

    def of(self, bars: Bars) -> dict[int, Decision]:
        """The decisions on one series' bars."""
        return self.decisions.get((bars.symbol, bars.interval_seconds), {})

    def among(self, side: Sequence[Bars], rows: Rows) -> NDArray[np.bool_]:
        """Which of a side's rows were decided, bool (n,): what is learnt from them is not measured on them.

        The rows may be of bars that an injection or a view changed: a series keeps its bars and their order.
        """
        found = np.zeros(len(rows), dtype=bool)
        for number, bars in enumerate(side):
            if moments := list(self.of(bars)):
                decided_bars = np.isin(bars.event_time.astype("datetime64[us]").astype(np.int64), moments)
                found |= (rows.series == number) & np.isin(rows.position, np.flatnonzero(decided_bars))
        return found


def _unusable(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("labels", f"{path} {why}")])


def decided(labels: Labels, history: Iterable[Bars], benchmark: Benchmark) -> Rows:
    """The rows of the decided bars of these series, MANIPULATED where confirmed and NORMAL where dismissed.

    A decision on a bar that the series do not hold, or with too little history before it, is left out.
    """
    parts = []
    for number, bars in enumerate(history):
        decisions = labels.of(bars)
        if not decisions:
            continue
        rows = dataset.untouched([bars], benchmark=benchmark)
        moments = rows.time.astype("datetime64[us]").astype(np.int64)
        chosen = np.flatnonzero(np.isin(moments, list(decisions)))
        said = [decisions[int(moment)] for moment in moments[chosen]]
        kept = rows.where(chosen)
        parts.append(
            Rows(
                kept.features,
                np.array([MANIPULATED if confirmed else NORMAL for confirmed, _ in said], dtype=np.int8),
                np.array([int(typology) for _, typology in said], dtype=np.int8),
                kept.strength,
                kept.event,
                np.full(len(kept), number, np.int32),
                kept.position,
                kept.time,
            )
        )
    return dataset.concatenate(parts)
