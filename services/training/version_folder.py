"""A model version's folder: written whole or not at all, read whole or not at all."""

import tempfile
from pathlib import Path
from typing import Protocol

from services.domain.errors import ModelUnusableError
from services.domain.model import AUTOENCODER_FILE, CLASSIFIER_FILE, METADATA_FILE, ModelMetadata


def read(folder: Path) -> tuple[ModelMetadata, bytes, bytes]:
    """A version: metadata, autoencoder, classifier. Raises: ModelUnusableError when the folder holds no whole one."""
    try:
        metadata = ModelMetadata.from_json((folder / METADATA_FILE).read_text(encoding="utf-8"))
        return metadata, (folder / AUTOENCODER_FILE).read_bytes(), (folder / CLASSIFIER_FILE).read_bytes()
    except (OSError, ValueError) as error:
        raise ModelUnusableError(str(folder), str(error)) from error


class Metadata(Protocol):
    """What describes a version."""

    @property
    def version(self) -> str:
        """Its name."""

    def to_json(self) -> str:
        """Its metadata file's text."""


def write(output: Path, metadata: Metadata, files: dict[str, bytes]) -> Path:
    """Writes a version's folder whole or not at all; an equal version is replaced."""
    output.mkdir(parents=True, exist_ok=True)
    target = output / metadata.version
    with tempfile.TemporaryDirectory(dir=output, prefix=".new-") as scratch:
        made = Path(scratch) / metadata.version
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        (made / METADATA_FILE).write_text(metadata.to_json(), encoding="utf-8")
        if target.exists():
            target.rename(Path(scratch) / "old")
        made.rename(target)
    return target
