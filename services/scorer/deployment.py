"""Which models judge: the one that serves, and beside it a shadow and a canary."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from services.domain.errors import FieldViolation, InvalidRequestError
from services.domain.quote import Series
from services.scorer.ports import Model


class ModelRole(IntEnum):
    """What a version does in this scorer; the numbers are the proto's."""

    SERVING = 1
    SHADOW = 2
    CANARY = 3


def lot(series: Series) -> float:
    """A series' place in [0, 1), evenly spread and the same in every process: a canary of weight w has those below w.

    >>> lot(Series("live", "yahoo_finance", "AAPL", 60))
    0.6832826395040237
    """
    digest = hashlib.blake2b(series.key.encode(), digest_size=8, person=b"tw-canary").digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class Deployment:
    """The models of one moment. Immutable: a batch is judged by the deployment it began with.

    `canary_weight`: the share of the series that the canary judges, in (0, 1]; 0 without one.
    """

    serving: Model
    shadow: Model | None = None
    canary: Model | None = None
    canary_weight: float = 0.0

    def parts(self, series: Sequence[Series]) -> list[tuple[Model, NDArray[np.int64]]]:
        """Each model that judges for real, with the indices of the rows that are its own."""
        everything = np.arange(len(series))
        if self.canary is None:
            return [(self.serving, everything)]
        lots = {each: lot(each) for each in set(series)}
        chosen = np.array([lots[each] < self.canary_weight for each in series], dtype=bool)
        split = ((self.serving, everything[~chosen]), (self.canary, everything[chosen]))
        return [(model, rows) for model, rows in split if len(rows)]

    def roles(self, version: str) -> list[ModelRole]:
        """What a version does."""
        held = ((ModelRole.SERVING, self.serving), (ModelRole.SHADOW, self.shadow), (ModelRole.CANARY, self.canary))
        return [role for role, model in held if model is not None and model.metadata.version == version]

    def serve(self, model: Model) -> "Deployment":
        """The deployment with another serving model; a candidate of that version is none any more."""
        version = model.metadata.version
        after = replace(self, serving=model)
        return after.without(role for role in self.roles(version) if role is not ModelRole.SERVING)

    def with_shadow(self, model: Model) -> "Deployment":
        """The deployment with this shadow. Raises: InvalidRequestError when it is the serving version."""
        self._check_candidate(model)
        return replace(self, shadow=model)

    def with_canary(self, model: Model, weight: float) -> "Deployment":
        """The deployment with this canary. Raises: InvalidRequestError when it is the serving version."""
        check_weight("weight", weight)
        self._check_candidate(model)
        return replace(self, canary=model, canary_weight=weight)

    def without(self, roles: Iterable[ModelRole]) -> "Deployment":
        """The deployment without the candidates of these roles."""
        after = self
        for role in roles:
            if role is ModelRole.SHADOW:
                after = replace(after, shadow=None)
            elif role is ModelRole.CANARY:
                after = replace(after, canary=None, canary_weight=0.0)
        return after

    def _check_candidate(self, model: Model) -> None:
        version = model.metadata.version
        if version == self.serving.metadata.version:
            raise InvalidRequestError([FieldViolation("version", f"{version} is the one that serves")])


def check_weight(field: str, weight: float) -> None:
    """Raises: InvalidRequestError unless the weight is in (0, 1]."""
    if not 0.0 < weight <= 1.0:
        raise InvalidRequestError([FieldViolation(field, f"{weight:g} is not above 0 and at most 1")])
