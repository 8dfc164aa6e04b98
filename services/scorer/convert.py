"""Model metadata to protos, and checks of the scorer's requests."""

from collections.abc import Sequence
from typing import Any

from services.domain.errors import FieldViolation, InvalidRequestError
from services.domain.model import ModelMetadata
from services.wire.time import timestamp_to_proto
from tapewatch.scorer.v1 import model_service_pb2 as pb

QUOTES_LIMIT = 1_000


def check_count(field: str, items: Sequence[Any], most: int = QUOTES_LIMIT, least: int = 1) -> None:
    """Raises: InvalidRequestError unless the field has `least` to `most` items."""
    if not least <= len(items) <= most:
        raise InvalidRequestError([FieldViolation(field, f"has {len(items)} items; {least} to {most:,} are allowed")])


def model_to_proto(metadata: ModelMetadata, serving: bool) -> pb.Model:
    """The model as its proto."""
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
        serving=serving,
        features=[
            pb.Feature(
                name=f.name,
                description=f.description,
                usual_median=f.median,
                usual_low=f.low,
                usual_high=f.high,
            )
            for f in metadata.features
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
    )
