"""What the dispatcher measures of task mode: an alarm stands on the oldest open batch and on refused launches."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from services.dispatch.batch import Entry
from services.runtime import telemetry_names as names


class TaskMetrics:
    """Counts launches and ends; shows how many batches are open, and since when the oldest is."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        meter = metrics.get_meter("tapewatch")
        self._launches = meter.create_counter(names.TASKS_LAUNCHED, unit="{launch}")
        self._ends = meter.create_counter(names.TASKS_ENDED, unit="{task}")
        self._entries: Sequence[Entry] = ()

        def how_many(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(len(self._entries))]

        def how_old(_: CallbackOptions) -> Iterable[Observation]:
            oldest = min((entry.entered_time for entry in self._entries), default=None)
            return [Observation(0.0 if oldest is None else (clock() - oldest).total_seconds())]

        meter.create_observable_gauge(names.BATCHES_OPEN, [how_many], unit="{batch}")
        meter.create_observable_gauge(names.BATCH_OLDEST, [how_old], unit="s")

    def see(self, entries: Sequence[Entry]) -> None:
        """Take note of the open batches."""
        self._entries = entries

    def launches(self, outcome: str) -> None:
        """Count a launch."""
        self._launches.add(1, {"outcome": outcome})

    def ended(self, outcome: str) -> None:
        """Count an attempt that ended."""
        self._ends.add(1, {"outcome": outcome})
