"""The model port on LiteRT: an autoencoder and a classifier as TFLite files."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.domain import reasons
from services.domain.errors import ModelUnusableError
from services.domain.feature_definitions import FEATURE_NAMES
from services.domain.model import Judgements, ModelMetadata, logistic
from services.domain.score import Reason
from services.domain.typology import Typology

_BAR_LENGTH = FEATURE_NAMES.index("bar_length")

BUCKETS = (1, 8, 32, 128, 512)
"""Batch sizes that interpreters are kept for: a batch is padded to the next one, because a resize costs 66-300 µs."""


def _interpreter_class(path: str) -> Callable[..., Any]:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter  # type: ignore[import-not-found, no-redef, unused-ignore]
        except ImportError:
            raise ModelUnusableError(
                path, "no TFLite runtime can be imported here: pip install ai-edge-litert (or tflite-runtime)"
            ) from None
    interpreter: Callable[..., Any] = Interpreter
    return interpreter


class _Network:
    """One TFLite file, run from any thread.

    Interpreters are kept by thread and bucket: two threads on one interpreter give silently wrong scores.
    """

    def __init__(self, path: str, content: bytes, inputs: int, outputs: int) -> None:
        self._path = path
        self._content = content
        self._inputs = inputs
        self._create = _interpreter_class(path)
        self._local = threading.local()
        probe = self._interpreter(1)[0]
        given = int(probe.get_input_details()[0]["shape"][-1])
        if given != inputs:
            raise ModelUnusableError(path, f"takes {given} features where the metadata names {inputs}")
        made = int(probe.get_output_details()[0]["shape"][-1])
        if made != outputs:
            raise ModelUnusableError(path, f"gives {made} outputs where {outputs} are expected")

    def _interpreter(self, bucket: int) -> tuple[Any, int, int]:
        kept: dict[int, tuple[Any, int, int]] | None = getattr(self._local, "kept", None)
        if kept is None:
            kept = self._local.kept = {}
        if bucket not in kept:
            try:
                interpreter = self._create(model_content=self._content, num_threads=1)
                source = interpreter.get_input_details()[0]
                if len(source["shape"]) == 2:
                    interpreter.resize_tensor_input(source["index"], [bucket, int(source["shape"][-1])])
                interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise ModelUnusableError(self._path, f"is not a usable TFLite model: {error}") from error
            kept[bucket] = (interpreter, source["index"], interpreter.get_output_details()[0]["index"])
        return kept[bucket]

    def run(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """The outputs, float64 (n, outputs), of feature rows, float32 (n, inputs)."""
        parts = []
        largest = BUCKETS[-1]
        for start in range(0, len(features), largest):
            part = features[start : start + largest]
            bucket = next(b for b in BUCKETS if b >= len(part))
            padded = np.zeros((bucket, self._inputs), dtype=np.float32)
            padded[: len(part)] = part
            interpreter, source, target = self._interpreter(bucket)
            interpreter.set_tensor(source, padded)
            interpreter.invoke()
            parts.append(np.array(interpreter.get_tensor(target)[: len(part)], dtype=np.float64))
        return np.concatenate(parts)


class LiteRTModel:
    """A model version on LiteRT. Safe to call from several threads at once."""

    def __init__(self, path: str, metadata: ModelMetadata, autoencoder: bytes | None, classifier: bytes | None) -> None:
        """Loads the networks.

        Args:
            path: Where they come from, for error messages.
            metadata: The version's metadata.
            autoencoder: TFLite file: feature rows in, reconstruction error (n, 1) out. None when it is missing.
            classifier: TFLite file: feature rows in, (n, 1 + typologies) out: the probability of a manipulation, then
                each typology's probability given one. None when it is missing.

        Raises:
            ModelUnusableError: Both are missing, a file is no TFLite model of that shape, or no runtime is installed.
        """
        if autoencoder is None and classifier is None:
            raise ModelUnusableError(path, "holds neither an autoencoder nor a classifier")
        inputs = len(metadata.features)
        self._metadata = metadata
        self._autoencoder = None if autoencoder is None else _Network(path, autoencoder, inputs, 1)
        self._classifier = (
            None if classifier is None else _Network(path, classifier, inputs, 1 + len(metadata.typologies))
        )
        self._typologies = np.array([int(t) for t in metadata.typologies], dtype=np.int64)

    @property
    def metadata(self) -> ModelMetadata:
        """What is known of it."""
        return self._metadata

    @property
    def partial(self) -> bool:
        """Whether one of its two halves is missing, so that the other judges alone."""
        return self._autoencoder is None or self._classifier is None

    def judge(self, features: NDArray[np.float32]) -> Judgements:
        """The judgement of each row of features, float32 (n, F)."""
        n = len(features)
        calibration = self._metadata.calibration
        if n == 0:
            empty = np.empty(0)
            return Judgements(
                ensemble=empty,
                margin=empty,
                autoencoder_percentile=None if self._autoencoder is None else empty,
                classifier_probability=None if self._classifier is None else empty,
                typology=np.empty(0, dtype=np.int64),
                typology_confidence=empty,
            )
        percentile = probability = None
        typology = np.full(n, int(Typology.UNSPECIFIED), dtype=np.int64)
        confidence = np.zeros(n)
        if self._autoencoder is not None:
            percentile = calibration.percentile(self._autoencoder.run(features)[:, 0])
        if self._classifier is not None:
            outputs = self._classifier.run(features)
            probability = outputs[:, 0]
            best = np.argmax(outputs[:, 1:], axis=1)
            typology = self._typologies[best]
            confidence = outputs[np.arange(n), 1 + best]
        margin = calibration.margin(percentile, probability, features[:, _BAR_LENGTH].astype(np.float64))
        return Judgements(
            ensemble=logistic(margin),
            margin=margin,
            autoencoder_percentile=percentile,
            classifier_probability=probability,
            typology=typology,
            typology_confidence=confidence,
        )

    def explain(self, features: NDArray[np.float32]) -> list[tuple[Reason, ...]]:
        """What moved each row's score most, strongest first: one to three reasons a row."""
        found: list[tuple[Reason, ...]] = [()] * len(features)
        nearest = self._metadata.nearest(features[:, _BAR_LENGTH].astype(np.float64))
        for place in np.unique(nearest).tolist():
            rows = np.flatnonzero(nearest == place)
            usual = self._metadata.usual[place].features
            said = reasons.explain(features[rows], lambda tried: self.judge(tried).margin, usual)
            for row, words in zip(rows.tolist(), said, strict=True):
                found[row] = words
        return found
