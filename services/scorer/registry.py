"""The folder of model versions: `<folder>/<version>/{metadata.json,autoencoder.tflite,classifier.tflite}`."""

import logging
from dataclasses import dataclass
from pathlib import Path

from services.archive import version_folder
from services.domain.errors import ModelUnusableError, NotFoundError
from services.domain.model import ModelMetadata
from services.scorer.litert import LiteRTModel

PACKAGED_MODELS = Path(__file__).parent / "models"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version in the registry. `problem` is why it cannot judge, empty when it can; without metadata there is one."""

    version: str
    metadata: ModelMetadata | None
    problem: str = ""


class ModelRegistry:
    """Reads versions. A damaged or mismatched one is refused with the reason, never served."""

    def __init__(self, folder: Path = PACKAGED_MODELS) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Every version, newest first; those with unreadable metadata come last."""
        return version_folder.names(self.folder)

    def versions(self) -> list[RegisteredVersion]:
        """Every version, in the order of `names`, each with whether it can judge."""
        return [self.version(name) for name in self.names()]

    def version(self, version: str) -> RegisteredVersion:
        """One version, with whether it can judge. Raises: NotFoundError when there is no such version."""
        problem, metadata = "", None
        try:
            metadata = self.metadata(version)
            self.load(version)
        except ModelUnusableError as error:
            problem = error.message
        return RegisteredVersion(version, metadata, problem)

    def metadata(self, version: str) -> ModelMetadata:
        """One version's metadata.

        Raises: NotFoundError when there is no such version; ModelUnusableError when its metadata is damaged.
        """
        return version_folder.read_metadata(self._find(version))

    def load(self, version: str = "") -> LiteRTModel:
        """A version ready to judge, its files checked against their checksums. Empty means the newest that can judge.

        One missing file leaves a partial model; a damaged one is refused.

        Raises: NotFoundError when there is no such version; ModelUnusableError when there is none at all, or it is
        damaged or was made for other features.
        """
        if not version:
            return self._newest()
        folder = self._find(version)
        files = version_folder.read(folder)
        return LiteRTModel(str(folder), files.metadata, files.autoencoder, files.classifier)

    def _newest(self) -> LiteRTModel:
        refused = []
        for name in self.names():
            try:
                return self.load(name)
            except ModelUnusableError as error:
                _log.warning("model version %s is passed over: %s", name, error.message)
                refused.append(error)
        if refused:
            raise refused[0]
        raise ModelUnusableError(str(self.folder), "holds no model: train one (tapewatch train --output DIR)")

    def _find(self, version: str) -> Path:
        # The name is looked up, not joined: a caller cannot leave the folder with it.
        if version not in version_folder.unordered_names(self.folder):
            raise NotFoundError("model", version)
        return self.folder / version
