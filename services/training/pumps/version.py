"""A kept model of the labelled pumps: `<folder>/<version>/{metadata.json,pumps.tflite}`.

The scorer does not serve it: its columns are not the scorer's features, and the registry refuses its metadata.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.domain.errors import ModelUnusableError
from services.domain.model import METADATA_FILE
from services.domain.quote import format_time

MODEL_FILE = "pumps.tflite"


@dataclass(frozen=True, slots=True)
class Column:
    """One input with its formula, and its 5th percentile, median and 95th percentile on chunks away from pumps."""

    name: str
    formula: str
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PumpMetadata:
    """What is known of one version.

    The file takes rows of `columns`, float32, and gives the log-odds of an onset in the chunk and of a pump under way,
    for `onset_threshold` (best F1) and `alert_threshold` (the alert budget); `onset_parts` and `alert_parts` are the
    parts they are means of. `course_seconds` is `protocol.onset_score`'s.
    `feed` is the `models.Feed` that its columns need.
    `recordings` is the SHA-256 of the recordings, `training_fingerprint` that of them, code and settings;
    `metrics` are of inner folds.
    """

    version: str
    columns: tuple[Column, ...]
    chunk_seconds: int
    history_seconds: int
    feed: str
    onset_parts: tuple[str, ...]
    alert_parts: tuple[str, ...]
    onset_threshold: float
    alert_threshold: float
    course_seconds: int
    training_fingerprint: str
    recordings: str
    trained_on: str
    trained_by: str
    train_time: datetime
    metrics: Mapping[str, float]
    checksums: Mapping[str, str]

    def to_json(self) -> str:
        """The metadata file's text."""
        return json.dumps(asdict(self) | {"train_time": format_time(self.train_time)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PumpMetadata":
        """The metadata in a file's text. Raises: ValueError with what is wrong with it, in words."""
        try:
            document: dict[str, Any] = json.loads(text)
            return cls(
                **document
                | {
                    "columns": tuple(Column(**column) for column in document["columns"]),
                    "onset_parts": tuple(document["onset_parts"]),
                    "alert_parts": tuple(document["alert_parts"]),
                    "train_time": datetime.fromisoformat(document["train_time"]).astimezone(UTC),
                }
            )
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error}") from error
        except KeyError as error:
            raise ValueError(f"lacks {error.args[0]!r}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"is not a pump model's: {error}") from error


def read(folder: Path) -> tuple[PumpMetadata, bytes]:
    """A version and its file. Raises: ModelUnusableError when it is damaged, or not whole."""
    try:
        metadata = PumpMetadata.from_json((folder / METADATA_FILE).read_text(encoding="utf-8"))
        content = (folder / MODEL_FILE).read_bytes()
    except (OSError, ValueError) as error:
        raise ModelUnusableError(str(folder), str(error)) from error
    if hashlib.sha256(content).hexdigest() != metadata.checksums.get(MODEL_FILE):
        raise ModelUnusableError(str(folder / MODEL_FILE), "is damaged: its SHA-256 is not the one in the metadata")
    return metadata, content
