"""What the gateway counts."""

from collections import Counter
from collections.abc import Sequence

from opentelemetry import metrics

from services.domain.errors import TapewatchError
from services.domain.quote import CANARY_TAPE, LIVE_TAPE
from services.domain.score import ScoredQuote
from services.gateway.service import Recorded
from services.runtime import telemetry_names as names

REPLAY = "replay"


def _tape(tape: str) -> str:
    """The tape as an attribute: every replay has a tape of its own, which would make ever more time series."""
    return tape if tape in (LIVE_TAPE, CANARY_TAPE) else REPLAY


class GatewayMetrics:
    """Counters of recorded scores, detections, opened alerts and mismatches, by kind of tape."""

    def __init__(self) -> None:
        meter = metrics.get_meter("tapewatch")
        self._recorded = meter.create_counter(names.SCORES_RECORDED, unit="{score}")
        self._detections = meter.create_counter(names.DETECTIONS_RECORDED, unit="{detection}")
        self._alerts = meter.create_counter(names.ALERTS_OPENED, unit="{alert}")
        self._mismatches = meter.create_counter(names.SCORES_MISMATCHED, unit="{score}")

    def count(self, items: Sequence[ScoredQuote], results: Sequence[Recorded | TapewatchError]) -> None:
        """Count one batch."""
        recorded: Counter[tuple[str, bool]] = Counter()
        mismatches: Counter[str] = Counter()
        for item, result in zip(items, results, strict=True):
            if isinstance(result, TapewatchError):
                continue
            tape = _tape(item.quote.tape)
            recorded[tape, result.created] += 1
            mismatches[tape] += not result.same
            if result.created and result.alert_id:
                attributes = {names.ATTRIBUTE_TAPE: tape, "typology": item.score.typology.name}
                self._detections.add(1, attributes)
                self._alerts.add(result.opened, attributes)
        for (tape, created), count in recorded.items():
            self._recorded.add(count, {names.ATTRIBUTE_TAPE: tape, "created": created})
        for tape, count in mismatches.items():
            self._mismatches.add(count, {names.ATTRIBUTE_TAPE: tape})
