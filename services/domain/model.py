"""A model's metadata, and how the outputs of its two halves become one calibrated score."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.domain.quote import format_time
from services.domain.typology import NOT_OBSERVABLE, Typology

Array = NDArray[np.float64]

AUTOENCODER_FILE = "autoencoder.tflite"
CLASSIFIER_FILE = "classifier.tflite"
METADATA_FILE = "metadata.json"
_PROBABILITY_FLOOR = 1e-6
_TAIL_POWER = 2.0


@dataclass(frozen=True, slots=True)
class FeatureUsual:
    """One input of the model with its 5th percentile, median and 95th percentile on normal bars."""

    name: str
    description: str
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class UsualBars:
    """What normal bars of one length are like: every feature's usual range, and where more is known, quantiles.

    `reference`, optional, has a value's evenly spaced quantiles on normal bars (k of them at shares i / (k + 1)) by
    feature name, and of the ensemble as "score": what drift is measured against.
    """

    interval_seconds: int
    features: tuple[FeatureUsual, ...]
    reference: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Logistic:
    """A logistic regression on two inputs; an unused one has weight 0.

    `offsets` are subtracted by bar length, one per knot of the calibration: they let one threshold keep one alert
    budget a symbol and day, though a day has one daily bar and hundreds of one-minute bars.
    """

    bias: float
    autoencoder: float
    classifier: float
    offsets: tuple[float, ...] = ()

    def log_odds(self, surprise: Array, logit: Array) -> Array:
        """The log-odds of a manipulation as fitted, float64 (n,), without offsets."""
        return self.bias + self.autoencoder * surprise + self.classifier * logit


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted on held-out bars: turns reconstruction errors and raw probabilities into one score in [0, 1].

    `error_knots` are reconstruction errors on normal bars, ascending, at the shares `percentile_knots`.
    `both`, `autoencoder_alone` and `classifier_alone` have offsets at the bar lengths `length_knots` (logarithms of
    minutes, ascending, flat outside), so that one threshold gives each the same alert budget.
    """

    error_knots: tuple[float, ...]
    percentile_knots: tuple[float, ...]
    length_knots: tuple[float, ...]
    both: Logistic
    autoencoder_alone: Logistic
    classifier_alone: Logistic

    def percentile(self, error: Array) -> Array:
        """Share of normal bars with a smaller reconstruction error, float64 (n,) in [0, 1).

        Beyond the largest knot the remaining share falls with the error's square: ever larger errors stay apart.
        """
        knots = np.array(self.error_knots)
        shares = np.array(self.percentile_knots)
        inside = np.interp(error, knots, shares)
        tail = 1.0 - (1.0 - shares[-1]) * (knots[-1] / np.maximum(error, knots[-1])) ** _TAIL_POWER
        share: Array = np.where(error > knots[-1], tail, inside)
        return share

    def margin(self, percentile: Array | None, probability: Array | None, bar_length: Array) -> Array:
        """The score's log-odds from what is there, float64 (n,); at least one of the first two must be.

        Args:
            percentile: float64 (n,), of the reconstruction error; None when the autoencoder is missing.
            probability: float64 (n,), the classifier's output; None when it is missing.
            bar_length: float64 (n,), the feature of that name: logarithm of minutes.
        """
        zero = np.zeros(1)
        surprised = zero if percentile is None else surprise(percentile)
        logit = zero if probability is None else log_odds(probability)
        if probability is None:
            fit = self.autoencoder_alone
        elif percentile is None:
            fit = self.classifier_alone
        else:
            fit = self.both
        margin: Array = fit.log_odds(surprised, logit) - np.interp(bar_length, self.length_knots, fit.offsets)
        return margin


def surprise(percentile: Array) -> Array:
    """How unusual an error is, in powers of ten: 3 is one normal bar in a thousand."""
    scale: Array = -np.log10(np.maximum(1.0 - percentile, 1e-9))
    return scale


def log_odds(probability: Array) -> Array:
    """ln(p / (1 - p)), with p kept 1e-6 away from 0 and 1."""
    bounded = np.clip(probability, _PROBABILITY_FLOOR, 1.0 - _PROBABILITY_FLOOR)
    odds: Array = np.log(bounded) - np.log1p(-bounded)
    return odds


def logistic(margin: Array) -> Array:
    """1 / (1 + exp(-margin)), without overflow."""
    score: Array = 0.5 * (1.0 + np.tanh(0.5 * margin))
    return score


@dataclass(frozen=True, slots=True)
class Judgements:
    """A model's judgement of n feature rows; every array is (n,).

    `ensemble` float64 in [0, 1], higher is more suspicious; `margin` its log-odds; `autoencoder_percentile` and
    `classifier_probability` float64 in [0, 1] or None when that half is missing; `typology` int64, values of Typology,
    what it would be if something is wrong, UNSPECIFIED without a classifier; `typology_confidence` float64 in [0, 1].
    """

    ensemble: Array
    margin: Array
    autoencoder_percentile: Array | None
    classifier_probability: Array | None
    typology: NDArray[np.int64]
    typology_confidence: Array

    def __len__(self) -> int:
        return len(self.ensemble)


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What is known of one model version. `checksums` are the SHA-256 of its files by name.

    `min_history_quotes` is the history below which a score is WARMING_UP. `trained_on` says in a sentence what data
    made it, `trained_by`, where known, which command did; `training_fingerprint` is the SHA-256 of that data, the code
    and the settings. `usual` is of each bar length that was learnt from, longest first, at least one.
    """

    version: str
    usual: tuple[UsualBars, ...]
    feature_hash: str
    window_quotes: int
    min_history_quotes: int
    threshold: float
    autoencoder_weight: float
    calibration: Calibration
    training_fingerprint: str
    trained_on: str
    train_time: datetime
    metrics: Mapping[str, float]
    checksums: Mapping[str, str]
    typologies: tuple[Typology, ...]
    not_observable: tuple[str, ...] = NOT_OBSERVABLE
    trained_by: str = ""

    @property
    def features(self) -> tuple[FeatureUsual, ...]:
        """The inputs in order, with their usual ranges on the longest bars."""
        return self.usual[0].features

    def nearest(self, bar_length: Array) -> NDArray[np.int64]:
        """For each bar length, logarithms of minutes (n,), the place in `usual` of the one that is nearest."""
        known = np.log([each.interval_seconds / 60.0 for each in self.usual])
        place: NDArray[np.int64] = np.abs(bar_length[:, None] - known).argmin(axis=1)
        return place

    def to_json(self) -> str:
        """The metadata file's text."""
        calibration = self.calibration
        document = {
            "version": self.version,
            "features": [
                {
                    "name": f.name,
                    "description": f.description,
                    "usual": {
                        str(each.interval_seconds): [
                            each.features[i].low,
                            each.features[i].median,
                            each.features[i].high,
                        ]
                        for each in self.usual
                    },
                }
                for i, f in enumerate(self.features)
            ],
            "feature_hash": self.feature_hash,
            "window_quotes": self.window_quotes,
            "min_history_quotes": self.min_history_quotes,
            "threshold": self.threshold,
            "autoencoder_weight": self.autoencoder_weight,
            "calibration": {
                "error_knots": list(calibration.error_knots),
                "percentile_knots": list(calibration.percentile_knots),
                "length_knots": list(calibration.length_knots),
                **{
                    name: [fit.bias, fit.autoencoder, fit.classifier, *fit.offsets]
                    for name, fit in (
                        ("both", calibration.both),
                        ("autoencoder_alone", calibration.autoencoder_alone),
                        ("classifier_alone", calibration.classifier_alone),
                    )
                },
            },
            "typologies": [t.name for t in self.typologies],
            "not_observable": list(self.not_observable),
            "training_fingerprint": self.training_fingerprint,
            "trained_on": self.trained_on,
            "train_time": format_time(self.train_time),
            "metrics": dict(sorted(self.metrics.items())),
            "checksums": dict(sorted(self.checksums.items())),
        }
        if self.trained_by:
            document["trained_by"] = self.trained_by
        document["reference"] = {
            str(each.interval_seconds): {name: list(quantiles) for name, quantiles in each.reference.items()}
            for each in self.usual
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelMetadata":
        """The metadata in a file's text. Raises: ValueError with what is wrong with it, in words."""
        try:
            document = json.loads(text)
            metadata = _metadata(document)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error}") from error
        except KeyError as error:
            raise ValueError(f"lacks {error.args[0]!r}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"holds a value of the wrong type: {error}") from error
        _validate(metadata)
        return metadata


def _metadata(document: Mapping[str, Any]) -> ModelMetadata:
    calibration = document["calibration"]
    return ModelMetadata(
        version=str(document["version"]),
        usual=tuple(_usual_bars(document, seconds) for seconds in document["reference"]),
        feature_hash=str(document["feature_hash"]),
        window_quotes=int(document["window_quotes"]),
        min_history_quotes=int(document["min_history_quotes"]),
        threshold=float(document["threshold"]),
        autoencoder_weight=float(document["autoencoder_weight"]),
        calibration=Calibration(
            error_knots=_numbers(calibration["error_knots"]),
            percentile_knots=_numbers(calibration["percentile_knots"]),
            length_knots=_numbers(calibration["length_knots"]),
            both=_logistic(calibration["both"]),
            autoencoder_alone=_logistic(calibration["autoencoder_alone"]),
            classifier_alone=_logistic(calibration["classifier_alone"]),
        ),
        training_fingerprint=str(document["training_fingerprint"]),
        trained_on=str(document["trained_on"]),
        train_time=datetime.fromisoformat(document["train_time"]).astimezone(UTC),
        metrics={str(name): float(value) for name, value in document["metrics"].items()},
        checksums={str(name): str(value) for name, value in document["checksums"].items()},
        typologies=tuple(Typology[name] for name in document["typologies"]),
        not_observable=tuple(str(name) for name in document["not_observable"]),
        trained_by=str(document.get("trained_by", "")),
    )


def _usual_bars(document: Mapping[str, Any], seconds: str) -> UsualBars:
    features = []
    for f in document["features"]:
        low, median, high = _numbers(f["usual"][seconds])
        features.append(FeatureUsual(str(f["name"]), str(f["description"]), median=median, low=low, high=high))
    reference = {str(name): _numbers(values) for name, values in document["reference"][seconds].items()}
    return UsualBars(int(seconds), tuple(features), reference)


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _logistic(values: Sequence[Any]) -> Logistic:
    bias, autoencoder, classifier, *offsets = _numbers(values)
    return Logistic(bias, autoencoder, classifier, tuple(offsets))


def _validate(metadata: ModelMetadata) -> None:
    calibration = metadata.calibration
    if not metadata.version:
        raise ValueError("has an empty version")
    if not 0.0 < metadata.threshold < 1.0:
        raise ValueError(f"has threshold {metadata.threshold}, which is not between 0 and 1")
    if not 0.0 <= metadata.autoencoder_weight <= 1.0:
        raise ValueError(f"has autoencoder_weight {metadata.autoencoder_weight}, which is not within 0 to 1")
    if not 0 < metadata.min_history_quotes < metadata.window_quotes:
        raise ValueError(
            f"has min_history_quotes {metadata.min_history_quotes}, which is not within its window of "
            f"{metadata.window_quotes}"
        )
    if len(calibration.error_knots) != len(calibration.percentile_knots) or len(calibration.error_knots) < 2:
        raise ValueError("has calibration knots that do not pair up")
    for name, knots in (
        ("error", calibration.error_knots),
        ("percentile", calibration.percentile_knots),
        ("length", calibration.length_knots),
    ):
        if any(not math.isfinite(knot) for knot in knots) or any(np.diff(knots) < 0):
            raise ValueError(f"has {name} knots that do not ascend")
    for fit in (calibration.both, calibration.autoencoder_alone, calibration.classifier_alone):
        if not fit.offsets or len(fit.offsets) != len(calibration.length_knots):
            raise ValueError("has calibration offsets that do not pair up with its length knots")
    if calibration.error_knots[-1] <= 0 or not 0.0 <= calibration.percentile_knots[-1] < 1.0:
        raise ValueError("has calibration knots out of range")
    if not metadata.usual:
        raise ValueError("has usual ranges of no bar length")
    for bars in metadata.usual:
        if bars.interval_seconds <= 0:
            raise ValueError(f"has usual ranges of bars of {bars.interval_seconds} s")
        for usual in bars.features:
            if not usual.low <= usual.median <= usual.high:
                raise ValueError(f"has a usual range of {usual.name} that does not ascend")
        for name, quantiles in bars.reference.items():
            if not quantiles or any(not math.isfinite(q) for q in quantiles) or any(np.diff(quantiles) < 0):
                raise ValueError(f"has reference quantiles of {name} that do not ascend")
