"""The folder of model versions: `<folder>/<version>/{metadata.json,autoencoder.tflite,classifier.tflite}`."""

import hashlib
from pathlib import Path

from services.domain.errors import ModelUnusableError, NotFoundError
from services.domain.feature_definitions import FEATURE_HASH, FEATURE_NAMES, WINDOW
from services.domain.model import AUTOENCODER_FILE, CLASSIFIER_FILE, METADATA_FILE, ModelMetadata
from services.scorer.litert import LiteRTModel

PACKAGED_MODELS = Path(__file__).parent / "models"


class ModelRegistry:
    """Reads versions. A damaged or mismatched one is refused with the reason, never served."""

    def __init__(self, folder: Path = PACKAGED_MODELS) -> None:
        self.folder = folder

    def versions(self) -> list[ModelMetadata]:
        """The metadata of every readable version, newest first.

        A version whose metadata is damaged is left out here; `load` says what is wrong with it.
        """
        found = []
        for name in self._names():
            try:
                found.append(self.metadata(name))
            except ModelUnusableError:
                continue
        return sorted(found, key=lambda m: (m.train_time, m.version), reverse=True)

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(path.parent.name for path in self.folder.glob(f"*/{METADATA_FILE}"))

    def metadata(self, version: str) -> ModelMetadata:
        """One version's metadata.

        Raises: NotFoundError when there is no such version; ModelUnusableError when its metadata is damaged.
        """
        # The name is looked up, not joined: a caller cannot leave the folder with it.
        if version not in self._names():
            raise NotFoundError("model", version)
        path = self.folder / version / METADATA_FILE
        try:
            metadata = ModelMetadata.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ModelUnusableError(str(path), str(error)) from error
        if metadata.version != version:
            raise ModelUnusableError(str(path), f"is of version {metadata.version!r}, not of its folder's")
        return metadata

    def load(self, version: str = "") -> LiteRTModel:
        """A version ready to judge, its files checked against their checksums. Empty means the newest.

        One missing file leaves a partial model; a damaged one is refused.

        Raises: NotFoundError when there is no such version; ModelUnusableError when there is none at all, or it is
        damaged or was made for other features.
        """
        if not version:
            names = self._names()
            if not names:
                raise ModelUnusableError(str(self.folder), "holds no model: train one (tapewatch train --output DIR)")
            newest = self.versions()
            if not newest:
                self.metadata(names[-1])  # raises with the reason
            version = newest[0].version
        metadata = self.metadata(version)
        folder = self.folder / version
        if metadata.feature_hash != FEATURE_HASH or metadata.window_quotes != WINDOW:
            raise ModelUnusableError(
                str(folder),
                f"was trained on other features (hash {metadata.feature_hash[:12]}, here {FEATURE_HASH[:12]}): "
                "train it again",
            )
        if tuple(f.name for f in metadata.features) != FEATURE_NAMES:
            raise ModelUnusableError(
                str(folder / METADATA_FILE), "names other features than its feature hash stands for"
            )
        autoencoder = _read(folder / AUTOENCODER_FILE, metadata)
        classifier = _read(folder / CLASSIFIER_FILE, metadata)
        return LiteRTModel(str(folder), metadata, autoencoder, classifier)


def _read(path: Path, metadata: ModelMetadata) -> bytes | None:
    """The file's bytes; None when there is no such file. Raises: ModelUnusableError when they are not the recorded."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelUnusableError(str(path), f"cannot be read: {error.strerror}") from error
    expected = metadata.checksums.get(path.name)
    if expected is None:
        raise ModelUnusableError(str(path), "has no checksum in the metadata")
    if hashlib.sha256(content).hexdigest() != expected:
        raise ModelUnusableError(str(path), "is damaged: its SHA-256 is not the one in the metadata")
    return content
