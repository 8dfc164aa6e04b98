"""A model version's folder, `<version>/{metadata.json,…}`: what is read is checked, what is written is there whole."""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.domain.errors import ModelUnusableError, NotConfiguredError
from services.domain.feature_definitions import FEATURE_HASH, FEATURE_NAMES, WINDOW
from services.domain.model import AUTOENCODER_FILE, CLASSIFIER_FILE, METADATA_FILE, ModelMetadata
from services.runtime.durable_file import replacing


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """A version's metadata and its TFLite files; None for a half that is missing."""

    metadata: ModelMetadata
    autoencoder: bytes | None
    classifier: bytes | None


def names(output: Path) -> list[str]:
    """The folders of versions in a folder of them, newest first; those with unreadable metadata come last."""

    def age(name: str) -> tuple[float, str]:
        try:
            return read_metadata(output / name).train_time.timestamp(), name
        except ModelUnusableError:
            return float("-inf"), name

    return sorted(unordered_names(output), key=age, reverse=True)


def unordered_names(output: Path) -> set[str]:
    """The folders of versions in a folder of them, without a look into them; none where there is no such folder."""
    return {path.parent.name for path in output.glob(f"*/{METADATA_FILE}")} if output.is_dir() else set()


def read_metadata(folder: Path) -> ModelMetadata:
    """A version's metadata. Raises: ModelUnusableError when it is damaged, or that of another version."""
    path = folder / METADATA_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnusableError(str(path), str(error)) from error
    try:
        metadata = ModelMetadata.from_json(text)
    except ValueError as error:
        if (made_for := _feature_hash(text)) and made_for != FEATURE_HASH:  # its form may be another, too
            raise _other_features(folder, made_for) from error
        raise ModelUnusableError(str(path), str(error)) from error
    if metadata.version != folder.absolute().name:
        raise ModelUnusableError(str(path), f"is of version {metadata.version!r}, not of its folder's")
    return metadata


def _feature_hash(text: str) -> str:
    try:
        return str(json.loads(text)["feature_hash"])
    except (ValueError, KeyError, TypeError):
        return ""


def _other_features(folder: Path, made_for: str) -> ModelUnusableError:
    why = f"was trained on other features (hash {made_for[:12]}, here {FEATURE_HASH[:12]}): train it again"
    return ModelUnusableError(str(folder), why)


def read(folder: Path) -> VersionFiles:
    """A version. Raises: ModelUnusableError when it is damaged, or was made for other features than this code's."""
    metadata = read_metadata(folder)
    if metadata.feature_hash != FEATURE_HASH or metadata.window_quotes != WINDOW:
        raise _other_features(folder, metadata.feature_hash)
    if tuple(f.name for f in metadata.features) != FEATURE_NAMES:
        raise ModelUnusableError(str(folder / METADATA_FILE), "names other features than its feature hash stands for")
    autoencoder, classifier = (_checked(folder / name, metadata) for name in (AUTOENCODER_FILE, CLASSIFIER_FILE))
    return VersionFiles(metadata, autoencoder, classifier)


def _checked(path: Path, metadata: ModelMetadata) -> bytes | None:
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


class Metadata(Protocol):
    """What describes a version."""

    @property
    def version(self) -> str:
        """Its name."""

    def to_json(self) -> str:
        """Its metadata file's text."""


def write(output: Path, metadata: Metadata, files: dict[str, bytes]) -> Path:
    """Writes a version's folder whole or not at all. Whenever it is killed, a whole one that was there still is.

    Of the same files only the metadata is replaced; a damaged version is replaced as a whole.

    Raises: NotConfiguredError when the version is there, whole, with other files.
    """
    output.mkdir(parents=True, exist_ok=True)
    target = output / metadata.version
    with tempfile.TemporaryDirectory(dir=output, prefix=".new-") as scratch:
        if target.exists():
            if all(_holds(target / name, content) for name, content in files.items()):
                with replacing(target / METADATA_FILE) as file:
                    file.write(metadata.to_json().encode())
                return target
            if _whole(target):
                raise NotConfiguredError(
                    f"{target} holds other files under this version's name", "use another folder, or move it away"
                )
            target.rename(Path(scratch) / "damaged")
        made = Path(scratch) / metadata.version
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        (made / METADATA_FILE).write_text(metadata.to_json(), encoding="utf-8")
        made.rename(target)
    return target


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _whole(folder: Path) -> bool:
    """Whether every file that the folder's metadata names is there with its checksum."""
    try:
        checksums = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))["checksums"]
        return all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha for name, sha in checksums.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
