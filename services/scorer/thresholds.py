"""A model at the threshold that `tapewatch calibrate` set for it."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.domain.errors import ModelUnusableError, NotConfiguredError, NotFoundError
from services.domain.model import Judgements, ModelMetadata
from services.domain.score import Reason
from services.domain.threshold import ThresholdCalibration, threshold_file
from services.scorer.ports import Model
from services.scorer.registry import ModelRegistry

_log = logging.getLogger(__name__)


class CalibratedModel:
    """A model whose metadata has a calibrated threshold; it judges as before."""

    def __init__(self, model: Model, calibration: ThresholdCalibration) -> None:
        self._model = model
        self.calibration = calibration
        self._metadata = replace(model.metadata, threshold=calibration.threshold)

    @property
    def metadata(self) -> ModelMetadata:
        """The model's, with the calibrated threshold."""
        return self._metadata

    @property
    def partial(self) -> bool:
        """Whether one of its two halves is missing."""
        return self._model.partial

    def judge(self, features: NDArray[np.float32]) -> Judgements:
        """The judgement of each row."""
        return self._model.judge(features)

    def explain(self, features: NDArray[np.float32]) -> list[tuple[Reason, ...]]:
        """What moved each row's score most."""
        return self._model.explain(features)


def calibration_of(model: Model) -> ThresholdCalibration | None:
    """Where the model's threshold comes from; None when it is the one that training set."""
    return model.calibration if isinstance(model, CalibratedModel) else None


def _read(path: Path, version: str) -> ThresholdCalibration | None:
    """The file's calibration; None when there is no such file.

    Raises: ModelUnusableError when it is damaged, or another version's.
    """
    try:
        calibration = ThresholdCalibration.from_json(path.read_text(encoding="utf-8"))
        if calibration.model_version != version:
            raise ValueError(f"is for model {calibration.model_version}, whose scores are on another scale")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ModelUnusableError(str(path), f"{error}; run tapewatch calibrate again, or remove the file") from error
    return calibration


class ModelLoader:
    """Loads versions from a registry, each at its calibrated threshold.

    `threshold_dir` is where `threshold-<version>.json` is looked up; None means the registry's folder.
    """

    def __init__(self, registry: ModelRegistry, threshold_dir: Path | None = None) -> None:
        self.registry = registry
        self._threshold_dir = threshold_dir or registry.folder

    def load(self, version: str = "") -> Model:
        """A version ready to judge; empty means the newest that can.

        Raises: NotFoundError, ModelUnusableError, also for a damaged threshold file.
        """
        model = self.registry.load(version)
        version = model.metadata.version
        path = self._threshold_dir / threshold_file(version)
        calibration = _read(path, version)
        if calibration is None:
            return model
        _log.info("model %s judges at threshold %.6g from %s", version, calibration.threshold, path)
        return CalibratedModel(model, calibration)

    def load_configured(self, version: str, setting: str) -> Model:
        """`load` of the version that environment variable `setting` names.

        Raises: NotConfiguredError when there is no such version; ModelUnusableError.
        """
        try:
            return self.load(version)
        except NotFoundError as error:
            there = ", ".join(self.registry.names()) or "none"
            raise NotConfiguredError(
                f"model version {version!r} is not in {self.registry.folder}, where there is {there}",
                f"set {setting} to a version that is there, or to nothing for the newest",
            ) from error
