"""Two small classifiers, fitted on made-up rows in seconds."""

from pathlib import Path
from typing import Any

import numpy as np

from services.training import networks
from services.training.checkpoint import Checkpoint


def rows(n: int) -> networks.Matrix:
    """Made-up feature rows, float32 (n, 6)."""
    return np.random.default_rng(1).normal(size=(n, 6)).astype(np.float32)


def members(
    features: networks.Matrix,
    *,
    epochs: int,
    name: str = "member",
    folder: Path | None = None,
    progress: networks.Progress = lambda _, __: None,
) -> list[Any]:
    """Two Keras models that learn from rows whose first column says what is manipulated, the second of which kind.

    `folder` is where their state after each epoch is kept; None keeps nothing.
    """
    return networks.train_classifiers(
        features,
        (features[:, 0] > 1.0).astype(np.float32),
        (features[:, 1] > 0).astype(np.int64),
        [np.ones(len(features), np.float32)] * 2,
        networks.standardise(features),
        kinds=2,
        seed=1,
        epochs=epochs,
        progress=progress,
        name=name,
        checkpoint=Checkpoint(folder),
    )
