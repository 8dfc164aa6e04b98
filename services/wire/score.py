"""Scores and reasons: protos to domain values and back."""

from services.domain.score import Quality, Reason, Score
from services.domain.typology import Typology
from services.wire.time import timestamp_from_proto, timestamp_to_proto
from tapewatch.scorer.v1 import score_pb2 as pb


def reason_to_proto(reason: Reason) -> pb.Reason:
    """The reason as its proto."""
    return pb.Reason(
        feature=reason.feature,
        value=reason.value,
        usual_low=reason.usual_low,
        usual_high=reason.usual_high,
        contribution=reason.contribution,
        text=reason.text,
    )


def reason_from_proto(message: pb.Reason) -> Reason:
    """The reason."""
    return Reason(
        feature=message.feature,
        value=message.value,
        usual_low=message.usual_low,
        usual_high=message.usual_high,
        contribution=message.contribution,
        text=message.text,
    )


def score_to_proto(score: Score) -> pb.Score:
    """The score as its proto."""
    return pb.Score(
        quote_id=score.quote_id,
        ensemble=score.ensemble,
        autoencoder_percentile=score.autoencoder_percentile,
        classifier_probability=score.classifier_probability,
        threshold=score.threshold,
        detection=score.detection,
        typology=score.typology.value,  # type: ignore[arg-type]
        typology_confidence=score.typology_confidence,
        reasons=[reason_to_proto(reason) for reason in score.reasons],
        quality=[quality.value for quality in score.quality],  # type: ignore[misc]
        model_version=score.model_version,
        feature_hash=score.feature_hash,
        score_time=timestamp_to_proto(score.score_time),
        history_quotes=score.history_quotes,
    )


def score_from_proto(message: pb.Score) -> Score:
    """The score.

    Raises: ValueError for a typology or a quality that this version does not know.
    """
    return Score(
        quote_id=message.quote_id,
        ensemble=message.ensemble,
        threshold=message.threshold,
        detection=message.detection,
        model_version=message.model_version,
        feature_hash=message.feature_hash,
        score_time=timestamp_from_proto(message.score_time),
        autoencoder_percentile=message.autoencoder_percentile if message.HasField("autoencoder_percentile") else None,
        classifier_probability=message.classifier_probability if message.HasField("classifier_probability") else None,
        typology=Typology(message.typology),
        typology_confidence=message.typology_confidence,
        reasons=tuple(reason_from_proto(reason) for reason in message.reasons),
        quality=tuple(Quality(quality) for quality in message.quality),
        history_quotes=message.history_quotes,
    )
