"""The two networks in Keras, and their export to TFLite. TensorFlow is imported on use only."""

import contextlib
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.domain.errors import NotConfiguredError
from services.domain.feature_definitions import FEATURE_NAMES
from services.training.checkpoint import Checkpoint

Matrix = NDArray[np.float32]
Progress = Callable[[int, dict[str, float]], None]
"""Called after each epoch with its number and its losses."""

_MAX_STANDARD = 8.0


def tensorflow() -> Any:
    """The TensorFlow module, quiet. Raises: NotConfiguredError when it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError:
        raise NotConfiguredError("training needs TensorFlow", "install it with pip install -e '.[train]'") from None
    if not tf.config.threading.get_intra_op_parallelism_threads():
        with contextlib.suppress(RuntimeError):  # somebody else has started it: then it has their threads
            # Members are fitted beside each other, a core each: faster than two cores in turn on each.
            tf.config.threading.set_intra_op_parallelism_threads(1)
    return tf


@dataclass(frozen=True, slots=True)
class Standard:
    """How features enter a network: sign(x) ln(1 + |x|), then (. - mean) x scale, within +-8. Each (F,).

    A feature that never varies in training has scale 0: it says nothing, and a live value of it changes nothing.
    """

    mean: Matrix
    scale: Matrix


def standardise(normal: Matrix) -> Standard:
    """The standard of normal rows, float32 (n, F)."""
    compressed = np.sign(normal) * np.log1p(np.abs(normal))
    spread = compressed.std(axis=0, dtype=np.float64)
    scale = np.where(spread > 1e-6, 1.0 / np.maximum(spread, 1e-6), 0.0)
    return Standard(compressed.mean(axis=0, dtype=np.float64).astype(np.float32), scale.astype(np.float32))


def _entry(standard: Standard) -> tuple[Any, Any]:
    """The raw input and its standardised tensor."""
    keras = tensorflow().keras
    ops = keras.ops
    raw = keras.Input((len(standard.mean),), dtype="float32", name="features")
    # ops.log1p is no TFLite builtin; log(1 + x) is.
    compressed = ops.sign(raw) * ops.log(ops.abs(raw) + 1.0)
    scaled = ops.clip((compressed - standard.mean) * standard.scale, -_MAX_STANDARD, _MAX_STANDARD)
    return raw, scaled


def _watch(progress: Progress) -> Any:
    keras = tensorflow().keras
    return keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: progress(epoch, dict(logs or {})))


def train_autoencoder(
    normal: Matrix,
    standard: Standard,
    *,
    seed: int,
    epochs: int,
    bottleneck: int,
    progress: Progress,
    checkpoint: Checkpoint,
) -> Any:
    """A Keras model from raw features to their mean squared reconstruction error, (n, F) to (n, 1)."""
    keras = tensorflow().keras
    ops = keras.ops
    keras.backend.clear_session()  # else layer names count on, and equal models make different files
    keras.utils.set_random_seed(seed)
    raw, scaled = _entry(standard)
    hidden = keras.layers.Dense(32, activation="relu")(scaled)
    code = keras.layers.Dense(bottleneck, activation="tanh")(hidden)
    hidden = keras.layers.Dense(32, activation="relu")(code)
    restored = keras.layers.Dense(len(standard.mean))(hidden)
    # What the model leaves unexplained, feature by feature; constant features are 0 on both sides after training.
    informative = (standard.scale > 0).astype(np.float32)
    gap = (restored - scaled) * informative
    error = ops.sum(gap * gap, axis=1, keepdims=True) / float(max(informative.sum(), 1.0))
    model = keras.Model(raw, error, name="autoencoder")
    if checkpoint.restore(model.name, model.variables):
        return model
    model.compile(
        optimizer=keras.optimizers.Adam(_decay(2e-3, epochs, len(normal))),
        # Robust: normal rows hold a few real outliers, which are not to be learnt.
        loss=lambda _, e: ops.mean(ops.log(1.0 + e)),
    )
    model.fit(
        normal,
        np.zeros((len(normal), 1), np.float32),
        batch_size=_BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=[_watch(progress)],
    )
    checkpoint.save(model.name, model.variables)
    return model


_BATCH = 2_048


def _decay(rate: float, epochs: int, rows: int) -> Any:
    keras = tensorflow().keras
    return keras.optimizers.schedules.CosineDecay(rate, max(1, epochs * -(-rows // _BATCH)))


def train_classifiers(
    features: Matrix,
    manipulated: Matrix,
    kind: NDArray[np.int64],
    weights: Sequence[Matrix],
    standard: Standard,
    *,
    kinds: int,
    seed: int,
    epochs: int,
    progress: Progress,
    name: str,
    checkpoint: Checkpoint,
) -> list[Any]:
    """Keras models from raw features to (n, 1 + kinds): the probability, then each typology's share given one.

    They share nothing but the order of the rows, which each epoch draws anew, and are fitted beside each other.

    Args:
        features: float32 (n, F).
        manipulated: float32 (n,), 0 or 1.
        kind: int64 (n,), index of the typology, used where manipulated; -1 where it is not known.
        weights: How much each row counts for each of the models, float32 (n,) each; 0 for a row that it does not see.
        standard: How features enter.
        kinds: Number of typologies.
        seed: Of first weights and order.
        epochs: Passes over the rows.
        progress: Called after each epoch.
        name: Of the models, which are numbered.
        checkpoint: Where the state after each epoch is kept, and taken from when it is there.
    """
    keras = tensorflow().keras
    keras.backend.clear_session()  # else layer names count on, and equal models make different files
    keras.utils.set_random_seed(seed)
    raw, scaled = _entry(standard)
    heads = []
    for k in range(len(weights)):
        hidden = scaled
        for width in (256, 128, 64):
            # x sigmoid(x) (Ramachandran et al. 2017): better than ReLU where few alerts are allowed.
            hidden = keras.layers.Dense(width, activation="swish")(hidden)
            hidden = keras.layers.Dropout(0.1)(hidden)
        probability = keras.layers.Dense(1, activation="sigmoid", name=f"probability_{k}")(hidden)
        heads.append((probability, keras.layers.Dense(kinds, activation="softmax", name=f"typology_{k}")(hidden)))
    together = keras.Model(raw, [output for head in heads for output in head])
    _fit_classifiers(together, features, manipulated, kind, weights, seed, epochs, progress, name, checkpoint)
    return [keras.Model(raw, keras.ops.concatenate(head, axis=1), name=f"{name}_{k}") for k, head in enumerate(heads)]


def _fit_classifiers(
    together: Any,
    features: Matrix,
    manipulated: Matrix,
    kind: NDArray[np.int64],
    weights: Sequence[Matrix],
    seed: int,
    epochs: int,
    progress: Progress,
    name: str,
    checkpoint: Checkpoint,
) -> None:
    """Batch by batch: `fit` would hold two further copies of the features, and is no faster."""
    keras = tensorflow().keras
    together.compile(
        optimizer=keras.optimizers.AdamW(_decay(3e-3, epochs, len(features)), weight_decay=0.01),
        loss=["binary_crossentropy", "sparse_categorical_crossentropy"] * len(weights),
        loss_weights=[1.0, 0.3] * len(weights),
    )
    of_kind = manipulated * (kind >= 0)
    together.optimizer.build(together.trainable_variables)
    state = [*together.variables, *together.optimizer.variables]
    done = next((k for k in range(epochs, 0, -1) if checkpoint.restore(f"{name}_epoch_{k}", state)), 0)
    for epoch in range(done):
        progress(epoch, {})
    for epoch in range(done, epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(features))
        total = 0.0
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            losses = together.train_on_batch(
                features[batch],
                [manipulated[batch], np.maximum(kind[batch], 0)] * len(weights),
                sample_weight=[each for w in weights for each in (w[batch], w[batch] * of_kind[batch])],
                return_dict=True,
            )
            total += len(batch) * losses["loss"]
        progress(epoch, {"loss": total / (len(order) * len(weights))})
        checkpoint.save(f"{name}_epoch_{epoch + 1}", state)


def mean_of(members: Sequence[Any], name: str) -> Any:
    """One Keras model whose outputs are the mean of the members'; they share their inputs and differ in their names.

    Networks that differ in their first weights and in the order of the rows differ in their errors, too: their mean
    moves less from one training to the next than any of them (Lakshminarayanan et al. 2017).
    """
    keras = tensorflow().keras
    raw = keras.Input(members[0].input_shape[1:], dtype="float32", name="features")
    outputs = [member(raw) for member in members]
    mean = keras.layers.Average(name="mean")(outputs) if len(outputs) > 1 else outputs[0]
    return keras.Model(raw, mean, name=name)


def by_bar_length(models: Mapping[int, Any]) -> Any:
    """One Keras model that lets the model judge whose bars' length, in seconds, is nearest to the row's.

    Nearest by the ratio of the lengths, which the feature `bar_length` holds the logarithm of.
    """
    keras = tensorflow().keras
    lengths = sorted(models)
    first = models[lengths[0]]
    raw = keras.Input(first.input_shape[1:], dtype="float32", name="features")
    output = first(raw)
    column = FEATURE_NAMES.index("bar_length")
    for shorter, longer in pairwise(lengths):
        bound = 0.5 * (math.log(shorter / 60.0) + math.log(longer / 60.0))
        output = keras.ops.where(raw[:, column : column + 1] > bound, models[longer](raw), output)
    return keras.Model(raw, output, name="classifier")


def export(model: Any, *, quantised: bool = False) -> bytes:
    """The model as a TFLite file, float32, or with weights as int8 (dynamic range)."""
    tf = tensorflow()
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if quantised:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with contextlib.redirect_stdout(io.StringIO()):  # the converter prints its captures
        content: bytes = converter.convert()
    return content


def run_tflite(content: bytes, features: Matrix, batch: int = 4_096) -> NDArray[np.float64]:
    """A TFLite file's outputs, float64 (n, outputs): what is calibrated and measured is the shipped file itself."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    parts = []
    size = 0
    for start in range(0, len(features), batch):
        part = features[start : start + batch]
        if len(part) != size:
            size = len(part)
            interpreter.resize_tensor_input(source, [size, features.shape[1]])
            interpreter.allocate_tensors()
        interpreter.set_tensor(source, part)
        interpreter.invoke()
        parts.append(np.array(interpreter.get_tensor(target), dtype=np.float64))
    return np.concatenate(parts)
