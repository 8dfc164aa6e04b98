"""What the scorer needs of a model."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.domain.model import Judgements, ModelMetadata
from services.domain.score import Reason


class Model(Protocol):
    """Judges feature rows. Safe to call from several threads at once."""

    @property
    def metadata(self) -> ModelMetadata:
        """What is known of it."""
        ...

    @property
    def partial(self) -> bool:
        """Whether one of its two halves is missing, so that the other judges alone."""
        ...

    def judge(self, features: NDArray[np.float32]) -> Judgements:
        """The judgement of each row.

        Args:
            features: float32 (n, len(metadata.features)), as `services.domain.features.compute` makes them.
        """
        ...

    def explain(self, features: NDArray[np.float32]) -> list[tuple[Reason, ...]]:
        """What moved each row's score most, strongest first: one to three reasons a row.

        Args:
            features: float32 (m, len(metadata.features)). Costs some hundred judgements a row: meant for detections.
        """
        ...
