"""What the gateway counts, and that replays do not make ever more time series."""

from collections.abc import Iterator

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.domain.errors import PredecessorFailedError
from services.gateway.metrics import GatewayMetrics
from services.gateway.service import Recorded
from services.runtime import telemetry_names as names
from tests.gateway_quotes import scored, spike

Points = dict[str, dict[tuple[tuple[str, object], ...], float]]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    made = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[made])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    yield made
    provider.shutdown()


def points(reader: InMemoryMetricReader) -> Points:
    found: Points = {}
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            attributes = tuple(sorted((point.attributes or {}).items()))
            found.setdefault(metric.name, {})[attributes] = point.value  # type: ignore[union-attr]
    return found


def test_counts_outcomes_detections_and_alerts(reader: InMemoryMetricReader) -> None:
    new = Recorded(created=True, same=True, alert_id="")
    opened = Recorded(created=True, same=True, alert_id="al_1", opened=True)
    added = Recorded(created=True, same=True, alert_id="al_1")
    again = Recorded(created=False, same=True, alert_id="al_1")
    other = Recorded(created=False, same=False, alert_id="")
    items = [scored(0), spike(1), spike(2), spike(2), scored(0), scored(3)]
    GatewayMetrics().count(items, [new, opened, added, again, other, PredecessorFailedError("x")])
    live, spikes = (names.ATTRIBUTE_TAPE, "live"), ("typology", "PRICE_SPIKE")
    assert points(reader) == {
        names.SCORES_RECORDED: {(("created", True), live): 3, (("created", False), live): 2},
        names.SCORES_MISMATCHED: {(live,): 1},
        names.DETECTIONS_RECORDED: {(live, spikes): 2},
        names.ALERTS_OPENED: {(live, spikes): 1},
    }


def test_all_replays_are_one_time_series(reader: InMemoryMetricReader) -> None:
    new = Recorded(created=True, same=True, alert_id="")
    tapes = ["live", "canary", "replay-1", "replay-2", "x"]
    GatewayMetrics().count([scored(0, tape=tape) for tape in tapes], [new] * 5)
    by_tape = {
        dict(attributes)[names.ATTRIBUTE_TAPE]: n for attributes, n in points(reader)[names.SCORES_RECORDED].items()
    }
    assert by_tape == {"live": 1, "canary": 1, "replay": 3}
