"""Model metadata and blocks: domain values and protos."""

from collections.abc import Sequence

import numpy as np

from services.domain.features import FEATURE_HASH
from services.domain.model import Array, ModelMetadata
from services.domain.threshold import ThresholdCalibration
from services.scorer.blocks import COLUMNS, OPTIONAL_COLUMNS, Block, ScoredBlock
from services.scorer.deployment import ModelRole
from services.scorer.deployment_watch import CanaryTally, Drift, ShadowTally
from services.wire.quote import series_from_proto
from services.wire.time import timestamp_to_proto
from tapewatch.scorer.v1 import block_pb2
from tapewatch.scorer.v1 import model_service_pb2 as pb


def block_from_proto(message: block_pb2.Block) -> Block:
    """The block. Raises: InvalidRequestError when it names no symbol."""

    def column(name: str) -> Array:
        values = getattr(message, name)
        return np.fromiter(values, dtype=np.float64, count=len(values))

    return Block(
        series=series_from_proto(message.series),
        times=np.fromiter(message.event_time_micros, dtype=np.int64, count=len(message.event_time_micros)),
        columns={
            name: column(name) for name in (*COLUMNS, *OPTIONAL_COLUMNS) if name in COLUMNS or getattr(message, name)
        },
    )


def scored_block_to_proto(scored: ScoredBlock) -> block_pb2.ScoredBlock:
    """The judgements as their proto."""
    found = scored.found

    def values(array: Array | None) -> list[float]:
        return [] if array is None else array.tolist()

    return block_pb2.ScoredBlock(
        model_version=scored.model.metadata.version,
        feature_hash=FEATURE_HASH,
        threshold=scored.model.metadata.threshold,
        ensemble=values(found.ensemble),
        autoencoder_percentile=values(found.autoencoder_percentile),
        classifier_probability=values(found.classifier_probability),
        detection=scored.detection.tolist(),
        typology=scored.typology.tolist(),
        typology_confidence=values(scored.typology_confidence),
        history_quotes=scored.history.tolist(),
        unadjusted=scored.unadjusted.tolist(),
    )


def model_to_proto(
    metadata: ModelMetadata, roles: Sequence[ModelRole] = (), calibration: ThresholdCalibration | None = None
) -> pb.Model:
    """The model as its proto, with what it does in this scorer and where its threshold comes from."""
    seen = [
        pb.TypologyCoverage(
            name=typology.words,
            typology=typology.value,  # type: ignore[arg-type]
            observability=pb.OBSERVABILITY_OBSERVABLE,
        )
        for typology in metadata.typologies
    ]
    unseen = [
        pb.TypologyCoverage(name=name, observability=pb.OBSERVABILITY_NOT_OBSERVABLE)
        for name in metadata.not_observable
    ]
    return pb.Model(
        version=metadata.version,
        serving=ModelRole.SERVING in roles,
        roles=[role.value for role in roles],  # type: ignore[misc]
        features=[
            pb.Feature(
                name=f.name,
                description=f.description,
                usual_median=f.median,
                usual_low=f.low,
                usual_high=f.high,
                usual=[
                    pb.UsualRange(
                        interval_seconds=bars.interval_seconds,
                        median=bars.features[i].median,
                        low=bars.features[i].low,
                        high=bars.features[i].high,
                    )
                    for bars in metadata.usual
                ],
            )
            for i, f in enumerate(metadata.features)
        ],
        feature_hash=metadata.feature_hash,
        window_quotes=metadata.window_quotes,
        threshold=metadata.threshold,
        autoencoder_weight=metadata.autoencoder_weight,
        typologies=seen + unseen,
        training_fingerprint=metadata.training_fingerprint,
        metrics=dict(metadata.metrics),
        train_time=timestamp_to_proto(metadata.train_time),
        checksums=dict(metadata.checksums),
        threshold_calibration=None if calibration is None else _calibration_to_proto(calibration),
    )


def _calibration_to_proto(calibration: ThresholdCalibration) -> pb.ThresholdCalibration:
    return pb.ThresholdCalibration(
        threshold=calibration.threshold,
        trained_threshold=calibration.trained_threshold,
        budget=calibration.budget,
        budget_unit=calibration.budget_unit,
        expected_alerts=calibration.expected_alerts,
        source=calibration.source,
        tape=calibration.tape,
        quotes=calibration.quotes,
        symbol_days=calibration.symbol_days,
        create_time=timestamp_to_proto(calibration.create_time),
    )


def shadow_to_proto(tally: ShadowTally | None) -> pb.ShadowReport | None:
    """The shadow's report; None without a shadow."""
    if tally is None:
        return None
    return pb.ShadowReport(
        model_version=tally.model_version,
        start_time=timestamp_to_proto(tally.start_time),
        quotes=tally.quotes,
        mean_absolute_difference=tally.mean_absolute_difference,
        largest_difference=tally.largest_difference,
        both_detections=tally.both_detections,
        shadow_only_detections=tally.shadow_only_detections,
        recorded_only_detections=tally.recorded_only_detections,
        detection_difference_share=tally.detection_difference_share,
        failed_batches=tally.failed_batches,
    )


def canary_to_proto(tally: CanaryTally | None) -> pb.CanaryReport | None:
    """The canary's report; None without a canary."""
    if tally is None:
        return None
    return pb.CanaryReport(
        model_version=tally.model_version,
        weight=tally.weight,
        start_time=timestamp_to_proto(tally.start_time),
        quotes=tally.quotes,
        detections=tally.detections,
        serving_quotes=tally.serving_quotes,
        serving_detections=tally.serving_detections,
    )


def drift_to_proto(drift: Drift) -> pb.Drift:
    """One kind of tape's drift."""
    return pb.Drift(
        tape=drift.tape,
        interval_seconds=drift.interval_seconds,
        quotes=drift.quotes,
        values=[pb.PopulationStability(name=v.name, index=v.index, bins=v.bins, absent=v.absent) for v in drift.values],
    )
