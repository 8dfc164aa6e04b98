"""What a collector reads of a scorer's models."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.archive import bokeh
from services.archive.bars import quotes as quotes_of
from services.domain.feature_definitions import FEATURES
from services.runtime import telemetry_names as names
from services.scorer.metrics import observe_deployment
from services.scorer.registry import ModelRegistry
from services.scorer.service import ScoringService
from tests.scorer_models import model_folder

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
    if data is None:
        return found
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            attributes = tuple(sorted((point.attributes or {}).items()))
            found.setdefault(metric.name, {})[attributes] = point.value  # type: ignore[union-attr]
    return found


BARS = [q for q in quotes_of(bokeh.read(), tape="live", source=bokeh.SOURCE) if q.symbol == "AAPL"]


async def test_drift_of_the_serving_model_is_measured(tmp_path: Path, reader: InMemoryMetricReader) -> None:
    registry = ModelRegistry(model_folder(tmp_path))
    service = ScoringService(registry.load("champion"), None)
    observe_deployment(service.watch)
    assert points(reader) == {}
    challenger = registry.load("challenger")
    service.deploy(service.deployment.with_shadow(challenger).with_canary(challenger, 1.0))
    await service.score(BARS, {})
    service.deploy(service.deployment.serve(challenger))
    await service.score(BARS, {})
    service.close()
    found = points(reader)
    assert names.SHADOW_QUOTES not in found, "a promoted candidate is none any more"
    stability = found[names.MODEL_STABILITY_INDEX]
    assert {dict(key)[names.ATTRIBUTE_TAPE] for key in stability} == {"live"}
    measured = {dict(key)[names.ATTRIBUTE_VALUE] for key in stability}
    features = {feature.name for feature in FEATURES if not feature.optional}
    assert measured - {"score"} == features, "the classifier alone: no percentile; a tape without a benchmark"
    assert {dict(key)[names.ATTRIBUTE_INTERVAL] for key in stability} == {86_400}
    assert all(value >= 0 for value in stability.values())


async def test_candidates_are_measured(tmp_path: Path, reader: InMemoryMetricReader) -> None:
    registry = ModelRegistry(model_folder(tmp_path))
    challenger = registry.load("challenger")
    service = ScoringService(registry.load("champion"), None)
    service.deploy(service.deployment.with_shadow(challenger))
    observe_deployment(service.watch)
    await service.score(BARS, {})
    service.deploy(service.deployment.with_canary(challenger, 1.0))
    await service.score(BARS, {})
    service.close()
    found = points(reader)
    version = (names.ATTRIBUTE_MODEL, "challenger")
    assert sum(found[names.SHADOW_QUOTES].values()) == len(BARS), "what it judged as canary is not compared with itself"
    assert len(BARS) > found[names.SHADOW_QUOTES][(names.ATTRIBUTE_AGREEMENT, "agree"), version] > 0.9 * len(BARS)
    assert found[names.SHADOW_DIFFERENCE][(version,)] > 0
    assert found[names.CANARY_MODEL_QUOTES] == {(version,): len(BARS)}
