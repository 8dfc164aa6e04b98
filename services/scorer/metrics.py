"""What the scorer measures of its models: drift, and how candidates do. Read when a collector asks."""

from collections.abc import Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from services.runtime import telemetry_names as names
from services.scorer.deployment_watch import DeploymentWatch


def observe_deployment(watch: DeploymentWatch) -> None:
    """Register the gauges and counters of a watch with the process's meter."""

    def stability(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(
                value.index,
                {
                    names.ATTRIBUTE_TAPE: drift.tape,
                    names.ATTRIBUTE_INTERVAL: drift.interval_seconds,
                    names.ATTRIBUTE_VALUE: value.name,
                },
            )
            for drift in watch.drifts()
            for value in drift.values
            if value.index is not None
        ]

    def shadow_quotes(_: CallbackOptions) -> Iterable[Observation]:
        if (tally := watch.shadow()) is None:
            return []
        version = {names.ATTRIBUTE_MODEL: tally.model_version}
        both = tally.quotes - tally.shadow_only_detections - tally.recorded_only_detections
        return [
            Observation(both, {**version, names.ATTRIBUTE_AGREEMENT: "agree"}),
            Observation(tally.shadow_only_detections, {**version, names.ATTRIBUTE_AGREEMENT: "shadow_only"}),
            Observation(tally.recorded_only_detections, {**version, names.ATTRIBUTE_AGREEMENT: "recorded_only"}),
        ]

    def shadow_difference(_: CallbackOptions) -> Iterable[Observation]:
        if (tally := watch.shadow()) is None or not tally.quotes:
            return []
        return [Observation(tally.mean_absolute_difference, {names.ATTRIBUTE_MODEL: tally.model_version})]

    def canary_quotes(_: CallbackOptions) -> Iterable[Observation]:
        if (tally := watch.canary()) is None:
            return []
        return [Observation(tally.quotes, {names.ATTRIBUTE_MODEL: tally.model_version})]

    meter = metrics.get_meter("tapewatch")
    meter.create_observable_gauge(names.MODEL_STABILITY_INDEX, [stability], unit="1")
    meter.create_observable_gauge(names.SHADOW_DIFFERENCE, [shadow_difference], unit="1")
    meter.create_observable_counter(names.SHADOW_QUOTES, [shadow_quotes], unit="{quote}")
    meter.create_observable_counter(names.CANARY_MODEL_QUOTES, [canary_quotes], unit="{quote}")
