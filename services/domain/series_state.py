"""What a scorer remembers of one series: its last raw bars, and nothing else."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from services.domain.feature_definitions import BAR_FIELDS, WINDOW
from services.domain.quote import Quote

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def bar_row(quote: Quote) -> NDArray[np.float64]:
    """The raw inputs of one quote, float64 (len(BAR_FIELDS),) in BAR_FIELDS order.

    Missing is NaN; a volume of 0 is missing, because feeds print random zeros; an unknown split_ratio is 1.0.
    """
    return np.array(_values(quote), dtype=np.float64)


def _values(quote: Quote) -> tuple[float, ...]:
    def known(value: float | None) -> float:
        return math.nan if value is None else value

    return (
        quote.open,
        quote.high,
        quote.low,
        quote.close,
        quote.volume if quote.volume > 0 else math.nan,
        1.0 if quote.split_ratio is None else quote.split_ratio,
        known(quote.trades),
        known(quote.buy_volume),
        known(quote.benchmark_return),
        known(quote.benchmark_volume_ratio),
        known(quote.peer_return),
        known(quote.peer_volume_ratio),
        (quote.event_time - _EPOCH) / timedelta(seconds=1),
        float(quote.interval_seconds),
    )


def _windows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The window that ends with each row behind the first WINDOW ones."""
    return sliding_window_view(rows[1:], WINDOW, axis=0).transpose(0, 2, 1)


class SeriesState:
    """The last `WINDOW` bars of one series.

    A later revision of the newest bar takes its place; a quote before the newest bar is refused, because the state
    could not be rebuilt to the same rows from recorded history.
    """

    __slots__ = ("_count", "_rows", "last_event_time")

    def __init__(self) -> None:
        # Front-padded with NaN, so that a window is always a slice.
        self._rows = np.full((WINDOW, len(BAR_FIELDS)), np.nan)
        self._count = 0
        self.last_event_time: datetime | None = None

    @classmethod
    def from_history(cls, quotes: Iterable[Quote]) -> "SeriesState":
        """The state after these quotes, oldest first. Only the last `WINDOW` bars matter."""
        return cls().extended(list(quotes))

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SeriesState):
            return NotImplemented
        return self.snapshot() == other.snapshot()

    __hash__ = None  # type: ignore[assignment]

    def append(self, quote: Quote) -> None:
        """Takes one quote in. Raises: ValueError when it lies before the newest bar."""
        after = self.extended([quote])
        self._rows, self._count, self.last_event_time = after._rows, after._count, after.last_event_time

    def extended(self, quotes: Sequence[Quote]) -> "SeriesState":
        """The state after these further quotes, oldest first; this one stays as it is.

        Raises: ValueError when a quote lies before the one before it.
        """
        after = SeriesState()
        rows, replaced, last = self._with(quotes)
        after._rows = np.array(rows[-WINDOW:])
        after._count = min(WINDOW, self._count + len(quotes) - replaced)
        after.last_event_time = last
        return after

    def continued(
        self, rows: NDArray[np.float64], last_event_time: datetime
    ) -> tuple["SeriesState", NDArray[np.float64]]:
        """The state after further bars, each later than the one before it, and the window that ends with each of them.

        Args:
            rows: float64 (n, len(BAR_FIELDS)), as `bar_row` makes them; n >= 1.
            last_event_time: The last one's.

        Returns:
            The state, and float64 (n, WINDOW, len(BAR_FIELDS)).
        """
        every = np.concatenate([self._rows, rows])
        after = SeriesState()
        after._rows = every[-WINDOW:].copy()
        after._count = min(WINDOW, self._count + len(rows))
        after.last_event_time = last_event_time
        return after, _windows(every)

    def windows(self, quotes: Sequence[Quote]) -> NDArray[np.float64]:
        """The window that ends with each of these further quotes; the state stays as it is.

        Returns:
            float64 (len(quotes), WINDOW, len(BAR_FIELDS)), rows before the first bar all NaN.

        Raises:
            ValueError: A quote lies before the one before it.
        """
        if not quotes:
            return np.empty((0, WINDOW, len(BAR_FIELDS)))
        rows, replaced, _ = self._with(quotes)
        if replaced:
            states = [self.extended(quotes[: i + 1])._rows for i in range(len(quotes))]
            return np.stack(states)
        return _windows(rows)

    def _with(self, quotes: Sequence[Quote]) -> tuple[NDArray[np.float64], int, datetime | None]:
        """All rows with the further ones behind, how many of these took a bar's place, and the last event_time."""
        last = self.last_event_time
        added: list[tuple[float, ...]] = []
        rows = self._rows
        replaced = 0
        for quote in quotes:
            if last is not None and quote.event_time < last:
                raise ValueError(f"{quote.quote_id} lies before the newest bar of its series, {last.isoformat()}")
            if quote.event_time == last:
                replaced += 1
                if added:
                    added.pop()
                else:
                    rows = np.concatenate([np.full((1, len(BAR_FIELDS)), np.nan), rows[:-1]])
            added.append(_values(quote))
            last = quote.event_time
        if added:
            rows = np.concatenate([rows, np.array(added, dtype=np.float64)])
        return rows, replaced, last

    def snapshot(self) -> bytes:
        """The state as bytes: the newest event_time in microseconds, then the rows."""
        last = self.last_event_time
        moment = 0 if last is None else (last - _EPOCH) // _MICROSECOND
        return moment.to_bytes(8, "big", signed=True) + self._rows[WINDOW - self._count :].tobytes()

    @classmethod
    def restore(cls, snapshot: bytes) -> "SeriesState":
        """The state that `snapshot` was taken of. Raises: ValueError when the bytes are not one."""
        width = 8 * len(BAR_FIELDS)
        count, rest = divmod(len(snapshot) - 8, width)
        if not 0 <= count <= WINDOW or rest:
            raise ValueError(f"{len(snapshot)} bytes are not a snapshot of a series state")
        state = cls()
        if count:
            state._rows[WINDOW - count :] = np.frombuffer(snapshot[8:], dtype=np.float64).reshape(count, -1)
            state._count = count
            state.last_event_time = _EPOCH + int.from_bytes(snapshot[:8], "big", signed=True) * _MICROSECOND
        return state
