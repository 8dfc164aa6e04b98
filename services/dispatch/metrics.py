"""What the dispatcher measures of its canaries."""

from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from services.dispatch.canary_watch import CanaryReport, CanaryState
from services.runtime import telemetry_names as names


class CanaryMetrics:
    """Counts plays and misses, and shows whether the newest play was green."""

    def __init__(self, report: Callable[[], CanaryReport]) -> None:
        meter = metrics.get_meter("tapewatch")
        self._played = meter.create_counter(names.CANARY_PLAYED, unit="{canary}")
        self._delay = meter.create_histogram(names.CANARY_DELAY, unit="s")

        def healthy(_: CallbackOptions) -> Iterable[Observation]:
            state = report().state
            if state in (CanaryState.GREEN, CanaryState.RED):
                return [Observation(int(state is CanaryState.GREEN))]
            return []

        meter.create_observable_gauge(names.CANARY_HEALTHY, [healthy], unit="1")

    def count(self, report: CanaryReport) -> None:
        """Count the newest play."""
        for outcome in report.outcomes:
            name = {names.ATTRIBUTE_CANARY: outcome.name}
            self._played.add(1, {**name, "alerted": outcome.alerted})
            if outcome.delay_seconds is not None:
                self._delay.record(outcome.delay_seconds, name)
