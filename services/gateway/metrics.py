"""What the gateway counts."""

from collections.abc import Sequence

from opentelemetry import metrics

from services.domain.errors import TapewatchError
from services.domain.score import ScoredQuote
from services.gateway.service import Recorded
from services.runtime import telemetry_names as names


class GatewayMetrics:
    """Counters of recorded scores, detections and mismatches, by tape."""

    def __init__(self) -> None:
        meter = metrics.get_meter("tapewatch")
        self._recorded = meter.create_counter(names.SCORES_RECORDED, unit="{score}")
        self._detections = meter.create_counter(names.DETECTIONS_RECORDED, unit="{detection}")
        self._mismatches = meter.create_counter(names.SCORES_MISMATCHED, unit="{score}")

    def count(self, items: Sequence[ScoredQuote], results: Sequence[Recorded | TapewatchError]) -> None:
        """Count one batch."""
        for item, result in zip(items, results, strict=True):
            attributes = {names.ATTRIBUTE_TAPE: item.quote.tape}
            if isinstance(result, TapewatchError):
                continue
            self._recorded.add(1, {**attributes, "created": result.created})
            if result.created and result.alert_id:
                self._detections.add(1, {**attributes, "typology": item.score.typology.name})
            if not result.same:
                self._mismatches.add(1, attributes)
